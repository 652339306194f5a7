"""The verdict and the rendered report, from records made by hand."""

from __future__ import annotations

import pytest

from profiler.records.histogram import NS, Histogram
from profiler.records.reading_record import reading_of
from profiler.records.readings import MetricSpec, Sample
from profiler.records.run import EpochRecord, Run
from profiler.records.timing import StageRecord, Timing
from profiler.report.document import document
from profiler.report.epoch_rows import SHOWN
from profiler.report.layout import duration
from profiler.report.text import text
from profiler.report.verdict import judge

SECOND = NS


def timing(seconds: float, count: int = 10) -> Timing:
    steady = Histogram()
    steady.add([round(seconds * SECOND / count)] * count)
    return Timing(steady)


def run(
    phases: dict[str, float],
    *,
    total: float = 10.0,
    steps: int = 10,
    readings: dict[str, list[float]] | None = None,
    device: dict[str, tuple[float, float]] | None = None,
    states: list[int] | None = None,
    held: dict[str, float] | None = None,
) -> Run:
    epoch = EpochRecord(0, duration_ns=round(total * SECOND))
    stage = StageRecord("train", round(total * SECOND), steps, passes=1, step=timing(total, steps))
    stage.phases = {(name,): timing(seconds) for name, seconds in phases.items()}
    epoch.stages["train"] = stage
    for name, (here, there) in (device or {}).items():
        stage.phases[name,] = timing(here)
        stage.phases[name,].device = timing(there).steady
    for state in states or ():
        sample = Sample(MetricSpec("hw.status", "1", "updowncounter", ""), state, {"hw.id": "gpu-0", "hw.state": "degraded"})
        reading_of(epoch.readings, sample).add(state)
    for reason, seconds in (held or {}).items():
        spec = MetricSpec("epochmeter.gpu.throttled_time", "s", "counter", "")
        sample = Sample(spec, seconds, {"hw.id": "gpu-0", "epochmeter.gpu.throttle_reason": reason})
        reading_of(epoch.readings, sample).add(seconds)
    for name, values in (readings or {}).items():
        kind = "counter" if "time" in name else "gauge"
        for value in values:
            reading_of(epoch.readings, Sample(MetricSpec(name, "1", kind, ""), value)).add(value)  # type: ignore[arg-type]
    return Run("0a1b", "made by hand", 1_700_000_000 * SECOND, "finished", round(total * SECOND), epochs=[epoch])


