"""Two runs side by side: their differences, how much longer each phase of a step takes, and the reasons.

The intervals hold for all rows of a comparison together. They contain the difference that a mere restart of the same program
makes, which the blocks of one run cannot show.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from profiler.errors import ArgumentValueError
from profiler.records.causes import COLLECTION, COMPILATION, STARVED
from profiler.records.histogram import NS
from profiler.records.student import CONFIDENCE, student
from profiler.records.vocabulary import STAGES
from profiler.report.blocks import WHOLE, Block, Mean, blocks_of, common_noise, mean_of
from profiler.report.layout import duration
from profiler.report.verdict import judge

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.run import EpochRecord, Run


FEWEST_BLOCKS = 3  # of each run, for an interval
LEAST_SHARE = 0.01  # of a step, in both runs: a smaller phase is not judged by itself
REST = "the rest"  # such phases together
# What a restart of the same program changes at least, as standard deviations: of a phase's time, and of the whole step's. Where
# all phases of a run change together from block to block, a restart is taken to change them as much: see `common_noise` and
# `python benchmarks/bench_compare.py`.
RESTART, RESTART_OF_STEP = 0.007, 0.001
SMALL_SHARE = 0.1  # of a step
EXPLAINS = 0.1  # of the difference: a smaller part explains nothing
NOTABLE_CLOCK, NOTABLE_COST = 0.03, 0.01  # of a GPU's clock; of a step
WORDS = {COLLECTION: "garbage collections", COMPILATION: "compilation", STARVED: "waiting for a free CPU"}
CLOCK = "epochmeter.gpu.clock.frequency"


@dataclass(frozen=True)
class Change:
    """One phase of a stage, then and now, in seconds a step (or a sample).

    Attributes:
        stage: train, val or inference.
        phase: the phase, `WHOLE` for the step as a whole.
        before_s: its time in the first run, None if it was not there.
        after_s: its time in the other run.
        change: 0.05 is 5 % more; None if one of both is missing.
        low: the lower end of its interval, None if a run has too few blocks.
        high: the upper end.
        verdict: slower, faster, noise; new, gone; or unknown, without an interval.
    """

    stage: str
    phase: str
    before_s: float | None
    after_s: float | None
    change: float | None = None
    low: float | None = None
    high: float | None = None
    verdict: str = "unknown"

    @property
    def more_s(self) -> float:
        """How much longer it takes."""
        return (self.after_s or 0.0) - (self.before_s or 0.0)

    def to_dict(self) -> dict[str, Any]:
        """Return it as it stands in a document."""
        told: dict[str, Any] = {"stage": self.stage, **({"phase": self.phase} if self.phase else {}), "verdict": self.verdict}
        told |= {key: value for key in ("before_s", "after_s", "change") if (value := getattr(self, key)) is not None}
        return told if self.low is None or self.high is None else {**told, "interval": [self.low, self.high]}


@dataclass
class Comparison:
    """One run beside another.

    Attributes:
        before: the run to compare with.
        after: the other one.
        unlike: differences of machine, versions and work, in words.
        per: "step", or "sample" where a step of both has another number of samples.
        changes: the rows, for each stage its whole step first.
        reasons: of the difference, in words.
    """

    before: Run
    after: Run
    unlike: list[str] = field(default_factory=list)
    per: str = "step"
    changes: list[Change] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    def wholes(self) -> list[Change]:
        """Return the rows of whole steps."""
        return [row for row in self.changes if row.phase == WHOLE]

    def regressions(self, limit: float) -> list[Change]:
        """Return the stages whose step is slower by more than the limit, and not by chance."""
        return [row for row in self.wholes() if row.low is not None and row.low > limit]

    def undecided(self) -> list[Change]:
        """Return the stages that are in both runs and have no interval."""
        return [row for row in self.wholes() if row.change is not None and row.low is None]

    def __str__(self) -> str:
        from profiler.report.compare_text import renderable
        from profiler.report.text import plain, spaced

        return plain(spaced(renderable(self)))

    def _repr_html_(self) -> str:
        """Return it for a notebook."""
        from profiler.report.web.compare_page import compare_fragment

        return compare_fragment(self)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data, times in seconds."""
        return {
            "before": _named(self.before),
            "after": _named(self.after),
            "unlike": self.unlike,
            "per": self.per,
            "changes": [row.to_dict() for row in self.changes],
            "reasons": self.reasons,
        }


