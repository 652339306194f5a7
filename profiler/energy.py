"""What the GPUs used in each epoch and stage: the differences of their energy counters, shared out over what went on.

The loop's thread only notes when something began (an edge); the counters are read beside it, once a second and soon after
an edge. Between two readings the energy is shared out by time, and what may belong elsewhere is kept beside it: the
counter moves in steps, so that what a pass used is uncertain by a step's worth. A pass that is shorter than that shows as
below resolution, not as a guess.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from profiler.record import Energies, Energy, merge_energy

MAX_EDGES = 4096  # between two readings; a service has many calls a second
STEP_NS = 100_000_000  # NVIDIA's counters move every 20 to 100 ms, by kind of card; sooner, another reading tells nothing
Place = tuple["int | None", str]  # the epoch and the stage, "" for none


class Staged(Protocol):
    """A pass, which may show only later what it is for."""

    @property
    def stage_name(self) -> str: ...


class Edge(NamedTuple):
    """From that moment (ns of the host's clock) on it was this epoch and this pass, or none."""

    at: int
    epoch: int | None
    of: Staged | None


class Edges:
    """The edges since the last reading. Written by the loop's thread, without a lock; read by another one.

    Where no GPU counts its energy, only the last one is kept.
    """

    def __init__(self) -> None:
        self.noted: deque[Edge] = deque(maxlen=MAX_EDGES)
        self.last = Edge(0, None, None)
        self.is_read = False
        self.epoch: int | None = None
        self.on_edge: Callable[[], None] = lambda: None
        self._told_at = 0

    def note(self, at: int, of: Staged | None) -> None:
        self.last = edge = Edge(at, self.epoch, of)
        if not self.is_read:
            return
        self.noted.append(edge)
        if at - self._told_at >= STEP_NS:
            self._told_at = at
            self.on_edge()


class Spent:
    """What it was since a counter was last read: how long in each place, and how often that place was left."""

    def __init__(self) -> None:
        self.times: dict[Place, int] = {}
        self.ends: dict[Place, int] = {}

    def add(self, other: Spent) -> None:
        for into, more in ((self.times, other.times), (self.ends, other.ends)):
            for place, value in more.items():
                into[place] = into.get(place, 0) + value


class Meter:
    """Shares out what the counters say.

    Args:
        edges: what began when.
        done: given what an epoch used, by stage and GPU, when it is over; None stands for what was in no epoch.
    """

    def __init__(self, edges: Edges, done: Callable[[int | None, Energies], None]) -> None:
        self._edges = edges
        self._done = done
        self._lock = threading.Lock()
        self._at: int | None = None
        self._now = Edge(0, None, None)
        self._counters: dict[str, float] = {}
        self._open: dict[str, Spent] = {}  # for each GPU, since its counter was last read
        self._used: dict[int | None, Energies] = {}
        self._is_over = False

    def add(self, at: int, counters: Mapping[str, float]) -> None:
        """The counters (J, by ``hw.id``) as they were read at that moment."""
        with self._lock:
            if self._is_over:
                return
            spent = self._spent_until(at)
            for gpu in sorted({*self._counters, *counters}):
                self._gather(gpu, spent, counters.get(gpu))
            over = [epoch for epoch in self._used if epoch != self._now.epoch]
            for epoch in over:
                self._done(epoch, self._used.pop(epoch))

    def finish(self) -> None:
        """Gives all that is not yet given."""
        with self._lock:
            self._is_over = True
            while self._used:
                self._done(*self._used.popitem())

    def _spent_until(self, at: int) -> Spent:
        """What it was since the reading before."""
        noted = self._edges.noted
        edges = []
        while noted and noted[0].at <= at:
            edges.append(noted.popleft())
        spent = Spent()
        began, self._at = self._at, at
        if began is None:
            self._edges.is_read = True
            self._now = self._edges.last
            return spent
        if len(edges) == MAX_EDGES:  # some have been lost: nobody knows
            self._now = edges[-1]
            return spent
        for edge in sorted(edges, key=lambda edge: edge.at):  # an epoch can show late when it began
            moment = max(edge.at, began)
            before = _stay(spent, self._now, moment - began)
            if before != _place(edge):
                spent.ends[before] = spent.ends.get(before, 0) + 1
            began, self._now = moment, edge
        _stay(spent, self._now, at - began)
        return spent

    def _gather(self, gpu: str, spent: Spent, counter: float | None) -> None:
        waiting = self._open.setdefault(gpu, Spent())
        waiting.add(spent)
        if counter is None:
            return
        before, self._counters[gpu] = self._counters.get(gpu), counter
        self._open[gpu] = Spent()
        if before is not None and waiting.times:
            # A counter that falls back was reset: what it stands at has been used since.
            self._share_out(gpu, counter - before if counter >= before else counter, waiting)

    def _share_out(self, gpu: str, used: float, spent: Spent) -> None:
        whole = sum(spent.times.values())
        for epoch, stage in {**spent.times, **spent.ends}:
            share = spent.times.get((epoch, stage), 0) / whole
            step = used / whole * STEP_NS
            ends = spent.ends.get((epoch, stage), 0)
            energy = Energy(used * share, whole * share / 1e9, used * min(share, 1 - share), ends * step * step)
            merge_energy(self._used.setdefault(epoch, {}), {stage: {gpu: energy}})


def _place(edge: Edge) -> Place:
    return edge.epoch, edge.of.stage_name if edge.of is not None else ""


def _stay(spent: Spent, edge: Edge, time: int) -> Place:
    """Adds time in the place that an edge led to."""
    place = _place(edge)
    if time > 0:
        spent.times[place] = spent.times.get(place, 0) + time
    return place
