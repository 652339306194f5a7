"""The timers: phases, passes over a loader, and the stages and epochs they belong to.

How it works. Each thread stands somewhere in a tree of `Span`s: a root for the pass it is in, and below it one span for
each phase in its place. Entering moves down and reads the clock; leaving reads the clock, writes the difference into a
preallocated buffer and moves up. Full buffers are folded into histograms, so memory does not grow with steps.

The rule it keeps: the thread that owns the timer pays for two clock readings and some attribute stores. Whatever is
rarer (another thread, a span used elsewhere than where it was looked up, spans that overlap) takes the slow way, which
is locked and right. Nothing here raises into the user's loop, or waits for anything but that lock.
"""

from __future__ import annotations

import functools
import inspect
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from enum import Enum
from threading import get_ident
from typing import Any, NamedTuple, ParamSpec, TypeVar, cast

from profiler.errors import ArgumentTypeError, ArgumentValueError
from profiler.measure.clocks import find_device_clock, host_clock
from profiler.measure.energy_meter import Edges
from profiler.records.histogram import NS
from profiler.records.run import EpochRecord, StageRecord, Timing, merge_phases

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.measure.clocks import DeviceClock, Mark
    from profiler.records.run import Path


BUFFER_SIZE = 2048
TASK_BUFFER_SIZE = 64  # there can be thousands of tasks
MAX_DEPTH = 32
MAX_NAMES = 256  # different phases below one parent; a name made up per step would otherwise grow without end
MAX_PENDING = 4096  # device marks that wait to be read
TOO_MANY = "(more phases)"
PLAIN = frozenset((int, float, str, bytes, bool, type(None)))  # values that are no tensors: not searched for a shape
now = host_clock  # the seam where tests put a clock of theirs; as an attribute of each span it cost 30 ns more a phase

T = TypeVar("T")
P = ParamSpec("P")
R = TypeVar("R")
SampleCount = Callable[[Any], "int | None"]


class Stage(str, Enum):
    """What a pass over a loader is for."""

    TRAIN = "train"
    VAL = "val"
    INFERENCE = "inference"


ORDER = (*Stage, None)  # in which stages are told


class Phase(str, Enum):
    """The words for parts of a step that an exporter may pass on; any other word of yours stays on this machine."""

    DATA_WAIT = "data_wait"
    TRANSFER = "transfer"
    FORWARD = "forward"
    LOSS = "loss"
    BACKWARD = "backward"
    OPTIMIZER = "optimizer"
    METRICS = "metrics"
    CHECKPOINT = "checkpoint"
    LOGGING = "logging"


def printable(name: str) -> str:
    """The name as text that every encoder takes; half characters, as from undecodable file names, become "?"."""
    return name.encode("utf-8", "replace").decode("utf-8")


def phase_name(name: str | Phase) -> str:
    """The name of a phase as text.

    Raises:
        ArgumentTypeError: it is neither a `Phase` nor a string.
        ArgumentValueError: it is empty, longer than 100 characters, or "other", which is what no phase covers.
    """
    if isinstance(name, Phase):
        return name.value
    if not isinstance(name, str):
        raise ArgumentTypeError(f"a phase needs a name, a string or a Phase such as Phase.FORWARD, not {name!r}")
    if not name.strip() or len(name) > 100:
        raise ArgumentValueError(f"a phase's name has 1 to 100 characters, unlike {name[:120]!r}")
    if name == "other":
        raise ArgumentValueError("'other' is the time that no phase covers; give the phase another name")
    return printable(name)