def _named(run: Run) -> dict[str, Any]:
    return {"id": run.id, "name": run.name, "state": run.state, "duration_s": run.duration_ns / NS}


def compared(before: Run, after: Run) -> Comparison:
    """Compare two runs.

    Raises:
        ArgumentValueError: they have no stage with steps in common.
    """
    wholes = before.whole(), after.whole()
    stages = [name for name in STAGES if all(name in whole.stages and whole.stages[name].steps for whole in wholes)]
    if not stages:
        raise ArgumentValueError(f"runs {before.id} and {after.id} cannot be compared: {_why_not(before, after, wholes)}")
    sizes = [_batch(whole, stages[0]) for whole in wholes]
    by_sample = None not in sizes and not math.isclose(*map(float, sizes), rel_tol=1e-3)  # type: ignore[arg-type]
    made = Comparison(before, after, list(_unlike(before, after, wholes, sizes)), "sample" if by_sample else "step")
    pairs = {
        name: [blocks_of(run, whole, name, by_sample=by_sample) for run, whole in zip((before, after), wholes, strict=True)]
        for name in stages
    }
    pairs = {name: pair for name, pair in pairs.items() if all(pair)}
    if not pairs:
        raise ArgumentValueError(f"runs {before.id} and {after.id} cannot be compared: their logs have no slices")
    judged = {name: _judged(*pair) for name, pair in pairs.items()}
    number = sum(len(names) for names in judged.values()) or 1
    confidence = 1 - (1 - CONFIDENCE) / number
    for name, pair in pairs.items():
        made.changes += _changes(name, judged[name], pair[0], pair[1], confidence)
    made.reasons = list(_reasons(made, wholes))
    return made


def _why_not(before: Run, after: Run, wholes: tuple[EpochRecord, EpochRecord]) -> str:
    for run, whole in zip((before, after), wholes, strict=True):
        if not any(stage.steps for stage in whole.stages.values()):
            return f"no step of {run.id} was seen"
    return "no stage is in both"


def _batch(whole: EpochRecord, stage: str) -> float | None:
    record = whole.stages[stage]
    return record.samples / record.steps if record.samples else None


# ---- what is different about them ----------------------------------------------------------------------------------


def _unlike(before: Run, after: Run, wholes: tuple[EpochRecord, EpochRecord], sizes: Sequence[float | None]) -> Iterator[str]:
    """Yield the differences of machine, versions and work."""
    for label, pair in _facts(before, after):
        if pair[0] != pair[1]:
            yield f"{label}: {_or_none(pair[0])} before, {_or_none(pair[1])} now"
    if None not in sizes and not math.isclose(*map(float, sizes), rel_tol=1e-3):  # type: ignore[arg-type]
        yield f"samples in a step: {sizes[0]:.4g} before, {sizes[1]:.4g} now; times are told for each sample"
    for stage in dict.fromkeys([*before.loaders, *after.loaders]):
        pair = before.loaders.get(stage), after.loaders.get(stage)
        if None not in pair and pair[0] != pair[1]:
            changed = [key for key in vars(pair[0]) if getattr(pair[0], key) != getattr(pair[1], key)]
            words = [f"{key} {getattr(pair[0], key)} before, {getattr(pair[1], key)} now" for key in changed]
            yield f"the {stage} loader: {'; '.join(words)}"
    for name in STAGES:
        there = [name in whole.stages for whole in wholes]
        if there[0] != there[1]:
            yield f"{name}: only {'before' if there[0] else 'now'}"


