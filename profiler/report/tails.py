"""Tails: steps that are much slower than usual, their cost, and whether they recur or came at one time."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from profiler.records.histogram import NS
from profiler.report.when import rhythm_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.run import Run
    from profiler.records.timing import SlowStep, StageRecord


TAIL_TIMES = 3  # the median step: a slower one belongs to the tail
ONE_TIME = 0.9  # of the tail within one epoch, or at a few steps of the epochs
FEW_STEPS, AGAIN = 3, 3  # steps of an epoch, and in how many epochs each is slow


@dataclass(frozen=True)
class Tail:
    """The steps of a stage that took more than three times the median.

    Attributes:
        steps: how many there were.
        excess_ns: how much longer they took than as many median steps.
        usual_ns: the median step.
        mean_ns: their mean.
        phases: where the excess of the slowest ones lies: shares, by top-level phase ("other" for none).
        rhythm: every how many steps they recur, None if they do not.
        epoch: the one epoch in which they came, None if there is none.
        at_steps: the few steps of each epoch at which they come, empty if there are more.
        slowest: the slowest step that is kept.
    """

    steps: int
    excess_ns: int
    usual_ns: int
    mean_ns: int
    phases: dict[str, float]
    rhythm: int | None
    epoch: int | None
    at_steps: tuple[int, ...]
    slowest: SlowStep


def tail_of(run: Run, stage: StageRecord) -> Tail | None:
    """Return the tail of a stage, or None if no step is so slow. The first step of a run is not counted."""
    usual = stage.step.steady.percentile(0.5)
    kept = [step for step in stage.slowest if usual and not step.is_first and step.duration_ns > TAIL_TIMES * usual * NS]
    if usual is None or not kept:
        return None
    usual_ns = round(usual * NS)
    steps, total = stage.step.steady.above(TAIL_TIMES * usual_ns)
    if steps <= len(kept):
        steps, total = len(kept), sum(step.duration_ns for step in kept)  # all of them are kept: exact
    excess = max(total - steps * usual_ns, 0)
    phases = _phases(stage, kept)
    rhythm = rhythm_of(stage, usual)
    epochs = {step.epoch for step in kept}
    in_one = len(epochs) == 1 and len(run.epochs) > 1 and steps <= len(kept)
    slowest = max(kept, key=lambda step: step.duration_ns)
    every = None if rhythm is None else rhythm.every
    epoch = slowest.epoch if in_one and every is None else _slow_epoch(run, stage.stage, excess)
    return Tail(steps, excess, usual_ns, total // steps, phases, every, epoch, _at_steps(kept), slowest)


def _at_steps(slow: list[SlowStep]) -> tuple[int, ...]:
    """Return the steps of an epoch at which nearly all slow ones are, if they are few and come again in other epochs."""
    counts = Counter(step.step for step in slow)
    few = [step for step, times in counts.most_common(FEW_STEPS) if times >= AGAIN]
    return tuple(sorted(few)) if few and sum(counts[step] for step in few) >= ONE_TIME * len(slow) else ()


def _slow_epoch(run: Run, name: str, excess: int) -> int | None:
    """Return the epoch in which nearly all of the excess lies: its steps took so much longer than those of the others."""
    found = [(epoch.stages[name], epoch.index) for epoch in run.epochs if name in epoch.stages]
    if len(found) < 3:
        return None
    means = sorted((stage.step.total_ns / max(stage.steps, 1), index, stage) for stage, index in found if stage.steps)
    if not means:
        return None
    usual = means[len(means) // 2][0]
    mean, index, stage = means[-1]
    return index if (mean - usual) * stage.steps >= ONE_TIME * excess else None


def _phases(stage: StageRecord, slow: list[SlowStep]) -> dict[str, float]:
    usual = {path[0]: timing.total_ns / max(stage.steps, 1) for path, timing in stage.phases.items() if len(path) == 1}
    more: dict[str, float] = {"other": 0.0}
    for step in slow:
        named = 0
        for phase, spent in step.phases.items():
            named += spent
            more[phase] = more.get(phase, 0.0) + max(spent - min(usual.get(phase, 0.0), spent / 2), 0.0)
        more["other"] += max(step.duration_ns - named, 0)
    whole = sum(more.values())
    return {phase: spent / whole for phase, spent in more.items() if spent} if whole else {}
