"""When things happened: rhythms, growth, slow epochs and hours, the timeline, and a run that goes on."""

from __future__ import annotations

import io
import random
from typing import Any

import pytest
from rich.console import Console

from profiler.records.reading_record import ReadingRecord
from profiler.records.readings import MetricSpec
from profiler.records.run import EpochRecord, OpenStep, Run
from profiler.records.slices import Slice, SliceReading, SliceStage
from profiler.records.timing import SlowStep, StageRecord, slowest_of
from profiler.report.document import document
from profiler.report.progress import one_line, progress, stalled
from profiler.report.text import text
from profiler.report.watch import screen
from profiler.report.when import growing, recurring, slow_part

S = 1_000_000_000
MS = 1_000_000
MEMORY = ("process.memory.usage", ())


def stage(times: list[int], phases: dict[int, dict[str, int]] | None = None, collected: int = 0) -> StageRecord:
    """Return a stage with steps of these durations (ns); those above 100 ms have the phases or the collections."""
    found = StageRecord("train", steps=len(times), duration_ns=sum(times))
    found.step.steady.add(times)
    steps = [
        SlowStep(number, number, 0, took, (phases or {}).get(number, {}), collected if took > 100 * MS else 0)
        for number, took in enumerate(times)
    ]
    found.slowest = slowest_of(steps)
    return found


