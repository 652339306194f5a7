"""Two runs side by side: their differences, how much longer each phase of a step takes, and the reasons.

The intervals hold for all rows of a comparison together. They contain the difference that a mere restart of the same program
makes, which the blocks of one run cannot show.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, NamedTuple

from profiler.errors import ArgumentValueError
from profiler.records.causes import COLLECTION, COMPILATION, STARVED
from profiler.records.histogram import NS
from profiler.records.student import CONFIDENCE, student
from profiler.records.vocabulary import STAGES
from profiler.report.blocks import EPOCH, WHOLE, Block, Mean, blocks_of, common_noise, epoch_blocks, phase_mean, without_slow
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
MOST_FREEDOM = 1e9
STEADY = 0.3  # of a mean: with a smaller error, its logarithm is as good as normal
UNCLEAR = 0.2  # an interval that contains no difference, and reaches further than that, tells nothing
EXPLAINS = 0.1  # of the difference: a smaller part explains nothing
NOTABLE_CLOCK, NOTABLE_COST = 0.03, 0.01  # of a GPU's clock; of a step
WORDS = {COLLECTION: "garbage collections", COMPILATION: "compilation", STARVED: "waiting for a free CPU"}
CLOCK = "epochmeter.gpu.clock.frequency"


@dataclass(frozen=True)
class Change:
    """One phase of a stage, then and now, in seconds a step (or a sample).

    Attributes:
        stage: train, val or inference; `EPOCH` for epochs, whose phases are the stages and the time between them.
        phase: the phase, `WHOLE` for the step as a whole.
        before_s: its time in the first run, None if it was not there.
        after_s: its time in the other run.
        change: 0.05 is 5 % more; None if one of both is missing.
        low: the lower end of its interval, None if a run has too few blocks.
        high: the upper end.
        verdict: slower, faster, noise (no difference beyond chance), unclear (a large one may be there); new, gone; or
            unknown, without an interval.
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


@dataclass(repr=False)
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
        """Return the stages that are in both runs, and that cannot be compared."""
        return [row for row in self.wholes() if row.verdict in ("unknown", "unclear")]

    def __repr__(self) -> str:
        return f"<Comparison of {self.after.id} with {self.before.id}: {len(self.changes)} rows>"

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
    sizes = _unlike_batches(wholes, stages[0])
    by_sample = sizes is not None
    made = Comparison(before, after, list(_unlike(before, after, wholes, sizes)), "sample" if by_sample else "step")
    pairs = {
        name: [blocks_of(run, whole, name, by_sample=by_sample) for run, whole in zip((before, after), wholes, strict=True)]
        for name in stages
    }
    pairs = {name: pair for name, pair in pairs.items() if all(pair)}
    for name, pair in pairs.items():
        for place, run in enumerate((before, after)):
            pair[place], slow = without_slow(pair[place])
            made.unlike += _left_out(run, name, slow, len(pair[place]) + len(slow))
    if not pairs:
        raise ArgumentValueError(f"runs {before.id} and {after.id} cannot be compared: their logs have no slices")
    epochs = [epoch_blocks(run) for run in (before, after)]
    if min(map(len, epochs)) >= FEWEST_BLOCKS:
        made.unlike += _unlike_epochs(before, after)
        if not by_sample and _steps_of(before) == _steps_of(after):
            pairs[EPOCH] = epochs
    by_run = zip(*(pair for name, pair in pairs.items() if name != EPOCH), strict=True)
    noises = [max(RESTART, *map(common_noise, found)) for found in by_run]
    judged = {name: _judged(*pair) for name, pair in pairs.items()}
    number = sum(len(names) for names in judged.values()) or 1
    confidence = 1 - (1 - CONFIDENCE) / number
    for name, pair in pairs.items():
        made.changes += _changes(name, judged[name], pair, noises, confidence)
    made.reasons = list(_reasons(made, wholes))
    return made


def _steps_of(run: Run) -> int:
    """Return how many steps an epoch usually has, in all stages together."""
    return round(median(sum(stage.steps for stage in epoch.stages.values()) for epoch in run.epochs))


