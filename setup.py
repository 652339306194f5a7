"""Build the compiled hot path, where there is a compiler. Everything else is said in pyproject.toml."""

import sys
import sysconfig

from setuptools import Extension, setup

# One build serves every CPython from 3.10 on. Where it cannot be made or used (no compiler, PyPy, free threads), the same
# classes in Python serve: profiler/measure/reference.py.
HAS_STABLE_ABI = sys.implementation.name == "cpython" and not sysconfig.get_config_var("Py_GIL_DISABLED")
COMPILED = Extension(
    "profiler.measure.compiled",
    ["profiler/measure/compiled.c"],
    libraries=[] if sys.platform == "win32" else ["m"],
    # One function replaces references of every type by way of PyObject *, as CPython's own macros do.
    extra_compile_args=[] if sys.platform == "win32" else ["-fno-strict-aliasing"],
    py_limited_api=True,
    optional=True,
)

setup(
    ext_modules=[COMPILED] if HAS_STABLE_ABI else [],
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if HAS_STABLE_ABI else {},
)