def _facts(before: Run, after: Run) -> Iterator[tuple[str, tuple[Any, Any]]]:
    runs = before, after
    cards = tuple(
        ", ".join(sorted(str(gpu.get("name", "without a name")) for gpu in run.hardware.gpus.values())) for run in runs
    )
    yield "GPUs", (cards[0], cards[1])
    for label, key in (("CPU", "family"), ("CPU cores", "available_cores")):
        yield label, (before.hardware.cpu.get(key), after.hardware.cpu.get(key))
    yield "memory class", (before.hardware.memory.get("total_class_gib"), after.hardware.memory.get("total_class_gib"))
    for key in dict.fromkeys([*before.hardware.runtime, *after.hardware.runtime]):
        yield key, (before.hardware.runtime.get(key), after.hardware.runtime.get(key))
    yield "ranks", (before.world_size, after.world_size)
    yield "command", (before.command, after.command)


def _cards(run: Run) -> str:
    return ", ".join(sorted(str(gpu.get("name", "without a name")) for gpu in run.hardware.gpus.values()))


def _or_none(value: Any) -> str:
    return "none" if value in (None, "") else str(value)


# ---- rows ----------------------------------------------------------------------------------------------------------


def _judged(before: list[Block], after: list[Block]) -> list[str]:
    """Return the whole step, the phases that are large enough to be judged, and `REST` if there are others.

    The others are joined to `REST` in the blocks.
    """
    shares: dict[str, float] = {}
    for blocks in (before, after):
        whole = sum(block.spent[WHOLE] for block in blocks)
        for block in blocks:
            for name, ns in block.spent.items():
                shares[name] = max(shares.get(name, 0.0), 0.0) + (ns / whole if whole else 0.0)
    large = [name for name, share in shares.items() if name != WHOLE and share / 2 >= LEAST_SHARE]
    small = [name for name in shares if name not in large and name != WHOLE]
    for block in (*before, *after):
        rest = sum(block.spent.pop(name, 0.0) for name in small)
        if small:
            block.spent[REST] = rest
    return [WHOLE, *sorted(large, key=lambda name: -shares[name]), *([REST] if small else [])]


def _changes(stage: str, names: list[str], before: list[Block], after: list[Block], confidence: float) -> Iterator[Change]:
    steps = mean_of(before, WHOLE), mean_of(after, WHOLE)
    step = max(mean.value for mean in steps if mean is not None)
    noise = max(RESTART, *map(common_noise, (before, after)))
    is_short = min(len(before), len(after)) < FEWEST_BLOCKS
    for name in names:
        means = mean_of(before, name), mean_of(after, name)
        there = [any(name in block.spent for block in blocks) for blocks in (before, after)]
        yield _change(stage, name, means, there, (step, noise), None if is_short else confidence)


def _change(
    stage: str,
    name: str,
    means: tuple[Mean | None, Mean | None],
    there: list[bool],
    usual: tuple[float, float],
    confidence: float | None,
) -> Change:
    """Return a row; without a confidence it has no interval."""
    then, now = (
        mean.value / NS if mean is not None and is_there else None for mean, is_there in zip(means, there, strict=True)
    )
    if not then or not now:
        verdict = "gone" if then else "new" if now else "noise"
        return Change(stage, name, then, now, verdict=verdict)
    change = now / then - 1
    if confidence is None or means[0] is None or means[1] is None:
        return Change(stage, name, then, now, change)
    low, high = _interval(means[0], means[1], usual, confidence)
    verdict = "slower" if low > 0 else "faster" if high < 0 else "noise"
    return Change(stage, name, then, now, change, low, high, verdict)