class Span:
    """One phase in one place, timed by ``with``. The same object serves every step.

    ``__enter__`` and ``__exit__`` are the hot path of the whole product: measure a change here with
    ``benchmarks/bench_overhead.py`` before and after.
    """

    __slots__ = (
        *("badge", "buffer", "children", "depth", "n", "name"),
        *("parent", "shared", "state", "t0", "timing", "tree"),
    )

    def __init__(self, tree: Tree, parent: Span | None, name: str) -> None:
        state = tree.state
        self.tree = tree
        self.state = state
        self.badge = state.badge
        self.shared = not state.is_owner  # or: another thread has used this very object
        self.parent = parent
        self.name = name
        self.depth: int = parent.depth + 1 if parent else 0
        self.children: dict[str, Span] = {}
        self.buffer = [0] * state.buffer_size if parent else []
        self.n = 0
        self.t0 = 0
        self.timing = Timing()

    def __enter__(self) -> Span:
        state = self.state
        # What threading.Condition asks, too: 16 ns less than comparing get_ident().
        if not self.badge._is_owned() or state.current is not self.parent:  # type: ignore[attr-defined]
            return self._enter_elsewhere()
        state.current = self
        self.t0 = now()
        return self

    def __exit__(self, kind: object = None, value: object = None, traceback: object = None) -> None:
        end = now()
        state = self.state
        if state.current is not self or self.shared:
            return self._exit_elsewhere(end)
        state.current = self.parent  # type: ignore[assignment]  # a root is never entered
        try:
            self.buffer[self.n] = end - self.t0
            self.n += 1
        except IndexError:
            self.record(end - self.t0)

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Times every call of a function, coroutine functions included."""
        timer, name = self.state.timer, self.name
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def timed_coroutine(*args: P.args, **kwargs: P.kwargs) -> Any:
                with timer.phase(name):
                    return await function(*args, **kwargs)

            return cast("Callable[P, R]", timed_coroutine)

        @functools.wraps(function)
        def timed(*args: P.args, **kwargs: P.kwargs) -> R:
            with timer.phase(name):
                return function(*args, **kwargs)

        return timed

    def child(self, name: str) -> Span:
        """The span for a phase inside this one."""
        found = self.children.get(name)
        if found is not None:
            return found
        if self.depth >= MAX_DEPTH:
            return TooDeep(self.tree, self, name)
        if len(self.children) >= MAX_NAMES and name != TOO_MANY:
            return self.child(TOO_MANY)
        kind = Span if name == Phase.DATA_WAIT.value else self.tree.span_type  # waiting is the host's alone
        made = self.children[name] = kind(self.tree, self, name)
        return made

    def record(self, duration: int) -> None:
        """Keeps a duration, after making room for it."""
        if self.n == len(self.buffer):
            self.fold()
        self.buffer[self.n] = duration
        self.n += 1

    def fold(self) -> None:
        """Empties the buffer into the histogram: the cold one during the run's first step of this stage."""
        began = now()
        timing = self.timing
        (timing.cold if self.tree.cold else timing.steady).add(self.buffer[: self.n])
        self.n = 0
        self.state.timer.overhead_ns += now() - began

    def end_without_count(self) -> None:
        """Leaves the span; its time counts in the total, but not as one more measurement."""
        end = now()
        timer = self.state.timer
        with timer.lock:
            timer.state().leave(self.name, end, count=False)

    def _enter_elsewhere(self) -> Span:
        timer = self.state.timer
        state = timer.state()
        if state is not self.state:
            self.shared = True
        with timer.lock:
            span = state.current.child(self.name)
            state.current = span
            span.t0 = now()
        return self

    def _exit_elsewhere(self, end: int) -> None:
        timer = self.state.timer
        with timer.lock:
            timer.state().leave(self.name, end)


