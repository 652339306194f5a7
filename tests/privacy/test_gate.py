"""The gate and its list: rebuilt from the list, asked for consent each time, and nothing of the user's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.sdk.metrics.export import Metric, MetricExportResult, MetricsData

import exporters
from exporters import gate
from exporters.allowlist import GPU_MEMORY_CLASSES, GPU_MODELS, METRICS, PHASES, RESOURCE, STAGES
from exporters.gate import GatedExporter
from exporters.measurements import Measured, Outgoing, OutgoingMetric, Snapshot
from exporters.payload import encode, first_fault
from exporters.rebuild import rebuild
from exporters.rules import OTHER, Random, Words, coarse, significant, size_class
from exporters.sdk_data import metrics_data
from profiler import Phase, Profiler, Stage, __version__
from profiler.records.timing import Timing
from profiler.storage import points
from profiler.testing import RecordingExporter
from support.exports import SECRETS, a_run, answers, data
from support.metric_catalog import units
from support.processes import epochmeter


def words_in(outgoing: Outgoing | MetricsData) -> bytes:
    return bytes(encode_metrics(outgoing if isinstance(outgoing, MetricsData) else metrics_data(outgoing)).SerializeToString())


def metrics_of(outgoing: Outgoing | MetricsData) -> dict[str, Metric]:
    given = outgoing if isinstance(outgoing, MetricsData) else metrics_data(outgoing)
    return {m.name: m for rm in given.resource_metrics for sm in rm.scope_metrics for m in sm.metrics}


def unchanged(source: Snapshot) -> Outgoing:
    """Return the data before the gate: every metric under its own name, nothing left out."""
    points = [(point.name, point.kind, dict(point.attributes), point.value) for point in source.points]
    metrics = tuple(OutgoingMetric(name, "", "", kind, ((attributes, value),)) for name, kind, attributes, value in points)
    return Outgoing(dict(source.facts), metrics, source.began, source.now)


def test_nothing_of_the_users_own_goes_out() -> None:
    raw = words_in(unchanged(data(a_run())))
    assert b"secret-host" in raw  # the data before the gate has it: the test can fail
    out = words_in(rebuild(data(a_run())))
    assert not [secret for secret in SECRETS if secret.encode() in out]


def test_timings_go_out_exactly() -> None:
    run = a_run()
    stage = run.whole().stages["train"]
    out = metrics_of(rebuild(data(run)))
    (steps,) = out["epochmeter.stage.steps"].data.data_points
    (samples,) = out["epochmeter.stage.samples"].data.data_points
    assert (steps.value, samples.value) == (20, 80)
    points = {
        (p.attributes["epochmeter.phase"], p.attributes["epochmeter.phase.level"], p.attributes["epochmeter.cold"]): p
        for p in out["epochmeter.phase.duration"].data.data_points
    }
    forward = points["forward", "top", False]
    steady = stage.phases[("forward",)].steady
    assert (forward.count, forward.sum, forward.scale) == (19, steady.sum_ns / 1e9, steady.scale)
    assert list(forward.positive.bucket_counts) == steady.dense()[1]
    assert points["custom", "top", False].count == points["custom", "nested", False].count == 19
    assert points["loss", "nested", True].count == 1


def test_what_is_not_listed_has_no_way_out() -> None:
    source = data(a_run())
    extra = Measured("user.metric", "gauge", 5, {"note": "secret-metric"})
    disguised = Measured("process.cpu.utilization", "gauge", 5, {"user": "secret"})
    source.points.extend([extra, disguised])  # type: ignore[attr-defined]
    out = rebuild(source)
    assert "user.metric" not in metrics_of(out)
    assert b"secret" not in words_in(out)


@pytest.mark.parametrize(
    ("rule", "value", "told"),
    [
        (Words(("a", OTHER)), "a", "a"),
        (Words(("a", OTHER)), "b", OTHER),
        (Words(("a",)), "b", None),
        (Words((False, True)), 1, None),
        (Words((1, 2, 4), upward=True), 3, 4),
        (Words((1, 2, 4), upward=True), 1.5, 2),
        (Words((1, 2, 4), upward=True), 900, 4),
        (Words((*GPU_MODELS, OTHER), contained=True), "NVIDIA H100 80GB HBM3", "H100"),
        (Words((*GPU_MODELS, OTHER), contained=True), "NVIDIA GeForce RTX 4090", "RTX 4090"),
        (Words((*GPU_MODELS, OTHER), contained=True), "NVIDIA GH200 480GB", "GH200"),
        (Words((*GPU_MODELS, OTHER), contained=True), "NVIDIA L40S", "L40S"),
        (Words((*GPU_MODELS, OTHER), contained=True), "a new card", OTHER),
        (Random(4), "0af3", "0af3"),
        (Random(4), "0AF3", None),
        (Random(4), "me@home", None),
    ],
)
def test_coarsening(rule: Any, value: Any, told: Any) -> None:
    assert coarse(rule, value) == told


@pytest.mark.parametrize(
    ("value", "told"), [(123_456_789, 123_000_000), (0.123456, 0.123), (0, 0), (0.0, 0.0), (-1234.5, -1230.0), (7, 7)]
)
def test_three_significant_digits(value: float, told: float) -> None:
    assert significant(value, 3) == told
    assert type(significant(value, 3)) is type(value)


@pytest.mark.parametrize(("size", "gib"), [(81_559 * 2**20, 80), (24_564 * 2**20, 24), (143_771 * 2**20, 141), (1, 4)])
def test_sizes_are_told_in_classes(size: int, gib: int) -> None:
    assert size_class(size, GPU_MEMORY_CLASSES) == gib * 2**30


def gated(exporter: Any, consent: Callable[[], bool], noted: list[tuple[str, bytes]] | None = None) -> GatedExporter:
    """Return the gate before a program's own exporter, and the list of its notes."""

    def record(where: str, body: bytes) -> Callable[[str], None]:
        if noted is not None:
            noted.append((where, body))
        return lambda answer: None

    return exporters.behind_gate(exporter, consent, record)


