"""Observe the loaders of a loop that was not written for us; `observer` adds its modules and optimizers.

The rule it keeps: nothing raises into the loop. A fault is counted, and after `MAX_FAULTS` of them observing ends.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Hashable
from typing import Any, TypeVar, cast

from profiler.measure import hot_path
from profiler.measure.batch_size import batch_size
from profiler.measure.follow.inferred import PassInference
from profiler.measure.follow.notes import LoaderFeed, ThreadFollowing
from profiler.measure.follow.phases import (
    BACKWARD,
    DATA_WAIT,
    FORWARD,
    LOADER_START,
    OPTIMIZER,
    ObservedPhases,
    is_inside,
)
from profiler.measure.hot_path import Span
from profiler.records.faults import is_of_a_signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.measure.follow.notes import RunControl
    from profiler.measure.timer import Timer


MAX_FAULTS = 5
NEVER = 2**62  # the number of a batch that no loader reaches
NO_OPTIMIZER = "no optimizer of torch was seen: what changes the weights is in 'after backward'"
Event = TypeVar("Event", bound=Callable[..., Any])


def counted(event: Event) -> Event:
    """Return the event method with its errors counted as faults. It then returns None."""

    @functools.wraps(event)
    def called(self: LoaderObserver, *args: Any, **kwargs: Any) -> Any:
        try:
            return event(self, *args, **kwargs)
        except Exception as error:
            if is_of_a_signal(error):
                raise
            self.fault(error)
            return None

    return cast(Event, called)


class LoaderObserver:
    """The life of a run's observer, its notes on threads, and the events of loaders.

    Args:
        timer: the run's timer.
        control: the run.
        gaps: also measure the time between two known phases ("after forward" and so on), for loops that name nothing.
        in_backward: returns True if the calling thread works for a backward that another thread began.
        expects_training: returns True if the program has an optimizer.
    """

    def __init__(
        self,
        timer: Timer,
        control: RunControl,
        *,
        gaps: bool = False,
        in_backward: Callable[[], bool] = lambda: False,
        expects_training: Callable[[], bool] = lambda: False,
    ) -> None:
        self.timer = timer
        self._control = control
        self.in_backward = in_backward
        self.phases = ObservedPhases(timer, gaps=gaps)
        self.inference = PassInference(timer, control, self.phases.clear_fast_paths, self.phases.end_gap, expects_training)
        self.fetched: int | None = None  # samples of the last batch of a pass that was not inferred
        self.has_gaps = gaps
        self.saw_backward = False
        self._is_over = False
        self._faults = 0
        self._local = threading.local()
        self.is_mine = timer.owner.is_mine

    def close(self) -> None:
        """End the observing, and the passes that were inferred in this thread."""
        if self._is_over:
            return
        self._is_over = True
        self.phases.clear_fast_paths()
        following = self.known()
        if following is not None and following.passes:
            self.inference.close(following, following.passes[0], partial=True)
        if self.has_gaps and self.saw_backward and not self.inference.has_optimizer:
            self._control.note(NO_OPTIMIZER)

    @counted
    def epoch_ends(self) -> None:
        """End the passes that no event ends."""
        following = self.known()
        if following is None or self._is_over:
            return
        for inferred in list(following.passes):
            if inferred.is_open_ended and not inferred.segment.closed:
                self.inference.close(following, inferred, partial=False)

    def forget(self) -> None:
        """Stop observing in a forked child."""
        self._is_over = True
        self.phases.clear_fast_paths()

    def fault(self, error: Exception) -> None:
        """Count an error of our own; the loop goes on."""
        self._faults += 1
        self._is_over = self._is_over or self._faults >= MAX_FAULTS
        self.phases.clear_fast_paths()
        self._control.count_fault(error)

    def following(self) -> ThreadFollowing | None:
        """Return the notes on the calling thread, or None if nothing is to be observed."""
        if self._is_over or not self._control.is_running():
            return None
        state = self.timer.state()
        try:
            following: ThreadFollowing = self._local.following
            if following.state is state:
                return following
        except AttributeError:
            pass
        following = self._local.following = ThreadFollowing(state)
        return following

    # ---- loaders ---------------------------------------------------------------------------------------------------

    @counted
    def loader_begins(self, key: Hashable, *, batches: int | None = None, one_iterator: bool = False) -> LoaderFeed | None:
        """Note that a loader is iterated over from its beginning, and return the feed that stands for its iterator.

        Args:
            key: the loader's identity; equal for two loaders with the same data.
            batches: how many it will hand out, or None.
            one_iterator: the loader uses its iterator again, so that the iteration before has ended.
        """
        following = self.following()
        if following is None or following.state.current.name == DATA_WAIT:  # a loader inside prof.train(loader)
            return None
        feed = LoaderFeed(self, following, key, batches)
        self.phases.feeds.add(feed)
        if not following.is_in_named_pass():
            self.inference.begin_for_feed(following, feed, one_iterator)
        return feed

    def start_begins(self, feed: LoaderFeed) -> Span | None:
        """Begin to wait while a loader makes its iterator, and perhaps starts workers: a part of the first wait."""
        return None if feed.inferred is None else feed.inferred.segment.wait.__enter__()

    @counted
    def start_ends(self, feed: LoaderFeed) -> None:
        """Note that the loader has made its iterator: the time from here on lies before the first batch."""
        if feed.following.top is not None and feed.following.top is feed.inferred:
            self.phases.begin_gap(feed.following, LOADER_START)

    def fetch_begins(self, feed: LoaderFeed) -> Span | None:
        """Begin the wait for a batch. Return the span to hand to `fetch_ends` or `fetch_fails`."""
        # Called at every step. The usual case is decided here: a pass with a known stage, its own thread, and no open phase
        # but one gap. Everything else takes `_fetch_begins`, which may begin, end or classify passes.
        inferred = feed.inferred
        if inferred is not None and inferred.is_steady and self.is_mine():
            segment = inferred.segment
            following, current = feed.following, segment.state.current
            is_top = following.passes and following.passes[-1] is inferred and not segment.closed
            if is_top and current.depth < 2 and current.name != OPTIMIZER and not following.ignored:
                if current.depth:
                    current.__exit__()
                segment.begin_wait()
                if segment.tree.device is None and type(current) is Span:  # without marks, the same way can be gone again
                    feed.before, feed.segment = current, segment
                return segment.wait
        return self._fetch_begins(feed)

    @counted
    def _fetch_begins(self, feed: LoaderFeed) -> Span | None:
        following = self.following()
        if following is None or following is not feed.following:
            return None
        inferred = self.inference.pass_for_batch(following, feed)
        if inferred is None:
            if is_inside(following.state.current, DATA_WAIT):  # a framework has reported the wait itself
                return None
            self.phases.end_gap(following)
            return following.state.current.child(DATA_WAIT).__enter__()
        self.phases.drop_broken_off(following)
        self.inference.end_step_of_feed(following, inferred)
        wait = inferred.segment.wait.__enter__()
        wait.t0 -= feed.start_ns  # the start of a loader is a part of the first wait
        feed.start_ns = 0
        return wait

    def fetch_ends(self, feed: LoaderFeed, wait: Span, item: Any) -> None:
        """End the wait: the loop has its batch. Called at every step, so the guard is written out."""
        try:
            inferred = feed.inferred
            if inferred is None or feed.goes_along:
                wait.__exit__()
                self.fetched = batch_size(item)
            elif not inferred.segment.end_wait(batch_size, item):
                self.inference.reopen(inferred)
                inferred.segment.begin_step(batch_size(item))
            feed.handed += 1
            if feed.handed >= feed.notable:
                self._note_batch(feed, wait)
            self.phases.begin_gap(feed.following, DATA_WAIT)
            if feed.segment is not None:
                feed.gap = feed.following.state.current
        except Exception as error:
            if is_of_a_signal(error):
                raise
            self.fault(error)

    @counted
    def fetch_fails(self, feed: LoaderFeed, wait: Span, *, at_end: bool) -> None:
        """End the wait without a batch: the loader is exhausted (``at_end``), or raised."""
        if not at_end:
            wait.__exit__()
            return
        wait.__exit__()
        self._exhaust(feed)

    def _note_batch(self, feed: LoaderFeed, wait: Span) -> None:
        """Note the first batch of a loader, or its last one."""
        if feed.handed == 1 and feed.note_first is not None and feed.inferred is not None:
            feed.note_first(feed.inferred.segment, hot_path.now() - wait.t0)
        feed.note_first = None
        feed.notable = NEVER if feed.length is None else feed.length
        if feed.handed >= feed.notable:
            self._hand_out_last(feed)

    def _hand_out_last(self, feed: LoaderFeed) -> None:
        """Note that this was the last batch by the loader's length: a loop may count instead of asking for one more."""
        if feed.handed == feed.length:
            self._exhaust(feed)
        elif feed.inferred is not None:  # its length was wrong
            feed.inferred.is_exhausted = False

    def _exhaust(self, feed: LoaderFeed) -> None:
        # A loader may fetch ahead of the loop, which then still has a batch to work on. The pass ends when the iterator is
        # dropped, or when something else begins.
        if feed.inferred is not None and not feed.goes_along:
            feed.inferred.is_exhausted = True
            feed.inferred.segment.handed_at = hot_path.now()
            self.phases.clear_fast_paths()

    @counted
    def loader_is_dropped(self, feed: LoaderFeed) -> None:
        """End the pass of an iterator that the loop no longer holds."""
        inferred = feed.inferred
        if self._is_over or inferred is None or feed.following is not self.known():
            return
        self.inference.close(feed.following, inferred, partial=not inferred.is_exhausted)

    def known(self) -> ThreadFollowing | None:
        """Return the notes on the calling thread, or None if nothing was observed in it."""
        return getattr(self._local, "following", None)

    def is_inside_call(self) -> bool:
        """Return True if the calling thread is inside a forward or a backward."""
        following = self.known()
        return self.in_backward() or (following is not None and following.is_inside(FORWARD, BACKWARD))