class DeviceSpan(Span):
    """A span that also marks both its ends on the current CUDA stream; the marks are read later, never waited for."""

    __slots__ = ("begin",)

    def __init__(self, tree: Tree, parent: Span | None, name: str) -> None:
        super().__init__(tree, parent, name)
        self.begin: Mark | None = None

    def __enter__(self) -> Span:
        super().__enter__()
        self.begin = None
        if self.state.current is self and not self.shared:
            self.mark_begin()
        return self

    def __exit__(self, *exc: object) -> None:
        is_innermost = self.state.current is self
        super().__exit__(*exc)  # first: what the mark costs is not the phase's
        if is_innermost:
            self.mark_end()

    def mark_begin(self) -> None:
        device = self.tree.device
        self.begin = None if device is None else device.mark()

    def mark_end(self) -> None:
        tree, begin = self.tree, self.begin
        device, self.begin = tree.device, None
        if device is not None and begin is not None and not self.shared and len(tree.pending) < MAX_PENDING:
            end = device.mark()
            if end is not None and end.stream == begin.stream:  # else the time between them is nobody's
                tree.pending.append((None if tree.cold else self, begin, end))


class TooDeep(Span):
    """Stands for a phase nested deeper than 32 levels: it is passed through, and not measured."""

    __slots__ = ()

    def __enter__(self) -> Span:
        return self

    def __exit__(self, *exc: object) -> None:
        return None


class LateMarks(NamedTuple):
    """The two ends of a phase that the device had not reached when what was measured then was taken."""

    epoch: int | None
    stage: str
    path: Path
    begin: Mark
    end: Mark


class Tree:
    """The spans of one stage in one thread.

    ``stage`` is None for what is outside every stage, and for a pass that has not yet shown what it is for.
    """

    __slots__ = (
        *("batch", "cold", "device", "in_use", "is_empty", "latency", "pending"),
        *("record", "root", "span_type", "stage", "state", "step"),
    )

    def __init__(self, state: ThreadState, stage: Stage | None, device: DeviceClock | None = None) -> None:
        self.state = state
        self.stage = stage
        self.cold = False
        self.in_use = False
        self.is_empty = True  # nothing was measured since it was last taken: it may serve another stage
        self.device = device
        self.pending: deque[tuple[DeviceSpan | None, Mark, Mark]] = deque()
        self.span_type: type[Span] = DeviceSpan if device else Span
        self.root = Span(self, None, "")
        self.step = Span(self, self.root, "step")  # these three are never entered: they are a buffer and a histogram
        self.latency = Span(self, self.root, "latency")
        self.batch = Span(self, self.root, "batch")
        self.record = StageRecord(stage.value if stage else "")

    @property
    def stage_name(self) -> str:
        return self.stage.value if self.stage is not None else ""

    @property
    def is_special(self) -> bool:
        """Whether a step of it takes more than adding up."""
        return self.cold or self.stage is Stage.INFERENCE or bool(self.pending)

    def become(self, stage: Stage | None) -> None:
        """From now on it is of that stage, with what it holds."""
        self.stage = stage
        self.record.stage = stage.value if stage else ""

    def end_cold(self) -> None:
        self.fold()
        self.cold = False

    def fold(self) -> None:
        """Empties every buffer into its histogram."""
        self.read_device()
        for _, span in self.spans():
            if span.n:
                span.fold()

    def read_device(self) -> None:
        """Takes in the device times that are complete by now."""
        device = self.device
        while device is not None and self.pending:
            span, begin, end = self.pending[0]
            elapsed = device.elapsed_ns(begin, end)
            if elapsed is None:
                return
            self.pending.popleft()
            if span is not None:  # the first step's marks are read too, to have them back
                span.timing.device.add((elapsed,))

    def set_aside(self, epoch: int | None) -> list[LateMarks]:
        """The marks that the device has not reached, out of the way of what is measured from now on."""
        pending, self.pending = self.pending, deque()
        return [LateMarks(epoch, self.stage_name, path_of(span), *marks) for span, *marks in pending if span is not None]

    def take(self) -> StageRecord:
        """What was measured since the last time it was taken."""
        self.fold()
        taken = self.record
        self.record = StageRecord(taken.stage)
        self.is_empty = not self.in_use
        for path, span in self.spans():
            timing = span.timing
            if not (timing.count or timing.total_ns or timing.device.count):
                continue
            span.timing = Timing()
            if span is self.step:
                taken.step = timing
            elif span is self.latency:
                taken.latency = timing
            elif span is self.batch:
                timing.steady.merge(timing.cold)
                taken.batch = timing.steady
            else:
                merge_phases(taken.phases, {path: timing})
        return taken

    def keep(self, taken: StageRecord) -> None:
        """Adds the phases of a pass that never showed what it was for."""
        for path, timing in taken.phases.items():
            span = self.root
            for name in path:
                span = span.child(name)
            span.timing.merge(timing)

    def spans(self) -> Iterator[tuple[Path, Span]]:
        """Every span with its path; a copy of each level is walked, as another thread may be adding to it."""
        yield (), self.step
        yield (), self.latency
        yield (), self.batch
        waiting: list[tuple[Path, Span]] = [((), self.root)]
        while waiting:
            path, span = waiting.pop()
            for child in list(span.children.values()):
                yield (*path, child.name), child
                waiting.append(((*path, child.name), child))


