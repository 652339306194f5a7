"""Begin and end the phases of an observed loop, and cache their span transitions."""

from __future__ import annotations

import weakref
from collections.abc import Iterable

from profiler.measure import hot_path
from profiler.measure.hot_path import FastPath, Span
from profiler.measure.spans import DeviceSpan
from profiler.records.timing import AFTER, GAPS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.measure.follow.notes import LoaderFeed, ThreadFollowing
    from profiler.measure.passes import Segment
    from profiler.measure.timer import Timer


DATA_WAIT, FORWARD, BACKWARD, OPTIMIZER = "data_wait", "forward", "backward", "optimizer"
CHECKPOINT, LOADER_START = "checkpoint", "loader_start"
MEASURED = frozenset((Span, DeviceSpan))


class ObservedPhases:
    """The phases that events begin and end.

    Args:
        timer: the run's timer.
        gaps: also measure the time between two known phases ("after forward" and so on), for loops that name nothing.
    """

    def __init__(self, timer: Timer, *, gaps: bool) -> None:
        self._timer = timer
        self._gaps = gaps
        self._fast_paths: list[FastPath] = []
        self.feeds: weakref.WeakSet[LoaderFeed] = weakref.WeakSet()  # they, too, know a way to go again

    def fast_path(self) -> FastPath:
        """Make the cache of one event type. It is cleared with all others when passes change."""
        made = FastPath()
        self._fast_paths.append(made)
        return made

    def forget(self, fast_paths: Iterable[FastPath]) -> None:
        """Drop the caches of a module that is no longer hooked."""
        for fast in fast_paths:
            self._fast_paths.remove(fast)

    def clear_fast_paths(self) -> None:
        """Send every event the slow way until its transition is known again."""
        for fast in self._fast_paths:
            fast.clear()
        for feed in self.feeds:
            feed.clear()

    def begin(self, following: ThreadFollowing, name: str, fast_paths: Iterable[FastPath] | None = None) -> Span | None:
        """Begin a phase. Return None if it is ignored, because one of the same name is open; see `ignore`."""
        self.end_gap(following)
        if name in (FORWARD, BACKWARD):
            self._interrupt_optimizer(following)
        current = following.state.current
        if is_inside(current, name):  # the loop has named it itself, or an outer module's call is timed
            self.ignore(following, name, fast_paths)
            return None
        span = current.children.get(name) or current.child(name)
        span.__enter__()
        return span

    def end(self, following: ThreadFollowing, name: str) -> bool:
        """End a phase. Return False if it was ignored, or was not the innermost one."""
        if following.ignored and following.ignored[-1] == name:
            following.ignored.pop()
            return False
        self.end_gap(following)
        current = following.state.current
        if current.name == name:
            current.__exit__()
            return True
        end = hot_path.now()
        with self._timer.lock:  # phases that overlap, or one that an exception has left open
            following.state.leave(name, end)
        return False

    def drop_broken_off(self, following: ThreadFollowing) -> None:
        """Forget a step of an optimizer that has raised: torch reports no end of it, and nobody knows when that was."""
        if following.state.current.name == OPTIMIZER:
            following.state.current.end_unrecorded()
            self.clear_fast_paths()

    def ignore(self, following: ThreadFollowing, name: str, fast_paths: Iterable[FastPath] | None = None) -> None:
        """Do not begin a phase inside one of its name, and remember to ignore its end, too.

        Args:
            fast_paths: the caches of the events that report that end; None for all.
        """
        following.ignored.append(name)
        for fast in self._fast_paths if fast_paths is None else fast_paths:
            fast.clear()

    def begin_gap(self, following: ThreadFollowing, name: str) -> None:
        """Begin the gap after a phase of that name."""
        if self._gaps and following.passes and following.state.current.name not in (FORWARD, BACKWARD):
            following.state.current.child(AFTER[name]).__enter__()

    def end_gap(self, following: ThreadFollowing) -> None:
        """End the gap that is open, if any."""
        if self._gaps and following.state.current.name in GAPS:
            following.state.current.__exit__()
            self.extend(following)

    def extend(self, following: ThreadFollowing) -> None:
        """Move the end of an open-ended pass to this moment."""
        top = following.top
        if top is not None and top.is_open_ended:
            top.segment.handed_at = hot_path.now()

    def resume_optimizer(self, following: ThreadFollowing) -> None:
        """Continue an optimizer's step after its closure's forward or backward. It counts as one step."""
        self.end_gap(following)
        following.state.current.child(OPTIMIZER).__enter__()
        following.state.current.t0 -= following.spent_ns
        following.spent_ns = 0

    def cache_begin(self, fast: FastPath, following: ThreadFollowing, before: Span, span: Span | None) -> None:
        """Cache the transition by which a phase began, if it is simple."""
        if span is None or type(span) not in MEASURED or not following.state.is_owner:
            return
        if before is span.parent or (before.name in GAPS and before.parent is span.parent):
            fast.add(before, span, None)

    def cache_end(self, fast: FastPath, following: ThreadFollowing, name: str, ended: Span, segment: Segment | None) -> None:
        """Cache the transition by which a phase ended, if it is simple."""
        after = following.state.current
        is_simple = following.state.is_owner and type(ended) in MEASURED and ended.name == name
        if is_simple and ended.parent in (after, after.parent):
            fast.add(ended, after, segment if ended.depth == 1 else None)

    def _interrupt_optimizer(self, following: ThreadFollowing) -> None:
        """Suspend an optimizer's step while its closure calls forward and backward."""
        span = following.state.current
        if span.name == OPTIMIZER:
            following.spent_ns = hot_path.now() - span.t0 + (following.spent_ns if following.is_interrupted else 0)
            following.state.current = span.parent or span
            following.is_interrupted = True


def is_inside(span: Span | None, name: str) -> bool:
    """Return True if a span, or one that encloses it, has that name."""
    while span is not None and span.name != name:
        span = span.parent
    return span is not None
