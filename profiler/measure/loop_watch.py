"""Watch the loop's thread from the sampling thread: its line, whether it has a CPU, and its memory.

About twenty times a second one sample is taken and joined to the phase that is open at that moment. Phases are timed
exactly, and lines are only counted: a line's share of its phase is an estimate, the phase's own time is not.

The rule it keeps: the loop's thread does nothing for a sample. It only waits while the sampling thread holds the
interpreter's lock, and that time is counted (`spent_ns`).
"""

from __future__ import annotations

import itertools
import sys
import threading
import time

from profiler.measure import hot_path
from profiler.measure.compiling import CompileWatch
from profiler.measure.lines import Found, LineFinder
from profiler.measure.memory_growth import PeakMemory
from profiler.measure.scheduling import Scheduled, read_scheduled
from profiler.measure.whereabouts import looping_state, place_of
from profiler.records.causes import IMPORTS, ON_CPU, START_UP, STARVED, Line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.measure.cause_book import CauseBook
    from profiler.measure.hot_path import Span
    from profiler.measure.timer import Timer


SAMPLE_S = 0.05
LATE_S = 0.001  # a sample that comes later than this has waited for the interpreter's lock
GOLDEN = 0.6180339887498949  # its multiples fill the unit interval evenly, and keep step with no loop
SELDOM = 4  # samples; reading the scheduler's times lets go of the interpreter's lock three times


class LoopWatch:
    """The samples of one run's loop.

    Args:
        timer: the run's timer.
        book: receives the lines, and the times on a CPU and waiting for one.
    """

    def __init__(self, timer: Timer, book: CauseBook) -> None:
        self._timer = timer
        self._book = book
        self._finder = LineFinder()
        self._compiling = CompileWatch(timer.owner, timer.edges.has_begun, book)
        self._before: Scheduled | None = None
        self._switch_s = sys.getswitchinterval()
        self._waiting: list[tuple[Span, bool, bool, bool, Found | None]] = []  # samples that are not counted yet
        self._native = threading.get_native_id()  # of the timer's own thread, which makes this
        self._turn = itertools.count()
        self.memory = PeakMemory()
        self.samples_lines = False
        self.spent_ns = 0  # for which the sampling thread has kept the loop from running, at most

    def start(self, *, samples_lines: bool) -> None:
        """Begin with the run; called in the loop's thread."""
        self.samples_lines = samples_lines
        self._before = read_scheduled(self._native)
        self._compiling.look()  # the first step may compile

    def rest(self, stop: threading.Event, seconds: float) -> bool:
        """Wait for the sampler's next round, and sample meanwhile. Return True if the sampler is to stop."""
        until = time.monotonic() + seconds
        while True:
            left = until - time.monotonic()
            turn = next(self._turn)
            pause = SAMPLE_S * (0.5 + turn * GOLDEN % 1) if self.samples_lines else left
            due = time.monotonic() + min(pause, left)
            if stop.wait(max(min(pause, left), 0)):
                return True
            self.look(turn, late_s=time.monotonic() - due)
            if left <= pause:
                return False

    def look(self, turn: int = 0, late_s: float = 0.0) -> None:
        """Take one sample; called in the sampling thread. Work that can wait is done once for several of them.

        Args:
            turn: the number of the sample.
            late_s: how much later (s) than planned it comes.
        """
        began = hot_path.now()
        timer = self._timer
        state = timer.owner if timer.owner.segments else looping_state(timer)
        span, has_begun = state.current, timer.edges.last.at > 0
        found = self._finder.find(state.thread) if self.samples_lines else None
        is_import = not has_begun and self.samples_lines and self._finder.is_importing(state.thread)
        # Until the switch interval is over, the interpreter's lock is handed over only by a call that lets go of it: a write
        # after a long call that did not. The sample then shows the line, but not the call that took the time.
        is_sure = not LATE_S < late_s < self._switch_s
        self._waiting.append((span, has_begun, is_import, is_sure, found))
        if has_begun and self.memory.is_young:
            self.memory.look()
        self.spent_ns += hot_path.now() - began
        if turn % SELDOM == 0 or not self.samples_lines:
            self._catch_up(has_begun=has_begun)

    def _catch_up(self, *, has_begun: bool) -> None:
        """Count the last samples, and look at everything that changes slowly."""
        began = hot_path.now()
        places = self._count_waiting()
        self._compiling.look()
        if has_begun and not self.memory.is_young:
            self.memory.look()
        self.spent_ns += hot_path.now() - began
        self._share_out_scheduled(places)

    def stop(self) -> None:
        """Count the last samples, and remove the callbacks in torch."""
        self._share_out_scheduled(self._count_waiting())
        self.forget()

    def forget(self) -> None:
        """Remove the callbacks in torch."""
        self._compiling.stop()

    def _count_waiting(self) -> list[tuple[str, str]]:
        """Count the samples that wait, and return their stages and phases."""
        waiting, self._waiting = self._waiting, []
        places = []
        for span, has_begun, is_import, is_sure, found in waiting:
            stage, phase = place_of(span, has_begun=has_begun)
            phase = IMPORTS if is_import and phase == START_UP else phase
            places.append((stage, phase))
            if found is not None:
                busy = self._finder.busy(found)
                self._book.add_line(Line(stage, phase, *(busy if is_sure else busy._replace(called=""))))
        return places

    def _share_out_scheduled(self, places: list[tuple[str, str]]) -> None:
        """Give the times of the loop's thread since the last reading to the phases that its samples were in."""
        before, now = self._before, read_scheduled(self._native)
        if now is None or before is None or not places:
            return
        self._before = now
        for place in places:
            self._book.add_cost(ON_CPU, place, (now.on_cpu - before.on_cpu) // len(places))
            self._book.add_cost(STARVED, place, (now.waiting - before.waiting) // len(places))
