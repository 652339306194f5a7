"""Do the work left over at the end of a pass or an epoch, while no lock of ours is held.

The collector closes a loop that was left and forgotten. It may do so anywhere, also while our own code holds a lock: in the
same thread that would wait for itself, and in the sampling thread for a loop that waits for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from threading import get_ident

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.hardware.sampler import Sampler
    from profiler.measure.timer import Timer
    from profiler.records.faults import Faults
    from profiler.session.keeper import RunKeeper


NOT_DONE = "the end of a loop was not noted"


class LoopEnds:
    """The work that follows the ends of loops.

    Args:
        timer: has a lock that the loop takes.
        keeper: has two.
        sampler: has threads, whose locks are many.
        faults: counts the failures.
    """

    def __init__(self, timer: Timer, keeper: RunKeeper, sampler: Sampler, faults: Faults) -> None:
        self._faults = faults
        self._timer = timer
        self._keeper = keeper
        self._sampler = sampler
        self._waiting: deque[Callable[[], object]] = deque()

    def follow(self, action: Callable[[], object], *, is_within_us: bool = False) -> None:
        """Do something after an end: now, or, within code of ours, as soon as the sampling thread comes to it."""
        if is_within_us or self._is_inside():
            self._waiting.append(action)
        else:
            self._faults.swallow(NOT_DONE, action)

    def catch_up(self) -> None:
        """Do the waiting work; called by the sampling thread between two rounds."""
        while self._waiting:
            self._faults.swallow(NOT_DONE, self._waiting.popleft())

    def _is_inside(self) -> bool:
        here = get_ident()
        threads = [probes.thread for probes in self._sampler.threads]
        is_ours = any(thread is not None and thread.ident == here for thread in threads)
        return is_ours or any(lock._is_owned() for lock in (self._timer.lock, *self._keeper.locks))  # type: ignore[attr-defined]