def _interval(then: Mean, now: Mean, usual: tuple[float, float], confidence: float) -> tuple[float, float]:
    """Return the interval of the ratio of two means less 1: Student's t on the logarithms, its freedom after B. L. Welch."""
    step, noise = usual  # of a step: its time (ns), and how much a restart changes it
    errors = [mean.error / mean.value for mean in (then, now)]
    restart = [_restart(mean, step, noise) for mean in (then, now)]
    variance = sum(error**2 for error in errors)
    parts = sum(error**4 / mean.freedom for error, mean in zip(errors, (then, now), strict=True) if error)
    all_variance = variance + sum(error**2 for error in restart)
    freedom = all_variance**2 / parts if parts else math.inf
    half = student(min(freedom, 1e9), confidence) * math.sqrt(all_variance)
    middle = math.log(now.value / then.value)
    return math.expm1(middle - half), math.expm1(middle + half)


def _restart(mean: Mean, step: float, noise: float) -> float:
    """Return how much a restart changes a phase, relative to its time: a small phase as much as it differs between blocks."""
    own = mean.spread if mean.value < SMALL_SHARE * step else 0.0
    return math.hypot(max(noise, own), RESTART_OF_STEP * step / mean.value)


# ---- what explains it ----------------------------------------------------------------------------------------------


def _reasons(made: Comparison, wholes: tuple[EpochRecord, EpochRecord]) -> Iterator[str]:
    """Yield the phases that make the difference of each stage, and other changes beside them."""
    for whole in made.wholes():
        if whole.verdict in ("slower", "faster"):
            yield _explained(made, whole)
            yield from _costs(made, whole, wholes)
    kinds = [judge(run, whole).kind for run, whole in zip((made.before, made.after), wholes, strict=True)]
    if kinds[0] != kinds[1]:
        yield f"the verdict was {kinds[0]}, and is {kinds[1]}"
    clocks = [_clock(whole) for whole in wholes]
    if None not in clocks and abs(clocks[1] / clocks[0] - 1) > NOTABLE_CLOCK:  # type: ignore[operator]
        yield f"the GPU's clock was {clocks[0] / 1e6:.0f} MHz, and is {clocks[1] / 1e6:.0f} MHz"  # type: ignore[operator]


def _explained(made: Comparison, whole: Change) -> str:
    """Return which phases make the difference of a step, in words."""
    signed = [row for row in made.changes if row.stage == whole.stage and row.phase != WHOLE and row.verdict != "noise"]
    parts = sorted(((row.more_s / whole.more_s, row) for row in signed), key=lambda pair: -pair[0])
    words = [
        f"{row.phase} {share:.0%} of it ({_then(row.before_s)}, now {_then(row.after_s)})"
        for share, row in parts
        if share >= EXPLAINS
    ]
    how = f"{duration(abs(whole.more_s))} {'more' if whole.more_s > 0 else 'less'}"
    said = f"a {whole.stage} {made.per} takes {how}: "
    return said + (", ".join(words) if words else "no phase by itself stands out from the noise")


def _then(seconds: float | None) -> str:
    return "not there" if seconds is None else duration(seconds)


def _costs(made: Comparison, row: Change, wholes: tuple[EpochRecord, EpochRecord]) -> Iterator[str]:
    """Yield causes inside the phases that took another share of a step."""
    for cause, words in WORDS.items():
        shares = []
        for whole in wholes:
            spent = sum(cost.ns for place, cost in whole.costs.items() if (place.cause, place.stage) == (cause, row.stage))
            shares.append(spent / (whole.stages[row.stage].duration_ns or 1))
        if abs(shares[1] - shares[0]) >= NOTABLE_COST:
            yield f"{words} took {shares[0]:.1%} of {row.stage} time, and take {shares[1]:.1%}"


def _clock(whole: EpochRecord) -> float | None:
    found = [
        reading.total / reading.count
        for reading in whole.readings.values()
        if reading.spec.name == CLOCK and reading.count and "sm" in reading.attributes.values()
    ]
    return sum(found) / len(found) if found else None
