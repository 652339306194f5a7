"""Send measurements, through a gate that asks for consent and copies only the entries of a reviewed list.

This half knows nothing of the profiler. A new exporter is a file and a row in `TARGETS`. Importing this package imports no
exporter and opens no socket.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from exporters.config import Config, ExporterError, Record, Transport
from exporters.rules import Declared

if TYPE_CHECKING:
    from exporters.gate import Gate, GatedExporter

__all__ = [
    "TARGETS",
    "Config",
    "Declared",
    "ExporterError",
    "Target",
    "behind_gate",
    "form_of",
    "gate_for",
    "transport_to",
    "why_not",
]


class Target(NamedTuple):
    """A destination.

    Attributes:
        form: the module that makes and checks its bodies.
        modules: for each protocol, the module whose ``build`` makes its transport.
        needs: for each protocol, a module it needs and the extra that installs it.
    """

    form: str
    modules: dict[str, str]
    needs: dict[str, tuple[str, str]]


TARGETS = {
    "otlp": Target(
        "exporters.payload",
        {"http/protobuf": "exporters.otlp", "grpc": "exporters.otlp_grpc"},
        {"grpc": ("grpc", "grpc")},
    ),
    "ga": Target("exporters.ga_payload", {"ga4": "exporters.ga"}, {}),
    "prometheus": Target(
        "exporters.payload",
        {"prometheus": "exporters.prometheus"},  # a page, not a transport: it is fetched
        {"prometheus": ("opentelemetry.exporter.prometheus", "prometheus")},
    ),
    "otlp-logs": Target(  # crash reports to a collector
        "exporters.crash_log",
        {"http/protobuf": "exporters.otlp", "grpc": "exporters.otlp_grpc"},
        {"grpc": ("grpc", "grpc")},
    ),
    "sentry": Target("exporters.crash_payload", {"envelope": "exporters.sentry"}, {}),  # its library has made the bytes
}


def why_not(target: str, protocol: str) -> str:
    """Return the missing part of a destination in words, or "" if nothing is missing."""
    found = TARGETS.get(target)
    if found is None:
        return f"there is no exporter {target!r}; there are: none, {', '.join(TARGETS)}"
    if protocol not in found.modules:
        return f"exporter {target!r} has no protocol {protocol!r}; it has: {', '.join(found.modules)}"
    module, extra = found.needs.get(protocol, ("", ""))
    if module and not _is_installed(module):
        return f"{target} over {protocol} needs a package that is not installed: pip install 'epochmeter[{extra}]'"
    return ""


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def form_of(target: str) -> Any:
    """Return the module that makes, checks and prints a destination's bodies.

    Raises:
        ExporterError: there is no such destination.
    """
    if target not in TARGETS:
        raise ExporterError(why_not(target, ""))
    return importlib.import_module(TARGETS[target].form)


def gate_for(config: Config, consent: Callable[[], bool]) -> Gate:
    """Return the gate before this destination.

    Raises:
        ExporterError: there is no such destination, or a package it needs is not installed.
    """
    from exporters.gate import Gate

    if lacking := why_not(config.target, config.protocol):
        raise ExporterError(lacking)
    return Gate(consent, config.target, form_of(config.target), config.usage)


def transport_to(config: Config) -> Transport:
    """Return the transport to this destination."""
    module = importlib.import_module(TARGETS[config.target].modules[config.protocol])
    found: Transport = module.build(config)
    return found


def behind_gate(exporter: Any, consent: Callable[[], bool], record: Record, declared: Declared | None = None) -> GatedExporter:
    """Return a program's own ``MetricExporter`` behind the gate; it gets the data of a collector."""
    from exporters.gate import Gate, GatedExporter

    return GatedExporter(exporter, Gate(consent, "otlp", form_of("otlp")), consent, record, declared)
