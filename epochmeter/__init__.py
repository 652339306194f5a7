"""The name to import Epochmeter by. It hands on the names of `profiler`, which stands beside it.

The rule it keeps: a ``profiler.py`` of the user's, in the folder of the script, is not taken for ours.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec

TYPE_CHECKING = False


def _own_profiler() -> object:
    """Return our package `profiler`, loaded from beside this one, even if another module of that name comes first on the path.

    Raises:
        ImportError: another module of that name is loaded already.
    """
    beside = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    loaded = sys.modules.get("profiler")
    if loaded is None:
        spec = PathFinder.find_spec("profiler", [beside])
        if spec is None or spec.loader is None:
            raise ImportError(f"the package profiler is missing beside {__name__}: pip install --force-reinstall epochmeter")
        loaded = sys.modules["profiler"] = module_from_spec(spec)
        spec.loader.exec_module(loaded)
    elif not hasattr(loaded, "STARTED_IN"):
        there = getattr(loaded, "__file__", None) or "another module"
        raise ImportError(f"{there} is loaded as 'profiler', which is a name of Epochmeter's, too: rename that file")
    return loaded


_profiler = _own_profiler()
if TYPE_CHECKING:
    from profiler import *  # noqa: F403
    from profiler import __all__, __version__
else:
    __all__, __version__ = _profiler.__all__, _profiler.__version__


def __getattr__(name: str) -> object:
    return getattr(_profiler, name)


def __dir__() -> list[str]:
    return __all__
