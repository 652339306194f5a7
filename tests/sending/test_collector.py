"""The demo against a real OpenTelemetry collector: what it hands on is the run's own summary, value by value."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from support.collector import collector_with, to_otlp
from support.package_author import OUTSIDE, WITHOUT_SENTRY, choose, counted, metrics
from support.processes import python, wait_for
from support.sinks import Sink

pytest.importorskip("rotel", reason="the collector's package has no build for this system")
pytestmark = pytest.mark.slow

TRAIN = """
import json
from profiler import Profiler
from profiler.session.demo import prepare, train
setup = prepare()
with Profiler("demo", exporter="otlp", interval=0.05) as prof:
    train(setup, 2, prof)
print(json.dumps(prof.summary.to_dict()))
"""


@pytest.fixture
def collector(sink: Sink, tmp_path: Path) -> Iterator[dict[str, str]]:
    """Run a collector that hands all data to the sink; return its addresses by protocol."""
    with collector_with(tmp_path, *to_otlp(sink.url)) as (http, grpc):
        yield {"http/protobuf": f"http://127.0.0.1:{http}", "grpc": f"http://127.0.0.1:{grpc}"}


def attributes(holder: Any) -> dict[str, Any]:
    return {entry.key: getattr(entry.value, entry.value.WhichOneof("value")) for entry in holder.attributes}


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_collector_forwards_the_numbers_of_the_summary(collector: dict[str, str], sink: Sink, protocol: str) -> None:
    for needed in ("sklearn", "torch", *(["grpc"] if protocol == "grpc" else [])):
        pytest.importorskip(needed)
    where = {"EPOCHMETER_OTLP_ENDPOINT": collector[protocol], "EPOCHMETER_OTLP_PROTOCOL": protocol}
    answer = python("-c", TRAIN, **where, timeout=120)
    assert (answer.code, len(answer.err.splitlines())) == (0, 1)
    summary = json.loads(answer.out)
    wait_for(lambda: sink.received)
    request = ExportMetricsServiceRequest.FromString(sink.received[-1].content)
    (resource_metrics,) = request.resource_metrics
    resource = attributes(resource_metrics.resource)
    assert resource["service.name"] == "epochmeter"
    assert resource["service.instance.id"] == summary["run"]["id"]
    assert resource["process.runtime.version"] == summary["hardware"]["runtime"]["python"]
    assert resource["epochmeter.runtime.torch"] == summary["hardware"]["runtime"]["torch"]
    metrics = {metric.name: metric for scope in resource_metrics.scope_metrics for metric in scope.metrics}

    compare_totals(metrics, summary)
    compare_phases(metrics, summary)
    compare_readings(metrics, summary)
    assert metrics["epochmeter.epoch.count"].sum.data_points[0].as_int == 2
    assert metrics["epochmeter.run.duration"].gauge.data_points[0].as_double == summary["run"]["duration_s"]
    assert b"/" not in resource["service.name"].encode() and "demo" not in str(request)


def test_a_benchmark_arrives_as_its_report_says(collector: dict[str, str], sink: Sink) -> None:
    pytest.importorskip("torch")
    where = {"EPOCHMETER_EXPORTER": "otlp", "EPOCHMETER_OTLP_ENDPOINT": collector["http/protobuf"]}
    answer = python("-m", "profiler.cli", "bench", "launch", "memory", "--quick", "--json", "-", **where, timeout=120)
    assert answer.code == 0, answer.err
    told = {case["name"]: case for case in json.loads(answer.out)["bench"]["cases"]}
    wait_for(lambda: sink.received)
    request = ExportMetricsServiceRequest.FromString(sink.received[-1].content)
    metrics = {m.name: m for scope in request.resource_metrics[0].scope_metrics for m in scope.metrics}
    times = {attributes(p)["epochmeter.bench.name"]: p.as_double for p in metrics["epochmeter.bench.time"].gauge.data_points}
    assert times == {name: pytest.approx(case["time_s"]["median"], rel=0.005) for name, case in told.items()}
    (rate,) = metrics["epochmeter.bench.byte_rate"].gauge.data_points
    assert rate.as_double == pytest.approx(told["memory"]["bytes_per_s"], rel=0.005)
    assert "MiB" not in str(request)  # nor any other shape


CRASHING = """
from profiler import Telemetry
telemetry = Telemetry("digits", "1.2.3", features=("export",), commands={"fit": ("epochs",)})
for _ in range(25):
    telemetry.feature("export")