class ThreadState:
    """Where one thread (or one task of asyncio) stands: the innermost open span, and the passes it is in."""

    __slots__ = ("badge", "buffer_size", "current", "is_owner", "outside", "segments", "thread", "timer", "trees")

    def __init__(self, timer: Timer, is_owner: bool, buffer_size: int = BUFFER_SIZE) -> None:
        self.timer = timer
        self.thread = get_ident()
        self.is_owner = is_owner
        self.buffer_size = buffer_size
        self.badge = threading.RLock()  # held for good by the owning thread, by no one in other threads' states
        if is_owner:
            self.badge.acquire()
        self.segments: list[Segment] = []
        self.trees: list[Tree] = []
        self.outside = Tree(self, None)
        self.current: Span = self.outside.root

    def tree_for(self, stage: Stage | None) -> Tree:
        """A tree of that stage that no open pass uses."""
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

    def leave(self, name: str, end: int, *, count: bool = True) -> None:
        """Closes the innermost open span of that name, wherever it is: spans that overlap are put right."""
        inner: list[tuple[str, int]] = []
        span = self.current
        while span.parent is not None and span.name != name:
            inner.append((span.name, span.t0))
            span = span.parent
        if span.parent is None:  # it was opened in another thread, or in a pass that has ended since
            return
        if count:
            span.record(end - span.t0)
        else:
            span.timing.steady.add_to_sum(end - span.t0)
        self.current = span.parent
        for other, t0 in reversed(inner):  # those opened later go on, no longer inside the one that was left
            self.current = self.current.child(other)
            self.current.t0 = t0
            drop_mark(self.current)

    def pause(self, by: int) -> None:
        """Stops the clock of all that is open, for time that was ours."""
        span = self.current
        while span.parent is not None:
            span.t0 += by
            span = span.parent
        self.shift(by, len(self.segments))

    def shift(self, by: int, below: int) -> None:
        """Stops the clock of all that is open around a nested pass for as long as that pass took."""
        for segment in self.segments[: below + 1]:
            span = segment.resume
            while span.parent is not None:
                span.t0 += by
                span = span.parent
        for segment in self.segments[:below]:
            segment.started += by
            segment.step_started += by
            segment.handed_at += by


