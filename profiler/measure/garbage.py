"""Python's garbage collections: how many there were, how long the program stood still for them, and in which phase.

They are a known cause of steps that are slow now and then. The interpreter calls ``gc.callbacks`` at both ends of each.

The rule it keeps: the callback runs no Python code. A signal's handler may run at any Python function's begin. The
collector would swallow an error raised there (Ctrl-C's KeyboardInterrupt), and the program would not end.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import operator
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from typing import Any

from profiler.measure.whereabouts import place_of
from profiler.records.causes import COLLECTION
from profiler.records.histogram import NS
from profiler.records.readings import MetricSpec, Reading, Sample

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.measure.cause_book import CauseBook
    from profiler.measure.hot_path import Span
    from profiler.measure.passes import ThreadState


COLLECTIONS = MetricSpec("cpython.gc.collections", "{collection}", "counter", "Garbage collections, by generation.")
COLLECTED = MetricSpec("epochmeter.gc.time", "s", "counter", "Time for which they stopped the program.")
GENERATIONS = tuple({"cpython.gc.generation": str(generation)} for generation in range(3))
KEPT = 4_096  # begins and ends that wait to be added up; the oldest go first
NOTABLE_NS = 100_000  # shorter collections are added up, and explain no slow step


class GarbageWatch:
    """The collections of this process while a run watches them.

    Args:
        state: the place of the loop's thread.
        has_begun: returns True once a pass has begun.
        book: receives their time, by phase.

    Attributes:
        spent_ns: their time so far.
    """

    def __init__(self, state: ThreadState, has_begun: Callable[[], bool], book: CauseBook) -> None:
        self.spent_ns = 0
        self._has_begun = has_begun
        self._book = book
        self._recent: deque[tuple[int, int]] = deque(maxlen=64)  # start and duration of notable ones that are added up
        self._times: deque[int] = deque(maxlen=KEPT)  # of the begin and the end of each, in turns
        self._spans: deque[Span] = deque(maxlen=KEPT)  # the loop's innermost open span at each of these times
        self._lock = threading.Lock()
        noting = _noting(self._times, self._spans, state)
        self._callback = functools.partial(getattr, noting)  # called as `getattr(noting, "start", facts)`

    def start(self) -> None:
        """Begin to watch."""
        gc.callbacks.append(self._callback)

    def stop(self) -> None:
        """Watch no longer. A second call does nothing."""
        with contextlib.suppress(ValueError):
            gc.callbacks.remove(self._callback)

    def since(self, moment: int) -> int:
        """Return how long (ns) notable collections have taken since a moment on the host's clock; called by the loop."""
        times = list(self._times.copy())
        waiting = zip(times[::2], (end - begin for begin, end in zip(times[::2], times[1::2], strict=False)), strict=False)
        found = {**dict(self._recent.copy()), **dict(waiting)}  # one that is being added up may be in both
        return sum(spent for began, spent in found.items() if began >= moment and spent >= NOTABLE_NS)

    def add_up(self) -> None:
        """Add up the collections that wait, unless somebody does so now; called by the sampling thread and at a slice's end."""
        # Never waited for: within it, the collector may close a forgotten loop in the same thread, whose end comes here again.
        if not self._lock.acquire(blocking=False):
            return
        try:
            has_begun = self._has_begun()
            while len(self._times) >= 2 and len(self._spans) >= 2:
                began = self._times.popleft()
                spent = self._times.popleft() - began
                span, _ = self._spans.popleft(), self._spans.popleft()
                self.spent_ns += spent
                self._book.add_cost(COLLECTION, place_of(span, has_begun=has_begun), spent)
                if spent >= NOTABLE_NS:
                    self._recent.append((began, spent))
        finally:
            self._lock.release()

    def forget_threads(self) -> None:
        """Reset the lock after a fork: its holder does not exist here."""
        self._lock = threading.Lock()

    def reading(self) -> Reading:
        """Return the collections as a row for the sampler."""

        def read() -> Iterator[Sample]:
            self.add_up()
            for attributes, told in zip(GENERATIONS, gc.get_stats(), strict=False):
                yield Sample(COLLECTIONS, told["collections"], attributes)
            yield Sample(COLLECTED, self.spent_ns / NS)

        return Reading((COLLECTIONS, COLLECTED), read)


def _noting(times: deque[int], spans: deque[Span], state: ThreadState) -> Any:
    """Return an object that notes the time and the open span when its ``start`` or ``stop`` is read, without Python code."""
    # A property calls its getter, which is a method of a dictionary, which calls its factory, which takes the next value of
    # an iterator, which reads the clock and the loop's open span, and appends both.
    clock = map(times.append, iter(time.perf_counter_ns, -1))
    place = map(spans.append, map(operator.attrgetter("current"), itertools.repeat(state)))
    getter = property(defaultdict(zip(clock, place).__next__).__missing__)  # noqa: B905  # both are endless
    return type("Noting", (), {"start": getter, "stop": getter})()
