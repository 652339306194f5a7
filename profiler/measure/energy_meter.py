"""The energy of the GPUs in each epoch and stage: differences of their counters, shared out over time.

The loop's thread only notes when something began (an edge). The counters are read in another thread, once a second and
soon after an edge. Between two readings the energy is shared out by time. The counter moves in steps and always lags, so
a step's worth of energy is uncertain at each edge and kept beside the sum. A pass shorter than that is reported as below
resolution, not as a guess.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from profiler.records.energy import RESET_AFTER_NS, STEP_NS, Energy, merge_energy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.energy import Energies


MAX_EDGES = 4096  # between two readings; a service has many calls a second
HAND_OVER_NS = 10_000_000_000  # how often the energy of an epoch that goes on is handed over
POWER_OVER_NS = 1_000_000_000  # the time over which the power is averaged: a single step says little
EpochAndStage = tuple["int | None", str]  # the epoch, and the stage ("" for none)


class Staged(Protocol):
    """A pass, whose stage may become known only later."""

    @property
    def stage_name(self) -> str: ...


class Edge(NamedTuple):
    """The begin (ns on the host's clock) of an epoch and a pass, or of none."""

    at: int
    epoch: int | None
    of: Staged | None


class Edges:
    """The edges since the last reading. The loop's thread writes them without a lock; another thread reads them.

    If no GPU counts its energy, only the last one is kept.
    """

    def __init__(self) -> None:
        self.noted: deque[Edge] = deque(maxlen=MAX_EDGES)
        self.last = Edge(0, None, None)
        self.is_read = False
        self.epoch: int | None = None
        self.on_edge: Callable[[], None] = lambda: None
        self._nudged_at = 0

    def has_begun(self) -> bool:
        """Return True once a pass or a named epoch has begun in the run's own thread."""
        return self.last.at > 0

    def add(self, at: int, of: Staged | None) -> None:
        """Note that from now on the loop is in this pass, or in none."""
        self.last = edge = Edge(at, self.epoch, of)
        if not self.is_read:
            return
        self.noted.append(edge)
        if at - self._nudged_at >= STEP_NS:
            self._nudged_at = at
            self.on_edge()


class TimeShares:
    """The time since a counter was last read, by epoch and stage, and how often each was left."""

    def __init__(self) -> None:
        self.times: dict[EpochAndStage, int] = {}
        self.ends: dict[EpochAndStage, int] = {}

    def add(self, other: TimeShares) -> None:
        """Add the shares of a later time."""
        for into, more in ((self.times, other.times), (self.ends, other.ends)):
            for place, value in more.items():
                into[place] = into.get(place, 0) + value


class EnergyCounter:
    """A GPU's energy counter: its growth, and the power of about the last second.

    A reading lower than the previous one means the counter was reset. If the counter is back above it within two seconds, the
    low reading is ignored as a glitch.
    """

    def __init__(self) -> None:
        self.waiting = TimeShares()  # the shares since it was last read
        self.fell_at: int | None = None  # ns; set while its readings are doubted
        self._last: float | None = None  # J
        self._last_at = 0
        self._joules = self._time = 0.0

    def read(self, counter: float, at: int) -> tuple[float, float] | None:
        """Return the joules since the previous reading, and the estimated joules lost by a reset.

        None if there is no previous reading, or while this one is doubted.
        """
        before, before_at = self._last, self._last_at
        missing = 0.0
        if before is not None and counter < before:
            if self.fell_at is None:
                self.fell_at = at
            if at - self.fell_at < RESET_AFTER_NS:
                return None
            if self._time:
                missing = self._joules / self._time * (self.fell_at - before_at)
        self._last, self._last_at, self.fell_at = counter, at, None
        if before is None:
            return None
        return (counter - before if counter >= before else counter), missing

    def step(self, used: float, time: int) -> float:
        """Return the joules of one step of the counter, by the power of about the last second."""
        fade = POWER_OVER_NS / (self._time + time)
        self._joules, self._time = self._joules + used, self._time + time
        if fade < 1:
            self._joules, self._time = self._joules * fade, self._time * fade
        return self._joules / self._time * STEP_NS


class EnergyMeter:
    """Shares out the energy of the counters.

    Args:
        edges: the begins of epochs and passes.
        done: receives the energy of an epoch, by stage and GPU, when it is over, and of a long one about every ten seconds.
            None stands for time outside epochs.
    """

    def __init__(self, edges: Edges, done: Callable[[int | None, Energies], None]) -> None:
        self._edges = edges
        self._done = done
        self._lock = threading.Lock()
        self._at: int | None = None
        self._handed_at = 0
        self._now = Edge(0, None, None)
        self._counters: dict[str, EnergyCounter] = {}
        self._used: dict[int | None, Energies] = {}
        self._is_over = False

    def add(self, at: int, counters: Mapping[str, float]) -> None:
        """Take the counters (J, by ``hw.id``) as read at that moment."""
        with self._lock:
            if self._is_over:
                return
            spent = self._shares_until(at)
            for gpu in sorted({*self._counters, *counters}):
                self._read_counter(gpu, spent, counters.get(gpu), at)
            is_due = at - self._handed_at >= HAND_OVER_NS  # an epoch may last for days
            self._handed_at = at if is_due else self._handed_at
            over = [epoch for epoch in self._used if is_due or epoch != self._now.epoch]
            for epoch in over:
                self._done(epoch, self._used.pop(epoch))

    def finish(self) -> None:
        """Hand over the energy of epochs that are not over."""
        with self._lock:
            self._is_over = True
            while self._used:
                self._done(*self._used.popitem())

    def _shares_until(self, at: int) -> TimeShares:
        """Return the shares of the time since the previous reading."""
        noted = self._edges.noted
        edges = []
        while noted and noted[0].at <= at:
            edges.append(noted.popleft())
        spent = TimeShares()
        began, self._at = self._at, at
        if began is None:
            self._edges.is_read = True
            self._now = self._edges.last
            return spent
        if len(edges) == MAX_EDGES:  # some edges were lost, so the shares are unknown
            self._now = edges[-1]
            return spent
        for edge in sorted(edges, key=lambda edge: edge.at):  # the begin of an epoch may become known late
            moment = max(edge.at, began)
            before = _stay(spent, self._now, moment - began)
            if before != _place(edge):
                spent.ends[before] = spent.ends.get(before, 0) + 1
            began, self._now = moment, edge
        _stay(spent, self._now, at - began)
        return spent

    def _read_counter(self, gpu: str, spent: TimeShares, counter: float | None, at: int) -> None:
        meter = self._counters.setdefault(gpu, EnergyCounter())
        meter.waiting.add(spent)
        if counter is None:
            return
        used = meter.read(counter, at)
        if meter.fell_at is not None:
            return
        if used is not None and meter.waiting.times:
            self._share_out(gpu, *used, meter)
        meter.waiting = TimeShares()

    def _share_out(self, gpu: str, used: float, missing: float, meter: EnergyCounter) -> None:
        # Between two readings only the sum of the energy is known, and it is shared out by time. Where a reading spans two
        # places, one of them may have used more than its share. The error is bounded by the smaller part's share, in either
        # direction. Each end of a place adds a step of the counter, and a reset adds the energy that it hid.
        spent = meter.waiting
        whole = sum(spent.times.values())
        step = meter.step(used, whole)
        of_epoch, of_stage = _sums(spent.times, 0), _sums(spent.times, 1)
        for place in {**spent.times, **spent.ends}:
            time, (epoch, stage) = spent.times.get(place, 0), place

            def mixed(own: int, time: int = time) -> float:
                """Return the joules of this epoch and stage that may belong to another one."""
                return used * min(own, whole - own) / whole * (time / own) if own else 0.0

            lost, steps = missing * time / whole, spent.ends.get(place, 0) * step
            energy = Energy(
                joules=used * time / whole,
                seconds=time / 1e9,
                uncertain=mixed(time) + steps + lost,
                between_epochs=mixed(of_epoch.get(epoch, 0)) + lost,
                between_stages=mixed(of_stage.get(stage, 0)) + steps + lost,
            )
            merge_energy(self._used.setdefault(epoch, {}), {stage: {gpu: energy}})


def _sums(times: Mapping[EpochAndStage, int], part: int) -> dict[object, int]:
    """Return the times by epoch (part 0) or by stage (part 1)."""
    found: dict[object, int] = {}
    for place, time in times.items():
        found[place[part]] = found.get(place[part], 0) + time
    return found


def _place(edge: Edge) -> EpochAndStage:
    return edge.epoch, edge.of.stage_name if edge.of is not None else ""


def _stay(spent: TimeShares, edge: Edge, time: int) -> EpochAndStage:
    """Add time to the epoch and stage that an edge led to, and return them."""
    place = _place(edge)
    if time > 0:
        spent.times[place] = spent.times.get(place, 0) + time
    return place
