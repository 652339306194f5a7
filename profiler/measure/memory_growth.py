"""Whether the memory of the process grows steadily while the loop runs.

The peak of physical memory is known without a file to read (getrusage). A loop that keeps all objects it makes
raises it along a line; a loop that does not raises it once, and never again.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

from profiler.measure import hot_path
from profiler.records.run import MemoryGrowth

resource: Any
try:
    import resource
except ImportError:  # Windows
    resource = None

YOUNG = 40  # samples of a run; later, every fourth of them notes the memory, too
MOST_POINTS = 64
FEWEST_POINTS = 5


class PeakMemory:
    """The peaks of the process's physical memory at up to `MOST_POINTS` moments, evenly spread over the run."""

    def __init__(self) -> None:
        self._points: list[tuple[int, int]] = []
        self._every = 1
        self._looks = 0
        self._known: tuple[tuple[int, int], MemoryGrowth | None] | None = None  # the last answer, and the point it ended with

    @property
    def is_young(self) -> bool:
        """True while each sample is worth a point."""
        return self._looks < YOUNG

    def look(self) -> None:
        """Note the peak now, or leave this moment out; called by the sampling thread."""
        self._looks += 1
        if self._looks % self._every:
            return
        peak = peak_bytes()
        if peak is None:
            return
        if len(self._points) < FEWEST_POINTS:  # `growth` needs it, which the loop's thread calls: it takes milliseconds
            importlib.import_module("statistics")
        self._points.append((hot_path.now(), peak))
        if len(self._points) > MOST_POINTS:
            self._points, self._every = self._points[::2], self._every * 2

    def growth(self) -> MemoryGrowth | None:
        """Return the growth so far, or None if there are too few points, or none grew."""
        points = list(self._points)
        if len(points) < FEWEST_POINTS:
            return None
        if self._known is None or self._known[0] != points[-1]:  # short epochs ask many times a second, and this costs 35 us
            self._known = points[-1], self._growth(points)
        return self._known[1]

    @staticmethod
    def _growth(points: list[tuple[int, int]]) -> MemoryGrowth | None:
        from statistics import StatisticsError, correlation, linear_regression

        times, peaks = [at for at, _ in points], [peak for _, peak in points]
        over = times[-1] - times[0]
        try:
            line = linear_regression(times, peaks)
            fit = correlation(times, peaks) ** 2
        except StatisticsError:  # all equal
            return None
        return MemoryGrowth(round(line.slope * over), over, fit) if over and line.slope > 0 else None


def peak_bytes() -> int | None:
    """Return the highest physical memory of this process so far, or None where the system has no getrusage."""
    if resource is None:
        return None
    peak: int = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # KiB, but for macOS