def noisy(count: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [round(10 * MS * rng.uniform(0.9, 1.4)) for _ in range(count)]


class TestRhythms:
    @pytest.mark.parametrize("every", [3, 25, 50, 1000])
    def test_every_so_many_steps_is_found(self, every: int) -> None:
        times = noisy(every * 12)
        for number in range(every - 1, len(times), every):
            times[number] += 200 * MS
        rhythm = recurring(stage(times))
        assert rhythm is not None and (rhythm["every"], rhythm["first"]) == (every, every - 1)
        assert rhythm["excess_s"] == pytest.approx(0.2, rel=0.1) and "phase" not in rhythm

    def test_a_few_others_do_not_hide_it(self) -> None:
        times = noisy(1000)
        for number in (*range(49, 1000, 50), 123, 777, 801):
            times[number] += 200 * MS
        assert (recurring(stage(times)) or {})["every"] == 50

    @pytest.mark.parametrize("seed", range(20))
    def test_chance_is_no_rhythm(self, seed: int) -> None:
        rng = random.Random(seed)
        times = noisy(20_000, seed)
        for number in rng.sample(range(20_000), 30):
            times[number] += rng.randint(50, 500) * MS
        assert recurring(stage(times)) is None

    def test_one_slow_time_is_no_rhythm(self) -> None:
        times = noisy(2000)
        for number in range(700, 720):
            times[number] += 200 * MS
        assert recurring(stage(times)) is None

    def test_the_phase_or_the_collector_is_named(self) -> None:
        times = noisy(600)
        saved = range(49, 600, 50)
        for number in saved:
            times[number] += 200 * MS
        assert (recurring(stage(times, {n: {"checkpoint": 200 * MS} for n in saved})) or {})["phase"] == "checkpoint"
        assert (recurring(stage(times, collected=190 * MS)) or {})["phase"] == "garbage collection"


def slices(memory: list[float], *, every_s: float = 10.0) -> list[Slice]:
    made = []
    for number, value in enumerate(memory):
        one = Slice(0, 0, round(number * every_s * S), round(every_s * S), number)
        one.readings[MEMORY] = SliceReading(10, value, value, value * 10)
        one.stages["train"] = SliceStage(
            one.duration_ns, one.duration_ns, 100, 400, one.duration_ns, number * 100, {"forward": one.duration_ns}
        )
        made.append(one)
    return made


class TestGrowth:
    def test_since_when_and_by_how_much(self) -> None:
        rng = random.Random(1)
        level = [2e9 + rng.uniform(-1e7, 1e7) for _ in range(60)]
        rising = [2e9 + 1e7 * number + rng.uniform(-1e7, 1e7) for number in range(120)]
        (growth,) = growing(Run("r", "r", 0, slices=slices([*level, *rising])))
        assert growth["by_per_hour"] == pytest.approx(1e7 * 360, rel=0.05)
        assert growth["since"][11:16] in ("00:09", "00:10") and growth["epoch"] == 0  # 600 s after the start

    @pytest.mark.parametrize("kind", ["level", "noise", "ramp and level", "short"])
    def test_what_does_not_grow(self, kind: str) -> None:
        rng = random.Random(kind)
        values = {
            "level": [2e9] * 200,
            "noise": [2e9 + rng.uniform(-3e8, 3e8) for _ in range(200)],
            "ramp and level": [*(1e9 + 5e7 * n for n in range(20)), *([2e9] * 180)],
            "short": [1e9 + 1e8 * n for n in range(5)],
        }[kind]
        assert growing(Run("r", "r", 0, slices=slices(values))) == []


def test_the_slow_epoch_and_the_slow_hour() -> None:
    run = Run("r", "r", 0)
    for index in range(6):
        epoch = EpochRecord(index, started_ns=index * S, duration_ns=S)
        epoch.stages["train"] = stage([10 * MS * (3 if index == 4 else 1)] * 50)
        run.epochs.append(epoch)
    assert (slow_part(run) or {})["epoch"] == 4
    run.epochs = run.epochs[:1]
    run.slices = slices([1e9] * 2160)  # six hours
    assert slow_part(run) is None
    for one in run.slices[720:1080]:
        one.stages["train"].step_ns *= 2
    found = slow_part(run) or {}
    assert (found["hour"], found["start"], round(found["times"], 1)) == (2, "1970-01-01T02:00:00.000Z", 2.0)


def test_timeline_is_bounded_and_complete() -> None:
    run = Run("r", "r", 0, slices=slices([1e9 + n for n in range(1000)]))
    run.epochs = [EpochRecord(0, duration_ns=10_000 * S, stages={"train": stage([100 * MS] * 1000)})]
    timeline = document(run)["timeline"]
    assert len(timeline) <= 300
    assert sum(one["stages"]["train"]["steps"] for one in timeline) == 100_000
    assert timeline[0]["steps"][0] == 0 and timeline[-1]["steps"][1] == 99_999
    assert timeline[0]["readings"]["process.memory.usage"]["min"] == 1e9
    assert timeline[-1]["readings"]["process.memory.usage"]["max"] == 1e9 + 999
    shown = text(run)
    assert "most of it" in shown and shown.count("forward 100%") <= 13


class TestRunThatGoesOn:
    def run_with(self, **more: Any) -> Run:
        values = {"stage": "train", "epoch": 1, "step": 40, "phase": "forward", "step_ns": 5 * MS, "phase_ns": 2 * MS}
        step = OpenStep(**{**values, "slowest_ns": 20 * MS, "length": 100, **more})
        run = Run("r", "r", 0, duration_ns=100 * S, planned_epochs=4, open_step=step, slices=slices([1e9] * 10))
        run.epochs = [EpochRecord(0, duration_ns=10 * S, stages={"train": stage([100 * MS] * 100)})]
        return run

    def test_how_far_it_is_and_what_is_left(self) -> None:
        seen = progress(self.run_with(), now_unix_ns=103 * S)
        assert (seen.epoch, seen.epochs, seen.step, seen.steps) == (1, 4, 40, 100)
        assert seen.samples == pytest.approx(40) and seen.rate == pytest.approx(10)
        assert seen.left_s == pytest.approx(60 / 10 + 2 * 10)
        assert seen.recent["forward"] == pytest.approx(1)

    def test_quick_step_is_not_said_to_hang(self) -> None:
        """The line is nine seconds old; what it says of a step of milliseconds says nothing of now."""
        line = one_line(self.run_with(), now_unix_ns=109 * S)
        assert "in progress" not in line and "STALLED" not in line

    def test_long_step_and_stalled_one(self) -> None:
        slow = self.run_with(step_ns=5 * S, phase_ns=4 * S, slowest_ns=2 * S)
        assert "in forward for 6.00s (step in progress for 7.00s)" in one_line(slow, now_unix_ns=102 * S)
        hangs = self.run_with(step_ns=12 * S, phase_ns=11 * S)
        line = one_line(hangs, now_unix_ns=103 * S)
        assert "STALLED: no step has ended for 15.0s, 750 times the slowest; in forward for 14.0s, since 00:01:29 UTC" in line
        assert "left" not in line
        told = stalled(hangs)
        assert told == {"since": "1970-01-01T00:01:28.000Z", "stage": "train", "step": 40, "phase": "forward"}

    @pytest.mark.parametrize(("step_ns", "slowest_ns"), [(12 * S, 2 * S), (5 * S, MS), (60 * S, 0)])
    def test_what_is_no_hang(self, step_ns: int, slowest_ns: int) -> None:
        assert stalled(self.run_with(step_ns=step_ns, slowest_ns=slowest_ns)) is None

    def test_gpus_are_shown_in_60_columns(self) -> None:
        run = self.run_with(step_ns=300 * S, phase_ns=299 * S)
        for gpu in ("gpu-0", "gpu-1"):
            at = (("hw.gpu.task", "general"), ("hw.id", gpu))
            run.slices[-1].readings["hw.gpu.utilization", at] = SliceReading(10, 0.9, 1.0, 9.7)
            run.slices[-1].readings["hw.gpu.memory.usage", (("hw.id", gpu),)] = SliceReading(10, 7e10, 7.1e10, 7e11)
        shown = io.StringIO()
        Console(width=60, file=shown).print(screen(run, now_unix_ns=101 * S))
        lines = shown.getvalue().splitlines()
        assert "gpu-0 97%, 65.2 GiB" in lines and "gpu-1 97%, 65.2 GiB" in lines
        assert max(map(len, lines)) <= 60 and any("STALLED" in line for line in lines)

    def test_counters_are_growth_in_the_timeline(self) -> None:
        run = self.run_with()
        part = EpochRecord(2, started_ns=100 * S, duration_ns=S)
        spec = MetricSpec("epochmeter.gc.time", "s", "counter", "")
        part.readings["epochmeter.gc.time", ()] = ReadingRecord(spec, {}, count=1, last=0.25)
        from profiler.records.slices import add_slice, slice_of

        add_slice(run.slices, slice_of(part))
        assert document(run)["timeline"][-1]["readings"] == {"epochmeter.gc.time": {"growth": 0.25}}