class Segment:
    """One pass over a loader by one thread, or the part of it that lies in one epoch."""

    __slots__ = ("closed", "handed_at", "in_step", "resume", "started", "state", "step_started", "task", "tree", "wait")

    def __init__(self, state: ThreadState, tree: Tree) -> None:
        self.state = state
        self.task = current_task()
        self.tree = tree
        self.resume = state.current
        self.started = self.step_started = self.handed_at = now()
        self.closed = False
        self.in_step = False
        self.wait = tree.root.child(Phase.DATA_WAIT.value)
        tree.in_use = True
        tree.is_empty = False
        state.segments.append(self)
        state.current = tree.root
        if state.is_owner:
            state.timer.edges.note(self.started, tree)
        span = self.resume
        while span.parent is not None:  # the host's clock stops for them; the device's does not
            drop_mark(span)
            span = span.parent

    def begin_wait(self) -> None:
        """The loop comes for the next batch: the step with the last one is over. One reading of the clock for both."""
        state, tree = self.state, self.tree
        if not (self.in_step and state.is_owner and state.current is tree.root) or tree.is_special:
            if self.in_step:
                self.end_step()
            self.wait.__enter__()
            return
        end = now()
        step = tree.step
        try:
            step.buffer[step.n] = end - self.step_started
            step.n += 1
        except IndexError:
            step.record(end - self.step_started)
        self.in_step = False
        self.step_started = end
        state.current = wait = self.wait
        wait.t0 = end

    def end_wait(self, size: SampleCount, item: Any) -> bool:
        """The loop has its batch; False where the epoch has ended, and this pass with it, during the wait."""
        end = now()
        state, tree, wait = self.state, self.tree, self.wait
        if not (state.is_owner and state.current is wait) or wait.shared or tree.is_special:
            wait.__exit__()
            return self.begin_step(size(item))
        try:
            wait.buffer[wait.n] = end - wait.t0
            wait.n += 1
        except IndexError:
            wait.record(end - wait.t0)
        state.current = tree.root
        samples = size(item)
        record = tree.record
        record.steps += 1
        if samples is not None:
            record.samples = (record.samples or 0) + samples
        self.in_step = True
        return True

    def decide(self, stage: Stage) -> None:
        """Says what a pass is for that was begun without saying so; before the end of its first step."""
        with self.state.timer.lock:
            self.tree.become(stage)
            self.state.timer.warm_up(self.tree)

    def begin_step(self, samples: int | None) -> bool:
        """A batch is handed to the loop; False where the epoch has ended, and this pass with it, during the wait."""
        with self.state.timer.lock:
            if self.closed:
                return False
            record = self.tree.record  # another thread may just have taken the one before
            self.in_step = True
            record.steps += 1
            if samples is not None:
                record.samples = (record.samples or 0) + samples
            if self.tree.stage is Stage.INFERENCE:
                if samples is not None:
                    self.tree.batch.record(samples * NS)
                self.handed_at = now()
        return True

    def end_step(self) -> None:
        """The loop is done with the batch: the step lasted from the end of the one before to now."""
        end = now()
        tree = self.tree
        with self.state.timer.lock:
            self.in_step = False
            tree.step.record(end - self.step_started)
            if tree.stage is Stage.INFERENCE:
                tree.latency.record(end - self.handed_at)
            self.step_started = end
            if tree.cold:
                tree.end_cold()
            if tree.pending:
                tree.read_device()

    def close(self, *, partial: bool, at: int | None = None) -> None:
        """Ends the pass. What overlaps with a pass that began later and is still open belongs to that one.

        Args:
            at: when it ended, where that is only seen now; what was measured since is dropped.
        """
        state, tree, timer = self.state, self.tree, self.state.timer
        with timer.lock:
            if self.closed:
                return
            if self.in_step and at is None:
                self.end_step()
            self.closed = True
            position = state.segments.index(self)
            later = state.segments[position + 1 :]
            end = later[0].started if later else now() if at is None else at
            if later:
                later[0].resume = self.resume
            else:
                if at is None:
                    self._leave_open_spans(end)
                state.current = self.resume
            tree.record.duration_ns += end - self.started
            tree.record.passes += 1
            tree.record.partial_passes += partial
            state.shift(end - self.started, position)
            del state.segments[position]
            if state.is_owner:
                timer.edges.note(end, state.segments[-1].tree if state.segments else None)
            tree.in_use = False
            if tree.stage is None:
                state.outside.keep(tree.take())
                tree.set_aside(None)
            if tree.cold and tree.stage and not tree.record.steps:  # an empty loader warms nothing up
                tree.cold = False
                timer.warm.discard(tree.stage)

    def leave_open_spans(self) -> None:
        """Ends the phases that are still open where this pass is the innermost one."""
        with self.state.timer.lock:
            if not self.closed and self.state.segments[-1] is self and self.state.current is not self.tree.root:
                self._leave_open_spans(now())
                self.state.current = self.tree.root

    def _leave_open_spans(self, end: int) -> None:
        span = self.state.current
        while span.parent is not None and span.tree is self.tree:
            span.record(end - span.t0)
            span = span.parent


