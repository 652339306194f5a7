"""The timer of a run: phases, passes over a loader, and the stages and epochs they belong to.

Each thread has a place in a tree of `Span`s: a root for its pass, and one span for each phase below it. Entering a span
moves down and reads the clock. Leaving reads the clock, writes the difference into a preallocated buffer and moves up.
Full buffers are folded into histograms, so memory does not grow with steps.

The rule it keeps: the thread that owns the timer pays for two clock readings and a few attribute stores (`hot_path`).
Rarer cases (another thread, a span used outside its place, overlapping spans) take the slow way, under a lock.
Nothing here raises into the user's loop, or waits for anything but that lock.
"""

from __future__ import annotations

import functools
import inspect
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from threading import get_ident
from typing import Any, ParamSpec, TypeVar, cast

from profiler.measure import hot_path, spans
from profiler.measure.batch_size import call_size
from profiler.measure.cause_watches import CauseWatches
from profiler.measure.clocks import find_device_clock
from profiler.measure.energy_meter import Edges
from profiler.measure.frames import drop_own_frame, is_closed_within_us
from profiler.measure.lengths import known_length
from profiler.measure.passes import Concurrency, Segment, ThreadState
from profiler.measure.places import Alive, Places
from profiler.records.run import EpochRecord
from profiler.records.timing import Timing, merge_phases
from profiler.records.vocabulary import ORDER, Stage, phase_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.measure.clocks import DeviceClock
    from profiler.measure.hot_path import Span
    from profiler.measure.passes import SampleCount
    from profiler.measure.spans import LateMarks, Tree
    from profiler.records.vocabulary import Phase


T = TypeVar("T")
P = ParamSpec("P")
R = TypeVar("R")


