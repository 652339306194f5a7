"""Slices: a run cut in time, so that a report knows when something happened.

A slice is the growth of a run over about ten seconds. A long run's slices are joined, so that their number stays bounded:
the sums stay exact, and only "when" gets coarser.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TypeVar

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.reading_record import ReadingKey, Readings
    from profiler.records.run import EpochRecord


T = TypeVar("T")
K = TypeVar("K")
MOST = 180  # slices of a run, once they have been joined
FRESH = 60  # of them, the newest, which are left as they are


@dataclass(slots=True)
class SliceStage:
    """A stage within a slice: its time, and that of its top-level phases (ns).

    Of calls that overlap, the time passes once (``duration_ns``), and is in each one's phases (``call_ns``).
    """

    duration_ns: int = 0
    call_ns: int = 0
    steps: int = 0
    samples: int | None = None
    step_ns: int = 0  # the sum of the durations of the steps that ended in the slice
    first_step: int = 0  # the number, in the epoch, of the first of them
    phases: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class SliceReading:
    """A reading within a slice. Of a counter, ``total`` is the growth."""

    count: int
    minimum: float
    maximum: float
    total: float
    is_counter: bool = False

    def merge(self, other: SliceReading) -> None:
        """Add a later one."""
        self.count += other.count
        self.minimum = min(self.minimum, other.minimum)
        self.maximum = max(self.maximum, other.maximum)
        self.total += other.total


@dataclass(slots=True)
class Slice:
    """The work of a run within some seconds; times in ns since its start.

    ``epoch`` and ``last_epoch`` are the first and the last epoch with a part in it, None without any.
    """

    epoch: int | None
    last_epoch: int | None
    started_ns: int
    duration_ns: int
    number: int | None = None  # of the slice in the run; pieces of one have the same
    stages: dict[str, SliceStage] = field(default_factory=dict)
    phases: dict[str, int] = field(default_factory=dict)  # outside stages
    readings: dict[ReadingKey, SliceReading] = field(default_factory=dict)
    costs: dict[tuple[str, str], int] = field(default_factory=dict)  # ns, by cause and stage

    @property
    def ended_ns(self) -> int:
        """The end."""
        return self.started_ns + self.duration_ns

    def merge(self, later: Slice) -> None:
        """Add a later slice."""
        self.started_ns, ended = min(self.started_ns, later.started_ns), max(self.ended_ns, later.ended_ns)
        self.duration_ns = ended - self.started_ns
        self.number = later.number
        self.epoch = later.epoch if self.epoch is None else self.epoch
        self.last_epoch = self.last_epoch if later.last_epoch is None else later.last_epoch
        for name, stage in later.stages.items():
            mine = self.stages.setdefault(name, SliceStage(first_step=stage.first_step))
            mine.duration_ns += stage.duration_ns
            mine.call_ns += stage.call_ns
            mine.steps += stage.steps
            mine.step_ns += stage.step_ns
            if stage.samples is not None:
                mine.samples = (mine.samples or 0) + stage.samples
            _add_up(mine.phases, stage.phases)
        _add_up(self.phases, later.phases)
        _add_up(self.costs, later.costs)
        for key, reading in later.readings.items():
            if key in self.readings:
                self.readings[key].merge(reading)
            else:
                self.readings[key] = replace(reading)


def slice_of(part: EpochRecord) -> Slice:
    """Return a part of a run as a slice."""
    made = Slice(part.index, part.index, part.started_ns, part.duration_ns, part.slice, readings=_readings(part.readings))
    for name, stage in part.stages.items():
        phases = {path[0]: timing.total_ns for path, timing in stage.phases.items() if len(path) == 1}
        times = (stage.elapsed_ns, stage.duration_ns)
        made.stages[name] = SliceStage(*times, stage.steps, stage.samples, stage.step.total_ns, 0, phases)
    made.phases = {path[0]: timing.total_ns for path, timing in part.phases.items() if len(path) == 1}
    for place, cost in part.costs.items():
        _add_up(made.costs, {(place.cause, place.stage): cost.ns})
    return made


def _readings(readings: Readings) -> dict[ReadingKey, SliceReading]:
    found = {}
    for key, reading in readings.items():
        if reading.spec.kind == "counter":
            found[key] = SliceReading(reading.count, reading.last, reading.last, reading.last, is_counter=True)
        elif reading.spec.kind != "histogram" and reading.count:
            found[key] = SliceReading(reading.count, reading.minimum, reading.maximum, reading.total)
    return found


def _add_up(into: dict[K, int], more: dict[K, int]) -> None:
    for name, spent in more.items():
        into[name] = into.get(name, 0) + spent


def add_slice(slices: list[Slice], new: Slice) -> None:
    """Add a slice at the end. When there are twice as many as are kept, they are joined."""
    if slices:
        _share_keys(slices[-1], new)
        for name, stage in new.stages.items():
            stage.first_step = _steps_before(slices, new.epoch, name)
    if slices and new.number is not None and slices[-1].number == new.number:
        slices[-1] = sum_of([slices[-1], new])
        return
    slices.append(new)
    if len(slices) >= 2 * MOST:
        slices[:] = joined(slices)


def _steps_before(slices: list[Slice], epoch: int | None, stage: str) -> int:
    """Return how many steps of a stage are in the slices of this epoch."""
    for one in reversed(slices):
        if one.last_epoch != epoch:
            return 0
        if stage in one.stages:
            return one.stages[stage].first_step + one.stages[stage].steps if one.epoch == epoch else 0
    return 0


def _share_keys(before: Slice, new: Slice) -> None:
    """Let both slices hold the same objects as keys: a run has hundreds of slices, and the same readings in each."""
    known = {key: key for key in before.readings}
    new.readings = {known.get(key, key): reading for key, reading in new.readings.items()}


def joined(slices: list[Slice], most: int = MOST, fresh: int = FRESH) -> list[Slice]:
    """Return the slices, in the order of time, with neighbours joined, but for the newest.

    Args:
        most: how many there may be, about.
        fresh: how many of the newest stay as they are.
    """
    older, newest = slices[: len(slices) - fresh], slices[len(slices) - fresh :]

    def times(one: Slice) -> tuple[int, int]:
        return one.started_ns, one.ended_ns

    kept: list[Slice] = []
    for group in groups_of(older, length_of_joined(older, most - fresh, times), times):
        kept.append(group[0] if len(group) == 1 else sum_of(group))
    return [*kept, *newest]


def sum_of(slices: list[Slice]) -> Slice:
    """Return neighbours as one slice. They stay as they are: a summary may hold them."""
    whole = Slice(slices[0].epoch, slices[0].last_epoch, slices[0].started_ns, slices[0].duration_ns, slices[0].number)
    for one in slices:
        whole.merge(one)
    return whole


def length_of_joined(items: list[T], most: int, times: Callable[[T], tuple[int, int]]) -> int:
    """Return how long (ns) joined slices may be, so that at most about ``most`` of them cover the time of all."""
    return (times(items[-1])[1] - times(items[0])[0]) // max(most, 1) if items else 0


def groups_of(
    items: list[T],
    longest: int,
    times: Callable[[T], tuple[int, int]],
    are_one: Callable[[T, T], bool] = lambda first, other: True,
) -> Iterator[list[T]]:
    """Yield neighbours that together are no longer than ``longest`` (ns), and may be joined."""
    group: list[T] = []
    for item in items:
        if group and (not are_one(group[0], item) or times(item)[1] - times(group[0])[0] > longest):
            yield group
            group = []
        group.append(item)
    if group:
        yield group
