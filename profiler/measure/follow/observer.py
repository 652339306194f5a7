"""Observe a loop that was not written for us, and turn its events into passes and phases.

Nothing here knows torch; `torch_hooks` reports the events. If the loop names its passes (``prof.train(...)``, an adapter),
only phases are added to them. Otherwise the passes are inferred (`inferred`).

Between two pieces of torch's work our own code is cold, and a call costs many times more than in a tight loop. So the
span transition of each event is cached in a `FastPath`, and the hooks of `hot_path` only replay it the next time. All
caches are cleared whenever a pass begins, ends or gets its stage.

The rule it keeps: nothing raises into the loop. A fault is counted, and after `MAX_FAULTS` of them observing ends.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Hashable
from typing import Any, TypeVar, cast

from profiler.measure import hot_path
from profiler.measure.batch_size import batch_size
from profiler.measure.follow.inferred import LoaderFeed, PassInference, ThreadFollowing
from profiler.measure.follow.phases import (
    BACKWARD,
    CHECKPOINT,
    DATA_WAIT,
    FORWARD,
    OPTIMIZER,
    ObservedPhases,
    is_inside,
)
from profiler.records.timing import GAPS
from profiler.records.vocabulary import Stage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.measure.follow.inferred import Called, RunControl
    from profiler.measure.hot_path import FastPath, Span
    from profiler.measure.timer import Timer


MAX_FAULTS = 5
Event = TypeVar("Event", bound=Callable[..., Any])


def counted(event: Event) -> Event:
    """Return the event method with whatever it raises counted as a fault. It then returns None."""

    @functools.wraps(event)
    def called(self: LoopObserver, *args: Any, **kwargs: Any) -> Any:
        try:
            return event(self, *args, **kwargs)
        except Exception as error:
            self.fault(error)
            return None

    return cast(Event, called)


class LoopObserver:
    """The events of one run's loop, which become passes and phases of its timer.

    Args:
        timer: the run's timer.
        control: the run.
        gaps: also measure the time between two known phases ("after forward" and so on), for loops that name nothing.
        in_backward: returns True if the calling thread works for a backward that another thread began.
    """

    def __init__(
        self, timer: Timer, control: RunControl, *, gaps: bool = False, in_backward: Callable[[], bool] = lambda: False
    ) -> None:
        self.timer = timer
        self._control = control
        self._in_backward = in_backward
        self.phases = ObservedPhases(timer, gaps=gaps)
        self._inference = PassInference(timer, control, self.phases.clear_fast_paths, self.phases.end_gap)
        self.fetched: int | None = None  # samples of the last batch of a pass that was not inferred
        self._is_over = False
        self._faults = 0
        self._local = threading.local()
        self.is_mine = timer.owner.badge.is_mine

    def close(self) -> None:
        """End the observing, and the passes that were inferred in this thread."""
        if self._is_over:
            return
        self._is_over = True
        self.phases.clear_fast_paths()
        following = self.known()
        if following is not None and following.passes:
            self._inference.close(following, following.passes[0], partial=True)

    @counted
    def epoch_ends(self) -> None:
        """End the passes that no event ends."""
        following = self.known()
        if following is None or self._is_over:
            return
        for inferred in list(following.passes):
            if inferred.is_open_ended and not inferred.segment.closed:
                self._inference.close(following, inferred, partial=False)

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

    def _following(self) -> ThreadFollowing | None:
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
    def loader_begins(self, key: Hashable, *, one_iterator: bool = False) -> LoaderFeed | None:
        """Note that a loader is iterated over from its beginning, and return the feed that stands for its iterator.

        Args:
            key: the loader's identity; equal for two loaders with the same data.
            one_iterator: the loader uses its iterator again, so that the iteration before has ended.
        """
        following = self._following()
        if following is None or following.state.current.name == DATA_WAIT:  # a loader inside prof.train(loader)
            return None
        feed = LoaderFeed(following, key)
        if not following.is_in_named_pass():
            self._inference.begin_for_feed(following, feed, one_iterator)
        return feed

    def start_begins(self, feed: LoaderFeed) -> Span | None:
        """Begin to wait while a loader makes its iterator, and perhaps starts workers: a part of the first wait."""
        return None if feed.inferred is None else feed.inferred.segment.wait.__enter__()

    def fetch_begins(self, feed: LoaderFeed) -> Span | None:
        """Begin the wait for a batch. Return the span to hand to `fetch_ends` or `fetch_fails`."""
        # Called at every step. The usual case is decided here: a pass with a known stage, its own thread, and no open phase
        # but one gap. Everything else takes `_fetch_begins`, which may begin, end or classify passes.
        inferred = feed.inferred
        if inferred is not None and inferred.is_steady and self.is_mine():
            segment = inferred.segment
            following, current = feed.following, segment.state.current
            is_top = following.passes and following.passes[-1] is inferred and not segment.closed
            if is_top and current.depth < 2 and not following.ignored:
                if current.depth:
                    current.__exit__()
                segment.begin_wait()
                return segment.wait
        return self._fetch_begins(feed)

    @counted
    def _fetch_begins(self, feed: LoaderFeed) -> Span | None:
        following = self._following()
        if following is None or following is not feed.following:
            return None
        inferred = self._inference.pass_for_batch(following, feed)
        if inferred is None:
            if is_inside(following.state.current, DATA_WAIT):  # a framework has reported the wait itself
                return None
            self.phases.end_gap(following)
            return following.state.current.child(DATA_WAIT).__enter__()
        self._inference.end_step_of_feed(following, inferred)
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
                self._inference.reopen(inferred)
                inferred.segment.begin_step(batch_size(item))
            self.phases.begin_gap(feed.following, DATA_WAIT)
        except Exception as error:
            self.fault(error)

    @counted
    def fetch_fails(self, feed: LoaderFeed, wait: Span, *, at_end: bool) -> None:
        """End the wait without a batch: the loader is exhausted (``at_end``), or raised."""
        if not at_end:
            wait.__exit__()
            return
        wait.__exit__()
        if feed.inferred is not None and not feed.goes_along:
            # A loader may fetch ahead of the loop, which then still has a batch to work on. The pass ends when the
            # iterator is dropped, or when something else begins.
            feed.inferred.is_exhausted = True
            feed.inferred.segment.handed_at = hot_path.now()
            self.phases.clear_fast_paths()

    @counted
    def loader_is_dropped(self, feed: LoaderFeed) -> None:
        """End the pass of an iterator that the loop no longer holds."""
        inferred = feed.inferred
        if self._is_over or inferred is None or feed.following is not self.known():
            return
        self._inference.close(feed.following, inferred, partial=not inferred.is_exhausted)

    def known(self) -> ThreadFollowing | None:
        """Return the notes on the calling thread, or None if nothing was observed in it."""
        return getattr(self._local, "following", None)

    def is_inside_call(self) -> bool:
        """Return True if the calling thread is inside a forward or a backward."""
        following = self.known()
        return self._in_backward() or (following is not None and following.is_inside(FORWARD, BACKWARD))

    # ---- modules, backward, optimizers -----------------------------------------------------------------------------

    @counted
    def forward_begins(self, fast: FastPath, module: Called, trains: bool, takes_gradients: bool) -> None:
        """Begin a forward.

        Args:
            module: the outermost module of the call.
            trains: it is in training mode.
            takes_gradients: gradients are on.
        """
        following = self._following()
        if following is None:
            return
        if is_inside(following.state.current, BACKWARD) or self._in_backward():  # a checkpointed part runs once more
            self.phases.ignore(following, FORWARD, module.fast_paths)
            return
        learns = following.learns = trains and takes_gradients
        before = following.state.current
        if learns:
            self._inference.end_step_without_optimizer(following)
        if following.passes or not following.state.segments:
            self._inference.find_for_forward(following, module, trains, learns)
        module.has_trained = module.has_trained or learns
        span = self.phases.begin(following, FORWARD, module.fast_paths)
        needs_feed = not (learns and self._inference.has_optimizer)
        if self._is_repeatable(following, Stage.TRAIN if learns else Stage.VAL, needs_feed=needs_feed):
            self.phases.cache_begin(fast, following, before, span)

    @counted
    def forward_ends(self, fast: FastPath) -> None:
        """End a forward. In an evaluation without a loader, that is the end of a step."""
        following = self._following()
        if following is not None:
            is_evaluation = following.top is not None and following.top.stage is Stage.VAL
            self._end_event(fast, following, FORWARD, ends_step=is_evaluation, is_repeatable=not is_evaluation)

    @counted
    def backward_begins(self, fast: FastPath) -> None:
        """Begin a backward."""
        following = self._following()
        if following is None:
            return
        if is_inside(following.state.current, BACKWARD):
            self.phases.ignore(following, BACKWARD)
        else:
            self._begin_training(fast, following, BACKWARD)

    @counted
    def backward_ends(self, fast: FastPath) -> None:
        """End a backward."""
        following = self._following()
        if following is None:
            return
        top = following.top
        has_clear_steps = self._inference.has_optimizer or top is None or top.feed is not None
        is_repeatable = not following.is_interrupted and has_clear_steps
        self._end_event(fast, following, BACKWARD, ends_step=False, is_repeatable=is_repeatable)
        if top is not None:
            top.has_backward = True

    @counted
    def optimizer_begins(self, fast: FastPath) -> None:
        """Begin an optimizer's step."""
        following = self._following()
        if following is not None:
            self._begin_training(fast, following, OPTIMIZER)

    @counted
    def optimizer_ends(self, fast: FastPath) -> None:
        """End an optimizer's step, and with it the loop's step if there is no loader."""
        following = self._following()
        if following is None:
            return
        self._inference.see_optimizer(following)
        if following.is_interrupted and not is_inside(following.state.current, OPTIMIZER):
            self.phases.resume_optimizer(following)
        self._end_event(fast, following, OPTIMIZER, ends_step=True, is_repeatable=not following.is_interrupted)
        following.is_interrupted = False

    @counted
    def checkpoint_begins(self) -> str | None:
        """Begin a checkpoint. Return the argument for `checkpoint_ends`, or None if the time is measured already."""
        following = self._following()
        if following is None or is_inside(following.state.current, CHECKPOINT):
            return None
        current = following.state.current.name
        self.phases.begin(following, CHECKPOINT)
        return current if current in GAPS else ""

    @counted
    def checkpoint_ends(self, gap: str) -> None:
        """End a checkpoint, and continue the gap that was open before it."""
        following = self._following()
        if following is None:
            return
        self.phases.end(following, CHECKPOINT)
        self.phases.extend(following)
        if gap:
            following.state.current.child(gap).__enter__()

    def _begin_training(self, fast: FastPath, following: ThreadFollowing, name: str) -> None:
        before = following.state.current
        self._inference.find_for_training(following)
        span = self.phases.begin(following, name)
        if self._is_repeatable(following, Stage.TRAIN):
            self.phases.cache_begin(fast, following, before, span)

    def _is_repeatable(self, following: ThreadFollowing, stage: Stage, *, needs_feed: bool = False) -> bool:
        """Return True if the event means the same each time: in a pass that the loop named, or in one of that stage."""
        top = following.top
        if top is None:
            return bool(following.state.segments)
        return top.stage is stage and (top.feed is not None or not needs_feed) and not following.is_in_named_pass()

    def _end_event(
        self, fast: FastPath, following: ThreadFollowing, name: str, *, ends_step: bool, is_repeatable: bool
    ) -> None:
        ended = following.state.current
        was_begun = self.phases.end(following, name)
        top = following.top
        segment = top.segment if top is not None and top.is_open_ended else None
        if segment is not None and top is not None:
            self._inference.extend_to_now(following, segment, ends_step=ends_step and top.feed is None)
        if name == BACKWARD and following.is_interrupted:
            self.phases.resume_optimizer(following)
        else:
            self.phases.begin_gap(following, name)
        if is_repeatable and was_begun and (top is None or not top.is_exhausted):
            self.phases.cache_end(fast, following, name, ended, segment)
