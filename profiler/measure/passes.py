"""The passes: one thread's place in the trees of spans, and one pass over a loader."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from threading import get_ident
from typing import Any

from profiler.measure import hot_path
from profiler.measure.hot_path import ASKED, ASKED_BEFORE, HotPass, Place
from profiler.measure.spans import BUFFER_SIZE, StepCounts, Tree, drop_mark
from profiler.records.histogram import NS
from profiler.records.timing import Timing
from profiler.records.vocabulary import Phase, Stage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.measure.hot_path import Span
    from profiler.measure.timer import Timer
    from profiler.records.timing import Path


SMALL_BUFFER_SIZE = 64  # there can be thousands of tasks and threads
SampleCount = Callable[[Any], "int | None"]


class Concurrency:
    """How long calls of inference ran beside each other: that is in each call's duration, and passes only once."""

    def __init__(self) -> None:
        self._open = 0
        self._at = 0
        self._beside_ns = 0

    def begin(self, at: int) -> None:
        """Note that a call begins (ns)."""
        self._advance(at)
        self._open += 1

    def end(self, at: int) -> int:
        """Note that a call ends, and return the time (ns) counted more than once since the last end."""
        self._advance(at)
        self._open -= 1
        beside, self._beside_ns = self._beside_ns, 0
        return beside

    def _advance(self, at: int) -> None:
        if self._open > 1:
            self._beside_ns += (self._open - 1) * max(at - self._at, 0)
        self._at = max(at, self._at)


class ThreadState(Place):
    """The place of one thread (or one task of asyncio): the innermost open span, and the passes it is in."""

    __slots__ = ("buffer_size", "counts", "outside", "segments", "timer", "too_deep", "trees")

    def __init__(self, timer: Timer, is_owner: bool, buffer_size: int = BUFFER_SIZE) -> None:
        super().__init__(is_owner=is_owner)
        self.timer = timer
        self.thread = get_ident()
        self.look_up = timer.phase
        self.buffer_size = buffer_size
        self.segments: list[Segment] = []
        self.trees: list[Tree] = []
        self.counts: dict[Stage, StepCounts] = {}
        self.too_deep = 0  # open phases that are not measured, because they are nested too deep
        self.outside = Tree(self, None)
        self.current = self.outside.root

    def counts_of(self, stage: Stage | None) -> StepCounts:
        """Return the counts of a stage's steps in this thread; of a pass without a stage, counts of its own."""
        return StepCounts() if stage is None else self.counts.setdefault(stage, StepCounts())

    def tree_for(self, stage: Stage | None) -> Tree:
        """Return a tree of that stage that no open pass uses."""
        device = self.timer.device_clock()
        free = [tree for tree in self.trees if not tree.in_use and tree.device is device]
        for tree in free:
            if tree.stage is stage is not None:
                return tree
        for tree in free:
            if tree.is_empty:
                tree.become(stage)
                return tree
        tree = Tree(self, stage, device)
        self.trees.append(tree)
        return tree

    def leave(self, name: str, end: int, *, is_recorded: bool = True, ends_inner: bool = False) -> int:
        """Close the innermost open span of that name, wherever it is. Return how long it was open (ns), 0 if it was not.

        Spans that were opened later stay open. They are moved out of the span that is closed, and keep their start. With
        ``ends_inner`` they end, too: an exception has left all of them.
        """
        inner: list[Span] = []
        span = self.current
        while span.parent is not None and span.name != name:
            inner.append(span)
            span = span.parent
        if span.parent is None:  # it was opened in another thread, or in a pass that has ended since
            return 0
        for closed in (*(inner if ends_inner else ()), *((span,) if is_recorded else ())):
            closed.record(end - closed.t0)
        self.current = span.parent
        for other in () if ends_inner else reversed(inner):
            self.current = self.current.child(other.name)
            self.current.t0 = other.t0
            drop_mark(self.current)
        return end - span.t0

    def pause(self, by: int) -> None:
        """Move the start of everything that is open by ``by`` ns, so that our own work is not measured."""
        span = self.current
        while span.parent is not None:
            span.t0 += by
            span = span.parent
        self.shift(by, len(self.segments))

    def cut(self, at: int) -> None:
        """Count the time of the open passes up to now (ns), under the timer's lock, so that a slice holds its share of it.

        A call is one step, and counts as a whole when it ends. Of an inferred pass, the stage may not be known yet.
        """
        segments = self.segments
        if any(segment.is_call or segment.tree.stage is None for segment in segments):
            return
        for position in reversed(range(len(segments))):  # the innermost first: its time is no time of those around it
            segment = segments[position]
            elapsed = max(at - segment.started, 0)  # another thread may have begun the pass a moment ago
            segment.started += elapsed  # first: what a signal's exception interrupts is missing then, not told twice
            segment.tree.record.duration_ns += elapsed
            segment.count_operations()
            segment.resumed_at, segment.handed_at = max(segment.resumed_at, at), max(segment.handed_at, at)
            self.shift(elapsed, position)

    def ask(self) -> None:
        """Let the next phase that ends outside passes close the slice that is due; called by another thread."""
        for _, span in self.outside.spans():
            if not span.shared:
                span.shared = ASKED
            elif span.shared == ASKED:
                span.shared = ASKED_BEFORE  # by now, its last quick end is over: its ends wait for the lock

    def asked(self) -> dict[Path, Timing]:
        """Remove and return this thread's phases outside passes, for another thread that holds the timer's lock."""
        found = {}
        for path, span in self.outside.spans():
            if span.shared != ASKED_BEFORE:
                continue
            span.fold()
            if span.timing.count:
                found[path], span.timing = span.timing, Timing()
        return found

    def answer(self) -> None:
        """Close the slice that is due, and let phases end in the quick way again."""
        for _, span in self.outside.spans():
            if span.shared in (ASKED, ASKED_BEFORE):
                span.shared = False
        if self.timer.is_slice_due and not self.segments:
            self.close_slice()

    def close_slice(self) -> None:
        """Close the slice that is due, between two steps. Nothing that is open is charged for the time that takes."""
        began = hot_path.now()
        self.timer.on_slice(began)
        spent = hot_path.now() - began
        self.pause(spent)
        self.timer.spend(spent)

    def shift(self, by: int, below: int) -> None:
        """Move the start of everything that encloses a nested pass by the duration of that pass (ns)."""
        for segment in self.segments[: below + 1]:
            span = segment.resume
            while span.parent is not None:
                span.t0 += by
                span = span.parent
        for segment in self.segments[:below]:
            segment.started += by
            segment.step_started += by
            segment.handed_at += by


