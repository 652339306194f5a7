"""Everything that watches for causes while a run goes on: collections, the loop's thread, compilations, loaders."""

from __future__ import annotations

from profiler.measure.garbage import GarbageWatch
from profiler.measure.loaders import LoaderWatch
from profiler.measure.loop_watch import LoopWatch
from profiler.records.causes import merge_costs, merge_lines

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.measure.timer import Timer
    from profiler.records.run import EpochRecord


class CauseWatches:
    """The watches of one run.

    Args:
        timer: the run's timer.
    """

    def __init__(self, timer: Timer) -> None:
        self.garbage = GarbageWatch(timer.owner, timer.edges.has_begun)
        self.loop = LoopWatch(timer)
        self.loaders = LoaderWatch()

    def start(self, *, samples_lines: bool) -> None:
        """Begin to watch; called in the loop's thread."""
        self.garbage.start()
        self.loop.start(samples_lines=samples_lines)

    def stop(self) -> None:
        """Watch no longer. A second call does nothing."""
        self.garbage.stop()
        self.loop.stop()

    def take(self, into: EpochRecord) -> None:
        """Move the costs and the lines since the last call into a record."""
        costs, lines = self.loop.take()
        for more in (costs, self.garbage.take(), self.loaders.take()):
            merge_costs(into.costs, more)
        merge_lines(into.lines, lines)

    def forget_threads(self) -> None:
        """Stop after a fork, and reset the locks: their holders do not exist here."""
        self.garbage.forget_threads()
        self.loop.forget_threads()
        self.garbage.stop()