telemetry.command("fit", ["epochs"])
try:
    with telemetry.guard():
        raise ZeroDivisionError("secret")
except ZeroDivisionError:
    telemetry.close()
"""


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_what_a_package_counts_and_its_crash_arrive(collector: dict[str, str], sink: Sink, home: Path, protocol: str) -> None:
    if protocol == "grpc":
        pytest.importorskip("grpc")
    choose(home, exporter="otlp", otlp_endpoint=collector[protocol], otlp_protocol=protocol, crash_reports=True)
    answer = python("-c", WITHOUT_SENTRY + CRASHING, **OUTSIDE)
    assert (answer.code, answer.out) == (0, ""), answer.err
    wait_for(lambda: {received.path for received in sink.received} == {"/v1/metrics", "/v1/logs"})
    (summary,) = metrics(sink)
    assert counted(summary) == {("features", "export"): 25, ("commands", "fit"): 1, ("options", "fit", "epochs"): 1}
    (log,) = [received for received in sink.received if received.path == "/v1/logs"]
    (resource,) = ExportLogsServiceRequest.FromString(log.content).resource_logs
    assert attributes(resource.resource)["epochmeter.app.name"] == "digits"
    (record,) = resource.scope_logs[0].log_records
    assert attributes(record) == {"exception.type": "ZeroDivisionError", "exception.stacktrace": "other"}
    assert b"secret" not in log.content


def compare_totals(metrics: dict[str, Any], summary: dict[str, Any]) -> None:
    for name, key in (("time", "duration_s"), ("steps", "steps"), ("samples", "samples")):
        points = {attributes(p)["epochmeter.stage"]: p for p in metrics[f"epochmeter.stage.{name}"].sum.data_points}
        assert set(points) == set(summary["stages"]) == {"train", "val", "inference"}
        for stage, point in points.items():
            assert getattr(point, point.WhichOneof("value")) == summary["stages"][stage][key]


def compare_phases(metrics: dict[str, Any], summary: dict[str, Any]) -> None:
    found: dict[tuple[str, str], list[Any]] = {}
    for point in metrics["epochmeter.phase.duration"].exponential_histogram.data_points:
        at = attributes(point)
        assert at["epochmeter.phase.level"] == "top"
        found.setdefault((at["epochmeter.stage"], at["epochmeter.phase"]), []).append((at["epochmeter.cold"], point))
    expected = {(s, p) for s, stage in summary["stages"].items() for p in stage["phases"] if p != "other"}
    assert set(found) == expected
    for (stage, phase), points in found.items():
        told = summary["stages"][stage]["phases"][phase]
        assert sum(p.count for _, p in points) == told["count"]
        assert sum(p.sum for _, p in points) == pytest.approx(told["total_s"], rel=1e-12)
        assert max(p.max for _, p in points) == told["max_s"]
        (cold,) = [p for is_cold, p in points if is_cold]
        assert (cold.count, cold.sum) == (told["cold"]["count"], told["cold"]["total_s"])
        for is_cold, point in points:
            assert sum(point.positive.bucket_counts) + point.zero_count == point.count
            if not is_cold:
                assert percentile(point, 0.5) == pytest.approx(told["p50_s"])
                assert percentile(point, 0.99) == pytest.approx(told["p99_s"])


def percentile(point: Any, share: float) -> float:
    """From the buckets as OpenTelemetry defines them, independently of our own code."""
    rank, seen = max(1, -(-round(share * point.count * 1e9) // 10**9)), 0
    for step, count in enumerate(point.positive.bucket_counts):
        seen += count
        if seen >= rank:
            middle = 2.0 ** ((point.positive.offset + step + 0.5) / 2.0**point.scale)
            return min(max(middle, point.min), point.max)
    raise AssertionError("fewer measurements in the buckets than counted")


def compare_readings(metrics: dict[str, Any], summary: dict[str, Any]) -> None:
    told = {reading["metric"]: reading["last"] for reading in summary["readings"] if not reading["attributes"]}
    for local in ("epochmeter.process.cpu.utilization", "epochmeter.gc.time"):  # stay on this machine
        del told[local]
    assert {"system.cpu.utilization", "process.memory.usage"} <= set(told)
    for name in told:
        data = metrics[name].gauge if metrics[name].HasField("gauge") else metrics[name].sum
        (point,) = data.data_points
        assert getattr(point, point.WhichOneof("value")) == pytest.approx(told[name], rel=0.005)  # three digits go out