@pytest.mark.parametrize("given", [(False,), (True, False)])
def test_consent_is_asked_twice(given: tuple[bool, ...]) -> None:
    inner, noted = RecordingExporter(), list[tuple[str, bytes]]()
    found = gated(inner, answers(*given), noted)
    assert found.export(data(a_run())) is False
    assert (inner.exports, noted, found.gate.refused, found.reason) == ([], [], 1, "")
    bodies = exporters.gate_for(exporters.Config("otlp"), answers(*given)).bodies(data(a_run()))
    assert bodies == []
    assert len(exporters.gate_for(exporters.Config("otlp"), answers(True, True)).bodies(data(a_run()))) == 1


def test_without_consent_data_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "rebuild", lambda *arguments: pytest.fail("looked at"))
    assert gated(RecordingExporter(), lambda: False).export(data(a_run())) is False


def test_consent_is_asked_at_every_export() -> None:
    inner = RecordingExporter()
    found = gated(inner, answers(True, True, False, True, True))
    results = [found.export(data(a_run())) for _ in range(3)]
    assert results == [True, False, True]
    assert len(inner.exports) == 2


def test_sync_off_stops_own_exporter() -> None:
    exporter = RecordingExporter()
    with Profiler("x", exporter=exporter, settings={"sync": False}) as prof:
        list(prof.train(range(3)))
    assert exporter.exports == []


def test_own_exporter_gets_listed_data() -> None:
    exporter = RecordingExporter()
    with Profiler("secret-run", exporter=exporter) as prof:
        list(prof.train(range(3)))
    assert "epochmeter.stage.steps" in metrics_of(exporter.exports[-1])
    assert b"secret-run" not in words_in(exporter.exports[-1])