class Call:
    """What a task's context holds while the task is in a pass of its own; empty when that has ended."""

    __slots__ = ("state",)

    def __init__(self, state: ThreadState | None) -> None:
        self.state = state


class Timer:
    """Everything that one run times.

    Args:
        device: "cuda" or "cuda:<index>" for device time, "cpu" for none, None to look for it at each pass.
    """

    def __init__(self, device: str | None = None) -> None:
        self.device = device
        self.lock = threading.RLock()  # re-entrant: a forgotten generator may be closed by the collector at any moment
        self.overhead_ns = 0
        self.edges = Edges()  # of the owning thread's passes
        self.warm: set[Stage] = set()  # stages whose first step is behind them
        self.on_tasks: Callable[[], None] = lambda: None  # called when the first task has a place of its own
        self._device_clock: DeviceClock | None = None
        self._call: ContextVar[Call] | None = None
        self._idle: list[ThreadState] = []  # places that tasks have left
        self.owner = ThreadState(self, is_owner=True)
        self._states = [self.owner]
        self.late: list[LateMarks] = []
        self.forgotten = 0  # marks that were waited for in vain
        self._local = threading.local()
        self._local.state = self.owner

    def state(self) -> ThreadState:
        """Where the calling thread or task stands."""
        if self._call is not None:
            call = self._call.get(None)
            if call is not None and call.state is not None:
                return call.state
        try:
            return cast(ThreadState, self._local.state)
        except AttributeError:
            state = self._local.state = ThreadState(self, is_owner=False)
            with self.lock:
                self._states.append(state)
            return state

    def device_clock(self) -> DeviceClock | None:
        if self._device_clock is None:
            self._device_clock = find_device_clock(self.device)
        return self._device_clock

    @property
    def device_fault(self) -> str | None:
        """What went wrong with the GPU's clock, if anything did."""
        return None if self._device_clock is None else self._device_clock.fault

    def phase(self, name: str | Phase) -> Span:
        """The span for a phase at the place where the owning thread stands now, or the calling task."""
        state = self.owner if self._call is None else self.state()
        return state.current.child(phase_name(name))

    def end_phase(self, name: str) -> None:
        """Ends the innermost open phase of that name in the calling thread or task, wherever it is."""
        end = now()
        with self.lock:
            self.state().leave(name, end)

    def begin(self, stage: Stage | None) -> Segment:
        """Begins a pass in the calling thread; None where it is not known yet what the pass is for."""
        state = self.state()
        with self.lock:
            tree = state.tree_for(stage)
            self.warm_up(tree)
            return Segment(state, tree)

    def warm_up(self, tree: Tree) -> None:
        """The first step of each stage is told apart."""
        if tree.stage is not None and tree.stage not in self.warm:
            self.warm.add(tree.stage)
            tree.cold = True

    def enter_task(self) -> tuple[Call, Any]:
        """Gives the calling task (of asyncio) a place of its own: tasks of one thread take turns within their phases."""
        if self._call is None:
            self._call = ContextVar("epochmeter.call")
            self.on_tasks()
        with self.lock:
            state = self._idle.pop() if self._idle else ThreadState(self, is_owner=False, buffer_size=TASK_BUFFER_SIZE)
            if state not in self._states:
                self._states.append(state)
        call = Call(state)
        return call, self._call.set(call)

    def leave_task(self, call: Call, token: Any) -> None:
        """The task has left its place. What it left running goes on outside of it."""
        state, call.state = call.state, None
        with self.lock:
            if state is not None and not state.segments:
                self._idle.append(state)
        try:
            if self._call is not None:
                self._call.reset(token)
        except ValueError:  # a generator closed in another context: the call that it holds is empty anyway
            pass

    def is_shared(self) -> bool:
        """Whether another task of the calling thread has a pass open where the calling one would begin its own."""
        segments = self.state().segments
        return bool(segments) and segments[-1].task is not current_task()

    def is_open(self, stage: Stage) -> bool:
        """Whether a pass of that stage is going on in any thread."""
        with self.lock:
            return any(segment.tree.stage is stage for state in self._states for segment in state.segments)

    def iterate(
        self,
        stage: Stage,
        items: Iterable[T],
        samples: SampleCount,
        before: Callable[[], None] = lambda: None,
        after: Callable[[], None] = lambda: None,
    ) -> Iterator[T]:
        """Hands every item on unchanged, timing the wait for it and the step made with it.

        ``before`` is called when the first item is asked for, ``after`` when the pass has ended, however it did.
        """
        before()
        iterator: Iterator[T] | None = None
        task = self.enter_task() if self.is_shared() else None
        segment = self.begin(stage)
        partial = True
        try:
            while True:
                if segment.closed or get_ident() != segment.state.thread:  # an epoch ended, or another thread took over
                    segment.close(partial=True)
                    segment = self.begin(stage)
                segment.begin_wait()
                try:
                    if iterator is None:
                        iterator = iter(items)
                    item = next(iterator)
                except StopIteration:
                    segment.wait.end_without_count()
                    partial = False
                    return
                except BaseException:
                    segment.wait.__exit__()
                    raise
                if not segment.end_wait(samples, item):
                    segment = self.begin(stage)
                    segment.begin_step(samples(item))
                yield item
        finally:
            segment.close(partial=partial)
            if task is not None:
                self.leave_task(*task)
            after()

    def call(
        self,
        function: Callable[P, R],
        samples: SampleCount,
        before: Callable[[], bool] = lambda: True,
        after: Callable[[], None] = lambda: None,
    ) -> Callable[P, R]:
        """Every call of the function as one step of inference.

        ``before`` is called first, and says whether the call is to be timed at all; ``after`` when it has been.
        """
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def timed_coroutine(*args: P.args, **kwargs: P.kwargs) -> Any:
                if not before():
                    return await function(*args, **kwargs)
                task = self.enter_task()
                segment = self._begin_call(samples, args, kwargs)
                failed = True
                try:
                    result = await function(*args, **kwargs)
                    failed = False
                    return result
                finally:
                    segment.close(partial=failed)
                    self.leave_task(*task)
                    after()

            return cast("Callable[P, R]", timed_coroutine)

        @functools.wraps(function)
        def timed(*args: P.args, **kwargs: P.kwargs) -> R:
            if not before():
                return function(*args, **kwargs)
            segment = self._begin_call(samples, args, kwargs)
            failed = True
            try:
                result = function(*args, **kwargs)
                failed = False
                return result
            finally:
                segment.close(partial=failed)
                after()

        return timed

    def _begin_call(self, samples: SampleCount, args: Any, kwargs: Any) -> Segment:
        segment = self.begin(Stage.INFERENCE)
        segment.begin_step(samples((args, kwargs)))
        return segment

    def enter_epoch(self, index: int | None, at: int | None = None) -> None:
        """An epoch begins, or (None) has ended; ``at`` is when, where that is only seen now."""
        segments = self.owner.segments
        self.edges.epoch = index
        self.edges.note(now() if at is None else at, segments[-1].tree if segments else None)

    def close_passes(self, *, keep_undecided: bool = False) -> None:
        """Ends every open pass; one that is resumed later begins anew."""
        with self.lock:
            for state in self._states:
                for segment in reversed(list(state.segments)):
                    if segment.tree.stage is not None or not keep_undecided:
                        segment.close(partial=True)

    def take(self, into: EpochRecord, *, ended: bool = False) -> list[EpochRecord]:
        """Moves all that was measured since the last time into a record.

        The owning thread writes without the lock, so what it measured is taken in that thread, or when the run has ended.

        Returns:
            Device times of earlier epochs that have become known meanwhile.
        """
        with self.lock:
            known = self._read_late() if ended or get_ident() == self.owner.thread else {}
            for state in self._states:
                if state.is_owner and not ended and get_ident() != state.thread:
                    continue
                for tree in sorted(state.trees, key=lambda tree: ORDER.index(tree.stage)):
                    if tree.stage is None and tree.in_use:  # it will soon be known what that pass is for
                        continue
                    taken = tree.take()
                    self._set_aside(tree, into.index)
                    if not taken.is_empty:
                        into.stage(taken.stage).merge(taken)
                merge_phases(into.phases, state.outside.take().phases)
            if into.index in known:
                into.merge(known.pop(into.index))
        return list(known.values())

    @property
    def unread(self) -> int:
        """Phases whose device time is not known."""
        return len(self.late) + self.forgotten

    def _set_aside(self, tree: Tree, epoch: int | None) -> None:
        self.late += tree.set_aside(epoch)
        excess = max(len(self.late) - MAX_PENDING, 0)
        self.forgotten += excess
        del self.late[:excess]

    def _read_late(self) -> dict[int | None, EpochRecord]:
        known: dict[int | None, EpochRecord] = {}
        clock = self.device_clock() if self.late else None
        if clock is None:
            return known
        began = now()
        waiting = []
        streams: list[object] = []  # whose marks are not all reached: they are reached in their order
        for late in self.late:
            elapsed = None if late.end.stream in streams else clock.elapsed_ns(late.begin, late.end)
            if elapsed is None:
                waiting.append(late)
                streams += [] if late.end.stream in streams else [late.end.stream]
                continue
            stage = known.setdefault(late.epoch, EpochRecord(late.epoch)).stage(late.stage)
            stage.phases.setdefault(late.path, Timing()).device.add((elapsed,))
        self.late = waiting
        self.overhead_ns += now() - began
        return known

    def forget_threads(self) -> None:
        """After a fork: the lock may be held by a thread that does not exist here, and CUDA cannot be used."""
        self.lock = threading.RLock()
        if self._device_clock is not None:
            self._device_clock.fault = "fork"


