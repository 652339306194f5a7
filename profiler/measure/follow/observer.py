"""Observe a loop that was not written for us, and turn its events into passes and phases.

Nothing here knows torch; `torch_hooks` reports the events. If the loop names its passes (``prof.train(...)``, an adapter),
only phases are added to them. Otherwise the passes are inferred (`inferred`).

Between two pieces of torch's work our own code is cold, and a call costs many times more than in a tight loop. So the
span transition of each event is cached in a `FastPath`, and the hooks of `hot_path` only replay it the next time. All
caches are cleared whenever a pass begins, ends or gets its stage.
"""

from __future__ import annotations

from profiler.measure.follow.loader_events import LoaderObserver, counted
from profiler.measure.follow.notes import ThreadFollowing
from profiler.measure.follow.phases import BACKWARD, CHECKPOINT, FORWARD, OPTIMIZER, is_inside
from profiler.records.timing import GAPS
from profiler.records.vocabulary import Stage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.measure.follow.notes import Called
    from profiler.measure.hot_path import FastPath


class LoopObserver(LoaderObserver):
    """The events of one run's loop, which become passes and phases of its timer; see `LoaderObserver` for the arguments."""

    # ---- modules, backward, optimizers -----------------------------------------------------------------------------

    @counted
    def forward_begins(self, fast: FastPath, module: Called, trains: bool, takes_gradients: bool) -> None:
        """Begin a forward.

        Args:
            module: the outermost module of the call.
            trains: it is in training mode.
            takes_gradients: gradients are on.
        """
        following = self.following()
        if following is None:
            return
        if is_inside(following.state.current, BACKWARD) or self.in_backward():  # a checkpointed part runs once more
            self.phases.ignore(following, FORWARD, module.fast_paths)
            return
        learns = following.learns = trains and takes_gradients
        before = following.state.current
        if learns:
            self.inference.end_step_without_optimizer(following)
        if following.passes or not following.state.segments:
            self.inference.find_for_forward(following, module, trains, learns)
        module.has_trained = module.has_trained or learns
        span = self.phases.begin(following, FORWARD, module.fast_paths)
        needs_feed = not (learns and self.inference.has_optimizer)
        if self._is_repeatable(following, Stage.TRAIN if learns else Stage.VAL, needs_feed=needs_feed):
            self.phases.cache_begin(fast, following, before, span)

    @counted
    def forward_ends(self, fast: FastPath) -> None:
        """End a forward. In an evaluation without a loader, that is the end of a step."""
        following = self.following()
        if following is not None:
            is_evaluation = following.top is not None and following.top.stage is Stage.VAL
            self._end_event(fast, following, FORWARD, ends_step=is_evaluation, is_repeatable=not is_evaluation)

    @counted
    def backward_begins(self, fast: FastPath) -> None:
        """Begin a backward."""
        following = self.following()
        if following is None:
            return
        if is_inside(following.state.current, BACKWARD):
            self.phases.ignore(following, BACKWARD)
        else:
            self._begin_training(fast, following, BACKWARD)

    @counted
    def backward_ends(self, fast: FastPath) -> None:
        """End a backward."""
        following = self.following()
        if following is None:
            return
        self.saw_backward = True
        top = following.top
        has_clear_steps = self.inference.has_optimizer or top is None or top.feed is not None
        is_repeatable = not following.is_interrupted and has_clear_steps
        self._end_event(fast, following, BACKWARD, ends_step=False, is_repeatable=is_repeatable)
        if top is not None:
            top.has_backward = True

    @counted
    def optimizer_begins(self, fast: FastPath) -> None:
        """Begin an optimizer's step."""
        following = self.following()
        if following is not None:
            self._begin_training(fast, following, OPTIMIZER)

    @counted
    def optimizer_ends(self, fast: FastPath) -> None:
        """End an optimizer's step, and with it the loop's step if there is no loader."""
        following = self.following()
        if following is None:
            return
        self.inference.see_optimizer(following)
        if following.is_interrupted and not is_inside(following.state.current, OPTIMIZER):
            self.phases.resume_optimizer(following)
        self._end_event(fast, following, OPTIMIZER, ends_step=True, is_repeatable=not following.is_interrupted)
        following.is_interrupted = False

    @counted
    def checkpoint_begins(self) -> str | None:
        """Begin a checkpoint. Return the argument for `checkpoint_ends`, or None if the time is measured already."""
        following = self.following()
        if following is None or is_inside(following.state.current, CHECKPOINT):
            return None
        self.inference.close_worked_off(following)
        self.phases.drop_broken_off(following)
        current = following.state.current.name
        self.phases.begin(following, CHECKPOINT)
        return current if current in GAPS else ""

    @counted
    def checkpoint_ends(self, gap: str) -> None:
        """End a checkpoint, and continue the gap that was open before it."""
        following = self.following()
        if following is None:
            return
        self.phases.end(following, CHECKPOINT)
        self.phases.extend(following)
        if gap:
            following.state.current.child(gap).__enter__()

    def _begin_training(self, fast: FastPath, following: ThreadFollowing, name: str) -> None:
        before = following.state.current
        self.inference.find_for_training(following)
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
            self.inference.extend_to_now(following, segment, ends_step=ends_step and top.feed is None)
        if name == BACKWARD and following.is_interrupted:
            self.phases.resume_optimizer(following)
        else:
            self.phases.begin_gap(following, name)
        if is_repeatable and was_begun and (top is None or not top.is_exhausted):
            self.phases.cache_end(fast, following, name, ended, segment)
