"""The time of a step in one run, with its uncertainty, from blocks of neighbouring steps.

Steps that follow each other are alike, so they do not count as many. The blocks are the run's slices; where neighbouring blocks
are still alike, they count as fewer, too. The first step of a stage is left out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median, variance
from typing import NamedTuple

from profiler.report.epoch_rows import NOISE, SLOW

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.run import EpochRecord, Run


WHOLE, OTHER = "", "other"  # in the place of a phase
EPOCH = "epoch"  # in the place of a stage
FEWEST_EPOCHS = 3
SMALL = 0.5  # of the usual number of steps: a smaller block is added to its neighbour
Z = 1.96  # of the normal distribution
FEWEST_OF_USUAL = 6  # blocks, to know the usual ones
MOST_SLOW = 0.2  # of the blocks: more are no exception
LEAST_APART = 0.2  # where one phase is nearly all of a step, nothing can be told apart
ALIKE = 0.9  # a correlation of neighbouring blocks counts up to that


class Mean(NamedTuple):
    """A mean and its standard error, with the degrees of freedom; ``spread`` is how much blocks differ, relative to it."""

    value: float
    error: float
    freedom: float
    spread: float = 0.0


@dataclass
class Block:
    """Some neighbouring steps of a stage: how many, and the time (ns) of each phase, `OTHER` and `WHOLE` among them."""

    count: float
    spent: dict[str, float] = field(default_factory=dict)

    def add(self, other: Block) -> None:
        """Add a neighbour."""
        self.count += other.count
        for name, ns in other.spent.items():
            self.spent[name] = self.spent.get(name, 0.0) + ns


def blocks_of(run: Run, whole: EpochRecord, stage: str, *, by_sample: bool = False) -> list[Block]:
    """Return the blocks of a stage in a run; ``by_sample`` counts samples instead of steps."""
    blocks = []
    for one in run.slices:
        found = one.stages.get(stage)
        if found is not None and found.call_ns > 0:
            spent = {WHOLE: float(found.call_ns), OTHER: float(max(found.call_ns - sum(found.phases.values()), 0))}
            blocks.append(Block((found.samples or 0) if by_sample else found.steps, {**found.phases, **spent}))
    _leave_out_first_step(blocks, whole, stage, by_sample)
    return _without_small(blocks)


def _leave_out_first_step(blocks: list[Block], whole: EpochRecord, stage: str, by_sample: bool) -> None:
    record, begun = whole.stages[stage], next((block for block in blocks if block.count), None)
    cold, steps = record.step.cold, record.steps
    if begun is None or not cold.count or steps <= cold.count:
        return
    begun.count -= cold.count * ((record.samples or 0) / steps if by_sample else 1)
    begun.spent[WHOLE] -= cold.sum_ns
    inside = 0.0
    for path, timing in record.phases.items():
        if len(path) == 1 and path[0] in begun.spent:
            begun.spent[path[0]] = max(begun.spent[path[0]] - timing.cold.sum_ns, 0.0)
            inside += timing.cold.sum_ns
    begun.spent[OTHER] = max(begun.spent[OTHER] - max(cold.sum_ns - inside, 0.0), 0.0)


def _without_small(blocks: Sequence[Block]) -> list[Block]:
    """Return the blocks with those of few steps added to the one before."""
    counts = [block.count for block in blocks if block.count > 0]
    least = SMALL * median(counts) if counts else 0.0
    kept: list[Block] = []
    for block in blocks:
        if kept and (block.count < least or kept[-1].count < least):
            kept[-1].add(block)
        else:
            kept.append(Block(block.count, dict(block.spent)))
    return [block for block in kept if block.count > 0]


def epoch_blocks(run: Run) -> list[Block]:
    """Return each epoch as a block of one: its stages, the phases between them, and the rest. The first of many is left out."""
    blocks = []
    for epoch in _epochs(run)[leaves_first_out(run) :]:
        spent = {name: float(stage.elapsed_ns) for name, stage in epoch.stages.items()}
        for path, timing in epoch.phases.items():
            if len(path) == 1:
                spent[path[0]] = spent.get(path[0], 0.0) + timing.total_ns
        rest = max(epoch.duration_ns - sum(spent.values()), 0.0)
        blocks.append(Block(1, {**spent, OTHER: rest, WHOLE: float(epoch.duration_ns)}))
    return blocks


def leaves_first_out(run: Run) -> bool:
    """Return True if `epoch_blocks` leaves out the first epoch, which starts everything up."""
    return len(_epochs(run)) > FEWEST_EPOCHS


def _epochs(run: Run) -> list[EpochRecord]:
    return [epoch for epoch in run.epochs if epoch.duration_ns > 0 and epoch.stages]


def without_slow(blocks: Sequence[Block]) -> tuple[list[Block], list[float]]:
    """Return the blocks without those few that are far slower than the others, and how many times as slow each of these is.

    One epoch that waited for a disk would otherwise hide every other difference.
    """
    if len(blocks) < FEWEST_OF_USUAL:
        return list(blocks), []
    paces = [block.spent[WHOLE] / block.count for block in blocks]
    usual = median(paces)
    noise = median(abs(pace - usual) for pace in paces)
    limit = max(SLOW * usual, usual + NOISE * noise)
    slow = [pace / usual for pace in paces if pace > limit]
    if len(slow) > MOST_SLOW * len(blocks):
        return list(blocks), []
    return [block for block, pace in zip(blocks, paces, strict=True) if pace <= limit], slow


def phase_mean(blocks: Sequence[Block], name: str) -> Mean | None:
    """Return the mean time (ns) that one step spends in a phase; None without a step.

    It is a ratio of sums (W. G. Cochran, Sampling Techniques, 3rd ed., 6.4). Blocks whose neighbours are alike count as
    ``(1 - r) / (1 + r)`` of their number, r being that correlation (H. J. Thiebaux and F. W. Zwiers, 1984).
    """
    steps = sum(block.count for block in blocks)
    if not steps:
        return None
    ratio = sum(block.spent.get(name, 0.0) for block in blocks) / steps
    rest = [block.spent.get(name, 0.0) - ratio * block.count for block in blocks]
    squares, number = sum(value * value for value in rest), len(blocks)
    if number < 2:
        return Mean(ratio, math.inf, 0.0)
    alike = sum(a * b for a, b in itertools.pairwise(rest)) / squares if squares else 0.0
    alike = min(alike, ALIKE) if alike > Z / math.sqrt(number) else 0.0  # of independent blocks it is lower, in 39 of 40
    counted = max(number * (1 - alike) / (1 + alike), 1.5)
    spread = math.sqrt(squares / (number - 1) * number) / steps * math.sqrt(number)
    return Mean(ratio, spread / math.sqrt(counted), counted - 1, spread / ratio if ratio else 0.0)


def common_noise(blocks: Sequence[Block]) -> float:
    """Return how much all phases change together from block to block, as a standard deviation relative to their time.

    That is the mood of the machine (its clock, its neighbours), which differs between two starts as well. The variance of a
    step is that of its phases' own changes and of the common one. All pairs of phases are taken to share one covariance.
    """
    steps, whole = sum(block.count for block in blocks), sum(block.spent[WHOLE] for block in blocks)
    if len(blocks) < 3 or not steps or not whole:
        return 0.0
    names = [name for name in dict.fromkeys(name for block in blocks for name in block.spent) if name != WHOLE]
    own = {name: sum(block.spent.get(name, 0.0) for block in blocks) for name in names}
    weights = {name: ns / whole for name, ns in own.items() if ns > 0}
    apart = 1 - sum(weight**2 for weight in weights.values())
    if apart < LEAST_APART:
        return 0.0

    def spread(name: str, total: float) -> float:
        return variance([block.spent.get(name, 0.0) / block.count * steps / total for block in blocks])

    of_phases = sum(weight**2 * spread(name, own[name]) for name, weight in weights.items())
    return math.sqrt(max(spread(WHOLE, whole) - of_phases, 0.0) / apart)
