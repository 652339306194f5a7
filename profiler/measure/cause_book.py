"""The one place where the watches of a run put the costs and lines that they find, until a slice takes them."""

from __future__ import annotations

import threading

from profiler.records.causes import CausePlace, add_cost, busiest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.causes import Costs, Line, Lines


MOST_WAITING = 4_096  # different lines between two slices


class CauseBook:
    """The costs and lines of one run since they were last taken. Any thread may write and take."""

    def __init__(self) -> None:
        self._costs: Costs = {}
        self._lines: Lines = {}
        self.forget_threads()

    def add_cost(self, cause: str, place: tuple[str, str], ns: int, times: int = 1) -> None:
        """Add the time (ns) that a cause took; ``place`` is the stage and the top-level phase, as of `place_of`."""
        with self._lock:
            add_cost(self._costs, CausePlace(cause, *place), ns, times)

    def add_line(self, line: Line) -> None:
        """Add one sample of a line."""
        with self._lock:
            if line in self._lines or len(self._lines) < MOST_WAITING:
                self._lines[line] = self._lines.get(line, 0) + 1

    def take(self) -> tuple[Costs, Lines]:
        """Remove and return the costs and the busiest lines since the last call."""
        with self._lock:
            costs, lines = self._costs, self._lines
            self._costs, self._lines = {}, {}
        return costs, busiest(lines)

    def forget_threads(self) -> None:
        """Reset the lock after a fork: its holder does not exist here."""
        # Re-entrant: within it, the collector may close a forgotten loop, whose end takes everything measured so far.
        self._lock = threading.RLock()