@pytest.mark.parametrize(
    ("made", "kind", "says"),
    [
        (run({"data_wait": 4.0, "forward": 5.0}), "input-bound", "40% of train time"),
        (run({"data_wait": 0.5, "forward": 4.0, "backward": 4.0}), "compute-bound", "80% of train time"),
        (run({"data_wait": 0.5, "forward": 2.0}), "unknown", "75% of the loop is in no phase"),
        (run({"data_wait": 1.0, "forward": 4.0, "augment": 3.0}), "host-bound", "30% of train time was spent in 'augment'"),
        (run({"data_wait": 1.5, "transfer": 1.5, "forward": 5.6, "augment": 1.0}), "balanced", "compute took 56%"),
        (run({"data_wait": 1.0}), "unknown", "name the phases"),
        (run({"data_wait": 9.0}, steps=3), "unknown", "3 steps were timed"),
        (run({"data_wait": 1.0}, readings={"hw.gpu.utilization": [0.9, 1.0]}), "compute-bound", "95% of the time"),
        (run({"data_wait": 1.0}, readings={"hw.gpu.utilization": [0.1, 0.2]}), "host-bound", "only 15%"),
        (run({"data_wait": 9.0}, readings={"epochmeter.container.cpu.throttled_time": [2.0]}), "throttled", "20% of the run"),
        (run({"data_wait": 1.0}, device={"forward": (0.5, 1.0), "backward": (0.5, 1.0)}), "host-bound", "in no phase for 80%"),
        (run({"data_wait": 1.0}, device={"forward": (1.0, 2.0)}), "unknown", "its utilization was not read"),  # and the rest?
        (
            run({"data_wait": 1.0}, device={"forward": (1.0, 2.0)}, readings={"hw.gpu.utilization": [0.95]}),
            *("compute-bound", "95% of the time"),
        ),
        (
            run(
                {"data_wait": 1.0},
                device={"forward": (0.5, 1.0), "backward": (0.5, 1.0)},
                readings={"hw.gpu.utilization": [0.95]},
            ),
            *("compute-bound", "95% of the time"),
        ),
        (
            run({"data_wait": 1.0}, device={"forward": (1.0, 4.0), "backward": (2.0, 5.0)}),
            "compute-bound",
            "the host runs ahead",
        ),
        (run({"data_wait": 1.0}, device={"forward": (9.0, 9.0)}), "unknown", "launches too little at a time, or waits"),
        (
            run({"data_wait": 1.0}, device={"forward": (9.0, 9.0)}, readings={"hw.gpu.utilization": [0.1]}),
            *("host-bound", "only 10%"),
        ),
        (run({"data_wait": 1.0}, states=[0, 0, 1, 1]), "throttled", "slowed gpu-0 in 50%"),
        (run({"data_wait": 1.0}, held={"hw_thermal": 3.0}), "throttled", "heat held the clocks of gpu-0 down for 3.0 s, 30%"),
        (run({"data_wait": 1.0}, held={"power_brake": 3.0}, states=[1]), "throttled", "a power brake held"),
        (run({"data_wait": 9.0}, held={"power_cap": 9.0}), "input-bound", "90% of train time"),  # a card at work is often there
        (
            run({"data_wait": 9.0}, readings={"container.memory.working_set": [97.0], "container.memory.available": [3.0]}),
            *("memory-bound", "97% of the container's limit"),
        ),
        (Run("0a1b", "empty", 0), "unknown", "0 steps"),
    ],
)
def test_the_verdict_quotes_what_decided_it(made: Run, kind: str, says: str) -> None:
    verdict = judge(made)
    assert verdict.kind == kind
    assert says in " ".join(verdict.evidence)


def test_unused_gpus_are_not_judged() -> None:
    made = run({"data_wait": 1.0}, readings={"hw.gpu.utilization": [0.9, 1.0]}, held={"hw_thermal": 5.0})
    assert judge(made).kind == "throttled"
    made.hardware.runtime["torch"] = "2.13.0"
    assert judge(made).kind == "unknown"
    memory = Sample(MetricSpec("epochmeter.torch.memory.reserved", "By", "updowncounter", ""), 2**30)
    reading_of(made.epochs[0].readings, memory).add(2**30)
    assert judge(made).kind == "throttled"


def test_stage_parts_add_up_in_document() -> None:
    stage = document(run({"data_wait": 4.0, "forward": 5.0}))["stages"]["train"]
    assert sum(phase["total_s"] for phase in stage["phases"].values()) == pytest.approx(stage["duration_s"])
    assert stage["phases"]["other"] == {"total_s": pytest.approx(1.0)}


def test_what_was_not_measured_is_not_there() -> None:
    data = document(Run("0a1b", "empty", 0))
    assert "overhead" not in data and "started" not in data["run"]
    assert None not in data.values()
    assert data["readings"] == data["epochs"] == data["hardware"]["gpus"] == []


@pytest.mark.parametrize(("share", "is_said"), [(0.009, False), (0.011, True)])
def test_overhead_above_one_percent_is_said(share: float, is_said: bool) -> None:
    made = run({"data_wait": 1.0})
    made.overhead_ns = round(made.duration_ns * share)
    assert ("more than the 1%" in text(made)) is is_said


def test_only_the_table_shortens_many_epochs() -> None:
    made = run({"data_wait": 1.0})
    made.epochs = [EpochRecord(index, stages=made.epochs[0].stages) for index in range(500)]
    assert len(document(made)["epochs"]) == 500
    rows = [line for line in text(made).splitlines() if line.split()[1:2] == ["train"]]
    assert 0 < len(rows) <= SHOWN


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        *((0.0, "0ns"), (1.5e-7, "150ns"), (4.25e-6, "4.25µs"), (0.0123, "12.3ms"), (0.5, "500ms")),
        *((61.0, "61.0s"), (125.0, "2m05s"), (7322.0, "2h02m")),
    ],
)
def test_durations_have_three_digits_and_a_unit(seconds: float, told: str) -> None:
    assert duration(seconds) == told
