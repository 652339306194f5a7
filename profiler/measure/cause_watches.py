"""Everything that watches for causes while a run goes on: collections, the loop's thread, compilations, loaders."""

from __future__ import annotations

from profiler.measure.cause_book import CauseBook
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
        self._book = CauseBook()
        self.garbage = GarbageWatch(timer.owner, timer.edges.has_begun, self._book)
        self.loop = LoopWatch(timer, self._book)
        self.loaders = LoaderWatch(self._book)

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
        self.garbage.add_up()
        self.loaders.settle()
        costs, lines = self._book.take()
        merge_costs(into.costs, costs)
        merge_lines(into.lines, lines)

    def forget_threads(self) -> None:
        """Stop after a fork, and reset the locks: their holders do not exist here."""
        self._book.forget_threads()
        self.garbage.forget_threads()
        self.garbage.stop()
        self.loop.forget()
