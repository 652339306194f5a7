"""The durations of phases and stages, as plain data."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from profiler.records.histogram import Histogram

Path = tuple[str, ...]  # a phase after the phases that enclose it, outermost first: ("forward", "attention")


AFTER = {word: f"after {word}" for word in ("loader_start", "data_wait", "forward", "backward", "optimizer")}
GAPS = frozenset(AFTER.values())  # the gaps between two known phases of a loop that names none
OF_THE_HOST = GAPS | {"data_wait", "checkpoint", "logging"}  # phases in which the GPU need not be at work


@dataclass
class Timing:
    """The durations of one thing that happens again and again.

    Those of the run's first step are kept apart (``cold``), because allocation, compilation and worker start-up are in it
    and would spoil the percentiles. They count in the total, the mean and the maximum.
    """

    steady: Histogram = field(default_factory=Histogram)
    cold: Histogram = field(default_factory=Histogram)
    device: Histogram = field(default_factory=Histogram)  # on the GPU's clock, if there is a GPU

    @property
    def count(self) -> int:
        """The number of measurements."""
        return self.steady.count + self.cold.count

    @property
    def total_ns(self) -> int:
        """The sum of all durations."""
        return self.steady.sum_ns + self.cold.sum_ns

    @property
    def max_ns(self) -> int | None:
        """The longest duration, or None without any."""
        return max((h.max_ns for h in (self.steady, self.cold) if h.max_ns is not None), default=None)

    def merge(self, other: Timing) -> None:
        """Add the durations of another time."""
        self.steady.merge(other.steady)
        self.cold.merge(other.cold)
        self.device.merge(other.device)


SLOWEST_KEPT = 20  # steps of a stage; a report shows ten, and looks at all for a rhythm


@dataclass(slots=True)
class SlowStep:
    """One step that is among the slowest of its stage.

    Attributes:
        step: its number in its epoch, from 0.
        number: its number in the run.
        at_ns: its end, in ns since the run's start.
        duration_ns: its duration, its wait for data included.
        phases: the time (ns) of each top-level phase in it.
        collected_ns: how much of it Python's garbage collector took.
        is_first: it was the run's first step of this stage.
        epoch: its epoch, or None outside epochs.
    """

    step: int
    number: int
    at_ns: int
    duration_ns: int
    phases: dict[str, int] = field(default_factory=dict)
    collected_ns: int = 0
    is_first: bool = False
    epoch: int | None = None


@dataclass
class StageRecord:
    """Train, validation or inference within one epoch (or one run): all of its passes, added up."""

    stage: str
    duration_ns: int = 0
    steps: int = 0
    samples: int | None = None  # None: no batch had a known size
    passes: int = 0
    partial_passes: int = 0
    step: Timing = field(default_factory=Timing)
    latency: Timing = field(default_factory=Timing)  # inference alone: a step without its wait for data
    batch: Histogram = field(default_factory=Histogram)  # inference alone: samples in a step, times 1e9
    phases: dict[Path, Timing] = field(default_factory=dict)
    operations: int | None = None  # that autograd recorded in its passes, None without torch
    beside_ns: int = 0  # of the duration, what overlapping calls of inference count more than once
    slowest: list[SlowStep] = field(default_factory=list)  # at most `SLOWEST_KEPT`, in no order

    @property
    def is_empty(self) -> bool:
        """True if nothing was measured."""
        return not (self.duration_ns or self.passes or self.steps or self.phases or self.step.count or self.latency.count)

    @property
    def elapsed_ns(self) -> int:
        """How long the stage went on, with time in which several calls ran counted once."""
        return max(self.duration_ns - self.beside_ns, 0)

    @property
    def other_ns(self) -> int:
        """The time that no top-level phase covers."""
        return self.duration_ns - sum(timing.total_ns for path, timing in self.phases.items() if len(path) == 1)

    @property
    def device_share(self) -> float | None:
        """The share of a step that its top-level phases took on the GPU's own clock, after the first step.

        Gaps and the host's own work are left out. The two clocks are compared over the whole stage, never added: a phase
        may end on the GPU long after it did on the host. None if the GPU reached less than half of the marks.
        """
        return self._share_of_step(lambda timing: timing.device.sum_ns / timing.device.count)

    @property
    def host_share(self) -> float | None:
        """The share of a step that the same phases took on the host's clock."""
        return self._share_of_step(lambda timing: timing.steady.sum_ns / timing.steady.count)

    def _share_of_step(self, mean: Callable[[Timing], float]) -> float | None:
        phases = [
            timing
            for path, timing in self.phases.items()
            if len(path) == 1 and path[0] not in OF_THE_HOST and timing.device.count and timing.steady.count
        ]
        if not phases or not self.step.steady.sum_ns or any(t.device.count * 2 < t.steady.count for t in phases):
            return None
        # some marks may not have been reached yet: the mean stands for them
        return min(sum(mean(t) * t.steady.count for t in phases) / self.step.steady.sum_ns, 1.0)

    def merge(self, other: StageRecord) -> None:
        """Add the passes of another part."""
        self.duration_ns += other.duration_ns
        self.beside_ns += other.beside_ns
        self.steps += other.steps
        if other.samples is not None:
            self.samples = (self.samples or 0) + other.samples
        if other.operations is not None:
            self.operations = (self.operations or 0) + other.operations
        self.passes += other.passes
        self.partial_passes += other.partial_passes
        self.step.merge(other.step)
        self.latency.merge(other.latency)
        self.batch.merge(other.batch)
        merge_phases(self.phases, other.phases)
        self.slowest = slowest_of([*self.slowest, *other.slowest])


def merge_phases(into: dict[Path, Timing], other: Mapping[Path, Timing]) -> None:
    """Add the timings of phases, by path."""
    for path, timing in other.items():
        into.setdefault(path, Timing()).merge(timing)


def slowest_of(steps: list[SlowStep], most: int = SLOWEST_KEPT) -> list[SlowStep]:
    """Return the slowest of these steps."""
    return steps if len(steps) <= most else heapq.nlargest(most, steps, key=lambda step: step.duration_ns)
