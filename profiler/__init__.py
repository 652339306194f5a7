"""Epochmeter: see per epoch where training, validation and inference time went, and what held the run back.

The public names are loaded at their first use: ``import profiler`` loads only this file.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.config.view import settings
    from profiler.embedding.telemetry import Telemetry
    from profiler.errors import (
        ArgumentTypeError,
        ArgumentValueError,
        ProbeUnavailableError,
        ProfilerError,
        RunLogError,
        RunNotFoundError,
        SettingsError,
    )
    from profiler.records.vocabulary import Phase, Stage
    from profiler.report.summary import RunSummary
    from profiler.session.profiler import Profiler

__version__ = "0.1.0"


def _started_in() -> tuple[str, str]:
    """Return the working folder and the home folder of now, "" for one that there is not."""
    try:
        folder = os.getcwd()
    except OSError:  # it was removed
        folder = ""
    return folder, os.path.expanduser("~")


STARTED_IN = _started_in()  # a relative EPOCHMETER_HOME keeps its meaning when the program changes its folder

_HOMES = {
    "ArgumentTypeError": "errors",
    "ArgumentValueError": "errors",
    "Phase": "records.vocabulary",
    "ProbeUnavailableError": "errors",
    "Profiler": "session.profiler",
    "ProfilerError": "errors",
    "RunLogError": "errors",
    "RunNotFoundError": "errors",
    "RunSummary": "report.summary",
    "SettingsError": "errors",
    "Stage": "records.vocabulary",
    "Telemetry": "embedding.telemetry",
    "settings": "config.view",
}

__all__ = [
    "ArgumentTypeError",
    "ArgumentValueError",
    "Phase",
    "ProbeUnavailableError",
    "Profiler",
    "ProfilerError",
    "RunLogError",
    "RunNotFoundError",
    "RunSummary",
    "SettingsError",
    "Stage",
    "Telemetry",
    "__version__",
    "settings",
]


def __getattr__(name: str) -> object:
    import importlib

    if name == "fleet":
        return importlib.import_module("profiler.fleet")
    if name not in _HOMES:
        raise AttributeError(f"module 'profiler' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"profiler.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