def _unlike_epochs(before: Run, after: Run) -> Iterator[str]:
    steps = _steps_of(before), _steps_of(after)
    if steps[0] != steps[1]:
        yield f"steps in an epoch: {steps[0]:,} before, {steps[1]:,} now"


def _left_out(run: Run, stage: str, slow: list[float], number: int) -> Iterator[str]:
    if slow:
        times = f"{min(slow):.1f}" if len(slow) == 1 else f"{min(slow):.1f} to {max(slow):.1f}"
        yield f"{len(slow)} of {number} {stage} slices of {run.id} took {times} times as long as usual, and are left out"


def _why_not(before: Run, after: Run, wholes: tuple[EpochRecord, EpochRecord]) -> str:
    for run, whole in zip((before, after), wholes, strict=True):
        if not any(stage.steps for stage in whole.stages.values()):
            return f"no step of {run.id} was seen"
    return "no stage is in both"


def _unlike_batches(wholes: tuple[EpochRecord, EpochRecord], stage: str) -> tuple[float, float] | None:
    """Return the samples in a step of both, if they are known and differ."""
    then, now = (whole.stages[stage] for whole in wholes)
    if not then.samples or not now.samples:
        return None
    sizes = then.samples / then.steps, now.samples / now.steps
    return None if math.isclose(*sizes, rel_tol=1e-3) else sizes


# ---- what is different about them ----------------------------------------------------------------------------------


def _unlike(
    before: Run, after: Run, wholes: tuple[EpochRecord, EpochRecord], sizes: tuple[float, float] | None
) -> Iterator[str]:
    """Yield the differences of machine, versions and work."""
    for label, pair in _facts(before, after):
        if pair[0] != pair[1]:
            yield f"{label}: {_or_none(pair[0])} before, {_or_none(pair[1])} now"
    if sizes is not None:
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
                shares[name] = shares.get(name, 0.0) + (ns / whole if whole else 0.0)
    large = [name for name, share in shares.items() if name != WHOLE and share / 2 >= LEAST_SHARE]
    small = [name for name in shares if name not in large and name != WHOLE]
    for block in (*before, *after):
        rest = sum(block.spent.pop(name, 0.0) for name in small)
        if small:
            block.spent[REST] = rest
    return [WHOLE, *sorted(large, key=lambda name: -shares[name]), *([REST] if small else [])]


class Side(NamedTuple):
    """One phase in one run: its mean, that of the whole step (ns), and how much its machine's moods change a step."""

    mean: Mean
    step: float
    noise: float

    def restart(self) -> float:
        """Return how much a restart changes the mean (ns): a small phase as much as it differs between blocks."""
        own = self.mean.spread if self.mean.value < SMALL_SHARE * self.step else 0.0
        return math.hypot(max(self.noise, own) * self.mean.value, RESTART_OF_STEP * self.step)

    def is_steady(self) -> bool:
        """Return True if the mean is known well enough for its logarithm."""
        return math.hypot(self.mean.error, self.restart()) < STEADY * self.mean.value


def _changes(
    stage: str, names: list[str], pair: list[list[Block]], noises: Sequence[float], confidence: float
) -> Iterator[Change]:
    is_short = min(map(len, pair)) < FEWEST_BLOCKS
    for name in names:
        sides = []
        for blocks, noise in zip(pair, noises, strict=True):
            mean, step = phase_mean(blocks, name), phase_mean(blocks, WHOLE)
            is_there = any(name in block.spent for block in blocks)
            sides.append(Side(mean, step.value, noise) if mean is not None and step is not None and is_there else None)
        yield _change(stage, name, sides[0], sides[1], None if is_short else confidence)


def _change(stage: str, name: str, before: Side | None, after: Side | None, confidence: float | None) -> Change:
    """Return a row; without a confidence it has no interval."""
    then, now = (None if side is None else side.mean.value / NS for side in (before, after))
    if before is None or after is None or not then or not now:
        verdict = "gone" if then else "new" if now else "noise"
        return Change(stage, name, then, now, verdict=verdict)
    if confidence is None:
        return Change(stage, name, then, now, now / then - 1)
    low, high = _interval(before, after, confidence)
    verdict = "slower" if low > 0 else "faster" if high < 0 else "unclear" if max(-low, high) > UNCLEAR else "noise"
    return Change(stage, name, then, now, now / then - 1, low, high, verdict)


