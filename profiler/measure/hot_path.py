"""The hot path: every place that reads the clock and writes a duration, side by side.

The protocol, which all writers below follow:

1. A span owns a preallocated buffer of whole numbers and an index ``n``. Leaving the span writes
   ``buffer[n] = end - t0`` and adds 1 to ``n``. Nothing is allocated.
2. A full buffer raises IndexError, and `Span.record` folds it into a histogram. A ``try`` that does not fail is free.
3. Only the thread that owns the timer writes here, and without a lock. `ThreadBadge.is_mine` and ``state.current``
   prove that. Every other case (another thread, overlapping spans, a first step) takes the slow way under the lock.
4. One reading of the clock ends one span and begins the next.

The lines are written out in each place instead of being shared in a helper: between two pieces of torch's work our code
is cold, and there a call costs many times more than in a tight loop (``benchmarks/bench_attach.py``). Change them all, and
run ``benchmarks/bench_overhead.py`` and ``bench_attach.py`` before and after.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

from profiler.measure.clocks import host_clock
from profiler.measure.frames import drop_own_frame
from profiler.records.timing import Timing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.measure.passes import SampleCount, Segment, ThreadState
    from profiler.measure.spans import Tree

P = ParamSpec("P")
R = TypeVar("R")
ASKED, ASKED_BEFORE = 2, 3  # of `Span.shared`: the phase's next end closes a slice
now = host_clock  # the seam for a test's clock; as an attribute of each span it cost 30 ns more a phase


class ThreadBadge:
    """Answer whether the calling thread is the one that made this badge.

    A re-entrant lock knows its owner, and ``_is_owned`` is one call in C: 16 ns less than comparing `get_ident`.
    `threading.Condition` relies on the same method. The owner acquires the lock for good; a badge that is not held
    belongs to no thread, which sends its spans the slow way.
    """

    __slots__ = ("is_mine", "lock")

    def __init__(self, *, is_held: bool) -> None:
        self.lock = threading.RLock()
        if is_held:
            self.lock.acquire()
        self.is_mine: Callable[[], bool] = self.lock._is_owned  # type: ignore[attr-defined]


class Span:
    """One phase in one place of the tree, timed by ``with``. The same object serves every step."""

    __slots__ = (
        *("buffer", "children", "depth", "n", "name", "owner"),
        *("parent", "shared", "state", "t0", "timing", "tree", "waiting"),
    )

    def __init__(self, tree: Tree, parent: Span | None, name: str) -> None:
        state = tree.state
        self.tree = tree
        self.state = state
        self.owner: Any = state.badge.lock
        self.shared: int = not state.is_owner  # set later, too, if another thread uses this very object
        self.parent = parent
        self.name = name
        self.depth: int = parent.depth + 1 if parent else 0
        self.children: dict[str, Span] = {}
        self.buffer = [0] * state.buffer_size if parent else []
        self.n = 0
        self.t0 = 0
        self.timing = Timing()
        self.waiting: list[int] = []  # durations whose counting was interrupted

    def __enter__(self) -> Span:
        state = self.state
        if not self.owner._is_owned() or state.current is not self.parent:  # `is_mine`, written out: a bound method costs more
            return self._enter_elsewhere()
        self.t0 = now()  # first: an exception of a signal's handler comes between this call and the next line
        state.current = self
        return self

    def __exit__(self, kind: object = None, value: object = None, traceback: object = None) -> None:
        end = now()
        state = self.state
        if state.current is not self or self.shared:
            return self._exit_elsewhere(end, has_raised=kind is not None)
        state.current = self.parent  # type: ignore[assignment]  # a root is never entered
        try:
            self.buffer[self.n] = end - self.t0
            self.n += 1
        except IndexError:
            self.record(end - self.t0)

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Return the function with every call timed; coroutine functions are supported."""
        timer, name = self.state.timer, self.name
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def timed_coroutine(*args: P.args, **kwargs: P.kwargs) -> Any:
                with timer.phase(name):
                    try:
                        return await function(*args, **kwargs)
                    except BaseException as error:
                        drop_own_frame(error)
                        raise

            return cast("Callable[P, R]", timed_coroutine)

        @functools.wraps(function)
        def timed(*args: P.args, **kwargs: P.kwargs) -> R:
            with timer.phase(name):
                try:
                    return function(*args, **kwargs)
                except BaseException as error:
                    drop_own_frame(error)
                    raise

        return timed

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle as a span that measures nothing: a model may hold its phases."""
        return Unmeasured, ()

    def child(self, name: str) -> Span:
        """Return the span for a phase inside this one; it is made at its first use."""
        found = self.children.get(name)
        return self.tree.add_child(self, name) if found is None else found

    def record(self, duration: int) -> None:
        """Keep a duration (ns), after making room for it."""
        if self.n == len(self.buffer):
            self.fold()
        self.buffer[self.n] = duration
        self.n += 1

    def fold(self) -> None:
        """Move the buffer into the histogram: the cold one during the stage's first step, else the steady one."""
        began = now()
        timing, durations = self.timing, self.waiting + self.buffer[: self.n]
        self.waiting, self.n = durations, 0  # what an exception of a signal's handler interrupts is tried again
        (timing.cold if self.tree.cold else timing.steady).add(durations)
        self.waiting = []
        self.state.timer.overhead_ns += now() - began

    def end_unrecorded(self) -> int:
        """Leave the span without a measurement. Return how long it was open (ns): that belongs to a later one."""
        end = now()
        timer = self.state.timer
        with timer.lock:
            return timer.state().leave(self.name, end, is_recorded=False)

    def _enter_elsewhere(self) -> Span:
        timer = self.state.timer
        state = timer.state()
        if state is not self.state:
            self.shared = True
        with timer.lock:
            span = state.current.child(self.name)
            span.t0 = now()
            state.current = span
        return self

    def _exit_elsewhere(self, end: int, *, has_raised: bool) -> None:
        timer = self.state.timer
        with timer.lock:
            timer.state().leave(self.name, end, ends_inner=has_raised)
        if self.shared in (ASKED, ASKED_BEFORE):
            self.state.answer()


