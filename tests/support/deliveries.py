"""The epochs that a sink has received, and a program that ends with a delivery."""

from __future__ import annotations

from pathlib import Path

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from exporters.outbox import Outbox
from profiler.config.folder import Folder
from support.sinks import Sink

EXIT = """
import sys
from profiler import Profiler
from profiler.config.folder import Folder
with Profiler("x", exporter="otlp", settings={"otlp_endpoint": sys.argv[1]}) as prof:
    for _ in prof.epochs(2):
        list(prof.train(range(3)))
"""


def epochs_in(sink: Sink) -> dict[str, int]:
    """Each run's epochs, as a backend knows them: by the latest of its cumulative sums."""
    found: dict[str, tuple[int, int]] = {}
    for received in sink.received:
        for resource in ExportMetricsServiceRequest.FromString(received.content).resource_metrics:
            name = next(a.value.string_value for a in resource.resource.attributes if a.key == "service.instance.id")
            for metric in resource.scope_metrics[0].metrics:
                if metric.name == "epochmeter.epoch.count":
                    point = metric.sum.data_points[0]
                    found[name] = max(found.get(name, (0, 0)), (point.time_unix_nano, point.as_int))
    return {name: epochs for name, (_, epochs) in found.items()}


def box(home: Path) -> Outbox:
    return Outbox(Folder(home / "outbox"))