class Timer:
    """All timings of one run.

    Args:
        device: "cuda" or "cuda:<index>" for device time, "cpu" for none, None to look for it at each pass.
    """

    def __init__(self, device: str | None = None) -> None:
        self.device = device
        self.lock = threading.RLock()  # re-entrant: a forgotten generator may be closed by the collector at any moment
        self.overhead_ns = 0
        self.edges = Edges()  # of the owning thread's passes
        self.concurrency = Concurrency()
        self.warm: set[Stage] = set()  # stages whose first step has begun
        self._device_clock: DeviceClock | None = None
        self.owner = ThreadState(self, is_owner=True)
        self.places = Places(self, self.owner)
        self.state = self.places.state
        self.late: list[LateMarks] = []
        self.causes = CauseWatches(self)
        self.began_ns = 0  # the run's start on the host's clock
        self.longest_gap_ns = 0  # between two passes of the own thread
        self.is_slice_due = False
        self.on_slice: Callable[[int], None] = lambda at: None  # closes the slice at this moment (ns), between two steps
        self.unmeasured: Counter[str] = Counter()  # phases that were not measured, or not apart, by reason
        self.forgotten = 0  # marks dropped because too many were waiting

    def spend(self, ns: int) -> None:
        """Count time that our own work has taken in the loop's thread."""
        self.overhead_ns += ns

    def device_clock(self) -> DeviceClock | None:
        """Return the clock of the GPU in use, or None while there is none."""
        if self._device_clock is None:
            self._device_clock = find_device_clock(self.device)
        return self._device_clock

    @property
    def device_fault(self) -> str | None:
        """The class name of the error that stopped the GPU's clock, or None."""
        return None if self._device_clock is None else self._device_clock.fault

    def phase(self, name: str | Phase) -> Span:
        """Return the span of a phase at the current place of the owning thread, or of the calling task."""
        state = self.state() if self.places.are_tasks_apart else self.owner
        return state.current.child(phase_name(name))

    def end_phase(self, name: str) -> None:
        """End the innermost open phase of that name in the calling thread or task, wherever it is."""
        end = hot_path.now()
        with self.lock:
            self.state().leave(name, end)

    def begin(self, stage: Stage | None, loop: weakref.ref[Any] | None = None) -> Segment:
        """Begin a pass in the calling thread.

        Args:
            stage: None if it is not known yet.
            loop: dies with the object that will close the pass, if it is known.
        """
        state = self.state()
        with self.lock:
            for lost in [segment for segment in state.segments if segment.is_lost()]:
                lost.lose()
            tree = state.tree_for(stage)
            self.warm_up(tree)
            return Segment(state, tree, loop)

    def warm_up(self, tree: Tree) -> None:
        """Mark the first step of a stage as cold."""
        if tree.stage is not None and tree.stage not in self.warm:
            self.warm.add(tree.stage)
            tree.cold = True

    def is_open(self, stage: Stage) -> bool:
        """Return True if a pass of that stage is open in any thread."""
        with self.lock:
            return any(segment.tree.stage is stage for state in self.places.all for segment in state.segments)

    def iterate(
        self,
        stage: Stage,
        items: Iterable[T],
        samples: SampleCount,
        before: Callable[[], None] = lambda: None,
        after: Callable[[], None] = lambda: None,
    ) -> Iterator[T]:
        """Yield every item unchanged, and time the wait for it and the step made with it.

        Args:
            before: called when the first item is requested.
            after: called when the pass has ended, also after an error.
        """
        before()
        iterator: Iterator[T] | None = None
        task = self.places.enter_task() if self.places.is_shared() else None
        alive = Alive()
        loop = weakref.ref(alive)
        segment = self.begin(stage, loop)
        segment.length = known_length(items)
        partial, is_lost = True, False
        try:
            while True:
                if not segment.begin_wait():  # an epoch ended, or another thread took over
                    segment.close(partial=True)
                    segment = self.begin(stage, loop)
                    segment.begin_wait()
                try:
                    if iterator is None:
                        iterator = iter(items)
                        item = self.causes.loaders.first(segment, items, iterator)
                    else:
                        item = next(iterator)
                except StopIteration:
                    segment.wait.__exit__()  # the wait that ends the pass is a wait, too
                    partial = False
                    return
                except BaseException as error:
                    segment.wait.__exit__()
                    drop_own_frame(error)
                    raise
                if not segment.end_wait(samples, item):
                    segment = self.begin(stage, loop)
                    segment.begin_step(samples(item))
                yield item
        except GeneratorExit:
            is_lost = self.lock._is_owned() or is_closed_within_us()  # type: ignore[attr-defined]
            raise
        finally:
            if not is_lost:
                segment.close(partial=partial)
                if task is not None:
                    self.places.leave_task(*task)
                after()

    def call(
        self,
        function: Callable[P, R],
        before: Callable[[], bool] = lambda: True,
        after: Callable[[], None] = lambda: None,
    ) -> Callable[P, R]:
        """Return the function with every call timed as one inference step.

        Args:
            before: called first; the call is timed only if it returns True.
            after: called after a timed call.
        """
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def timed_coroutine(*args: P.args, **kwargs: P.kwargs) -> Any:
                if not before():
                    return await function(*args, **kwargs)
                task = self.places.enter_task()
                segment = self._begin_call(args, kwargs)
                failed = True
                try:
                    result = await function(*args, **kwargs)
                    failed = False
                    return result
                except BaseException as error:
                    drop_own_frame(error)
                    raise
                finally:
                    segment.close(partial=failed)
                    self.places.leave_task(*task)
                    after()

            return cast("Callable[P, R]", timed_coroutine)

        @functools.wraps(function)
        def timed(*args: P.args, **kwargs: P.kwargs) -> R:
            if not before():
                return function(*args, **kwargs)
            segment = self._begin_call(args, kwargs)
            failed = True
            try:
                result = function(*args, **kwargs)
                failed = False
                return result
            except BaseException as error:
                drop_own_frame(error)
                raise
            finally:
                segment.close(partial=failed)
                after()

        return timed

    def _begin_call(self, args: Any, kwargs: Any) -> Segment:
        segment = self.begin(Stage.INFERENCE)
        segment.begin_step(call_size(args, kwargs))
        return segment

    def enter_epoch(self, index: int | None, at: int | None = None) -> None:
        """Note that an epoch begins, or (index None) has ended.

        Args:
            at: the moment (ns), if it is only noticed now.
        """
        segments = self.owner.segments
        self.edges.epoch = index
        for counts in [counts for state in self.places.all for counts in list(state.counts.values())]:
            counts.in_epoch = 0
        self.edges.add(hot_path.now() if at is None else at, segments[-1].tree if segments else None)

    def close_passes(self, *, keep_undecided: bool = False) -> None:
        """End every open pass. A pass that is resumed later counts as a new one."""
        with self.lock:
            for state in self.places.all:
                for segment in reversed(list(state.segments)):
                    if segment.tree.stage is not None or not keep_undecided:
                        segment.close(partial=True)

    def ask_for_slice(self) -> None:
        """Let the loop close a slice at the end of its step. Called by another thread, as often as it likes."""
        self.is_slice_due = True
        for tree in [tree for state in list(self.places.all) for tree in list(state.trees)]:
            tree.limit = -1
        self.owner.ask()

    def take(self, into: EpochRecord, *, ended: bool = False, slice_end: int | None = None) -> list[EpochRecord]:
        """Move everything measured since the last call into a record.

        The owning thread writes without the lock. Values that it may be writing are therefore taken only in that thread, or
        after the run: the pass it is in, and phases outside passes that have not been asked for (`ThreadState.ask`).

        Args:
            ended: True if the run has ended.
            slice_end: the moment (ns) at which a slice ends, if the epoch goes on, and with it the open passes.

        Returns:
            device times of earlier epochs that have become known since.
        """
        with self.lock:
            known = self._read_late() if ended or get_ident() == self.owner.thread else {}
            for state in self.places.all:
                is_written = state.is_owner and not ended and get_ident() != state.thread  # meanwhile, and without the lock
                if slice_end is not None and not is_written:
                    state.cut(slice_end)
                for tree in sorted(state.trees, key=lambda tree: ORDER.index(tree.stage)):
                    is_to_come = tree.in_use and tree.stage is None  # its stage will soon be known
                    if is_to_come or (is_written and (tree.in_use or tree.pending)):  # only its own thread asks CUDA
                        continue
                    taken = tree.take()
                    if slice_end is None:  # marks that the GPU has not reached yet belong to a later slice
                        self._set_aside(tree, into.index)
                    for slow in taken.slowest:
                        slow.epoch = into.index
                    if taken.is_empty:
                        continue
                    if taken.stage not in into.stages:
                        into.stages[taken.stage] = taken  # not copied: a signal's exception in between would lose it
                    else:
                        into.stages[taken.stage].merge(taken)
                merge_phases(into.phases, state.asked() if is_written else state.outside.take().phases)
            self.causes.take(into)
            if into.index in known:
                into.merge(known.pop(into.index))
        return list(known.values())

    @property
    def unread(self) -> int:
        """The number of phases whose device time is not known."""
        return len(self.late) + self.forgotten

    def _set_aside(self, tree: Tree, epoch: int | None) -> None:
        self.late += tree.set_aside(epoch)
        excess = max(len(self.late) - spans.MAX_PENDING, 0)
        self.forgotten += excess
        del self.late[:excess]

    def _read_late(self) -> dict[int | None, EpochRecord]:
        known: dict[int | None, EpochRecord] = {}
        clock = self.device_clock() if self.late else None
        if clock is None:
            return known
        began = hot_path.now()
        waiting = []
        streams: list[object] = []  # streams with a mark not yet reached: later marks of them are not reached either
        for late in self.late:
            elapsed = None if late.end.stream in streams else clock.elapsed_ns(late.begin, late.end)
            if elapsed is None:
                waiting.append(late)
                streams += [] if late.end.stream in streams else [late.end.stream]
                continue
            stage = known.setdefault(late.epoch, EpochRecord(late.epoch)).stage(late.stage)
            stage.phases.setdefault(late.path, Timing()).device.add((elapsed,))
        self.late = waiting
        self.overhead_ns += hot_path.now() - began
        return known

    def forget_threads(self) -> None:
        """Reset after a fork: the lock may be held by a thread that does not exist here, and CUDA cannot be used."""
        self.lock = threading.RLock()
        self.causes.forget_threads()
        if self._device_clock is not None:
            self._device_clock.fault = "fork"