def test_outgoing_bytes_are_noted_first() -> None:
    noted: list[tuple[str, bytes]] = []

    class Watching(RecordingExporter):
        def export(self, metrics_data: MetricsData, *arguments: Any, **more: Any) -> MetricExportResult:
            assert [body for _, body in noted] == [words_in(metrics_data)]
            return super().export(metrics_data)

    assert gated(Watching(), lambda: True, noted).export(data(a_run())) is True
    assert noted[0][0] == "an exporter of the program's own"


def test_what_cannot_be_noted_does_not_go() -> None:
    def record(where: str, body: bytes) -> Callable[[str], None]:
        raise OSError(30, "Read-only file system")

    inner = RecordingExporter()
    found = exporters.behind_gate(inner, lambda: True, record)
    assert found.export(data(a_run())) is False
    assert inner.exports == []
    assert found.reason == "nothing was sent, because no copy of it can be kept: Read-only file system"


def leaking(source: Snapshot, target: str = "otlp", declared: Any = None) -> Outgoing:
    return unchanged(source)


def test_the_final_bytes_are_checked_whatever_built_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "rebuild", leaking)
    exporter = RecordingExporter()
    with Profiler("secret-run", exporter=exporter) as prof:
        list(prof.train(range(3)))
    assert exporter.exports == []
    ((what, times),) = prof.summary.to_dict()["notes"].items()
    assert what.startswith("an export was dropped: ") and times == 1
    said = epochmeter("doctor", "--json").json["checks"]
    assert [check["detail"] for check in said if "an export was dropped" in check["detail"]]


def spoil_attribute(request: Any) -> None:
    request.resource_metrics[0].resource.attributes.add(key="host.name").value.string_value = "secret"


def spoil_value(request: Any) -> None:
    request.resource_metrics[0].resource.attributes[0].value.string_value = "secret"


def spoil_id(request: Any) -> None:
    found = [a for a in request.resource_metrics[0].resource.attributes if a.key == "service.instance.id"]
    found[0].value.string_value = "me@home"


def spoil_twice(request: Any) -> None:
    attributes = request.resource_metrics[0].resource.attributes
    attributes.add().CopyFrom(attributes[0])


def metric_named(request: Any, name: str) -> Any:
    return next(m for m in request.resource_metrics[0].scope_metrics[0].metrics if m.name == name)


def spoil_metric(request: Any) -> None:
    metric_named(request, "epochmeter.epoch.count").name = "secret"


def spoil_description(request: Any) -> None:
    metric_named(request, "epochmeter.epoch.count").description = "secret"


def spoil_unit(request: Any) -> None:
    metric_named(request, "epochmeter.epoch.count").unit = "secret"


def spoil_kind(request: Any) -> None:
    metric_named(request, "epochmeter.epoch.count").sum.is_monotonic = False


def spoil_temporality(request: Any) -> None:
    metric_named(request, "epochmeter.epoch.count").sum.aggregation_temporality = 1


def spoil_digits(request: Any) -> None:
    metric_named(request, "process.memory.usage").sum.data_points[0].as_int = 123_456_789


def spoil_point(request: Any) -> None:
    point = metric_named(request, "epochmeter.stage.steps").sum.data_points[0]
    point.attributes.add(key="user").value.string_value = "secret"


def spoil_word(request: Any) -> None:
    point = metric_named(request, "epochmeter.phase.duration").exponential_histogram.data_points[0]
    point.attributes[-1].value.string_value = "secret-phase"


def spoil_kind_of_value(request: Any) -> None:
    point = metric_named(request, "epochmeter.stage.steps").sum.data_points[0]
    point.attributes[0].value.array_value.values.add().string_value = "secret"


def spoil_exemplar(request: Any) -> None:
    point = metric_named(request, "epochmeter.phase.duration").exponential_histogram.data_points[0]
    point.exemplars.add(as_double=1.0).filtered_attributes.add(key="user").value.string_value = "secret"


def spoil_scope(request: Any) -> None:
    request.resource_metrics[0].scope_metrics[0].scope.version = "secret"


def spoil_scope_name(request: Any) -> None:
    request.resource_metrics[0].scope_metrics[0].scope.name = "secret"


def spoil_schema(request: Any) -> None:
    request.resource_metrics[0].schema_url = "https://secret"


