"""Python's garbage collections: how many there were, and how long the program stood still for them.

They are a known cause of steps that are slow now and then. The interpreter calls ``gc.callbacks`` at both ends of each.
"""

from __future__ import annotations

import contextlib
import gc
from collections import deque
from collections.abc import Iterator

from profiler.measure import hot_path
from profiler.records.histogram import NS
from profiler.records.readings import MetricSpec, Reading, Sample

GENERATIONS = 3
BY_GENERATION = tuple({"cpython.gc.generation": str(generation)} for generation in range(GENERATIONS))
COLLECTIONS = MetricSpec("cpython.gc.collections", "{collection}", "counter", "Garbage collections, by generation.")
COLLECTED = MetricSpec("epochmeter.gc.time", "s", "counter", "Time for which they stopped the program.")
NOTABLE_NS = 100_000  # shorter ones are counted, and explain no slow step
KEPT = 64


class GarbageWatch:
    """The collections of this process while a run watches them.

    Attributes:
        counts: the collections so far, by generation.
        spent_ns: their time, by generation.
    """

    def __init__(self) -> None:
        self.counts = [0] * GENERATIONS
        self.spent_ns = [0] * GENERATIONS
        self._recent: deque[tuple[int, int]] = deque(maxlen=KEPT)  # start and duration of the notable ones
        self._began = 0

    def start(self) -> None:
        """Begin to watch."""
        gc.callbacks.append(self._called)

    def stop(self) -> None:
        """Watch no longer. A second call does nothing."""
        with contextlib.suppress(ValueError):
            gc.callbacks.remove(self._called)

    def since(self, moment: int) -> int:
        """Return how long (ns) notable collections have taken since a moment on the host's clock."""
        return sum(spent for began, spent in self._recent.copy() if began >= moment)

    def reading(self) -> Reading:
        """Return the collections as a row for the sampler."""

        def read() -> Iterator[Sample]:
            for generation, attributes in enumerate(BY_GENERATION):
                yield Sample(COLLECTIONS, self.counts[generation], attributes)
                yield Sample(COLLECTED, self.spent_ns[generation] / NS, attributes)

        return Reading((COLLECTIONS, COLLECTED), read)

    def _called(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._began = hot_path.now()
            return
        spent, generation = hot_path.now() - self._began, info["generation"]
        if self._began and generation < GENERATIONS:
            self.counts[generation] += 1
            self.spent_ns[generation] += spent
            if spent >= NOTABLE_NS:
                self._recent.append((self._began, spent))
        self._began = 0
