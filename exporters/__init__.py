"""Sends measurements, through a gate that asks for consent and copies only what a reviewed list names.

This half knows nothing of the profiler: it takes OpenTelemetry ``MetricsData`` and hands on what may go. A new
exporter is a file and a row in `TARGETS`. Importing this package imports no exporter and opens no socket.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from exporters.config import Config, ExporterError, Record, Release

if TYPE_CHECKING:
    from exporters.gate import GatedExporter

__all__ = ["PROTOCOLS", "TARGETS", "Config", "ExporterError", "build", "check_target", "why_not"]

TARGETS = {"otlp": "exporters.otlp:build"}
PROTOCOLS = ("http/protobuf",)


def why_not(target: str, protocol: str = PROTOCOLS[0]) -> str:
    """What this version lacks to send there, in words; empty where it lacks nothing."""
    if target not in TARGETS:
        return f"there is no exporter {target!r} in this version; there are: none, {', '.join(TARGETS)}"
    if protocol not in PROTOCOLS:
        return f"the OTLP protocol {protocol!r} is not in this version; there is: {', '.join(PROTOCOLS)}"
    return ""


def check_target(target: str, protocol: str = PROTOCOLS[0]) -> None:
    """Says whether there is such an exporter.

    Raises:
        ExporterError: there is not.
    """
    if lacking := why_not(target, protocol):
        raise ExporterError(lacking)


def build(config: Config, consent: Callable[[], bool], record: Record, exporter: Any = None) -> GatedExporter:
    """The exporter behind its gate. The exporter itself is made, and its library imported, once the gate opens.

    Args:
        config: which one, and where to.
        consent: asked at every export, before the data is looked at, again before it is handed on, and before each
            attempt to send.
        record: notes what is sent, before it is.
        exporter: a ready ``MetricExporter`` to use instead of a target.

    Raises:
        ExporterError: there is no such exporter.
    """
    from exporters.gate import GatedExporter, HandedOver

    if exporter is not None:
        return GatedExporter(lambda release: HandedOver(exporter, release), consent, record)
    check_target(config.target, config.protocol)
    module, _, function = TARGETS[config.target].partition(":")

    def make(release: Release) -> Any:
        return getattr(importlib.import_module(module), function)(config, release)

    return GatedExporter(make, consent, record, config.target)
