"""Part of `profiler.records.run`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from profiler.records.histogram import Histogram

Path = tuple[str, ...]  # a phase and what it is nested in, outermost first: ("forward", "attention")


AFTER = {word: f"after {word}" for word in ("data_wait", "forward", "backward", "optimizer")}
GAPS = frozenset(AFTER.values())  # what lies between two known phases of a loop that names none
OF_THE_HOST = GAPS | {"data_wait", "checkpoint", "logging"}  # phases in which the GPU need not be at work


@dataclass
class Timing:
    """The durations of one thing that happens again and again.

    Those of the run's first step are kept apart (``cold``): allocation, compilation and worker start-up are in it,
    and would spoil the percentiles. They count in the total, the mean and the maximum.
    """

    steady: Histogram = field(default_factory=Histogram)
    cold: Histogram = field(default_factory=Histogram)
    device: Histogram = field(default_factory=Histogram)  # the same, on the GPU's clock, where there is one

    @property
    def count(self) -> int:
        return self.steady.count + self.cold.count

    @property
    def total_ns(self) -> int:
        return self.steady.sum_ns + self.cold.sum_ns

    @property
    def max_ns(self) -> int | None:
        return max((h.max_ns for h in (self.steady, self.cold) if h.max_ns is not None), default=None)

    def merge(self, other: Timing) -> None:
        self.steady.merge(other.steady)
        self.cold.merge(other.cold)
        self.device.merge(other.device)


@dataclass
class StageRecord:
    """Train, validation or inference within one epoch (or one run): every pass of it, added up."""

    stage: str
    duration_ns: int = 0
    steps: int = 0
    samples: int | None = None  # None: no batch told its size
    passes: int = 0
    partial_passes: int = 0
    step: Timing = field(default_factory=Timing)
    latency: Timing = field(default_factory=Timing)  # inference alone: a step without its wait for data
    batch: Histogram = field(default_factory=Histogram)  # inference alone: samples in a step, times 1e9
    phases: dict[Path, Timing] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        return not (self.duration_ns or self.passes or self.steps or self.phases or self.step.count or self.latency.count)

    @property
    def other_ns(self) -> int:
        """What no top-level phase covers."""
        return self.duration_ns - sum(timing.total_ns for path, timing in self.phases.items() if len(path) == 1)

    @property
    def device_share(self) -> float | None:
        """Of a step, the share that its top-level phases took on the GPU's own clock, once the first step is over.

        Without gaps and what is the host's work. The two clocks are compared over the whole stage, never added: a phase may
        end on the GPU long after it did here. None where the device reached less than half of the marks.
        """
        return self._share_of_step(lambda timing: timing.device.sum_ns / timing.device.count)

    @property
    def host_share(self) -> float | None:
        """The share that the same phases took here."""
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
        self.duration_ns += other.duration_ns
        self.steps += other.steps
        if other.samples is not None:
            self.samples = (self.samples or 0) + other.samples
        self.passes += other.passes
        self.partial_passes += other.partial_passes
        self.step.merge(other.step)
        self.latency.merge(other.latency)
        self.batch.merge(other.batch)
        merge_phases(self.phases, other.phases)


def merge_phases(into: dict[Path, Timing], other: Mapping[Path, Timing]) -> None:
    for path, timing in other.items():
        into.setdefault(path, Timing()).merge(timing)
