"""Each rule of the verdict: what must trigger it, what must not, and the words that it is told in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from profiler.records.causes import COLLECTION, COMPILATION, LOADER_START, STARVED, CausePlace, Cost, Line
from profiler.records.histogram import NS
from profiler.records.loader import LoaderFacts
from profiler.records.reading_record import reading_of
from profiler.records.readings import MetricSpec, Sample
from profiler.records.run import EpochRecord, MemoryGrowth, RankStage, Run
from profiler.records.timing import SlowStep, StageRecord, Timing
from profiler.report import rules
from profiler.report.accounts import Accounts
from profiler.report.cause_words import disk_words, others_on_cpu
from profiler.report.document import document
from profiler.report.findings import Finding, ordinal
from profiler.report.text import text
from profiler.report.verdict import judge
from profiler.report.whatif import interval, whatifs

HEALTHY = {"data_wait": 0.5, "forward": 3.0, "backward": 5.0, "optimizer": 1.3}


def timing(seconds: float, count: int) -> Timing:
    made = Timing()
    made.steady.add([round(seconds * NS / count)] * count)
    return made


def run(
    phases: dict[str, float],
    *,
    total: float = 10.0,
    steps: int = 100,
    costs: dict[tuple[str, str, str], float] | None = None,
    lines: dict[tuple[str, str, str, str], int] | None = None,
    epochs: int = 1,
    val: float = 0.0,
    outside: dict[str, float] | None = None,
) -> Run:
    """Return a run whose epochs are alike: the times (s) are those of all of them together."""
    made = Run("0a1b", "made by hand", 1_700_000_000 * NS, "finished")
    began = NS // 10
    for index in range(epochs):
        epoch = EpochRecord(index, started_ns=began)
        stage = StageRecord("train", round(total * NS / epochs), steps // epochs, passes=1)
        stage.step = timing(total / epochs, steps // epochs)
        stage.phases = {(name,): timing(spent / epochs, steps // epochs) for name, spent in phases.items()}
        epoch.stages["train"] = stage
        if val:
            epoch.stages["val"] = StageRecord("val", round(val * NS / epochs), 10, passes=1, step=timing(val / epochs, 10))
            epoch.stages["val"].phases["forward",] = timing(val / epochs, 10)
        epoch.phases = {(name,): timing(spent / epochs, 1) for name, spent in (outside or {}).items()}
        epoch.duration_ns = round((total + val + sum((outside or {}).values())) * NS / epochs)
        epoch.costs = {CausePlace(*p): Cost(round(s * NS / epochs), 4) for p, s in (costs or {}).items()}
        epoch.lines = {Line(s, p, "train.py", 7, f, c): n for (s, p, f, c), n in (lines or {}).items()}
        made.epochs.append(epoch)
        began += epoch.duration_ns
    made.duration_ns = began
    return made


def first(made: Run) -> Finding:
    found = judge(made).findings[0]
    assert found.next and found.evidence and found.kind == judge(made).kind
    return found


def with_reading(made: Run, name: str, *values: float) -> Run:
    for value in values:
        reading_of(made.epochs[0].readings, Sample(MetricSpec(name, "1", "gauge", ""), value)).add(value)
    return made


class TestCauses:
    @pytest.mark.parametrize(
        ("made", "cause", "says"),
        [
            (run({**HEALTHY, "data_wait": 4.0, "backward": 1.5}), "data_wait", "40% of train time was spent waiting for data"),
            (run(HEALTHY, costs={(STARVED, "train", "backward"): 4.0}), "starved", "ready to run for 4.00s"),
            (run(HEALTHY, costs={(COLLECTION, "train", "backward"): 4.0}), "collection", "stopped the loop for 4.00s, 40%"),
            (
                run(HEALTHY, costs={(COMPILATION, "train", "forward"): 2.9, (COMPILATION, "train", "backward"): 1.0}),
                "compilation",
                "compiled 8 times, for 3.90s",
            ),
            (run({**HEALTHY, "transfer": 4.0, "backward": 1.0}), "transfer", "40% of the loop was spent in transfer"),
            (run(HEALTHY, outside={"checkpoint": 8.0}), "checkpoint", "checkpoints took 8.00s, 1 of 8.00s: 44% of the loop"),
            (run({**HEALTHY, "backward": 1.0, "after optimizer": 4.0}), "host", "40% of train time was spent after optimizer"),
            (run({**HEALTHY, "backward": 1.0, "my words": 4.0}), "host", "in 'my words'"),
            (run({**HEALTHY, "backward": 1.0}), "host", "42% of train time was spent outside every phase"),
            (run(HEALTHY, val=8.0), "validation", "validation took 44% of the loop"),
            (run(HEALTHY), "compute", "93% of train time was spent in forward, backward, optimizer"),
        ],
    )
    def test_dearest_cause_stands_first(self, made: Run, cause: str, says: str) -> None:
        found = first(made)
        assert found.cause == cause
        assert says in "; ".join(found.evidence)

    @pytest.mark.parametrize(
        "costs",
        [
            {(STARVED, "train", "backward"): 1.5},
            {(COLLECTION, "train", "backward"): 1.5},
            {(COMPILATION, "train", "forward"): 1.9},
            {(LOADER_START, "train", "data_wait"): 0.5},
            {("on_cpu", "train", "forward"): 9.0},
        ],
    )
    def test_healthy_loop_gets_no_alarm(self, costs: dict[tuple[str, str, str], float]) -> None:
        verdict = judge(run(HEALTHY, costs=costs))
        assert (verdict.kind, [found.cause for found in verdict.findings]) == ("compute-bound", ["compute"])

    def test_findings_are_ranked_by_cost(self) -> None:
        made = run(
            {**HEALTHY, "data_wait": 3.0, "backward": 2.0},
            costs={(COLLECTION, "train", "forward"): 2.5},
            outside={"checkpoint": 4.0},
        )
        found = judge(made).findings
        assert [one.cause for one in found] == ["checkpoint", "data_wait"]
        assert [one.cost_ns for one in found] == sorted((one.cost_ns for one in found), reverse=True)

    def test_some_waiting_hides_no_other_cause(self) -> None:
        phases = {"data_wait": 2.5, "forward": 3.0, "backward": 3.5}
        made = run(phases, costs={(COLLECTION, "train", "backward"): 0.4}, outside={"checkpoint": 2.6})
        assert judge(made).kind == "checkpoint-bound"
        assert judge(run({**phases, "backward": 4.3})).kind == "compute-bound"

    def test_cost_of_a_phase_is_not_counted_twice(self) -> None:
        made = run(HEALTHY, costs={(STARVED, "train", "backward"): 4.0, (COLLECTION, "train", "backward"): 4.0})
        accounts = Accounts(made, made.whole())
        assert accounts.total(COLLECTION) == 4 * NS and accounts.total(STARVED) == 1 * NS
        assert sum(accounts.by_cause().values()) == made.duration_ns

    def test_gain_is_of_this_run(self) -> None:
        found = first(run({**HEALTHY, "data_wait": 3.8, "backward": 1.0}, epochs=4, total=400, steps=400))
        assert found.cause != "data_wait"
        found = first(run({"data_wait": 152, "forward": 240}, epochs=4, total=400, steps=400))
        assert found.next.endswith("at most 38%; an epoch would take 62.0s instead of 1m40s")
        assert found.gain_at_most == pytest.approx(0.38)

    def test_small_losses_beside_work_are_left_alone(self) -> None:
        phases = {name: spent / 100 for name, spent in {**HEALTHY, "data_wait": 2.2, "backward": 3.3}.items()}
        assert [one.cause for one in judge(run(phases, total=0.1)).findings] == ["compute"]

    def test_ranks_come_first(self) -> None:
        made = run({"forward": 3.0, "backward": 6.0})
        made.world_size, made.outside.rank_epochs = 2, 1
        made.outside.ranks = {
            0: {"train": RankStage(10 * NS, {"data_wait": NS // 10, "backward": 6 * NS})},
            1: {"train": RankStage(10 * NS, {"data_wait": 5 * NS, "backward": NS})},
        }
        found = first(made)
        assert (found.cause, judge(made).kind, found.where["rank"]) == ("ranks", "rank-bound", 1)

    def test_dearer_causes_come_before_ranks(self) -> None:
        made = run({"data_wait": 6.0, "forward": 0.5, "backward": 3.0})
        made.world_size, made.outside.rank_epochs = 2, 1
        made.outside.ranks = {
            0: {"train": RankStage(10 * NS, {"data_wait": 6 * NS, "backward": 35 * NS // 10})},
            1: {"train": RankStage(10 * NS, {"data_wait": 9 * NS, "backward": NS // 2})},
        }
        assert [found.cause for found in judge(made).findings[:2]] == ["data_wait", "ranks"]


class TestLoaderAdvice:
    def waits(
        self, workers: int | None, *, free: float | None = None, busy: float | None = None, sleeps: bool = False
    ) -> Finding:
        made = run(
            {"data_wait": 8.0, "forward": 1.0, "backward": 1.0}, costs={("on_cpu", "train", "data_wait"): 0.2 if sleeps else 7}
        )
        made.hardware.cpu["available_cores"] = 4
        if workers is not None:
            made.loaders["train"] = LoaderFacts(workers, 64)
        if free is not None:
            with_reading(made, "system.cpu.utilization", 1 - free / 4)
        if busy is not None:
            with_reading(made, "epochmeter.loader.worker.cpu.demand", busy)
        return first(made)

    @pytest.mark.parametrize(
        ("made", "step"),
        [
            ({"workers": None}, "make a batch cheaper"),
            ({"workers": 0, "free": 3.0}, "num_workers=4): at most 80%"),
            ({"workers": 0, "free": 0.1}, "no whole CPU is free"),
            ({"workers": 0, "free": 0.1, "sleeps": True}, "workers wait beside the loop"),
            ({"workers": 0, "free": 0.6}, "num_workers=1): at most 20%"),
            ({"workers": 2, "free": 2.0, "busy": 0.98}, "num_workers=4: at most 50%"),
            ({"workers": 2, "free": 0.1, "busy": 0.98}, "no CPU is free for more workers"),
            ({"workers": 2, "free": 3.0, "busy": 0.05}, "the workers wait themselves"),
            ({"workers": 2, "free": 0.8, "busy": 0.9}, "see whether more workers help"),
            ({"workers": 2}, "epochmeter bench loader"),
        ],
    )
    def test_next_step_follows_from_loader_and_cpus(self, made: dict[str, Any], step: str) -> None:
        assert step in self.waits(**made).next

    def test_workers_that_start_each_epoch(self) -> None:
        phases = {"data_wait": 5.0, "forward": 2.5, "backward": 2.5}
        made = run(phases, costs={(LOADER_START, "train", "data_wait"): 5.0}, epochs=5, steps=10_000)
        made.loaders["train"] = LoaderFacts(2, 64)
        found = first(made)
        assert found.cause == "loader_start" and "persistent_workers=True" in found.next
        made.loaders["train"] = LoaderFacts(2, 64, persistent_workers=True)
        assert "persistent_workers" not in first(made).next


class TestPlaces:
    def test_line_is_named_with_its_call(self) -> None:
        lines = {("train", "after optimizer", "log_step", "fsync"): 95, ("train", "after optimizer", "other", ""): 5}
        found = first(run({**HEALTHY, "backward": 1.0, "after optimizer": 4.0}, lines=lines))
        assert found.line == "train.py:7 log_step -> fsync"
        assert "train.py:7 log_step" in found.next

    def test_gain_counts_the_line_in_all_phases(self) -> None:
        lines = {
            ("train", "after optimizer", "save", "dump"): 90,
            ("train", "checkpoint", "save", "dump"): 10,
            ("", "", "f", ""): 9,
        }
        phases = {**HEALTHY, "backward": 1.0, "after optimizer": 3.0, "checkpoint": 1.0}
        made = run(phases, lines=lines)
        made.epochs[0].started_ns += 60 * NS
        made.duration_ns += 60 * NS
        found = first(made)
        assert found.cause == "host" and found.gain_at_most == pytest.approx(0.4)

    def test_line_elsewhere_adds_no_weight(self) -> None:
        lines = {("train", "after optimizer", "save", ""): 20, ("", "checkpoint", "save", "torch.serialization.save"): 80}
        phases = {"forward": 3.0, "backward": 4.5, "after optimizer": 2.4}
        assert judge(run(phases, lines=lines, outside={"checkpoint": 5.0})).kind == "checkpoint-bound"

    def test_small_gaps_weigh_less_than_one_cause(self) -> None:
        phases = {"forward": 3.0, "backward": 3.5, "after forward": 0.8, "after backward": 0.8, "metrics": 0.8}
        costs = {(COLLECTION, "train", "backward"): 3.0}
        lines = {("train", "after forward", "f", ""): 20}
        made = run(phases, costs=costs, lines=lines)
        assert [one.cause for one in judge(made).findings][:2] == ["collection", "host"]

    def test_calls_of_one_line_are_joined(self) -> None:
        lines = {("train", "", "log_step", call): 10 for call in ("fsync", "flush", "write")}
        found = first(run({**HEALTHY, "backward": 1.0}, lines=lines))
        assert found.line is not None and found.line.startswith("train.py:7 log_step -> ")

    def test_saving_in_no_phase_is_a_checkpoint(self) -> None:
        lines = {("train", "", "after_step", "torch.serialization.save"): 90, ("train", "", "after_step", ""): 10}
        found = first(run({**HEALTHY, "backward": 1.0}, lines=lines))
        assert (found.cause, found.kind) == ("checkpoint", "checkpoint-bound")

    def test_unnamed_work_is_known_by_its_samples(self) -> None:
        lines = {("train", "", "loop", "torch._tensor.backward"): 60, ("train", "", "loop", "torch.nn.modules.module.f"): 35}
        found = judge(run({"data_wait": 0.5}, lines=lines))
        assert found.kind == "compute-bound" and "by samples" in found.evidence[0]
        lines = {("train", "", "log_step", "fsync"): 60, ("train", "", "loop", "torch._tensor.backward"): 35}
        assert judge(run({"data_wait": 0.5}, lines=lines)).kind == "host-bound"

    def test_too_few_samples_decide_nothing(self) -> None:
        lines = {("train", "", "loop", "torch._tensor.backward"): 3}
        verdict = judge(run({"data_wait": 0.5}, lines=lines))
        assert verdict.kind == "unknown" and "name the phases" in verdict.next


class TestTails:
    def tail(self, numbers: list[int], *, steps: int = 200, per_epoch: int = 50) -> Run:
        made = run({"data_wait": 0.1, "forward": 0.4, "after optimizer": 9.0}, steps=steps, epochs=steps // per_epoch)
        for epoch in made.epochs:
            mine = [n for n in numbers if n // per_epoch == epoch.index]
            stage = epoch.stages["train"]
            usual = [5_000_000] * (per_epoch - len(mine))
            stage.step = Timing()
            stage.step.steady.add(usual + [NS] * len(mine))
            stage.duration_ns = sum(usual) + NS * len(mine)
            stage.phases = {("data_wait",): timing(0.01, 50), ("forward",): timing(0.02, 50), ("after optimizer",): Timing()}
            stage.phases["after optimizer",].steady.add([stage.duration_ns - 30_000_000])
            stage.slowest = [
                SlowStep(n % per_epoch, n, n * NS, NS, {"after optimizer": NS - 5_000_000}, epoch=epoch.index) for n in mine
            ]
            epoch.duration_ns = stage.duration_ns
        made.duration_ns = sum(epoch.duration_ns for epoch in made.epochs)
        return made

    @pytest.mark.parametrize(
        ("numbers", "says"),
        [
            ([24, 49, 74, 99, 124, 149, 174, 199], "every 25th step took 1.00s instead of 5.0"),
            ([3, 31, 77, 98, 160], "5 of 200 steps took 1.00s instead of 5.0"),
            ([101, 102, 103, 117, 118, 140], "in epoch 2, 6 steps took 1.00s instead of 5.0"),
        ],
    )
    def test_when_the_slow_steps_come(self, numbers: list[int], says: str) -> None:
        found = first(self.tail(numbers))
        assert (found.cause, found.kind) == ("tail", "host-bound")
        assert says in "; ".join(found.evidence)
        assert found.where["at"].endswith("Z") and "slow steps" in found.next

    def test_even_steps_have_no_tail(self) -> None:
        found = first(run({**HEALTHY, "backward": 1.0, "after optimizer": 4.0}))
        assert found.cause == "host" and "at" not in found.where

    @pytest.mark.parametrize(
        ("number", "words"), [(1, "1st"), (2, "2nd"), (3, "3rd"), (11, "11th"), (50, "50th"), (112, "112th")]
    )
    def test_ordinals(self, number: int, words: str) -> None:
        assert ordinal(number) == words


class TestMemoryAndLaunches:
    def grows(self, by: int, fit: float) -> Run:
        made = run({**HEALTHY, "backward": 1.0, "after optimizer": 4.0})
        made.growth = MemoryGrowth(by, 10 * NS, fit)
        return made

    def test_steady_growth_beside_host_time(self) -> None:
        found = first(self.grows(512 * 2**20, 0.99))
        assert (found.cause, found.kind) == ("growth", "memory-bound") and "5.1 MiB a step" in "; ".join(found.evidence)

    @pytest.mark.parametrize(("by", "fit"), [(512 * 2**20, 0.7), (20 * 2**20, 0.99), (90 * 2**20, 0.99)])
    def test_other_growth_is_no_leak(self, by: int, fit: float) -> None:
        assert first(self.grows(by, fit)).cause == "host"

    def small(self, operations: int, samples: int) -> Run:
        made = run({"data_wait": 0.2, "forward": 3.0, "backward": 6.0}, steps=1000)
        stage = made.epochs[0].stages["train"]
        stage.operations, stage.samples = operations, samples
        return made

    @pytest.mark.parametrize(("operations", "samples"), [(300_000, 64_000), (150_000, 4_000)])
    def test_fixed_costs_are_told(self, operations: int, samples: int) -> None:
        found = first(self.small(operations, samples))
        assert (found.cause, found.kind) == ("launch", "launch-bound")

    @pytest.mark.parametrize(("operations", "samples"), [(150_000, 64_000), (10_000, 2_000), (0, 64_000)])
    def test_large_operations_are_work(self, operations: int, samples: int) -> None:
        assert first(self.small(operations, samples)).cause == "compute"


class TestEvidence:
    def test_disks_and_others_are_told(self) -> None:
        made = run({**HEALTHY, "backward": 1.0, "after optimizer": 4.0})
        for name, value, at in (
            ("process.disk.io", 256 * 2**20, {"disk.io.direction": "read"}),
            ("process.disk.io", 2**40, {"disk.io.direction": "write"}),
            ("process.paging.faults", 5_000, {"system.paging.fault.type": "major"}),
        ):
            reading_of(made.epochs[0].readings, Sample(MetricSpec(name, "1", "counter", ""), value, at)).add(value)
        assert disk_words(made.whole()) == [
            "the process read 256 MiB from disks",
            "5,000 pages had to come from a disk: memory is short",
        ]
        with_reading(made, "system.cpu.utilization", 0.9, 1.0)
        assert others_on_cpu(made.whole()) == []
        with_reading(made, "epochmeter.process.cpu.utilization", 0.25)
        assert others_on_cpu(made.whole()) == ["the machine's CPUs were busy for 95%, this process took 25%"]

    def test_nothing_read_is_nothing_said(self) -> None:
        assert disk_words(run(HEALTHY).whole()) == others_on_cpu(run(HEALTHY).whole()) == []


class TestStartUp:
    def long(self, seconds: float, imports: int, own: int) -> Run:
        made = run(HEALTHY, lines={})
        for epoch in made.epochs:
            epoch.started_ns += round(seconds * NS)
        made.duration_ns += round(seconds * NS)
        made.outside.lines = {
            Line("", "imports", "train.py", 1, "<module>", ""): imports,
            Line("", "start-up", "train.py", 5, "load", "read"): own,
        }
        return made

    def test_long_one_is_found_but_not_first(self) -> None:
        verdict = judge(self.long(20, 10, 90))
        assert [one.cause for one in verdict.findings] == ["compute", "start-up"]
        assert verdict.findings[1].line == "train.py:5 load -> read"

    @pytest.mark.parametrize("made", [(20, 95, 5), (2, 0, 100)])
    def test_imports_and_short_ones_are_not(self, made: tuple[float, int, int]) -> None:
        assert [one.cause for one in judge(self.long(*made)).findings] == ["compute"]


class TestLedger:
    def test_it_adds_up_to_the_run(self) -> None:
        made = run(
            {**HEALTHY, "after forward": 0.1},
            costs={(COLLECTION, "train", "backward"): 1.0},
            val=2.0,
            outside={"checkpoint": 3.0},
        )
        made.duration_ns += 5 * NS
        ledger = document(made)["ledger"]
        assert sum(ledger.values()) == pytest.approx(made.duration_ns / NS)
        assert ledger["collections_s"] == 1.0 and ledger["checkpoint_s"] == 3.0 and ledger["start_up_s"] == pytest.approx(0.1)

    def test_run_without_a_stage_has_none(self) -> None:
        assert "ledger" not in document(Run("0a1b", "empty", 0))

    def test_throttled_time_is_an_account(self) -> None:
        made = run(HEALTHY)
        spec = MetricSpec("epochmeter.container.cpu.throttled_time", "s", "counter", "")
        reading_of(made.epochs[0].readings, Sample(spec, 3.0)).add(3.0)
        ledger = document(made)["ledger"]
        assert ledger["throttled_s"] == pytest.approx(3.0) and sum(ledger.values()) == pytest.approx(made.duration_ns / NS)


class TestDocument:
    def test_measured_causes_are_in_it(self) -> None:
        made = run(
            HEALTHY,
            costs={(COLLECTION, "train", "backward"): 1.0},
            lines={("train", "backward", "main", "torch._tensor.backward"): 5},
        )
        made.loaders["train"] = LoaderFacts(2, 64, True, 4)
        made.growth = MemoryGrowth(2**20, NS, 0.5)
        data = document(made)
        assert data["causes"] == [{"stage": "train", "phase": "backward", "cause": "collection", "total_s": 1.0, "count": 4}]
        assert data["lines"] == [
            {
                "stage": "train",
                "phase": "backward",
                "file": "train.py",
                "line": 7,
                "function": "main",
                "called": "torch._tensor.backward",
                "samples": 5,
            }
        ]
        settings = {"workers": 2, "batch_size": 64, "pin_memory": True, "prefetch_factor": 4, "persistent_workers": False}
        assert data["loaders"] == {"train": settings}
        assert data["memory_growth"] == {"by": 2**20, "over_s": 1.0, "fit": 0.5}

    def test_nothing_measured_is_left_out(self) -> None:
        assert not {"causes", "lines", "loaders", "memory_growth"} & set(document(run(HEALTHY)))


class TestSilence:
    @pytest.mark.parametrize(
        ("way", "state", "torch", "says", "step"),
        [
            ("script", "finished", False, "did not import torch", "torchrun"),
            ("script", "finished", True, "neither a DataLoader nor an optimizer", "prof.train(loader)"),
            ("script", "finished", False, "did not import torch", "if it has a Profiler of its own"),
            ("script", "crashed", True, "the script failed before its first step", "error message"),
            ("code", "crashed", False, "the program failed before its first step", "error message"),
            ("code", "interrupted", False, "was ended before its first step", "run it again"),
            ("code", "running", False, "the first one has not ended yet", "epochmeter watch"),
            ("code", "finished", False, "no epoch, no pass and no phase", "put the loop inside the with"),
        ],
    )
    def test_text_says_why_and_what_to_do(self, way: str, state: Any, torch: bool, says: str, step: str) -> None:
        made = Run("0a1b", "silent", 1, state, way=way)
        made.hardware.runtime.update({"torch": "2.13"} if torch else {})
        shown = " ".join(text(made).split())
        assert says in shown and step in shown and "verdict unknown" in shown

    def test_run_that_has_not_begun(self) -> None:
        shown = " ".join(text(Run("0a1b", "silent", 0, "running")).split())
        assert "the run has not begun" in shown and "prof.start()" in shown

    def test_epochs_without_a_pass(self) -> None:
        made = Run("0a1b", "silent", 0, "finished", epochs=[EpochRecord(0, duration_ns=NS)])
        verdict = judge(made)
        assert "nothing was handed to prof.train" in verdict.evidence[0] and "prof.train(loader)" in verdict.next


class TestWhatIf:
    def test_causes_are_rows_with_intervals(self) -> None:
        made = run(
            {"data_wait": 3.0, "forward": 4.0, "after optimizer": 2.0},
            epochs=8,
            outside={"checkpoint": 2.0},
            costs={(COLLECTION, "train", "forward"): 1.0},
            lines={("train", "after optimizer", "log", "fsync"): 8, ("train", "after optimizer", "log", ""): 2},
        )
        from profiler.records.slices import add_slice, slice_of

        for epoch in made.epochs:
            add_slice(made.slices, slice_of(epoch))
        rows = {row.key: row for row in whatifs(made)}
        assert list(rows) == ["data_wait", "host", "logging", "checkpoint", "collection"]
        assert rows["data_wait"].saved == pytest.approx(3 / 12) and rows["checkpoint"].saved == pytest.approx(2 / 12)
        assert rows["logging"].saved == pytest.approx(0.8 * 3 / 12) and rows["logging"].low is not None
        wait = rows["data_wait"]
        assert wait.low is not None and wait.high is not None and wait.low <= wait.saved <= wait.high
        assert wait.then_s == pytest.approx(9 / 8)

    def test_interval_is_wider_where_slices_differ(self) -> None:
        made = run({"data_wait": 3.0, "forward": 6.0}, epochs=8)
        from profiler.records.slices import add_slice, slice_of

        for position, epoch in enumerate(made.epochs):
            one = slice_of(epoch)
            one.stages["train"].phases["data_wait"] = round((0.1 + 0.06 * position) * NS)
            add_slice(made.slices, one)
        low, high = interval(made.slices, lambda one: float(one.stages["train"].phases["data_wait"]), 0.3)
        assert low is not None and high is not None and high - low > 0.1
        assert interval(made.slices[:2], lambda one: 0.0, 0.3) == (None, None)

    def test_bounds_are_said(self) -> None:
        made = run({"data_wait": 5.0, "forward": 4.0})
        made.loaders["train"] = LoaderFacts(2)
        assert "the workers share the CPUs" in whatifs(made)[0].bound

    def test_whole_phase_is_gone_with_its_cause(self) -> None:
        made = run({"data_wait": 5.0, "forward": 4.0}, costs={(STARVED, "train", "data_wait"): 3.0})
        rows = {row.key: row.saved for row in whatifs(made)}
        assert rows["data_wait"] == pytest.approx(0.5) and rows["starved"] == pytest.approx(0.3)

    def with_long_first_step(self, cause: str, seconds: float) -> Run:
        """Return a run of 10 s whose first step took 9 s more, all of it in the phase with the cause."""
        made = run({"forward": 1.0}, costs={(cause, "train", "forward"): seconds})
        stage = made.epochs[0].stages["train"]
        stage.phases["forward",].cold.add([9 * NS])
        stage.step.cold.add([9 * NS])
        stage.duration_ns += 9 * NS
        made.duration_ns += 9 * NS
        return made

    def test_first_step_is_in_no_share(self) -> None:
        """Its time is in the causes as well as in the loop: both leave it out."""
        (row,) = (row for row in whatifs(self.with_long_first_step("collection", 5.5)) if row.key == "collection")
        assert row.saved == pytest.approx(0.055, abs=0.001)

    def test_compilation_is_first_that_of_the_first_step(self) -> None:
        assert "compilation" not in {row.key for row in whatifs(self.with_long_first_step("compilation", 8.0))}

    def test_nothing_to_do_without(self) -> None:
        assert whatifs(Run("0a1b", "empty", 0)) == []


def test_each_cause_has_one_rule() -> None:
    assert len(rules.BY_CAUSE) == len(rules.RULES)


def test_documented_table_is_that_of_the_code() -> None:
    page = (Path(__file__).parents[2] / "docs" / "causes.md").read_text("utf-8")
    assert rules.markdown() in page
