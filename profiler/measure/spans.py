"""The tree of spans of one stage in one thread, and the spans that also mark the GPU's clock."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from profiler.measure import hot_path
from profiler.measure.hot_path import HotTree, Span
from profiler.records.histogram import Histogram
from profiler.records.timing import SLOWEST_KEPT, SlowStep, StageRecord, Timing, merge_phases, slowest_of
from profiler.records.vocabulary import Phase, Stage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.measure.clocks import DeviceClock, Mark
    from profiler.measure.passes import ThreadState
    from profiler.records.run import EpochRecord
    from profiler.records.timing import Path


BUFFER_SIZE = 2048
MAX_DEPTH = 32
MAX_NAMES = 256  # different phases below one parent; a name made up per step would otherwise grow without end
MAX_PENDING = 4096  # device marks that wait to be read
TOO_MANY = "(more phases)"
NOT_MEASURED = f"phases nested deeper than {MAX_DEPTH} levels were not measured"
NOT_APART = f'phases beyond {MAX_NAMES} names at one place were measured together, as "{TOO_MANY}"'


class DeviceSpan(Span):
    """A span that also marks both its ends on the current CUDA stream. The marks are read later, never waited for."""

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
        super().__exit__(*exc)  # first, so that the phase does not include the cost of the mark
        if is_innermost:
            self.mark_end()

    def mark_begin(self) -> None:
        """Record the first mark."""
        device = self.tree.device
        self.begin = None if device is None else device.mark()

    def mark_end(self) -> None:
        """Record the second mark and queue both, if they are on the same stream."""
        tree, begin = self.tree, self.begin
        device, self.begin = tree.device, None
        if device is not None and begin is not None and not self.shared and len(tree.pending) < MAX_PENDING:
            end = device.mark()
            if end is not None and end.stream == begin.stream:  # across streams the difference has no meaning
                tree.pending.append((None if tree.cold else self, begin, end))


class TooDeep(Span):
    """A phase nested deeper than `MAX_DEPTH` levels. It can be entered, and is counted instead of measured.

    A thread that is not as deep itself measures it, at its own place.
    """

    __slots__ = ()

    def __enter__(self) -> Span:
        timer = self.state.timer
        state = timer.state()
        with timer.lock:
            span = state.current.child(self.name)
            if isinstance(span, TooDeep):
                state.too_deep += 1
                timer.unmeasured[NOT_MEASURED] += 1
            else:
                span.t0 = hot_path.now()
                state.current = span
        return self

    def __exit__(self, *exc: object) -> None:
        end = hot_path.now()
        timer = self.state.timer
        state = timer.state()
        with timer.lock:
            if state.too_deep:
                state.too_deep -= 1
            else:
                state.leave(self.name, end)


class LateMarks(NamedTuple):
    """Both marks of a phase that the GPU had not reached when its epoch's or stage's timings were taken."""

    epoch: int | None
    stage: str
    path: Path
    begin: Mark
    end: Mark


class StepCounts:
    """How many steps of a stage one thread has made before the last `take`, in the open epoch and in the run; the slowest ones.

    A loop that is followed may use another tree in each epoch, so the slowest steps are not a tree's own.
    """

    __slots__ = ("in_epoch", "in_run", "top")

    def __init__(self) -> None:
        self.in_epoch = self.in_run = 0
        self.top: list[int] = []  # a heap of the durations of the slowest steps of the run so far

    @property
    def limit(self) -> int:
        """The duration (ns) above which a step is one of the slowest."""
        return self.top[0] if len(self.top) >= SLOWEST_KEPT else 0

    def add(self, steps: int) -> None:
        """Add the steps that were taken."""
        self.in_epoch += steps
        self.in_run += steps


class Tree(HotTree):
    """The spans of one stage in one thread.

    ``stage`` is None for everything outside stages, and for an inferred pass whose stage is not known yet.
    """

    __slots__ = (
        *("batch", "counts", "in_use", "is_empty", "latency", "record"),
        *("slow", "span_type", "stage", "state"),
    )

    def __init__(self, state: ThreadState, stage: Stage | None, device: DeviceClock | None = None) -> None:
        super().__init__()
        self.state = state
        self.stage = stage
        self.is_inference = stage is Stage.INFERENCE
        self.in_use = False
        self.is_empty = True  # nothing was measured since the last `take`, so another stage may reuse the tree
        self.device = device
        self.pending: deque[tuple[DeviceSpan | None, Mark, Mark]] = deque()
        self.span_type: type[Span] = DeviceSpan if device else Span
        self.root = Span(self, None, "")
        self.step = Span(self, self.root, "step")  # these three are never entered: they are a buffer and a histogram
        self.latency = Span(self, self.root, "latency")
        self.batch = Span(self, self.root, "batch")
        self.record = StageRecord(stage.value if stage else "")
        self.slow: list[SlowStep] = []  # those of them since the last `take`
        self.counts = state.counts_of(stage)
        self.limit = self.counts.limit

    @property
    def stage_name(self) -> str:
        """The stage as text, "" for none."""
        return self.stage.value if self.stage is not None else ""

    def add_child(self, parent: Span, name: str) -> Span:
        """Make the span of a phase inside another one, within the limits on depth and number of names."""
        if parent.depth >= MAX_DEPTH:
            return TooDeep(self, parent, name)
        if len(parent.children) >= MAX_NAMES and name != TOO_MANY:
            self.state.timer.unmeasured[NOT_APART] += 1
            return parent.child(TOO_MANY)
        kind = Span if name == Phase.DATA_WAIT.value else self.span_type  # the GPU has no part in waiting for data
        made = parent.children[name] = kind(self, parent, name)
        return made

    def exceed(self, duration: int, end: int) -> int:
        """Keep one of the slowest steps, and close the slice if one is due.

        Args:
            duration: of the step (ns).
            end: its end on the host's clock.

        Returns:
            the time (ns) that this took. The clocks of all that is open have been stopped meanwhile.
        """
        state = self.state
        self.keep_slow(duration, end)
        if state.timer.is_slice_due:
            state.timer.on_slice(end)
        spent = hot_path.now() - end
        state.pause(spent)
        state.timer.overhead_ns += spent
        return spent

    def keep_slow(self, duration: int, end: int, *, is_first: bool = False) -> None:
        """Keep the step that has just ended if it is one of the slowest of its stage."""
        top = self.counts.top
        is_full = len(top) >= SLOWEST_KEPT
        if not is_full or duration > top[0]:
            (heapq.heapreplace if is_full else heapq.heappush)(top, duration)
            done = self.steps - 1
            at = end - self.state.timer.began_ns
            phases, collected = self._phases_of_step(end - duration), self.state.timer.causes.garbage.since(end - duration)
            numbers = self.counts.in_epoch + done, self.counts.in_run + done
            self.slow.append(SlowStep(*numbers, at, duration, phases, collected, is_first))
            if len(self.slow) > 2 * SLOWEST_KEPT:
                self.slow = slowest_of(self.slow)
        self.limit = self.counts.limit

    def _phases_of_step(self, began: int) -> dict[str, int]:
        """Return the times (ns) of the top-level phases of a step that has just ended."""
        # A phase's last entries are those of the step. Nothing counts them, as that would cost every step: a phase that
        # occurs k times in each step has k entries in this one, too.
        steps = max(self.steps, 1)
        found = {}
        for name, span in list(self.root.children.items()):
            if span.n and span.t0 >= began:
                times = max(round((span.timing.count + span.n) / steps), 1)
                found[name] = span.recent_ns(times)
        return found

    def become(self, stage: Stage | None) -> None:
        """Assign the tree, with everything measured in it so far, to a stage."""
        if stage is not self.stage:
            self.slow = []
            self.counts = self.state.counts_of(stage)
            self.limit = self.counts.limit
        self.stage = stage
        self.is_inference = stage is Stage.INFERENCE
        self.record.stage = stage.value if stage else ""

    def cool_down(self) -> None:
        """Undo `Timer.warm_up` after an empty loader, which warms nothing up."""
        if self.cold and self.stage and not self.steps:
            self.cold = False
            self.state.timer.warm.discard(self.stage)

    def end_cold(self) -> None:
        """End the stage's first step: later durations go to the steady histograms."""
        self.fold()
        self.cold = False

    def begin_cold_again(self) -> None:
        """Count everything measured so far as the stage's first step, which has not ended yet."""
        self.cold = True
        self.fold()
        for _, span in self.spans():
            span.timing.cold.merge(span.timing.steady)
            span.timing.steady = Histogram()

    def fold(self) -> None:
        """Move every buffer into its histogram."""
        self.read_device()
        for _, span in self.spans():
            span.fold()

    def read_device(self) -> None:
        """Read the device times that are complete by now."""
        # Marks are in the order in which they were recorded, so the search ends at the first one that the GPU has not reached.
        # `query` is the only call: it answers at once, where waiting for the event would stop the loop's thread.
        device = self.device
        while device is not None and self.pending:
            span, begin, end = self.pending[0]
            elapsed = device.elapsed_ns(begin, end)
            if elapsed is None:
                return
            self.pending.popleft()
            if span is not None:  # marks of a first step are read only to give their events back
                span.timing.device.add((elapsed,))

    def set_aside(self, epoch: int | None) -> list[LateMarks]:
        """Remove and return the marks that the GPU has not reached, so that they are not counted in the next epoch."""
        pending, self.pending = self.pending, deque()
        return [LateMarks(epoch, self.stage_name, path_of(span), *marks) for span, *marks in pending if span is not None]

    def take(self) -> StageRecord:
        """Remove and return everything measured since the last call."""
        self.fold()
        taken = self.record
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
        taken.slowest, self.slow = self.slow, []
        self.counts.add(self.steps)
        empty = StageRecord(taken.stage)
        # All at once, and last: what an exception of a signal's handler interrupts before is taken later.
        taken.steps, taken.samples, self.steps, self.samples, self.record = self.steps, self.samples, 0, None, empty
        return taken

    def keep(self, taken: StageRecord) -> None:
        """Add the phases of a pass whose stage never became known."""
        for path, timing in taken.phases.items():
            span = self.root
            for name in path:
                span = span.child(name)
            span.timing.merge(timing)

    def spans(self) -> Iterator[tuple[Path, Span]]:
        """Yield every span with its path. Each level is copied first, because another thread may be adding to it."""
        yield (), self.step
        yield (), self.latency
        yield (), self.batch
        waiting: list[tuple[Path, Span]] = [((), self.root)]
        while waiting:
            path, span = waiting.pop()
            for child in list(span.children.values()):
                yield (*path, child.name), child
                waiting.append(((*path, child.name), child))


def never_begun(trees: Iterable[Tree], whole: EpochRecord) -> list[str]:
    """Return the phases that were asked for and are in no sum of the run: ``prof.phase(name)`` without a ``with``."""
    measured = {path[-1] for phases in (whole.phases, *(s.phases for s in whole.stages.values())) for path in phases}
    named = {path[-1] for tree in trees for path, span in tree.spans() if path and not span.t0}
    return sorted(named - measured - {Phase.DATA_WAIT.value, TOO_MANY})


def path_of(span: Span) -> Path:
    """Return the names of the phases that enclose a span, outermost first, and its own."""
    return () if span.parent is None else (*path_of(span.parent), span.name)


def drop_mark(span: Span) -> None:
    """Discard a span's first mark, because the GPU's work until its end is not, or not only, the span's."""
    if isinstance(span, DeviceSpan):
        span.begin = None
