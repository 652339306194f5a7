"""The last check: bytes that the list makes, and numbers that can be measurements. One bad point is left out alone."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

import exporters
from exporters import crash_log, crash_payload
from exporters.bounds import MAX_BUCKETS
from exporters.measurements import HistogramValue, Measured, Snapshot
from exporters.payload import encode, first_fault
from exporters.rebuild import rebuild
from exporters.rules import Declared, Version, coarse
from profiler import Profiler
from profiler.records.histogram import Histogram
from profiler.sending.snapshot import histogram_value
from support.exports import a_body, a_run, data
from support.sinks import Sink

Change = Callable[[Any], object]


@pytest.fixture(scope="module")
def body() -> bytes:
    return a_body()


def metric(request: Any, name: str) -> Any:
    (scope,) = request.resource_metrics[0].scope_metrics
    return next(metric for metric in scope.metrics if metric.name == name)


def histogram(request: Any) -> Any:
    return metric(request, "epochmeter.step.duration").exponential_histogram.data_points[0]


def gauge(request: Any, name: str = "process.cpu.utilization") -> Any:
    return metric(request, name).gauge.data_points[0]


def set_number(name: str, **value: float) -> Change:
    def change(request: Any) -> None:
        found = metric(request, name)
        points = (found.gauge if found.WhichOneof("data") == "gauge" else found.sum).data_points
        for key, number in value.items():
            setattr(points[0], key, number)

    return change


def set_in_histogram(**value: float) -> Change:
    def change(request: Any) -> None:
        for key, number in value.items():
            setattr(histogram(request), key, number)

    return change


CHANGES: dict[str, Change] = {
    "5,000 buckets": lambda m: histogram(m).positive.bucket_counts.extend([65] * 5000),
    "text as bucket counts": lambda m: histogram(m).positive.bucket_counts.extend(b"alice@host /home/alice"),
    "negative buckets filled": lambda m: histogram(m).negative.bucket_counts.extend(b"alice"),
    "scale 127": set_in_histogram(scale=127),
    "scale -11": set_in_histogram(scale=-11),
    "a count that is no sum of the buckets": set_in_histogram(count=2**63),
    "zero count": set_in_histogram(zero_count=1),
    "min 1e300": set_in_histogram(min=1e300),
    "max below min": set_in_histogram(max=0.0),
    "max outside its bucket": set_in_histogram(max=1e6),
    "sum NaN": set_in_histogram(sum=float("nan")),
    "sum above count x max": set_in_histogram(sum=1e9),
    "sum below count x min": set_in_histogram(sum=0.0),
    "time 0": set_in_histogram(time_unix_nano=0),
    "a text as a time": set_in_histogram(start_time_unix_nano=0x616C696365),
    "the same resource twice": lambda m: m.resource_metrics.add().CopyFrom(m.resource_metrics[0]),
    "the same scope twice": lambda m: (
        m.resource_metrics[0].scope_metrics.add().CopyFrom(m.resource_metrics[0].scope_metrics[0])
    ),
    "a metric twice": lambda m: (
        m.resource_metrics[0].scope_metrics[0].metrics.add().CopyFrom(metric(m, "epochmeter.run.duration"))
    ),
    "100 copies of a point": lambda m: [
        metric(m, "epochmeter.run.duration").gauge.data_points.add(as_double=n, time_unix_nano=1) for n in range(100)
    ],
    "a huge whole number": set_number("epochmeter.run.duration", as_int=2**62),
    "a negative count": set_number("epochmeter.epoch.count", as_int=-5),
    "a fraction of an epoch": set_number("epochmeter.epoch.count", as_double=1.5),
    "infinite": set_number("process.cpu.utilization", as_double=math.inf),
    "NaN": set_number("process.cpu.utilization", as_double=math.nan),
    "three digits of any size": set_number("process.cpu.utilization", as_double=123e30),
    "a negative share": set_number("process.cpu.utilization", as_double=-0.5),
    "a point without its attributes": lambda m: histogram(m).ClearField("attributes"),
    "a point without one attribute": lambda m: histogram(m).attributes.pop(),
    "attributes in another order": lambda m: histogram(m).attributes.extend(
        reversed([histogram(m).attributes.pop(0), *histogram(m).attributes])
    ),
    "no resource": lambda m: m.resource_metrics[0].ClearField("resource"),
    "no service.name": lambda m: m.resource_metrics[0].resource.attributes.pop(0),
    "another scope version": lambda m: setattr(m.resource_metrics[0].scope_metrics[0].scope, "version", "alice"),
    "nothing": lambda m: m.Clear(),
    "another order of metrics": lambda m: (
        m.resource_metrics[0].scope_metrics[0].metrics.extend([m.resource_metrics[0].scope_metrics[0].metrics.pop(0)])
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_check_lets_no_other_bytes_through(body: bytes, name: str) -> None:
    request = ExportMetricsServiceRequest.FromString(body)
    CHANGES[name](request)
    assert first_fault(body) is None
    assert request.SerializeToString() != body
    assert first_fault(request.SerializeToString()) is not None


def test_bytes_beside_the_message_are_found(body: bytes) -> None:
    for spoilt in (body + b"\x00", body + body, body + b"\xfa\x01\x05alice", b"", body[:-1]):
        assert first_fault(spoilt) is not None


@pytest.mark.parametrize("days", [-2, 400])
def test_times_are_within_the_last_year(days: int) -> None:
    run = a_run()
    run.started_unix_ns = time.time_ns() - days * 86_400 * 10**9
    assert "times" in str(first_fault(encode(rebuild(data(run)))))


def value(*seconds: float) -> HistogramValue:
    made = Histogram()
    made.add([round(s * 1e9) for s in seconds])
    return histogram_value(made)


GOOD = value(0.001, 0.02, 0.02, 1.5)


@pytest.mark.parametrize(
    "bad",
    [
        dataclasses.replace(GOOD, sum=99.0),
        dataclasses.replace(GOOD, count=5),
        dataclasses.replace(GOOD, counts=(*GOOD.counts, *[0] * MAX_BUCKETS)),
        dataclasses.replace(GOOD, maximum=math.inf),
        HistogramValue(0, 0.3, 0, 0, 0, (), 0.0, 0.0),  # a sum without a measurement, which OTLP forbids
    ],
)
def test_one_bad_point_is_left_out_alone(sink: Sink, bad: HistogramValue) -> None:
    at = {"epochmeter.stage": "train", "epochmeter.cold": False}
    run = a_run()
    rest = data(run)
    points = [Measured("epochmeter.step.duration", "histogram", bad, {**at, "epochmeter.cold": True}), *rest.points]
    points = [p for p in points if p.value is bad or dict(p.attributes) != {**at, "epochmeter.cold": True}]
    gate = exporters.gate_for(exporters.Config("otlp"), lambda: True)
    (made,) = gate.bodies(Snapshot(rest.facts, points, rest.began, rest.now))
    assert gate.reason == "1 points were left out of an export: their numbers are out of bounds"
    request = ExportMetricsServiceRequest.FromString(made)
    assert len(metric(request, "epochmeter.step.duration").exponential_histogram.data_points) == 1
    assert metric(request, "epochmeter.phase.duration").exponential_histogram.data_points
    (whole,) = gate.bodies(rest)
    assert (gate.reason, gate.dropped) == ("", 0) and whole != made


def test_what_real_loops_send_holds_together(sink: Sink) -> None:
    """The wait that ends a pass, an empty loader, a loader that is slow to end: no sum without its measurements."""

    def slow_to_end(count: int) -> Any:
        yield from range(count)
        time.sleep(0.03)

    with Profiler("x", exporter="otlp", settings={"otlp_endpoint": sink.url}) as prof:
        for _ in prof.epochs(2):
            for _ in prof.train(slow_to_end(10)):
                time.sleep(0.001)
            list(prof.validate(slow_to_end(0)))
    request = ExportMetricsServiceRequest.FromString(sink.received[-1].content)
    waits = metric(request, "epochmeter.phase.duration").exponential_histogram.data_points
    assert len(waits) >= 2
    for point in waits:
        assert point.count > 0 and point.min * point.count <= point.sum * (1 + 1e-9)
        assert point.sum <= point.max * point.count * (1 + 1e-9)
    for stage in prof.summary.stages.values():
        for phase in stage["phases"].values():
            assert "mean_s" not in phase or phase["mean_s"] <= phase["max_s"]
    assert "notes" not in prof.summary.to_dict() or not prof.summary.to_dict()["notes"]


def test_names_follow_the_conventions(sink: Sink) -> None:
    """A scope has its version, CPU utilization its mode, and no name holds a unit or a statistic."""
    with Profiler("x", exporter="otlp", settings={"otlp_endpoint": sink.url}, interval=0.02) as prof:
        for _ in prof.train(range(20)):
            time.sleep(0.005)
    request = ExportMetricsServiceRequest.FromString(sink.received[-1].content)
    (scope,) = request.resource_metrics[0].scope_metrics
    assert scope.scope.version == "0.1.0"
    points = metric(request, "process.cpu.utilization").gauge.data_points
    assert {attribute.value.string_value for point in points for attribute in point.attributes} == {"user", "system"}
    from exporters.allowlist import METRICS

    words = {word for entry in METRICS for word in entry.name.replace("_", ".").split(".")}
    assert not words & {"joules", "seconds", "bytes", "p50", "p99", "mean", "max", "min", "total"}


@pytest.mark.parametrize(
    ("version", "told"),
    [
        *[(version, version) for version in ("1.2.3", "2026.11.25", "0.1", "24", "2.0rc1", "1.0.post2", "1.0a1")],
        *[(version, "dev") for version in ("9999.9999.9999.9999rc999", "1.2.3.4", "1.2.3+abc", "1234.1", "1.2.3-alice", "v1")],
    ],
)
def test_version_is_of_the_published_form(version: str, told: str) -> None:
    assert coarse(Version(), version) == told


# ---- crash reports -------------------------------------------------------------------------------------------------

DECLARED = Declared("digits", ("pkg",))


def a_crash() -> dict[str, Any]:
    record = {"id": "ab" * 16, "time_unix_ns": time.time_ns(), "types": ["ValueError"], "frames": ["pkg:fit:+3"]}
    return crash_payload.rebuilt({**record, "facts": {"epochmeter.app.name": "digits", "os.type": "linux"}}, DECLARED)


def test_envelope_has_no_second_meaning() -> None:
    good = crash_payload.envelope(a_crash(), "https://key@sentry.example/42")
    assert crash_payload.first_fault(good, declared=DECLARED) is None
    header, item, content = good.rstrip(b"\n").split(b"\n")
    doubled = content.replace(b'{"event_id"', b'{"event_id":"alice","event_id"', 1)
    longer = json.dumps({**json.loads(item), "length": len(doubled)}, separators=(",", ":")).encode()
    spaced = b"\n".join((header.replace(b":", b": ", 1), item, content)) + b"\n"
    doubled_header = b"\n".join((b'{"dsn":"https://alice@secret.example/1",' + header[1:], item, content)) + b"\n"
    for spoilt in (b"\n".join((header, longer, doubled)) + b"\n", spaced, doubled_header, good + b"\n", good[:-1]):
        assert crash_payload.first_fault(spoilt, declared=DECLARED) is not None


def test_log_record_is_canonical_and_observed() -> None:
    good = crash_log.encode(a_crash())
    assert crash_log.first_fault(good, declared=DECLARED) is None
    request = ExportLogsServiceRequest.FromString(good)
    record = request.resource_logs[0].scope_logs[0].log_records[0]
    assert record.observed_time_unix_nano == record.time_unix_nano > 0
    for change in (
        lambda m: m.resource_logs.add().CopyFrom(m.resource_logs[0]),
        lambda m: setattr(m.resource_logs[0].scope_logs[0].log_records[0], "observed_time_unix_nano", 0x616C696365),
        lambda m: setattr(m.resource_logs[0].scope_logs[0].log_records[0], "time_unix_nano", 0x616C696365),
        lambda m: setattr(m.resource_logs[0].scope_logs[0].scope, "version", "alice"),
        lambda m: m.resource_logs[0].scope_logs[0].ClearField("log_records"),
    ):
        spoilt = ExportLogsServiceRequest.FromString(good)
        change(spoilt)
        assert crash_log.first_fault(spoilt.SerializeToString(), declared=DECLARED) is not None
