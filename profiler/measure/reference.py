"""The hot path in Python: every place that reads the clock and writes a duration, side by side.

`compiled.c` does the same in C, where it could be built, and gives the same numbers. This is the one to read first.
The protocol, which all writers below follow:

1. A span owns a preallocated buffer of whole numbers and an index ``n``. Leaving the span writes
   ``buffer[n] = end - t0`` and adds 1 to ``n``. Nothing is allocated.
2. A full buffer raises IndexError, and `HotSpan.record` folds it into a histogram. A ``try`` that does not fail is free.
3. Only the thread that owns the timer writes here, and without a lock. `Place.is_mine` and ``state.current``
   prove that. Every other case (another thread, overlapping spans, a first step) takes the slow way under the lock.
4. One reading of the clock ends one span and begins the next.

The lines are written out in each place instead of being shared in a helper: between two pieces of torch's work our code
is cold, and there a call costs many times more than in a tight loop (``benchmarks/bench_own_cost.py``). Change them all, and
`compiled.c` with them, and run ``python benchmarks/suite --case phase step mlp`` before and after.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from profiler.measure.clocks import Clock, host_clock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.measure.clocks import DeviceClock
    from profiler.measure.hot_path import Span
    from profiler.measure.passes import SampleCount, Segment, ThreadState
    from profiler.measure.spans import Tree
    from profiler.records.timing import Timing

now: Clock = host_clock  # as an attribute of each span it cost 30 ns more a phase


def use_clock(clock: Clock | None) -> None:
    """Measure with another clock: a test's, or None for the host's."""
    global now
    now = clock or host_clock


def sized_by(function: SampleCount) -> SampleCount:
    """Return the function that counts the samples of a batch: in Python, the one given."""
    return function


class Place:
    """The part of `ThreadState` that each phase reads.

    ``is_mine`` answers whether the calling thread is the timer's own. A re-entrant lock knows its owner, and ``_is_owned``
    is one call in C, which `threading.Condition` uses, too. The owner holds the lock for good; others take the slow way.
    """

    __slots__ = ("current", "is_mine", "is_owner", "lock", "look_up", "thread")

    current: Span
    look_up: Callable[[Any], Span]  # finds or makes the span of a name, or refuses the name
    thread: int  # its identifier, as `threading.get_ident` returns it

    def __init__(self, *, is_owner: bool) -> None:
        self.is_owner = is_owner
        self.lock = threading.RLock()
        if is_owner:
            self.lock.acquire()
        self.is_mine: Callable[[], bool] = self.lock._is_owned  # type: ignore[attr-defined]

    def phase(self, name: Any) -> Span:
        """Return the span of a phase at the current place."""
        try:
            return self.current.children[name]
        except (KeyError, TypeError):
            return self.look_up(name)


class HotSpan:
    """The part of `Span` that runs at every phase."""

    __slots__ = (
        *("buffer", "children", "depth", "lock", "n", "name"),
        *("parent", "shared", "state", "t0", "timing", "tree", "waiting"),
    )

    children: dict[str, Span]
    name: str
    timing: Timing
    tree: Tree
    _enter_elsewhere: Callable[[], Span]  # every case that is not the usual one; see `Span`
    _exit_elsewhere: Callable[[int, bool], None]

    def __init__(self, state: ThreadState, parent: Span | None) -> None:
        self.state = state
        self.parent = parent
        self.depth: int = parent.depth + 1 if parent else 0
        self.shared: int = not state.is_owner  # set later, too, if another thread uses this very object
        self.lock: Any = state.lock
        self.buffer = [0] * state.buffer_size if parent else []
        self.n = 0  # durations that are in no histogram yet
        self.t0 = 0
        self.waiting: list[int] = []  # durations whose counting was interrupted

    def __enter__(self) -> Span:
        state = self.state
        if not self.lock._is_owned() or state.current is not self.parent:  # `is_mine`, written out: a bound method costs more
            return self._enter_elsewhere()
        self.t0 = now()  # first: an exception of a signal's handler comes between this call and the next line
        state.current = self  # type: ignore[assignment]  # a Span
        return self  # type: ignore[return-value]

    def __exit__(self, kind: object = None, value: object = None, traceback: object = None) -> None:
        end = now()
        state = self.state
        if state.current is not self or self.shared:
            return self._exit_elsewhere(end, kind is not None)
        state.current = self.parent  # type: ignore[assignment]  # a root is never entered
        try:
            self.buffer[self.n] = end - self.t0
            self.n += 1
        except IndexError:
            self.record(end - self.t0)

    def record(self, duration: int) -> None:
        """Keep a duration (ns), after making room for it."""
        if self.n == len(self.buffer):
            self.fold()
        self.buffer[self.n], self.n = duration, self.n + 1

    def recent_ns(self, times: int) -> int:
        """Return the sum (ns) of the last durations, as far as they are in no histogram yet."""
        return sum(self.buffer[max(self.n - times, 0) : self.n])

    def fold(self) -> None:
        """Move the buffer into the histogram: the cold one during the stage's first step, else the steady one."""
        if not (self.n or self.waiting):
            return
        began = now()
        timing, durations = self.timing, self.waiting + self.buffer[: self.n]
        self.waiting, self.n = durations, 0  # what an exception of a signal's handler interrupts is tried again
        (timing.cold if self.tree.cold else timing.steady).add(durations)
        self.waiting = []
        self.state.timer.overhead_ns += now() - began


