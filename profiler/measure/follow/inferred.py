"""Infer the passes of a loop that does not name them.

A pass over a loader is training once a gradient or an optimizer was seen in it. It is validation if its first step ended
without one. Without a loader a step lies between two optimizer steps, and a forward in evaluation mode or without
gradients is validation. Training again on the same loader begins a new epoch.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable

from profiler.measure import hot_path
from profiler.measure.follow.notes import InferredPass, LoaderFeed, ThreadFollowing
from profiler.records.timing import GAPS, Timing
from profiler.records.vocabulary import Stage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.measure.follow.notes import Called, RunControl
    from profiler.measure.passes import Segment
    from profiler.measure.timer import Timer


class PassInference:
    """Begin, classify and end the passes of one run that the loop does not name.

    Args:
        timer: the run's timer.
        control: the run.
        on_change: called before any pass begins, ends or gets its stage.
        end_gap: ends an open gap between two phases in a thread.
        expects_training: returns True if the program has an optimizer, so that an evaluation is a part of an epoch.
    """

    def __init__(
        self,
        timer: Timer,
        control: RunControl,
        on_change: Callable[[], None],
        end_gap: Callable[[ThreadFollowing], None],
        expects_training: Callable[[], bool],
    ) -> None:
        self._timer = timer
        self._control = control
        self._on_change = on_change
        self._end_gap = end_gap
        self._expects_training = expects_training
        self.has_optimizer = False  # if there is none, and no loader, a step ends where the next forward begins
        self._leader: Callable[[], ThreadFollowing | None] = lambda: None
        self._trained_on: set[Hashable] = set()  # keys of the loaders of this epoch's training passes

    def begin_for_feed(self, following: ThreadFollowing, feed: LoaderFeed, one_iterator: bool) -> None:
        """Begin a pass over a loader, perhaps inside another pass, whose clock stops meanwhile."""
        self.end_evaluations(following)
        while following.top is not None and following.top.is_trial:
            self.close(following, following.top, partial=False)
        for inferred in following.passes:
            is_same = inferred.feed is not None and inferred.feed.key == feed.key
            begins_again = is_same and (one_iterator or inferred.is_worked_off)
            if (inferred.is_exhausted and not inferred.segment.in_step) or begins_again:
                self.close(following, inferred, partial=not inferred.is_exhausted)
                break
        self._open(following, None, feed)

    def pass_for_batch(self, following: ThreadFollowing, feed: LoaderFeed) -> InferredPass | None:
        """Return the pass of the next batch, or None if it goes with another loader's, as in ``zip(loader, other)``."""
        feed.goes_along = following.is_in_named_pass()
        if feed.goes_along:
            return None
        if feed.inferred is None or feed.inferred not in following.passes:
            top = following.top
            if top is not None and top.is_fresh:
                feed.goes_along = True
                return None
            self.end_evaluations(following)
            self._open(following, None, feed)
        return feed.inferred

    def find_for_forward(self, following: ThreadFollowing, module: Called, trains: bool, learns: bool) -> None:
        """Find or begin the pass of a forward.

        Args:
            trains: the module is in training mode.
            learns: it is, and gradients are on.
        """
        if learns:
            self.find_for_training(following)
        elif following.is_in_named_pass():
            return
        else:
            self._drop_ended(following)
            top = following.top
            if top is None or self._is_evaluation(top, module, trains):
                self.end_step_without_optimizer(following)
                if not self._control.has_epoch() and self._expects_training():
                    self._control.begin_inferred_epoch(None, is_first=True)
                self._open(following, Stage.VAL, None)
        if following.passes:
            following.passes[-1].has_forward = True

    def find_for_training(self, following: ThreadFollowing) -> None:
        """Find or begin the training pass in which a gradient is computed or used."""
        if following.is_in_named_pass():
            return
        self.end_evaluations(following)
        self._drop_ended(following)
        top = following.top
        if top is None:
            if not self._control.has_epoch():
                self._control.begin_inferred_epoch(None, is_first=True)
            self._open(following, Stage.TRAIN, None)
        elif top.stage is None:
            self._decide(following, top, Stage.TRAIN)

    def end_step_of_feed(self, following: ThreadFollowing, inferred: InferredPass) -> None:
        """End the step of a pass whose loader is asked for the next batch, and everything inside it."""
        inferred.is_ahead |= inferred.is_fresh
        position = following.passes.index(inferred)
        if inferred is not following.passes[-1]:
            self.close(following, following.passes[position + 1], partial=True)
        following.ignored.clear()
        following.is_interrupted = False
        segment = inferred.segment
        if segment.closed:
            self.reopen(inferred)
            return
        segment.leave_open_spans()
        if inferred.stage is None and inferred.has_forward:
            self._decide(following, inferred, Stage.VAL)
        if segment.in_step:
            segment.end_step()

    def extend_to_now(self, following: ThreadFollowing, segment: Segment, *, ends_step: bool) -> None:
        """Move the end of a pass without a loader to this moment, and perhaps count a step."""
        if following.state.current is not segment.tree.root:  # inside another phase
            return
        segment.handed_at = hot_path.now()
        if ends_step:
            _count_step(segment, segment.handed_at)
            if self._timer.is_slice_due:
                following.state.close_slice()

    def end_step_without_optimizer(self, following: ThreadFollowing) -> None:
        """End the step of a loop that changes its weights by hand: a forward after a backward begins a new step."""
        top = following.top
        if not self.has_optimizer and top is not None and top.feed is None and top.has_backward:
            self._end_gap(following)
            self.extend_to_now(following, top.segment, ends_step=True)
            top.has_backward = False

    def see_optimizer(self, following: ThreadFollowing) -> None:
        """Note that the loop has an optimizer: earlier "steps" only accumulated the gradients of its first step."""
        if self.has_optimizer:
            return
        self.has_optimizer = True
        for inferred in following.passes:
            segment = inferred.segment
            if inferred.feed is None and not segment.closed and segment.tree.steps:
                segment.tree.steps = segment.tree.step.n = 0
                segment.tree.step.timing = Timing()
                segment.tree.counts.top.clear()
                segment.tree.slow, segment.tree.limit = [], 0
                segment.tree.begin_cold_again()
                segment.step_started = segment.started

    def reopen(self, inferred: InferredPass) -> None:
        """Continue a pass in the next epoch, after its first part ended with the previous one."""
        self._on_change()
        inferred.segment.close(partial=True)
        inferred.segment = self._timer.begin(inferred.stage)

    def close(self, following: ThreadFollowing, inferred: InferredPass, *, partial: bool) -> None:
        """End a pass, and those inside it."""
        self._on_change()
        # Three kinds of end. A pass without a loader ended with the last thing measured in it. An exhausted one ended with the
        # work on its last batch. All others end now, and those inside the closed pass count as broken off.
        while inferred in following.passes:
            last = following.passes.pop()
            segment = last.segment
            if last.is_open_ended:
                segment.handed_at = max(segment.handed_at, segment.started, _open_since(segment))
            if last.feed is None:
                if last.is_trial and last.stage is Stage.TRAIN:
                    segment.tree.become(None)
                if last.has_backward and not self.has_optimizer:
                    _count_step(segment, segment.handed_at)
                segment.close(partial=False, at=segment.handed_at)
                continue
            last.feed.inferred = None
            if (last.is_fresh or last.is_ahead) and last.has_work and not last.is_exhausted:
                segment.drop_step()  # its batch was fetched ahead, and never used
            if last.stage is None and last.has_forward:
                self._decide(following, last, Stage.VAL)
            if last.is_exhausted:
                segment.close_at_handed()
            else:
                segment.close(partial=partial or last is not inferred)
        self._control.after_pass()

    def close_worked_off(self, following: ThreadFollowing) -> None:
        """End the innermost pass if its last batch was used: later events are not a part of it."""
        top = following.top
        if top is not None and top.is_worked_off:
            self.close(following, top, partial=False)

    def end_evaluations(self, following: ThreadFollowing) -> None:
        """End evaluations without a loader, because something else begins."""
        while following.passes and following.passes[-1].feed is None and following.passes[-1].stage is Stage.VAL:
            self.close(following, following.passes[-1], partial=False)

    def _open(self, following: ThreadFollowing, stage: Stage | None, feed: LoaderFeed | None) -> None:
        self._on_change()
        inferred = InferredPass(self._timer.begin(stage), stage, feed)
        inferred.segment.length = None if feed is None else feed.length
        following.passes.append(inferred)
        if feed is not None:
            feed.inferred = inferred

    def _decide(self, following: ThreadFollowing, inferred: InferredPass, stage: Stage) -> None:
        """Set the stage of a pass over a loader. A training pass may begin a new epoch."""
        self._on_change()
        inferred.stage = stage
        # A loader that is trained on for the second time begins a new epoch, and so does the first training of a run. The
        # pass began before its stage was known, so the epoch is dated back to the pass's start. Writing the old epoch
        # takes time between two of the loop's lines; `pause` moves all open starts, so that nobody is charged for it.
        # An evaluation before the first training is a part of the first epoch.
        feed = inferred.feed
        if stage is Stage.VAL and not self._control.has_epoch() and self._expects_training():
            self._begin_epoch(following, inferred, is_first=True)
        if feed is not None and stage is Stage.TRAIN:
            around = [p for p in following.passes if p is not inferred and self._is_around_training(following, p)]
            is_outermost = not any(p.stage is not None or p.has_forward for p in around)
            is_again = is_outermost and feed.key in self._trained_on and self._tells_epochs(following)
            if not self._control.has_epoch() or is_again:
                self._trained_on.clear()
                self._begin_epoch(following, inferred, is_first=not is_again)
            if self._tells_epochs(following):
                self._trained_on.add(feed.key)
        inferred.segment.decide(stage)

    def _is_around_training(self, following: ThreadFollowing, outer: InferredPass) -> bool:
        """Return True if an open pass encloses the training that begins, False if it only was not ended.

        An evaluation encloses it if it has handed out one batch since the last training, or since its begin: the loop trains
        for each. Else the loop has left its iterator as it is, and may go on with it in the next epoch. That pass ends here if
        its loader has no batch left.
        """
        feed = outer.feed
        if outer.stage is Stage.TRAIN or feed is None:
            return True
        fetched, outer.fetched_before = feed.handed - outer.fetched_before, feed.handed
        if outer.has_forward and fetched != 1:
            if outer.is_worked_off:
                feed.inferred = None
                following.passes.remove(outer)
                outer.segment.close_at_handed()
            return False
        return True

    def _tells_epochs(self, following: ThreadFollowing) -> bool:
        """Return True in the first thread that trains: others beside it train within its epochs. It is replaced if it ends."""
        if self._leader() is None:
            self._leader = weakref.ref(following)
        return self._leader() is following

    def _begin_epoch(self, following: ThreadFollowing, inferred: InferredPass, *, is_first: bool) -> None:
        before = hot_path.now()
        self._control.begin_inferred_epoch(inferred.segment.started, is_first=is_first)
        following.state.pause(hot_path.now() - before)
        following.passes = [p for p in following.passes if not p.segment.closed]

    def _is_evaluation(self, inferred: InferredPass, module: Called, trains: bool) -> bool:
        """Return True if a forward that learns nothing is an evaluation inside this pass."""
        if inferred.stage is not Stage.TRAIN:
            return False
        if inferred.feed is None and not inferred.is_in_step:
            return True
        return not trains and module.has_trained  # other modules are teachers, target networks or frozen encoders

    def _drop_ended(self, following: ThreadFollowing) -> None:
        """Remove passes that ended with their epoch, and end those whose loader has said that no batch is left to work on.

        A pass over a loader goes on in the next epoch.
        """
        while following.passes and following.passes[-1].is_worked_off and not following.passes[-1].segment.in_step:
            self.close(following, following.passes[-1], partial=False)
        while following.passes and following.passes[-1].segment.closed:
            if following.passes[-1].feed is not None:
                self.reopen(following.passes[-1])
                return
            following.passes.pop()


def _open_since(segment: Segment) -> int:
    """Return the start of a phase that an exception left open, or 0. Everything before it has been measured."""
    span = segment.state.current
    while span.depth > 1 and span.parent is not None:
        span = span.parent
    return span.t0 if span.depth == 1 and span.tree is segment.tree and span.name not in GAPS else 0


def _count_step(segment: Segment, end: int) -> None:
    """Count a step of a pass without a loader. It lasted from the end of the previous step."""
    tree = segment.tree
    with segment.state.timer.lock:
        duration = end - segment.step_started
        tree.step.record(duration)
        tree.steps += 1
        if tree.stage is not None and duration > tree.limit:
            tree.keep_slow(duration, end, is_first=tree.cold)
        segment.step_started = end
        if tree.cold:
            tree.end_cold()
        if tree.pending:
            tree.read_device()