def path_of(span: Span) -> Path:
    """Its name, after those of the phases that it is in."""
    return () if span.parent is None else (*path_of(span.parent), span.name)


def drop_mark(span: Span) -> None:
    """What the device does until the span's end is not, or not only, the span's."""
    if isinstance(span, DeviceSpan):
        span.begin = None


def current_task() -> object:
    """The task of asyncio that is running in this thread, or None; asyncio is looked up, not imported."""
    asyncio = sys.modules.get("asyncio")
    try:
        return asyncio.current_task() if asyncio is not None else None
    except (RuntimeError, AttributeError):  # no loop runs here; it is being imported
        return None


def batch_size(item: Any, depth: int = 4) -> int | None:
    """The first dimension of the first tensor in a batch: the number of samples. None where there is none.

    Looks into lists, tuples and mappings, at most four levels deep; anything with a ``shape`` counts as a tensor.
    """
    kind = type(item)
    if kind in PLAIN:
        return None
    parts: Iterable[Any] = ()
    if kind is list or kind is tuple or isinstance(item, (list, tuple)):
        parts = item
    else:
        try:
            shape = getattr(item, "shape", None)
            if shape is not None:
                return int(shape[0])
        except (TypeError, IndexError, ValueError, RuntimeError):  # no dimensions; RuntimeError: torch's nested tensors
            return None
        if hasattr(item, "keys") and hasattr(item, "values"):
            parts = item.values()
    for part in parts if depth else ():
        size = batch_size(part, depth - 1)
        if size is not None:
            return size
    return None
