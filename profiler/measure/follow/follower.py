"""Follows a loop that was not written for us: from what its loaders, modules and optimizers do, which passes and phases.

It knows nothing of torch; `torch_hooks` tells it what happens. Two ways of telling passes apart:

- Where the loop says itself what it does (``prof.train(...)``, an adapter), only phases are added to the pass it is in.
- Elsewhere passes are inferred. One over a loader is training once it has seen a gradient or an optimizer, and
  validation when its first step has ended without. Without a loader, a step is what lies between two optimizer steps,
  and a forward in evaluation mode or without gradients is validation. A loader that is trained on anew begins an epoch.

Between two pieces of torch's work our own code is cold, and a call takes many times what it takes in a tight loop. So what
leads from one span straight to the next is noted in a `Lane`, and `begin_event` and `end_event` only follow that the next
time: closures, and written out, as calls and objects are what costs (``benchmarks/bench_attach.py``). Whenever a pass
begins, ends or shows what it is for, all lanes are forgotten.

The rules it keeps: nothing raises into the loop; a fault is counted, and after a few the following ends.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any, Protocol

from profiler.measure import timer
from profiler.measure.timer import DeviceSpan, Span, Stage, batch_size
from profiler.records.run import AFTER, GAPS, Timing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.measure.timer import Segment, ThreadState, Timer


DATA_WAIT, FORWARD, BACKWARD, OPTIMIZER = "data_wait", "forward", "backward", "optimizer"
CHECKPOINT = "checkpoint"
MAX_FAULTS = 5
MEASURED = frozenset((Span, DeviceSpan))


class Host(Protocol):
    """What the follower needs of the run it measures for."""

    def is_running(self) -> bool:
        """Whether anything is to be measured; the run is begun by the first question, if nobody else did."""
        ...

    def begin_inferred_epoch(self, started: int | None) -> None:
        """An epoch begins now, or began (``started``, in the clock's ns) with a pass that has only now shown itself.

        Passes of which it is not known yet what they are for go on in it. Nothing happens where the loop says itself
        where its epochs begin.
        """
        ...

    def has_epoch(self) -> bool:
        """Whether an epoch is open."""
        ...

    def after_pass(self) -> None:
        """A pass has ended."""
        ...

    def count_fault(self, error: Exception) -> None:
        """Something went wrong on our side."""
        ...


class Called(Protocol):
    """A module whose calls are followed."""

    has_trained: bool  # whether it was seen in training


class Feed:
    """One iteration over a loader: the iterator's side of a pass."""

    __slots__ = ("goes_along", "inferred", "key", "place", "watch")

    def __init__(self, place: Place, key: Hashable) -> None:
        self.place = place
        self.key = key
        self.inferred: Inferred | None = None  # the pass that it feeds, while that is open
        self.goes_along = False  # the batch it is asked for belongs to a pass that another loader feeds
        self.watch: object = None  # tells when the iterator is gone


class Inferred:
    """A pass that was inferred.

    Once nothing says any more when it ends (it has no loader, or an exhausted one), its segment's ``handed_at`` is when
    the last thing in it ended.
    """

    __slots__ = ("feed", "has_backward", "has_forward", "is_exhausted", "segment", "stage")

    def __init__(self, segment: Segment, stage: Stage | None, feed: Feed | None) -> None:
        self.segment = segment
        self.stage = stage
        self.feed = feed
        self.has_forward = False
        self.has_backward = False  # in the step that is going on
        self.is_exhausted = False  # its loader has no more batches; it may have handed out the last one later

    @property
    def is_steady(self) -> bool:
        """Whether it is known what it is for, and goes on."""
        return self.stage is not None and not self.is_exhausted and self.segment.state.is_owner

    @property
    def is_open_ended(self) -> bool:
        return self.feed is None or self.is_exhausted

    @property
    def is_fresh(self) -> bool:
        """Whether it has a batch that nothing was done with yet."""
        segment = self.segment
        phases = (span for name, span in segment.tree.root.children.items() if name not in GAPS)
        return self.feed is not None and segment.in_step and all(span.t0 <= segment.wait.t0 for span in phases)

    @property
    def is_in_step(self) -> bool:
        """Whether a step has begun; without a loader, one begins with the first thing that is done."""
        return self.segment.in_step if self.feed else self.segment.handed_at > self.segment.step_started


class Place:
    """One thread's side of the following."""

    __slots__ = ("ignored", "is_interrupted", "passes", "spent_ns", "state")

    def __init__(self, state: ThreadState) -> None:
        self.state = state
        self.passes: list[Inferred] = []  # those that are open, the innermost last
        self.is_interrupted = False  # an optimizer's step, by the forward and backward that it calls itself
        self.spent_ns = 0  # what such a step took before
        self.ignored: list[str] = []  # phases that were not begun, because one of that kind is open already


class Lane:
    """The way that one kind of event went last, and will go again: from the span that is open then, to another one."""

    __slots__ = ("expected", "is_on_device", "known", "segment", "span")

    def __init__(self) -> None:
        self.expected: Span | None = None
        self.span: Any = None
        self.is_on_device = False  # phases have marks on the GPU, too
        self.segment: Segment | None = None  # the pass without a loader whose end moves on
        self.known: dict[Span, tuple[Span, Segment | None]] = {}  # all ways that it went

    def note(self, before: Span, after: Span, segment: Segment | None) -> None:
        self.known[before] = after, segment
        self.expected, self.span, self.segment = before, after, segment
        self.is_on_device = before.tree.device is not None or after.tree.device is not None

    def turn(self, current: Span) -> bool:
        """Makes ready for another way that is known; False where there is none."""
        found = self.known.get(current)
        if found is None:
            return False
        self.expected, (self.span, self.segment) = current, found
        return True

    def forget(self) -> None:
        self.expected = self.segment = self.span = None
        self.known.clear()


def begin_event(follower: Follower, tell: Callable[[Lane], None]) -> Callable[..., None]:
    """A function to call, with whatever arguments, when a phase begins; ``tell`` is the long way."""
    lane, state, owned, now = follower.lane(), follower.timer.owner, follower.owned, timer.now

    def begins(*_: Any) -> None:
        current = state.current
        if not owned() or (current is not lane.expected and not lane.turn(current)):
            tell(lane)
            return
        began = now()
        span = lane.span
        if current is not span.parent:  # a gap ends here
            _end(current, began)
            if lane.is_on_device:
                current.mark_end()  # type: ignore[attr-defined]  # of the same kind as the one that begins
        state.current = span
        span.t0 = began
        if lane.is_on_device:
            span.mark_begin()

    return begins


def end_event(follower: Follower, tell: Callable[[Lane], None], *, ends_step: bool = False) -> Callable[..., None]:
    """A function to call, with whatever arguments, when a phase has ended; ``tell`` is the long way."""
    lane, state, owned, now = follower.lane(), follower.timer.owner, follower.owned, timer.now

    def ends(*_: Any) -> None:
        end = now()
        current = state.current
        if not owned() or (current is not lane.expected and not lane.turn(current)):
            tell(lane)
            return
        try:
            current.buffer[current.n] = end - current.t0
            current.n += 1
        except IndexError:
            current.record(end - current.t0)
        if lane.is_on_device:
            current.mark_end()  # type: ignore[attr-defined]
        segment = lane.segment
        if segment is not None:
            segment.handed_at = end
            if ends_step:
                tree = segment.tree
                if tree.pending:
                    tree.read_device()
                step = tree.step
                try:
                    step.buffer[step.n] = end - segment.step_started
                    step.n += 1
                except IndexError:
                    step.record(end - segment.step_started)
                tree.record.steps += 1
                segment.step_started = end
        state.current = span = lane.span
        span.t0 = end
        if lane.is_on_device and span is not current.parent:  # a gap begins
            span.mark_begin()

    return ends


def _end(span: Span, end: int) -> None:
    try:
        span.buffer[span.n] = end - span.t0
        span.n += 1
    except IndexError:
        span.record(end - span.t0)


class Follower:
    """Turns events into passes and phases of a timer.

    Args:
        timer: where they are measured.
        host: the run.
        gaps: also name what lies between two known phases, "after forward" and so on: for loops that name nothing.
        in_backward: whether the calling thread works for a backward that another thread began.
    """

    def __init__(
        self, timer: Timer, host: Host, *, gaps: bool = False, in_backward: Callable[[], bool] = lambda: False
    ) -> None:
        self.timer = timer
        self.host = host
        self.gaps = gaps
        self.in_backward = in_backward
        self.fetched: int | None = None  # samples of the last batch that belongs to a pass which was not inferred
        self._is_over = False
        self._faults = 0
        self._has_optimizer = False  # else, without a loader either, a step ends where the next one's forward begins
        self._trained_on: set[Hashable] = set()  # loaders of this epoch's training passes
        self._local = threading.local()
        self._lanes: list[Lane] = []
        self.owned: Callable[[], bool] = timer.owner.badge._is_owned  # type: ignore[attr-defined]

    def close(self) -> None:
        """Ends the following, and the passes that it began in this thread."""
        if self._is_over:
            return
        self._is_over = True
        self.forget_lanes()
        place = getattr(self._local, "place", None)
        if place is not None and place.passes:
            self._close(place, place.passes[0], partial=True)

    def epoch_ends(self) -> None:
        """Passes of which nothing says when they end have ended by now."""
        place: Place | None = getattr(self._local, "place", None)
        if place is None or self._is_over:
            return
        try:
            for inferred in list(place.passes):
                if inferred.is_open_ended and not inferred.segment.closed:
                    self._close(place, inferred, partial=False)
        except Exception as error:
            self.fault(error)

    def forget(self) -> None:
        """In a forked child: nothing is followed."""
        self._is_over = True
        self.forget_lanes()

    # ---- what happens ----------------------------------------------------------------------------------------------

    def loader_begins(self, key: Hashable, *, one_iterator: bool = False) -> Feed | None:
        """A loader is iterated over, from its beginning. Answers what its iterator is to be known by.

        Args:
            key: which loader it is; equal for two that hold the same data.
            one_iterator: the loader uses its iterator again, so that what it gave before is over.
        """
        place = self._enter()
        if place is None or place.state.current.name == DATA_WAIT:  # a loader that the loop handed to prof.train
            return None
        feed = Feed(place, key)
        try:
            if not self._is_in_a_told_pass(place):
                self._begin_pass(place, feed, one_iterator)
            return feed
        except Exception as error:
            self.fault(error)
            return None

    def start_begins(self, feed: Feed) -> Span | None:
        """The loader makes its iterator, and perhaps starts workers: time that is waited for data, too."""
        return None if feed.inferred is None else feed.inferred.segment.wait.__enter__()

    def fetch_begins(self, feed: Feed) -> Span | None:
        """The loader is asked for a batch. Answers the wait to end, for the two calls below."""
        inferred = feed.inferred
        if inferred is not None and inferred.is_steady and self.owned():
            segment = inferred.segment
            passes, current = feed.place.passes, segment.state.current
            if passes and passes[-1] is inferred and not segment.closed and current.depth < 2 and not feed.place.ignored:
                if current.depth:
                    current.__exit__()
                segment.begin_wait()
                return segment.wait
        place = self._enter()
        if place is None or place is not feed.place:
            return None
        try:
            inferred = self._pass_to_feed(place, feed)
            if inferred is None:
                if _is_in(place.state.current, DATA_WAIT):  # a framework has told of the wait itself
                    return None
                self._end_gap(place)
                return place.state.current.child(DATA_WAIT).__enter__()
            self._end_step(place, inferred)
            return inferred.segment.wait.__enter__()
        except Exception as error:
            self.fault(error)
            return None

    def fetch_ends(self, feed: Feed, wait: Span, item: Any) -> None:
        """The loop has its batch."""
        try:
            inferred = feed.inferred
            if inferred is None or feed.goes_along:
                wait.__exit__()
                self.fetched = batch_size(item)
            elif not inferred.segment.end_wait(batch_size, item):
                self._reopen(inferred)
                inferred.segment.begin_step(batch_size(item))
            self._begin_gap(feed.place, DATA_WAIT)
        except Exception as error:
            self.fault(error)

    def fetch_fails(self, feed: Feed, wait: Span, *, at_end: bool) -> None:
        """There is no batch: the loader is at its end, or has raised."""
        try:
            if not at_end:
                wait.__exit__()
                return
            wait.end_without_count()
            if feed.inferred is not None and not feed.goes_along:
                # A loader may fetch ahead of the loop, which then still has a batch to work on: the pass is over when
                # the iterator is dropped, or something else begins.
                feed.inferred.is_exhausted = True
                feed.inferred.segment.handed_at = timer.now()
                self.forget_lanes()
        except Exception as error:
            self.fault(error)

    def loader_is_dropped(self, feed: Feed) -> None:
        """The loop has let go of an iterator."""
        inferred = feed.inferred
        if self._is_over or inferred is None or feed.place is not getattr(self._local, "place", None):
            return
        try:
            self._close(feed.place, inferred, partial=not inferred.is_exhausted)
        except Exception as error:
            self.fault(error)

    def forward_begins(self, lane: Lane, module: Called, trains: bool, takes_gradients: bool) -> None:
        """A module is called.

        Args:
            module: the outermost one.
            trains: whether it is in training mode.
            takes_gradients: whether gradients are on.
        """
        place = self._enter()
        if place is None:
            return
        try:
            if _is_in(place.state.current, BACKWARD) or self.in_backward():  # a checkpointed part runs once more
                self._ignore(place, FORWARD)
                return
            learns = trains and takes_gradients
            before = place.state.current
            if learns:
                self._end_step_without_optimizer(place)
            if place.passes or not place.state.segments:
                self._find_pass_for_forward(place, module, trains, learns)
            module.has_trained = module.has_trained or learns
            span = self._begin_phase(place, FORWARD)
            if self._is_plain(place, Stage.TRAIN if learns else Stage.VAL, with_feed=not (learns and self._has_optimizer)):
                self._note_begin(lane, place, before, span)
        except Exception as error:
            self.fault(error)

    def forward_ends(self, lane: Lane) -> None:
        place = self._enter()
        if place is None:
            return
        try:
            is_evaluation = bool(place.passes) and place.passes[-1].stage is Stage.VAL
            self._end_event(lane, place, FORWARD, ends_step=is_evaluation, is_plain=not is_evaluation)
        except Exception as error:
            self.fault(error)

    def backward_begins(self, lane: Lane) -> None:
        place = self._enter()
        if place is None:
            return
        try:
            if _is_in(place.state.current, BACKWARD):
                self._ignore(place, BACKWARD)
            else:
                self._begin_training(lane, place, BACKWARD)
        except Exception as error:
            self.fault(error)

    def backward_ends(self, lane: Lane) -> None:
        place = self._enter()
        if place is None:
            return
        try:
            top = place.passes[-1] if place.passes else None
            is_plain = not place.is_interrupted and (self._has_optimizer or top is None or top.feed is not None)
            self._end_event(lane, place, BACKWARD, ends_step=False, is_plain=is_plain)
            if top is not None:
                top.has_backward = True
        except Exception as error:
            self.fault(error)

    def optimizer_begins(self, lane: Lane) -> None:
        place = self._enter()
        if place is None:
            return
        try:
            self._begin_training(lane, place, OPTIMIZER)
        except Exception as error:
            self.fault(error)

    def optimizer_ends(self, lane: Lane) -> None:
        place = self._enter()
        if place is None:
            return
        try:
            self._note_optimizer(place)
            if place.is_interrupted and not _is_in(place.state.current, OPTIMIZER):
                self._resume_optimizer(place)
            self._end_event(lane, place, OPTIMIZER, ends_step=True, is_plain=not place.is_interrupted)
            place.is_interrupted = False
        except Exception as error:
            self.fault(error)

    def checkpoint_begins(self) -> str | None:
        """Something is saved. Answers what `checkpoint_ends` is to be told; None where that is timed already."""
        place = self._enter()
        if place is None or _is_in(place.state.current, CHECKPOINT):
            return None
        try:
            gap = place.state.current.name if place.state.current.name in GAPS else ""
            self._begin_phase(place, CHECKPOINT)
            return gap
        except Exception as error:
            self.fault(error)
            return None

    def checkpoint_ends(self, gap: str) -> None:
        """It has been saved, and the gap goes on that was open before."""
        place = self._enter()
        if place is None:
            return
        try:
            self._end_phase(place, CHECKPOINT)
            self._extend(place)
            if gap:
                place.state.current.child(gap).__enter__()
        except Exception as error:
            self.fault(error)

    # ---- phases ----------------------------------------------------------------------------------------------------

    def _enter(self) -> Place | None:
        """The calling thread's place, or None where nothing is to be followed."""
        if self._is_over or not self.host.is_running():
            return None
        state = self.timer.state()
        try:
            place: Place = self._local.place
            if place.state is state:
                return place
        except AttributeError:
            pass
        place = self._local.place = Place(state)
        return place

    def fault(self, error: Exception) -> None:
        """Something of ours has failed: it is counted, and the loop goes on."""
        self._faults += 1
        self._is_over = self._is_over or self._faults >= MAX_FAULTS
        self.forget_lanes()
        self.host.count_fault(error)

    def lane(self) -> Lane:
        """A lane for one kind of event, forgotten with all others when passes change."""
        made = Lane()
        self._lanes.append(made)
        return made

    def forget_lanes(self) -> None:
        """From here on everything goes the long way, until it is known again."""
        for lane in self._lanes:
            lane.forget()

    def _begin_training(self, lane: Lane, place: Place, name: str) -> None:
        before = place.state.current
        self._find_pass_for_training(place)
        span = self._begin_phase(place, name)
        if self._is_plain(place, Stage.TRAIN):
            self._note_begin(lane, place, before, span)

    def _is_plain(self, place: Place, stage: Stage, *, with_feed: bool = False) -> bool:
        """Whether what happens in this pass always means the same: one that the loop told of, or one of that stage."""
        top = place.passes[-1] if place.passes else None
        if top is None:
            return bool(place.state.segments)
        return top.stage is stage and (top.feed is not None or not with_feed) and not self._is_in_a_told_pass(place)

    def _note_begin(self, lane: Lane, place: Place, before: Span, span: Span | None) -> None:
        if span is None or type(span) not in MEASURED or not place.state.is_owner:
            return
        if before is span.parent or (before.name in GAPS and before.parent is span.parent):
            lane.note(before, span, None)

    def _end_event(self, lane: Lane, place: Place, name: str, *, ends_step: bool, is_plain: bool = True) -> None:
        ended = place.state.current
        was_begun = self._end_phase(place, name)
        top = place.passes[-1] if place.passes else None
        segment = top.segment if top is not None and top.is_open_ended else None
        if segment is not None and top is not None:
            self._note_end(place, segment, ends_step=ends_step and top.feed is None)
        if name == BACKWARD and place.is_interrupted:
            self._resume_optimizer(place)
        else:
            self._begin_gap(place, name)
        after = place.state.current
        is_plain = is_plain and (top is None or not top.is_exhausted)
        is_plain = is_plain and was_begun and place.state.is_owner and type(ended) in MEASURED and ended.name == name
        if is_plain and ended.parent in (after, after.parent):
            lane.note(ended, after, segment if ended.depth == 1 else None)

    def _ignore(self, place: Place, name: str) -> None:
        """A phase inside of one of its kind is not begun, and so its end is not to be taken for that one's."""
        place.ignored.append(name)
        self.forget_lanes()

    def _interrupt_optimizer(self, place: Place) -> None:
        """An optimizer that is handed a closure has forward and backward called within its step: that time is not its own."""
        if place.state.current.name == OPTIMIZER:
            span = place.state.current
            place.spent_ns = timer.now() - span.t0 + (place.spent_ns if place.is_interrupted else 0)
            place.state.current = span.parent or span
            place.is_interrupted = True

    def _resume_optimizer(self, place: Place) -> None:
        self._end_gap(place)
        span = place.state.current.child(OPTIMIZER)
        span.__enter__()
        place.state.current.t0 -= place.spent_ns  # it is one step, whatever it called meanwhile
        place.spent_ns = 0

    def _begin_phase(self, place: Place, name: str) -> Span | None:
        self._end_gap(place)
        if name in (FORWARD, BACKWARD):
            self._interrupt_optimizer(place)
        current = place.state.current
        if _is_in(current, name):  # the loop has named it itself, or an outer module's call is timed
            self._ignore(place, name)
            return None
        span = current.children.get(name) or current.child(name)
        span.__enter__()
        return span

    def _end_phase(self, place: Place, name: str) -> bool:
        if place.ignored and place.ignored[-1] == name:
            place.ignored.pop()
            return False
        self._end_gap(place)
        current = place.state.current
        if current.name == name:
            current.__exit__()
            return True
        end = timer.now()
        with self.timer.lock:  # phases that overlap, or one that an exception has left open
            place.state.leave(name, end)
        return False

    def _begin_gap(self, place: Place, name: str) -> None:
        if self.gaps and place.passes and place.state.current.name not in (FORWARD, BACKWARD):
            place.state.current.child(AFTER[name]).__enter__()

    def _end_gap(self, place: Place) -> None:
        if self.gaps and place.state.current.name in GAPS:
            place.state.current.__exit__()
            self._extend(place)

    def _extend(self, place: Place) -> None:
        """Something has been measured in a pass of which nothing says when it ends."""
        if place.passes and place.passes[-1].is_open_ended:
            place.passes[-1].segment.handed_at = timer.now()

    # ---- passes ----------------------------------------------------------------------------------------------------

    def _begin_pass(self, place: Place, feed: Feed, one_iterator: bool) -> None:
        """A pass over a loader begins, perhaps inside of another one, whose clock stops then."""
        self._end_evaluations(place)
        for inferred in place.passes:
            if inferred.is_exhausted or (one_iterator and inferred.feed is not None and inferred.feed.key == feed.key):
                self._close(place, inferred, partial=not inferred.is_exhausted)  # or: the loop broke off, and begins again
                break
        self._open(place, None, feed)

    def _pass_to_feed(self, place: Place, feed: Feed) -> Inferred | None:
        """The pass that a batch is for; None where it goes along with another loader's, as in ``zip(loader, other)``."""
        feed.goes_along = self._is_in_a_told_pass(place)
        if feed.goes_along:
            return None
        if feed.inferred is None or feed.inferred not in place.passes:
            top = place.passes[-1] if place.passes else None
            if top is not None and top.is_fresh:
                feed.goes_along = True
                return None
            self._end_evaluations(place)
            self._open(place, None, feed)
        return feed.inferred

    def _open(self, place: Place, stage: Stage | None, feed: Feed | None) -> None:
        self.forget_lanes()
        inferred = Inferred(self.timer.begin(stage), stage, feed)
        place.passes.append(inferred)
        if feed is not None:
            feed.inferred = inferred

    def _reopen(self, inferred: Inferred) -> None:
        """Where an epoch has ended, the passes in it have ended, too, and go on in the next one."""
        self.forget_lanes()
        inferred.segment.close(partial=True)
        inferred.segment = self.timer.begin(inferred.stage)

    def _close(self, place: Place, inferred: Inferred, *, partial: bool) -> None:
        """Ends a pass, and those inside of it."""
        self.forget_lanes()
        while inferred in place.passes:
            last = place.passes.pop()
            segment = last.segment
            if last.is_open_ended:
                segment.handed_at = max(segment.handed_at, segment.started, _open_since(segment))
            if last.feed is None:
                if last.has_backward and not self._has_optimizer:
                    _count_step(segment, segment.handed_at)
                segment.close(partial=False, at=segment.handed_at)
                continue
            last.feed.inferred = None
            if last.stage is None and last.has_forward:
                self._decide(place, last, Stage.VAL)
            if last.is_exhausted:
                segment.close(partial=False, at=segment.handed_at)
            else:
                segment.close(partial=partial or last is not inferred)
        self.host.after_pass()

    def _end_evaluations(self, place: Place) -> None:
        """Evaluations without a loader end where something else begins."""
        while place.passes and place.passes[-1].feed is None and place.passes[-1].stage is Stage.VAL:
            self._close(place, place.passes[-1], partial=False)

    def _end_step(self, place: Place, inferred: Inferred) -> None:
        """The loop comes back for the next batch of a pass: whatever was inside of it is over."""
        position = place.passes.index(inferred)
        if inferred is not place.passes[-1]:
            self._close(place, place.passes[position + 1], partial=True)
        place.ignored.clear()
        place.is_interrupted = False
        segment = inferred.segment
        if segment.closed:
            self._reopen(inferred)
            return
        segment.leave_open_spans()
        if inferred.stage is None and inferred.has_forward:
            self._decide(place, inferred, Stage.VAL)
        if segment.in_step:
            segment.end_step()

    def _note_end(self, place: Place, segment: Segment, *, ends_step: bool) -> None:
        """In a pass without a loader: so far it goes, if nothing more follows."""
        if place.state.current is not segment.tree.root:  # a phase inside of another one
            return
        segment.handed_at = timer.now()
        if ends_step:
            _count_step(segment, segment.handed_at)

    def _end_step_without_optimizer(self, place: Place) -> None:
        """A loop that changes its weights by hand: a new forward after a backward is a new step."""
        top = place.passes[-1] if place.passes else None
        if not self._has_optimizer and top is not None and top.feed is None and top.has_backward:
            self._end_gap(place)
            self._note_end(place, top.segment, ends_step=True)
            top.has_backward = False

    def _note_optimizer(self, place: Place) -> None:
        """The first step of an optimizer: what was taken for steps before was the gathering of its gradients."""
        if self._has_optimizer:
            return
        self._has_optimizer = True
        for inferred in place.passes:
            segment = inferred.segment
            if inferred.feed is None and not segment.closed and segment.tree.record.steps:
                segment.tree.record.steps = segment.tree.step.n = 0
                segment.tree.step.timing = Timing()
                segment.step_started = segment.started

    def _decide(self, place: Place, inferred: Inferred, stage: Stage) -> None:
        """A pass over a loader has shown what it is for."""
        self.forget_lanes()
        inferred.stage = stage
        feed = inferred.feed
        if feed is not None and stage is Stage.TRAIN:
            is_outermost = not any(p.stage is Stage.TRAIN for p in place.passes if p is not inferred)
            if not self.host.has_epoch() or (is_outermost and feed.key in self._trained_on):
                self._trained_on.clear()
                before = timer.now()
                self.host.begin_inferred_epoch(inferred.segment.started)
                place.state.pause(timer.now() - before)
                place.passes = [p for p in place.passes if not p.segment.closed]
            self._trained_on.add(feed.key)
        inferred.segment.decide(stage)

    def _is_in_a_told_pass(self, place: Place) -> bool:
        """Whether the innermost pass is one that the loop told of."""
        segments = place.state.segments
        if not place.passes or not segments:
            return bool(segments)
        return all(inferred.segment is not segments[-1] for inferred in place.passes)

    def _find_pass_for_forward(self, place: Place, module: Called, trains: bool, learns: bool) -> None:
        if learns:
            self._find_pass_for_training(place)
        elif not self._is_in_a_told_pass(place):
            self._drop_ended(place)
            top = place.passes[-1] if place.passes else None
            if top is None or self._is_evaluation(top, module, trains):
                self._open(place, Stage.VAL, None)
        else:
            return
        if place.passes:
            place.passes[-1].has_forward = True

    def _is_evaluation(self, inferred: Inferred, module: Called, trains: bool) -> bool:
        """Whether a forward that learns nothing, in this pass, is an evaluation inside of it."""
        if inferred.stage is not Stage.TRAIN:
            return False
        if inferred.feed is None and not inferred.is_in_step:
            return True
        return not trains and module.has_trained  # others are teachers, target networks, encoders that stand still

    def _find_pass_for_training(self, place: Place) -> None:
        """A gradient is taken, or used: the pass is a training pass."""
        if self._is_in_a_told_pass(place):
            return
        self._end_evaluations(place)
        self._drop_ended(place)
        top = place.passes[-1] if place.passes else None
        if top is None:
            if not self.host.has_epoch():
                self.host.begin_inferred_epoch(None)
            self._open(place, Stage.TRAIN, None)
        elif top.stage is None:
            self._decide(place, top, Stage.TRAIN)

    def _drop_ended(self, place: Place) -> None:
        """Where an epoch has ended, its passes have, too; one over a loader goes on."""
        while place.passes and place.passes[-1].segment.closed:
            if place.passes[-1].feed is not None:
                self._reopen(place.passes[-1])
                return
            place.passes.pop()


def _is_in(span: Span | None, name: str) -> bool:
    """Whether a span, or one around it, has that name."""
    while span is not None and span.name != name:
        span = span.parent
    return span is not None


def _open_since(segment: Segment) -> int:
    """When a phase began that an exception has left open, or 0: what was before it has been measured."""
    span = segment.state.current
    while span.depth > 1 and span.parent is not None:
        span = span.parent
    return span.t0 if span.depth == 1 and span.tree is segment.tree and span.name not in GAPS else 0


def _count_step(segment: Segment, end: int) -> None:
    """A step of a pass without a loader, which lasted from the end of the one before."""
    tree = segment.tree
    with segment.state.timer.lock:
        tree.step.record(end - segment.step_started)
        tree.record.steps += 1
        segment.step_started = end
        if tree.cold:
            tree.end_cold()
        if tree.pending:
            tree.read_device()
