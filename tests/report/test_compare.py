"""Two runs beside each other: what is planted is found, chance raises few alarms, and what is unlike is said first."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest

from profiler import Profiler
from profiler.errors import ArgumentValueError
from profiler.records.causes import COLLECTION, CausePlace, Cost
from profiler.records.histogram import NS
from profiler.records.loader import LoaderFacts
from profiler.records.run import EpochRecord, Run
from profiler.records.slices import Slice, SliceStage
from profiler.records.student import student
from profiler.records.timing import StageRecord, Timing
from profiler.report.blocks import OTHER, WHOLE, blocks_of, phase_mean
from profiler.report.compare import Comparison, compared
from profiler.report.compare_text import markdown, renderable
from profiler.report.text import plain, spaced
from support.processes import epochmeter

PHASES = {"data_wait": 2e6, "forward": 10e6, "backward": 15e6, "optimizer": 3e6}


def made(
    seed: int,
    *,
    noise: float = 0.01,
    like: float = 0.0,
    restart: float = 0.002,
    mood: float = 0.0,
    slices: int = 12,
    steps: int = 50,
    samples: int | None = None,
    **more: float,
) -> Run:
    """Return a run whose slices differ by ``noise``, neighbours by less (``like``), and restarts by ``restart``.

    With a ``mood``, all phases change by that together, from slice to slice and from start to start.
    """
    rng = random.Random(seed)
    run = Run(f"{seed:012x}"[-12:], "a | run", 1_700_000_000 * NS, "finished", duration_ns=slices * 10 * NS)
    epoch = EpochRecord(0, stages={"train": StageRecord("train", steps=slices * steps, passes=1)})
    stage = epoch.stages["train"]
    state = dict.fromkeys(PHASES, 0.0)
    of_start = 1 + rng.gauss(0, mood)
    own = {name: 1 + rng.gauss(0, restart) for name in PHASES}
    for number in range(slices):
        spent, now = {}, of_start * (1 + rng.gauss(0, mood))
        for name, ns in PHASES.items():
            state[name] = like * state[name] + rng.gauss(0, noise) * (1 - like**2) ** 0.5
            spent[name] = round(steps * ns * (1 + state[name]) * own[name] * now * more.get(name, 1.0))
        whole = sum(spent.values()) + steps * 100_000
        told = SliceStage(whole, whole, steps, None if samples is None else samples * steps, whole, number * steps, spent)
        run.slices.append(Slice(0, 0, number * 10 * NS, 10 * NS, number, {"train": told}))
        stage.duration_ns += whole
    stage.samples = None if samples is None else samples * slices * steps
    run.epochs.append(epoch)
    return run


def row(comparison: Comparison, phase: str) -> Any:
    return next(one for one in comparison.changes if one.phase == phase)


def test_planted_differences_are_found() -> None:
    """5 % more in one phase, in 20 of 20 pairs, and nowhere else."""
    for seed in range(20):
        comparison = compared(made(2 * seed), made(2 * seed + 1, forward=1.05))
        forward = row(comparison, "forward")
        assert forward.verdict == "slower" and forward.low <= 0.05 <= forward.high
        assert row(comparison, "backward").verdict == "noise"


@pytest.mark.parametrize(("like", "mood"), [(0.0, 0.0), (0.7, 0.0), (0.0, 0.03), (0.5, 0.05)])
def test_equal_runs_raise_few_alarms(like: float, mood: float) -> None:
    """At most 5 of 100 pairs, also where neighbouring slices are alike, and on a machine with moods."""
    runs = [made(seed, like=like, mood=mood, slices=30) for seed in range(200)]
    pairs = [compared(*pair) for pair in zip(runs[::2], runs[1::2], strict=True)]
    assert sum(any(one.verdict in ("slower", "faster") for one in pair.changes) for pair in pairs) <= 5


def test_a_step_adds_up() -> None:
    comparison = compared(made(1), made(2, backward=1.2))
    for which in ("before_s", "after_s"):
        parts = [getattr(one, which) for one in comparison.changes if one.phase != WHOLE]
        assert sum(parts) == pytest.approx(getattr(row(comparison, WHOLE), which), rel=1e-6)
    assert row(comparison, WHOLE).verdict == "slower"
    assert comparison.reasons[0].startswith("a train step takes ") and "backward" in comparison.reasons[0]


def test_the_first_step_is_left_out() -> None:
    run = made(1, slices=4)
    stage = run.epochs[0].stages["train"]
    stage.step.cold.add([5 * NS])
    stage.phases["forward",] = Timing()
    stage.phases["forward",].cold.add([4 * NS])
    first = run.slices[0].stages["train"]
    first.duration_ns = first.call_ns = first.call_ns + 5 * NS - first.call_ns // 50
    first.phases["forward"] += 4 * NS - first.phases["forward"] // 50
    usual = phase_mean(blocks_of(made(1, slices=4), made(1, slices=4).whole(), "train"), "forward")
    found = phase_mean(blocks_of(run, run.whole(), "train"), "forward")
    assert usual is not None and found is not None and found.value == pytest.approx(usual.value, rel=0.01)
    assert all(ns >= 0 for block in blocks_of(run, run.whole(), "train") for ns in block.spent.values())
    assert OTHER in blocks_of(run, run.whole(), "train")[0].spent


def test_slices_that_are_alike_count_as_fewer() -> None:
    errors = []
    for like in (0.0, 0.8):
        run = made(7, like=like, slices=60)
        mean = phase_mean(blocks_of(run, run.whole(), "train"), "forward")
        assert mean is not None
        errors.append((mean.error / mean.value, mean.freedom))
    assert errors[1][0] > 1.5 * errors[0][0] and errors[1][1] < errors[0][1]


def test_another_batch_is_told_by_sample() -> None:
    comparison = compared(made(1, samples=32), made(2, samples=64))
    assert comparison.per == "sample"
    assert "samples in a step: 32 before, 64 now; times are told for each sample" in comparison.unlike
    assert row(comparison, WHOLE).change == pytest.approx(-0.5, abs=0.02)


def test_what_is_unlike_comes_first() -> None:
    before, after = made(1), made(2)
    before.hardware.runtime["torch"], after.hardware.runtime["torch"] = "2.12", "2.13"
    after.hardware.gpus[0] = {"name": "NVIDIA H100"}
    before.loaders, after.loaders = {"train": LoaderFacts(0)}, {"train": LoaderFacts(4, pin_memory=True)}
    after.epochs[0].stages["val"] = StageRecord("val", steps=3)
    after.command = "train.py --fast"
    comparison = compared(before, after)
    assert comparison.unlike == [
        "GPUs: none before, NVIDIA H100 now",
        "torch: 2.12 before, 2.13 now",
        "command: none before, train.py --fast now",
        "the train loader: workers 0 before, 4 now; pin_memory False before, True now",
        "val: only now",
    ]
    said = plain(spaced(renderable(comparison)), 80)
    assert said.index("unlike") < said.index("as a whole")


def test_one_slow_slice_hides_nothing() -> None:
    """It is told, and left out; several are no exception."""
    before, after = made(1, slices=40), made(2, slices=40, forward=1.05)
    for name in PHASES:
        before.slices[17].stages["train"].phases[name] *= 5
    before.slices[17].stages["train"].call_ns *= 5
    comparison = compared(before, after)
    assert row(comparison, "forward").verdict == "slower"
    assert [text for text in comparison.unlike if "slices" in text] == [
        f"1 of 40 train slices of {before.id} took 5.0 times as long as usual, and are left out"
    ]
    for place in range(0, 40, 3):
        before.slices[place].stages["train"].call_ns *= 2
    assert not [text for text in compared(before, after).unlike if "slices" in text]


def test_a_phase_that_was_nothing_is_slower() -> None:
    comparison = compared(made(1, optimizer=0.001, noise=0.3, slices=4), made(2, optimizer=30.0, slices=4))
    assert row(comparison, "optimizer").verdict == "slower" and row(comparison, WHOLE).verdict == "slower"
    assert "optimizer" in comparison.reasons[0]


def test_reasons_tell_what_goes_the_other_way() -> None:
    (reason, *_) = compared(made(1), made(2, forward=2.0, backward=0.6)).reasons
    assert reason.startswith("a train step takes ") and "forward" in reason and "backward" in reason
    assert "more (" in reason and "less (" in reason


def test_costs_explain_a_difference() -> None:
    before, after = made(1), made(2, forward=1.3)
    after.epochs[0].costs[CausePlace(COLLECTION, "train", "forward")] = Cost(3 * NS, 3)
    reasons = compared(before, after).reasons
    assert any(reason.startswith("garbage collections: 0.0% of train time before, ") for reason in reasons)


def test_short_runs_have_no_verdict() -> None:
    comparison = compared(made(1, slices=2), made(2, slices=12, forward=2.0))
    assert {one.verdict for one in comparison.changes} == {"unknown"}
    assert "too few slices" in plain(spaced(renderable(comparison)), 80)
    assert not comparison.regressions(0.01) and comparison.undecided()


def test_phases_that_come_and_go() -> None:
    after = made(2)
    for one in after.slices:
        phases = one.stages["train"].phases
        phases["my | own"] = phases.pop("optimizer")
    comparison = compared(made(1), after)
    assert row(comparison, "optimizer").verdict == "gone" and row(comparison, "my | own").verdict == "new"
    assert "change" not in row(comparison, "optimizer").to_dict()
    said = markdown([comparison])
    assert "| my \\| own |" in said and "a \\| run" in said
    lengths = {line.replace("\\|", "").count("|") for line in said.splitlines() if line.startswith("|")}
    assert lengths == {7}


def epochs_of(run: Run, seed: int, *, checkpoint: float = 1.0, number: int = 10) -> Run:
    """Give a run epochs with a checkpoint in each (s)."""
    rng = random.Random(seed)
    (whole,) = run.epochs
    stage, run.epochs = whole.stages["train"], []
    for index in range(number):
        spent = round(stage.duration_ns / number * rng.uniform(0.99, 1.01))
        part = StageRecord("train", spent, stage.steps // number, passes=1)
        epoch = EpochRecord(index, stages={"train": part})
        epoch.phases["checkpoint",] = Timing()
        epoch.phases["checkpoint",].steady.add([round(checkpoint * NS * rng.uniform(0.99, 1.01))])
        epoch.duration_ns = part.duration_ns + epoch.phases["checkpoint",].total_ns
        run.epochs.append(epoch)
    return run


def test_time_between_stages_is_compared_by_epoch() -> None:
    comparison = compared(epochs_of(made(1), 1), epochs_of(made(2), 2, checkpoint=2.0))
    rows = {one.phase: one for one in comparison.changes if one.stage == "epoch"}
    assert rows["checkpoint"].verdict == rows[WHOLE].verdict == "slower" and rows["train"].verdict == "noise"
    assert rows["checkpoint"].change == pytest.approx(1.0, abs=0.02)
    assert any(reason.startswith("an epoch takes ") and "checkpoint" in reason for reason in comparison.reasons)
    assert [one.stage for one in comparison.regressions(0.1)] == ["epoch"]
    other = compared(epochs_of(made(1), 1), epochs_of(made(2), 2, number=5))
    assert "steps in an epoch: 60 before, 120 now" in other.unlike
    assert not [one for one in other.changes if one.stage == "epoch"]


def test_wild_runs_are_unclear() -> None:
    comparison = compared(made(1, noise=0.8, slices=5), made(2, noise=0.8, slices=5))
    whole = row(comparison, WHOLE)
    assert whole.verdict == "unclear" and comparison.undecided() == [whole]
    assert "cannot tell" in plain(spaced(renderable(comparison)), 80)


def test_runs_without_steps_are_refused() -> None:
    empty = Run("0" * 12, "empty", 0)
    with pytest.raises(ArgumentValueError, match="no step of 000000000000 was seen"):
        compared(made(1), empty)


@pytest.mark.parametrize(
    ("freedom", "confidence", "told"),
    [(1, 0.95, 12.706), (2, 0.99, 9.925), (3, 0.95, 3.182), (5, 0.99, 4.032), (10, 0.95, 2.228), (1e9, 0.95, 1.960)],
)
def test_quantiles_of_student(freedom: float, confidence: float, told: float) -> None:
    assert student(freedom, confidence) == pytest.approx(told, rel=0.03)


class TestCommand:
    """``epochmeter compare`` on real runs."""

    def recorded(self, name: str, seconds: float = 0.002) -> str:
        with Profiler(name) as prof:
            for _ in prof.epochs(8):
                for _ in prof.train(range(20)):
                    with prof.phase("forward"):
                        time.sleep(seconds)
        return prof.summary.id

    @pytest.mark.slow
    def test_planted_slowness_fails_a_gate(self, tmp_path: Path) -> None:
        first, same, slow = self.recorded("one"), self.recorded("two"), self.recorded("three", 0.006)
        assert epochmeter("compare", first, same).code == 0
        failed = epochmeter("compare", first, slow, "--fail-on", "5%")
        assert failed.code == 1 and "slower by more than 5.0%: train" in failed.err
        assert epochmeter("compare", slow, first, "--fail-on", "5%").code == 0
        told = epochmeter("compare", first, same, slow, "--json").json
        assert [pair["after"]["id"] for pair in told["comparisons"]] == [same, slow]
        assert {"stage", "phase", "before_s", "after_s", "change", "interval", "verdict"} <= set(
            told["comparisons"][1]["changes"][1]
        )
        written = tmp_path / "compared.md"
        assert epochmeter("compare", first, slow, "--format", "markdown", "-o", str(written)).out == ""
        assert written.read_text().startswith(f"### three `{slow}` beside one `{first}`")
        text = epochmeter("compare", first, slow, COLUMNS="60").out
        assert max(map(len, text.splitlines())) <= 60 and "slower" in text
        assert json.loads(json.dumps(told)) == told

    @pytest.mark.parametrize(
        ("words", "says"),
        [
            ((), "Missing argument"),
            (("last",), "takes two runs or more"),
            (("last", "last"), "cannot be compared with itself"),
            (("last", "nosuch"), "there is no run 'nosuch'"),
            (("last", "last", "--fail-on", "five"), "--fail-on takes a percentage"),
            (("last", "last", "--format", "pdf"), "pdf"),
        ],
    )
    def test_bad_input_is_told(self, words: tuple[str, ...], says: str) -> None:
        self.recorded("one", 0.0)
        answer = epochmeter("compare", *words)
        assert answer.code == 2 and says in answer.err and "Traceback" not in answer.err

    def test_an_undecided_gate_does_not_pass(self) -> None:
        runs = []
        for _ in range(2):
            with Profiler("short") as prof:
                for _ in prof.train(range(5)):
                    pass
            runs.append(prof.summary.id)
        answer = epochmeter("compare", *runs, "--fail-on", "5%")
        assert answer.code == 2 and "too few slices for --fail-on" in answer.err
        assert epochmeter("compare", *runs).code == 0
