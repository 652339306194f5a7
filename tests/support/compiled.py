"""Builds of the compiled hot path for tests: with a sanitizer, for a debug build of Python."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2]


def source_with(folder: Path, *options: str, python: str = sys.executable) -> Path:
    """Copy the package, and build its hot path with these options of the compiler. Return the folder to put on the path."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not on this machine")
    ask = [python, "-c", "import sysconfig; print(sysconfig.get_path('include'))"]
    include = subprocess.check_output(ask, text=True).strip()
    if not Path(include, "Python.h").exists():
        pytest.skip("Python's headers are not on this machine")
    shutil.copytree(SOURCE / "profiler", folder / "profiler", ignore=shutil.ignore_patterns("*.so", "*.pyd", "__pycache__"))
    measure = folder / "profiler" / "measure"
    wanted = ["-O1", "-g", "-shared", "-fPIC", "-fno-strict-aliasing", *options, f"-I{include}"]
    subprocess.run(["gcc", *wanted, measure / "compiled.c", "-lm", "-o", measure / "compiled.abi3.so"], check=True)
    return folder


def worker_environment(folder: Path = SOURCE) -> dict[str, str]:
    """Return the path on which a Python without our dependencies finds the package, and what tests share."""
    return {"PYTHONPATH": os.pathsep.join((str(folder), str(SOURCE / "tests")))}


def debug_python() -> str | None:
    """Return a debug build of Python, or None."""
    return shutil.which("python3-dbg") or shutil.which(f"python3.{sys.version_info[1]}-dbg")