class Unmeasured:
    """The copy of a span: entered and called like one, it measures nothing."""

    def __enter__(self) -> Unmeasured:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        return function


class HotPass:
    """The two methods of `Segment` that run at every step of a loop."""

    __slots__ = ("in_step", "samples", "state", "step_started", "tree", "wait")

    in_step: bool
    samples: int | None
    state: ThreadState
    step_started: int
    tree: Tree
    wait: Span

    def begin_wait(self) -> None:
        """End the step and begin the wait for the next batch, with one reading of the clock for both."""
        state, tree = self.state, self.tree
        if (
            not (self.in_step and state.is_owner and state.current is tree.root)
            or tree.cold
            or tree.pending
            or tree.is_inference
        ):
            if self.in_step:
                self.end_step()
            self.wait.__enter__()
            if state.timer.is_slice_due:
                state.close_slice()
            return
        end = now()
        step = tree.step
        duration = end - self.step_started
        try:
            step.buffer[step.n] = duration
            step.n += 1
        except IndexError:
            step.record(duration)
        self.in_step = False
        self.step_started = end
        state.current = wait = self.wait
        wait.t0 = end
        if duration > tree.limit:  # a slow step, or a slice is due: then every step is above the limit
            tree.exceed(duration, end)

    def end_wait(self, size: SampleCount, item: Any) -> bool:
        """End the wait and begin the step. Return False if the epoch, and with it this pass, ended during the wait."""
        end = now()
        state, tree, wait = self.state, self.tree, self.wait
        if not (state.is_owner and state.current is wait) or wait.shared or tree.cold or tree.pending or tree.is_inference:
            wait.__exit__()
            return self.begin_step(size(item))
        try:
            wait.buffer[wait.n] = end - wait.t0
            wait.n += 1
        except IndexError:
            wait.record(end - wait.t0)
        state.current = tree.root
        samples = self.samples = size(item)
        record = tree.record
        record.steps += 1
        if samples is not None:
            record.samples = (record.samples or 0) + samples
        self.in_step = True
        return True

    def begin_step(self, samples: int | None) -> bool:
        """Begin a step the slow way; see `Segment.begin_step`."""
        raise NotImplementedError

    def end_step(self, at: int | None = None) -> None:
        """End a step the slow way; see `Segment.end_step`."""
        raise NotImplementedError


class FastPath:
    """The last span transition of one event type, cached so that the next identical event skips the observer's logic.

    The observer fills it in, and clears it whenever a pass begins, ends or gets its stage.
    """

    __slots__ = ("expected", "is_on_device", "known", "segment", "span")

    def __init__(self) -> None:
        self.expected: Span | None = None
        self.span: Any = None
        self.is_on_device = False  # phases have marks on the GPU, too
        self.segment: Segment | None = None  # the pass without a loader whose end moves forward with this event
        self.known: dict[Span, tuple[Span, Segment | None]] = {}

    def add(self, before: Span, after: Span, segment: Segment | None) -> None:
        """Remember that this event led from one span to another."""
        self.known[before] = after, segment
        self.expected, self.span, self.segment = before, after, segment
        self.is_on_device = before.tree.device is not None or after.tree.device is not None

    def switch_to(self, current: Span) -> bool:
        """Select the known transition that starts at this span. Return False if there is none."""
        found = self.known.get(current)
        if found is None:
            return False
        self.expected, (self.span, self.segment) = current, found
        return True

    def clear(self) -> None:
        """Forget all transitions."""
        self.expected = self.segment = self.span = None
        self.known.clear()