def _interval(before: Side, after: Side, confidence: float) -> tuple[float, float]:
    """Return the interval of the change: Student's t for the blocks, with B. L. Welch's freedom, the normal one for restarts.

    It is that of the logarithms' difference. If a mean is hardly known (a phase takes nearly no time in one run), it is that
    of the plain difference, as a share of the first mean.
    """
    sides = before, after
    units = [side.mean.value if before.is_steady() and after.is_steady() else 1.0 for side in sides]
    errors = [side.mean.error / unit for side, unit in zip(sides, units, strict=True)]
    variance = sum(error**2 for error in errors)
    parts = sum(error**4 / side.mean.freedom for error, side in zip(errors, sides, strict=True) if error)
    freedom = min(variance**2 / parts, MOST_FREEDOM) if parts else MOST_FREEDOM
    restart = math.hypot(*(side.restart() / unit for side, unit in zip(sides, units, strict=True)))
    half = math.hypot(student(freedom, confidence) * math.sqrt(variance), student(MOST_FREEDOM, confidence) * restart)
    then, now = before.mean.value, after.mean.value
    if units[0] != 1.0:
        middle = math.log(now / then)
        return math.expm1(middle - half), math.expm1(middle + half)
    return max((now - then - half) / then, -1.0), (now - then + half) / then


# ---- what explains it ----------------------------------------------------------------------------------------------


def _reasons(made: Comparison, wholes: tuple[EpochRecord, EpochRecord]) -> Iterator[str]:
    """Yield the phases that make the difference of each stage, and other changes beside them."""
    for whole in made.wholes():
        if whole.verdict in ("slower", "faster"):
            yield _explained(made, whole)
            if whole.stage != EPOCH:
                yield from _costs(made, whole, wholes)
    kinds = [judge(run, whole).kind for run, whole in zip((made.before, made.after), wholes, strict=True)]
    if kinds[0] != kinds[1]:
        yield f"the verdict was {kinds[0]}, and is {kinds[1]}"
    clocks = [_clock(whole) for whole in wholes]
    if None not in clocks and abs(clocks[1] / clocks[0] - 1) > NOTABLE_CLOCK:  # type: ignore[operator]
        yield f"the GPU's clock was {clocks[0] / 1e6:.0f} MHz, and is {clocks[1] / 1e6:.0f} MHz"  # type: ignore[operator]


def _explained(made: Comparison, whole: Change) -> str:
    """Return which phases make the difference of a step, in words."""
    rows = [row for row in made.changes if row.stage == whole.stage and row.phase != WHOLE and row.verdict != "noise"]
    rows = sorted((row for row in rows if abs(row.more_s) >= EXPLAINS * abs(whole.more_s)), key=lambda row: -abs(row.more_s))
    words = [
        f"{'perhaps ' if row.verdict == 'unclear' else ''}{row.phase} {_more(row.more_s)}"
        f" ({_then(row.before_s)}, now {_then(row.after_s)})"
        for row in rows
    ]
    what = f"an {EPOCH}" if whole.stage == EPOCH else f"a {whole.stage} {made.per}"
    said = f"{what} takes {_more(whole.more_s)}: "
    return said + (", ".join(words) if words else "no phase by itself stands out from the noise")


def _more(seconds: float) -> str:
    return f"{duration(abs(seconds))} {'more' if seconds > 0 else 'less'}"


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
            yield f"{words}: {shares[0]:.1%} of {row.stage} time before, {shares[1]:.1%} now"


def _clock(whole: EpochRecord) -> float | None:
    found = [
        reading.total / reading.count
        for reading in whole.readings.values()
        if reading.spec.name == CLOCK and reading.count and "sm" in reading.attributes.values()
    ]
    return sum(found) / len(found) if found else None