class Segment(HotPass):
    """One pass over a loader by one thread, or the part of it that lies in one epoch."""

    __slots__ = ("is_call", "length", "loop", "nodes", "resume", "resumed_at", "started", "task")

    def __init__(self, state: ThreadState, tree: Tree, loop: weakref.ref[Any] | None = None) -> None:
        super().__init__()
        self.loop = loop
        self.length: int | None = None  # how many steps it will have, if that is known
        self.state = state
        self.task = current_task()
        self.tree = tree
        self.resume = state.current
        self.started = self.step_started = self.handed_at = self.resumed_at = hot_path.now()
        self.nodes = gradient_nodes()
        self.samples = None
        self.wait = tree.root.child(Phase.DATA_WAIT.value)
        # The clock of a call stops during one that it makes itself, so that one is beside nothing.
        self.is_call = tree.stage is Stage.INFERENCE and all(
            other.tree.stage is not Stage.INFERENCE for other in state.segments
        )
        if self.is_call:
            state.timer.concurrency.begin(self.started)
        tree.in_use = True
        tree.is_empty = False
        state.segments.append(self)
        state.current = tree.root
        if state.is_owner:
            timer = state.timer
            if len(state.segments) == 1 and timer.edges.last.at:
                timer.longest_gap_ns = max(timer.longest_gap_ns, self.started - timer.edges.last.at)
            timer.edges.add(self.started, tree)
        span = self.resume
        while span.parent is not None:  # the host's clock stops for the enclosing spans, the GPU's does not
            drop_mark(span)
            span = span.parent

    def is_lost(self) -> bool:
        """Return True if nobody will close this pass: a signal's handler has raised while it began or ended."""
        return self.closed or (self.loop is not None and self.loop() is None)

    def lose(self) -> None:
        """Remove a lost pass. It ended with the last thing measured in it."""
        state = self.state
        with state.timer.lock:
            if not self.closed:
                measured = (span for _, span in self.tree.spans() if span.n and span.t0 >= self.resumed_at)
                ends = (span.t0 + span.recent_ns(1) for span in measured)
                self.close(partial=True, at=max(ends, default=self.resumed_at))
            elif self in state.segments:
                state.segments.remove(self)
                self.tree.in_use = False

    def decide(self, stage: Stage) -> None:
        """Set the stage of a pass that began without one. Call it before the end of the first step."""
        with self.state.timer.lock:
            self.tree.become(stage)
            self.state.timer.warm_up(self.tree)

    def begin_wait_slowly(self) -> bool:
        """End the step and begin the wait, in every case that is not the usual one."""
        if self.in_step:
            self.end_step()
        self.wait.__enter__()
        if self.state.timer.is_slice_due:
            self.state.close_slice()
        return True

    def end_wait_slowly(self, size: SampleCount, item: Any) -> bool:
        """End the wait and begin the step, in every case that is not the usual one."""
        self.wait.__exit__()
        return self.begin_step(size(item))

    def begin_step(self, samples: int | None) -> bool:
        """Begin a step, under the timer's lock. Return False if the epoch, and with it this pass, ended during the wait."""
        with self.state.timer.lock:
            if self.closed:
                return False
            tree = self.tree
            self.in_step = True
            self.samples = samples
            tree.steps += 1
            if samples is not None:
                tree.samples = (tree.samples or 0) + samples
            if tree.stage is Stage.INFERENCE:
                if samples is not None:
                    tree.batch.record(samples * NS)
                self.handed_at = hot_path.now()
        return True

    def end_step(self, at: int | None = None) -> None:
        """End a step, under the timer's lock. It lasted from the end of the previous step to now, or to ``at`` (ns)."""
        end = hot_path.now() if at is None else at
        tree = self.tree
        with self.state.timer.lock:
            self.in_step = False
            duration = end - self.step_started
            tree.step.record(duration)
            if tree.stage is Stage.INFERENCE:
                tree.latency.record(end - self.handed_at)
            if tree.stage is not None and duration > tree.limit:
                tree.keep_slow(duration, end, is_first=tree.cold)
            self.step_started = end
            if tree.cold:
                tree.end_cold()
            if tree.pending:
                tree.read_device()

    def drop_step(self) -> None:
        """Take back the step that has begun, as if its batch had not been fetched."""
        tree = self.tree
        with self.state.timer.lock:
            if self.in_step and tree.steps:
                self.in_step = False
                tree.steps -= 1
                if self.samples is not None and tree.samples is not None:
                    tree.samples -= self.samples

    def close(self, *, partial: bool, at: int | None = None) -> None:
        """End the pass. Time that overlaps with a pass that began later and is still open belongs to that one.

        Args:
            partial: True if the loop broke off before the loader's end.
            at: the end (ns), if it is only noticed now. Everything measured after it is dropped.
        """
        state, tree, timer = self.state, self.tree, self.state.timer
        with timer.lock:
            if self.closed:
                return
            if self.in_step and at is None:
                self.end_step()
            # Passes usually nest: a validation inside a training ends first, and `later` is empty. Two generators may also
            # overlap. Then this pass ends where the later one began, and the later one goes back to the place before this
            # one when it ends. So each moment belongs to one pass, and the passes never add up to more than the time.
            position = state.segments.index(self)
            later = state.segments[position + 1 :]
            end = hot_path.now() if at is None else at
            if later:
                end = min(end, later[0].started)
            self.closed = True  # and its time counts: no call, and so no signal's handler, comes between the two
            tree.record.duration_ns += end - self.started
            self.count_operations()
            if later:
                later[0].resume = self.resume
            else:
                if at is None:
                    self._leave_open_spans(end)
                state.current = self.resume
            if self.is_call:
                tree.record.beside_ns += timer.concurrency.end(end)
            tree.record.passes += 1
            tree.record.partial_passes += partial
            state.shift(end - self.started, position)
            del state.segments[position]
            if position:
                state.segments[position - 1].resumed_at = end
            if state.is_owner:
                timer.edges.add(end, state.segments[-1].tree if state.segments else None)
            tree.in_use = False
            if tree.stage is None:
                state.outside.keep(tree.take())
                tree.set_aside(None)
            tree.cool_down()

    def count_operations(self) -> None:
        """Count the operations that autograd has recorded since the last call, if this is the pass's own thread."""
        before, after = self.nodes, gradient_nodes()
        if before is not None and after is not None and get_ident() == self.state.thread:
            record, self.nodes = self.tree.record, after
            record.operations = (record.operations or 0) + max(after - before, 0)

    def close_at_handed(self) -> None:
        """End a pass that was complete before now, and the last step with it."""
        if self.in_step and not self.closed:
            self.end_step(self.handed_at)
        self.close(partial=False, at=self.handed_at)

    def leave_open_spans(self) -> None:
        """Close the phases that are still open in this pass, if it is the innermost one."""
        with self.state.timer.lock:
            if not self.closed and self.state.segments[-1] is self and self.state.current is not self.tree.root:
                self._leave_open_spans(hot_path.now())
                self.state.current = self.tree.root

    def _leave_open_spans(self, end: int) -> None:
        span = self.state.current
        while span.parent is not None and span.tree is self.tree:
            span.record(end - span.t0)
            span = span.parent


def gradient_nodes() -> int | None:
    """Return how many operations autograd has recorded in this thread so far, or None without torch."""
    count = getattr(sys.modules.get("torch.autograd"), "_get_sequence_nr", None)
    try:
        return None if count is None else int(count())
    except (RuntimeError, TypeError):  # torch is being imported, or counts in another way
        return None


def current_task() -> object:
    """Return the task of asyncio that runs in this thread, or None. asyncio is looked up, not imported."""
    asyncio = sys.modules.get("asyncio")
    try:
        return asyncio.current_task() if asyncio is not None else None
    except (RuntimeError, AttributeError):  # no event loop runs here, or asyncio is being imported
        return None