class HotTree:
    """The part of `Tree` that runs at every step: the counts, and all that the end of a step looks at.

    A first step, inference, and marks to read: the end of such a step needs more than adding up. They stand here one by one,
    because a property that joins them would cost 30 ns twice a step.
    """

    __slots__ = ("cold", "device", "is_inference", "limit", "pending", "root", "samples", "step", "steps")

    device: DeviceClock | None
    root: Span
    step: Span

    def __init__(self) -> None:
        self.cold = False  # True during the run's first step of this stage
        self.is_inference = False
        self.limit = 0  # ns; a step above it is one of the slowest. -1 while a slice is due, so that the next step closes it
        self.steps = 0  # since the last `Tree.take`, as are the samples
        self.samples: int | None = None  # None: no batch had a known size


class HotPass:
    """The part of `Segment` that runs at every step of a loop."""

    __slots__ = ("closed", "handed_at", "in_step", "samples", "state", "step_started", "tree", "wait")

    state: ThreadState
    tree: Tree
    wait: Span
    samples: int | None
    handed_at: int
    step_started: int
    begin_wait_slowly: Callable[[], bool]  # every case that is not the usual one; see `Segment`
    end_wait_slowly: Callable[[SampleCount, Any], bool]

    def __init__(self) -> None:
        self.closed = False
        self.in_step = False

    def begin_wait(self) -> bool:
        """End the step and begin the wait for the next batch, with one reading of the clock for both.

        Return False if the epoch, and with it this pass, has ended, or if another thread goes on with it.
        """
        state, tree = self.state, self.tree
        if self.closed or threading.get_ident() != state.thread:
            return False
        if (
            not (self.in_step and state.is_owner and state.current is tree.root)
            or tree.cold
            or tree.pending
            or tree.is_inference
        ):
            return self.begin_wait_slowly()
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
        return True

    def end_wait(self, size: SampleCount, item: Any) -> bool:
        """End the wait and begin the step. Return False if the epoch, and with it this pass, ended during the wait."""
        end = now()
        state, tree, wait = self.state, self.tree, self.wait
        if not (state.is_owner and state.current is wait) or wait.shared or tree.cold or tree.pending or tree.is_inference:
            return self.end_wait_slowly(size, item)
        try:
            wait.buffer[wait.n] = end - wait.t0
            wait.n += 1
        except IndexError:
            wait.record(end - wait.t0)
        state.current = tree.root
        samples = self.samples = size(item)
        tree.steps += 1
        if samples is not None:
            tree.samples = (tree.samples or 0) + samples
        self.in_step = True
        return True


class HotFeed:
    """The part of `LoaderFeed` that runs at every batch of a loader that is followed.

    The compiled one goes the way of the last batch again until it is cleared. Here the observer decides anew.
    """

    __slots__ = ("before", "gap", "handed", "ignored", "notable", "segment", "size")

    before: Span | None  # open when the next batch is asked for
    gap: Span | None  # open after it was handed out
    segment: Segment | None
    notable: int  # the number of the batch at which something is to be noted: the first, and the last
    ignored: list[str]  # phases whose ends are to be ignored; see `ThreadFollowing`
    size: SampleCount
    fetch_begins_slowly: Callable[[], Span | None]  # let the observer decide; see `LoaderFeed`
    fetch_ends_slowly: Callable[[Span, Any], None]

    def __init__(self) -> None:
        self.before, self.gap, self.segment = None, None, None
        self.handed = 0  # batches handed out

    def fetch_begins(self) -> Span | None:
        """Begin the wait for a batch. Return the span to hand to `fetch_ends`, or None if another pass has the wait."""
        return self.fetch_begins_slowly()

    def fetch_ends(self, wait: Span, item: Any) -> None:
        """End the wait: the loop has its batch."""
        self.fetch_ends_slowly(wait, item)


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
    is_mine = state.is_mine

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
    is_mine = state.is_mine

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
                tree.steps += 1
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
    is_mine = state.is_mine

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
    is_mine = state.is_mine

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
