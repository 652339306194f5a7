"""Epochmeter: see per epoch where training, validation and inference time went, and what held the run back.

The public names are loaded when they are first used: ``import profiler`` loads nothing but this file.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.errors import (
        ArgumentTypeError,
        ArgumentValueError,
        ProbeUnavailableError,
        ProfilerError,
        RunLogError,
        RunNotFoundError,
        SettingsError,
    )
    from profiler.preferences import settings
    from profiler.session import Profiler
    from profiler.summary import RunSummary
    from profiler.telemetry import Telemetry
    from profiler.timing import Phase, Stage

__version__ = "0.1.0"

_HOMES = {
    "ArgumentTypeError": "errors",
    "ArgumentValueError": "errors",
    "Phase": "timing",
    "ProbeUnavailableError": "errors",
    "Profiler": "session",
    "ProfilerError": "errors",
    "RunLogError": "errors",
    "RunNotFoundError": "errors",
    "RunSummary": "summary",
    "SettingsError": "errors",
    "Stage": "timing",
    "Telemetry": "telemetry",
    "settings": "preferences",
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
    if name not in _HOMES:
        raise AttributeError(f"module 'profiler' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"profiler.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