def phase_begins(fast: FastPath, state: ThreadState, slow: Callable[[FastPath], None]) -> Callable[..., None]:
    """Return a hook to call, with any arguments, when a phase begins; ``slow`` runs if the transition is not known."""
    is_mine = state.badge.is_mine

    def begins(*_: Any) -> None:
        current = state.current
        if not is_mine() or (current is not fast.expected and not fast.switch_to(current)):
            slow(fast)
            return
        began = now()
        span = fast.span
        if current is not span.parent:  # a gap ends here
            try:
                current.buffer[current.n] = began - current.t0
                current.n += 1
            except IndexError:
                current.record(began - current.t0)
            if fast.is_on_device:
                current.mark_end()  # type: ignore[attr-defined]  # a DeviceSpan, like the one that begins
        state.current = span
        span.t0 = began
        if fast.is_on_device:
            span.mark_begin()

    return begins


def phase_ends(
    fast: FastPath, state: ThreadState, slow: Callable[[FastPath], None], *, ends_step: bool = False
) -> Callable[..., None]:
    """Return a hook to call, with any arguments, when a phase has ended; ``slow`` runs if the transition is not known."""
    is_mine = state.badge.is_mine

    def ends(*_: Any) -> None:
        end = now()
        current = state.current
        if not is_mine() or (current is not fast.expected and not fast.switch_to(current)):
            slow(fast)
            return
        try:
            current.buffer[current.n] = end - current.t0
            current.n += 1
        except IndexError:
            current.record(end - current.t0)
        if fast.is_on_device:
            current.mark_end()  # type: ignore[attr-defined]
        segment = fast.segment
        if segment is not None:
            segment.handed_at = end
            if ends_step:
                tree = segment.tree
                if tree.pending:
                    tree.read_device()
                step = tree.step
                duration = end - segment.step_started
                try:
                    step.buffer[step.n] = duration
                    step.n += 1
                except IndexError:
                    step.record(duration)
                tree.record.steps += 1
                segment.step_started = end
                end += duration > tree.limit and tree.exceed(duration, end)
        state.current = span = fast.span
        span.t0 = end
        if fast.is_on_device and span is not current.parent:  # a gap begins
            span.mark_begin()

    return ends


def forward_begins(
    learning: FastPath,
    other: FastPath,
    state: ThreadState,
    slow: Callable[[FastPath], None],
    *,
    hooked: Callable[[], Any],
    takes_gradients: Callable[[], bool],
    is_compiling: Callable[[], bool],
) -> Callable[..., None]:
    """Return a forward pre-hook: `phase_begins` with one cached transition for training and one for all other calls.

    Args:
        hooked: returns the hooked module; a replica of it (DataParallel) has our hooks, too, and is ignored.
        takes_gradients: returns True if gradients are on.
        is_compiling: returns True while ``torch.compile`` traces the hook, which must then compile to nothing.
    """
    is_mine = state.badge.is_mine

    def before(module: Any, args: Any) -> None:
        if is_compiling():
            return
        fast = learning if module.training and takes_gradients() else other
        current = state.current
        if not is_mine() or (current is not fast.expected and not fast.switch_to(current)):
            if module is hooked():
                slow(fast)
            return
        began = now()
        span = fast.span
        if current is not span.parent:  # a gap ends here
            try:
                current.buffer[current.n] = began - current.t0
                current.n += 1
            except IndexError:
                current.record(began - current.t0)
            if fast.is_on_device:
                current.mark_end()  # type: ignore[attr-defined]  # a DeviceSpan, like the one that begins
        state.current = span
        span.t0 = began
        if fast.is_on_device:
            span.mark_begin()

    return before


def forward_ends(
    fast: FastPath,
    state: ThreadState,
    slow: Callable[[FastPath], None],
    *,
    hooked: Callable[[], Any],
    is_compiling: Callable[[], bool],
) -> Callable[..., None]:
    """Return a forward hook. It does the same as `phase_ends`; see `forward_begins` for the arguments."""
    is_mine = state.badge.is_mine

    def after(module: Any, args: Any, result: Any) -> None:
        if is_compiling():
            return
        end = now()
        current = state.current
        if not is_mine() or (current is not fast.expected and not fast.switch_to(current)):
            if module is hooked():
                slow(fast)
            return
        try:
            current.buffer[current.n] = end - current.t0
            current.n += 1
        except IndexError:
            current.record(end - current.t0)
        if fast.is_on_device:
            current.mark_end()  # type: ignore[attr-defined]
        if fast.segment is not None:
            fast.segment.handed_at = end
        state.current = span = fast.span
        span.t0 = end
        if fast.is_on_device and span is not current.parent:  # a gap begins
            span.mark_begin()

    return after
