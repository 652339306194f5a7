"""What the tests of `Telemetry` share: a package, in its own process, outside of CI and tests, and its user's choices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from profiler.config.environment import NOT_FOR_HOSTS
from support.processes import Answer, at_terminal
from support.sinks import Received, Sink

OUTSIDE = {name.partition("=")[0]: "" for name in NOT_FOR_HOSTS}  # not in CI, and not in a test
HOST = """
import sys
from profiler import Telemetry
telemetry = Telemetry(
    "digits", "1.2.3", features=("export", "augment"), commands={"fit": ("epochs", "data"), "predict": ()},
    exporter="otlp", settings={"otlp_endpoint": sys.argv[1]}, crash_dsn=sys.argv[1].replace("://", "://key@") + "/42",
)
"""
WITHOUT_SENTRY = """
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "sentry_sdk" else find(name, *more)
"""
COUNT = """
for _ in range(10):
    telemetry.feature("export")
telemetry.feature("augment")
telemetry.command("fit", ("epochs",))
"""


def host(sink: Sink, work: str = COUNT, **environment: str) -> Answer:
    """Run the package once, as its user would, at a terminal."""
    return at_terminal("-c", HOST + work, sink.url, **{**OUTSIDE, **environment})


def choose(home: Path, **settings: Any) -> None:
    """Write the user's settings file."""
    home.mkdir(exist_ok=True)
    (home / "settings.json").write_text(json.dumps({"version": 2, **settings}))


FACT_ALONE = b"epochmeter.usage.summaries"


def metrics(sink: Sink) -> list[Received]:
    """Return the measurements that arrived, without the payloads that tell one fact alone."""
    return [received for received in sink.received if received.path == "/v1/metrics" and FACT_ALONE not in received.content]


def single_facts(sink: Sink) -> list[dict[str, Any]]:
    """Return the resource of each payload that tells one fact alone."""
    return [facts(received) for received in sink.received if FACT_ALONE in received.content]


def envelopes(sink: Sink) -> list[Received]:
    return [received for received in sink.received if received.path == "/api/42/envelope/"]


def counted(received: Received) -> dict[tuple[str, ...], int]:
    """Return the counts in a payload: (feature), (command) or (command, option) after the metric's last word."""
    request = ExportMetricsServiceRequest.FromString(received.content)
    found: dict[tuple[str, ...], int] = {}
    for metric in request.resource_metrics[0].scope_metrics[0].metrics:
        if metric.name.startswith("epochmeter.usage."):
            for point in metric.sum.data_points:
                names = [attribute.value.string_value for attribute in point.attributes]
                found[(metric.name.rpartition(".")[2], *names)] = point.as_int
    return found


def facts(received: Received) -> dict[str, Any]:
    """Return the resource of a payload."""
    (resource,) = ExportMetricsServiceRequest.FromString(received.content).resource_metrics
    return {
        attribute.key: getattr(attribute.value, attribute.value.WhichOneof("value"))
        for attribute in resource.resource.attributes
    }