SPOILERS = [value for name, value in list(globals().items()) if name.startswith("spoil_")]


@pytest.mark.parametrize("spoil", SPOILERS)
def test_check_finds_unlisted_parts(spoil: Callable[[Any], None]) -> None:
    body = encode(rebuild(data(a_run())))
    assert first_fault(body, "otlp") is None
    request = ExportMetricsServiceRequest.FromString(body)
    spoil(request)
    assert first_fault(request.SerializeToString(), "otlp") is not None


def test_the_check_finds_fields_that_nobody_knows() -> None:
    body = encode(rebuild(data(a_run())))
    assert first_fault(body + b"\xfa\x07\x06secret", "otlp") == "it has fields that OTLP does not know"
    assert first_fault(b"\xff\xff", "otlp") == "it is not an OTLP request"


def test_the_list_says_which_destination_gets_what() -> None:
    out = rebuild(data(a_run()), "elsewhere")
    assert not metrics_of(out)
    assert not out.facts
    assert "not on the list" in str(first_fault(encode(rebuild(data(a_run()))), "elsewhere"))


def test_same_run_gives_same_bytes() -> None:
    run = a_run()
    body = encode(rebuild(data(run)))
    for epoch in run.epochs:
        epoch.readings = dict(reversed(epoch.readings.items()))
        for stage in epoch.stages.values():
            stage.phases = dict(reversed(stage.phases.items()))
    assert encode(rebuild(data(run))) == body


def test_an_exporter_that_raises_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(RecordingExporter):
        def export(self, *arguments: Any, **more: Any) -> MetricExportResult:
            raise RuntimeError("broken")

    with Profiler("x", exporter=Broken()) as prof:
        list(prof.train(range(3)))
    assert prof.summary.to_dict()["notes"] == {"an export failed: RuntimeError": 1}


# ---- the list and the rest of the project --------------------------------------------------------------------------


def test_list_agrees_with_profiler_units_and_words() -> None:
    declared = units()
    assert {entry.name: declared[entry.name] for entry in METRICS} == {entry.name: entry.unit for entry in METRICS}
    assert set(PHASES) == {phase.value for phase in Phase} | {points.CUSTOM_PHASE}
    assert set(STAGES) == {stage.value for stage in Stage}
    (version,) = (entry.rule for entry in RESOURCE if entry.name == "service.version")
    assert isinstance(version, Words) and __version__ in version.values


def test_every_entry_has_its_purpose() -> None:
    names = [entry.name for entry in (*METRICS, *RESOURCE)]
    assert len(set(names)) == len(names)
    assert all(entry.purpose.endswith(".") for entry in (*METRICS, *RESOURCE))


def test_the_data_is_opentelemetrys_own() -> None:
    outgoing = rebuild(data(a_run()))
    for metric in metrics_of(outgoing).values():
        assert dataclasses.is_dataclass(metric.data)
        temporality = getattr(metric.data, "aggregation_temporality", None)
        assert temporality is None or temporality.name == "CUMULATIVE"
    message = encode_metrics(metrics_data(outgoing))
    assert message.resource_metrics[0].schema_url == "https://opentelemetry.io/schemas/1.44.0"
    exponential = [m for m in message.resource_metrics[0].scope_metrics[0].metrics if m.HasField("exponential_histogram")]
    assert {m.name for m in exponential} >= {"epochmeter.phase.duration", "epochmeter.step.duration"}
    assert all(not p.exemplars for m in exponential for p in m.exponential_histogram.data_points)


def test_our_encoder_makes_opentelemetrys_bytes() -> None:
    run = a_run()
    run.outside.phases[("checkpoint",)] = Timing()
    run.outside.phases[("checkpoint",)].steady.add([0, 1])
    outgoing = rebuild(data(run))
    kinds = {metric.kind for metric in outgoing.metrics}
    assert kinds == {"gauge", "sum", "updowncounter", "histogram"}
    assert encode(outgoing) == encode_metrics(metrics_data(outgoing)).SerializeToString()
