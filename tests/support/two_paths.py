"""Run programs of phases, passes and events, one a line, on a clock that only they move; answer with all that was measured.

    python two_paths.py < programs > answers

`tests/measure/test_two_paths.py` runs it twice, with the compiled hot path and with the one in Python, and compares.
Every operation is a list: its name, then what it needs. An operation that has nothing to work on does nothing.
"""

from __future__ import annotations

import gc
import json
import sys
import threading
from collections.abc import Callable
from typing import Any

from profiler.measure import hot_path
from profiler.measure.batch_size import batch_size
from profiler.measure.clocks import DeviceClock
from profiler.measure.follow.observer import LoopObserver
from profiler.measure.hot_path import forward_begins, forward_ends, phase_begins, phase_ends
from profiler.measure.timer import Timer
from profiler.records.histogram import Histogram
from profiler.records.run import EpochRecord
from profiler.records.timing import StageRecord, Timing
from profiler.records.vocabulary import Stage

Operation = list[Any]


class Raised(Exception):
    """A program's own exception."""


class Shaped:
    """A thing with a shape, as a tensor has one."""

    def __init__(self, *shape: int) -> None:
        self.shape = shape


class Odd:
    """A thing whose shape raises, or is a word."""

    def __init__(self, *, raises: bool) -> None:
        self.raises = raises

    @property
    def shape(self) -> str:
        if self.raises:
            raise ValueError
        return "round"


class Emptying:
    """A thing whose shape, once it is asked for, empties the list that the thing is in."""

    def __init__(self, held: list[Any]) -> None:
        self.held = held

    @property
    def shape(self) -> tuple[int, int]:
        self.held.clear()
        return 8, 3


def batch_of(number: int) -> Any:
    """Return a batch of one of the kinds."""
    if number < len(BATCHES):
        return BATCHES[number]
    held: list[Any] = []
    held += (Emptying(held), Shaped(8))
    return held


BATCHES: tuple[Any, ...] = (
    7,
    (Shaped(8, 3), Shaped(8)),
    [Shaped(5, 2), Shaped(5)],
    (Shaped(5, 2), Shaped(4)),
    (Shaped(6), 1),
    Shaped(3, 3),
    {"x": Shaped(9, 1)},
    (Odd(raises=True), Shaped(2)),
    [Odd(raises=False), Shaped(2)],
    (Shaped(10**10, 2), Shaped(10**10)),
    (Shaped(10**30, 2), Shaped(10**30)),
)


class Event:
    """An event of a device that is behind its program by 40 ns."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.at = 0

    def record(self, stream: object) -> None:
        self.at = self.world.now + 40

    def query(self) -> bool:
        return self.world.now >= self.at

    def elapsed_time(self, end: Event) -> float:
        return (end.at - self.at) / 1e6


class Module:
    """The part of a module of torch that the hooks look at."""

    has_trained = False

    def __init__(self, fast_paths: list[Any]) -> None:
        self.training = True
        self.fast_paths = fast_paths


class Control:
    """A run that lets its loop be observed, and does nothing else."""

    def __init__(self) -> None:
        self.faults: list[str] = []

    def is_running(self) -> bool:
        return True

    def begin_inferred_epoch(self, started: int | None, *, is_first: bool) -> None:
        pass

    def has_epoch(self) -> bool:
        return True

    def after_pass(self) -> None:
        pass

    def note(self, text: str) -> None:
        self.faults.append(text)

    def count_fault(self, error: Exception) -> None:
        self.faults.append(repr(error))


class World:
    """One program, and what it works with."""

    def __init__(self) -> None:
        self.now = 1_000
        self.told: list[Any] = []
        self.timer = Timer("cpu")
        self.timer.on_slice = self._slice
        self.entered: list[Any] = []  # phases that were entered by hand
        self.feeds: list[Any] = []
        self.control = Control()
        self.gradients = True
        self.observer = LoopObserver(self.timer, self.control, gaps=True)
        self.hooks = self._hooks()

    def _hooks(self) -> dict[str, Callable[[], None]]:
        observer, owner = self.observer, self.timer.owner
        fast = observer.phases.fast_path
        learning, other, end = fast(), fast(), fast()
        module = self.module = Module([learning, other, end])
        slow: Callable[[Any], None] = lambda path: observer.forward_begins(path, module, module.training, self.gradients)  # noqa: E731
        common: Any = {"hooked": lambda: module, "is_compiling": lambda: False}
        before = forward_begins(learning, other, owner, slow, takes_gradients=lambda: self.gradients, **common)
        after = forward_ends(end, owner, observer.forward_ends, **common)
        return {
            "forward": lambda: before(module, ()),
            "forward_ends": lambda: after(module, (), None),
            "foreign": lambda: before(Module([]), ()),
            "backward": phase_begins(fast(), owner, observer.backward_begins),
            "backward_ends": phase_ends(fast(), owner, observer.backward_ends),
            "optimizer": phase_begins(fast(), owner, observer.optimizer_begins),
            "optimizer_ends": phase_ends(fast(), owner, observer.optimizer_ends, ends_step=True),
        }

    def run(self, operations: list[Operation]) -> None:
        for name, *rest in operations:
            getattr(self, "do_" + name)(*rest)

    def do_device(self) -> None:
        self.timer._device_clock = DeviceClock(lambda: Event(self), lambda: 0, lambda: False)

    # ---- the operations --------------------------------------------------------------------------------------------

    def do_time(self, ns: int) -> None:
        self.now += ns

    def do_phase(self, name: str, inner: list[Operation]) -> None:
        with self.timer.owner.phase(name) if threading.current_thread() is MAIN else self.timer.phase(name):
            self.run(inner)

    def do_call(self, name: str, inner: list[Operation]) -> None:
        self.timer.phase(name)(self.run)(inner)

    def do_pass(self, stage: str, steps: list[tuple[int, int, list[Operation]]], fails: bool) -> None:
        def loader() -> Any:
            for wait, batch, inner in steps:
                self.now += wait
                yield batch_of(batch), inner
            if fails:
                raise Raised

        for _, inner in self.timer.iterate(Stage(stage), loader(), lambda item: batch_size(item[0])):
            self.run(inner)

    def do_inference(self, batch: int, inner: list[Operation]) -> None:
        self.timer.call(lambda given: self.run(inner))(batch_of(batch))

    def do_raise(self, inner: list[Operation]) -> None:
        try:
            self.run(inner)
            raise Raised
        except Raised:
            pass

    def do_enter(self, name: str) -> None:
        self.entered.append(self.timer.phase(name))
        self.entered[-1].__enter__()

    def do_leave(self, which: int) -> None:
        if self.entered:
            self.entered.pop(which % len(self.entered)).__exit__(None, None, None)

    def do_end(self, name: str) -> None:
        self.timer.end_phase(name)

    def do_thread(self, inner: list[Operation]) -> None:
        failed: list[BaseException] = []

        def main() -> None:
            try:
                self.run(inner)
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=main)
        thread.start()
        thread.join()
        if failed:
            raise failed[0]

    def do_epoch(self) -> None:
        self.timer.close_passes(keep_undecided=True)
        self.told.append(told(self.timer, EpochRecord(len(self.told))))
        self.timer.enter_epoch(len(self.told), self.now)

    def do_slice(self) -> None:
        self.timer.ask_for_slice()

    def _slice(self, at: int) -> None:
        self.timer.is_slice_due = False
        self.told.append(told(self.timer, EpochRecord(len(self.told)), slice_end=at))

    def do_hook(self, name: str) -> None:
        self.hooks[name]()

    def do_mode(self, trains: bool, gradients: bool) -> None:
        self.module.training, self.gradients = trains, gradients

    def do_loader(self, key: int, batches: int) -> None:
        feed = self.observer.loader_begins(key, batches=batches)
        self.feeds += [feed] if feed is not None else []

    def do_fetch(self, wait: int, batch: int) -> None:
        if self.feeds:
            feed = self.feeds[-1]
            waiting = feed.fetch_begins()
            self.now += wait
            if waiting is not None:
                feed.fetch_ends(waiting, batch_of(batch))

    def do_exhaust(self, drops: bool) -> None:
        if self.feeds:
            feed = self.feeds.pop()
            waiting = feed.fetch_begins()
            if waiting is not None:
                self.observer.fetch_fails(feed, waiting, at_end=True)
            if drops:
                self.observer.loader_is_dropped(feed)


def told(timer: Timer, record: EpochRecord, **arguments: Any) -> Any:
    """Return everything that was measured since the last call, as data."""
    earlier = timer.take(record, **arguments)
    stages = {name: of_stage(stage) for name, stage in sorted(record.stages.items())}
    return [stages, of_phases(record.phases), len(earlier)]


def of_stage(stage: StageRecord) -> Any:
    slowest = [[s.step, s.number, s.at_ns, s.duration_ns, sorted(s.phases.items()), s.is_first, s.epoch] for s in stage.slowest]
    counts = [stage.duration_ns, stage.steps, stage.samples, stage.passes, stage.partial_passes, stage.beside_ns]
    timings = [of_timing(stage.step), of_timing(stage.latency), of_histogram(stage.batch)]
    return [counts, timings, of_phases(stage.phases), sorted(slowest, key=repr)]


def of_phases(phases: Any) -> Any:
    return {"/".join(path): of_timing(timing) for path, timing in sorted(phases.items())}


def of_timing(timing: Timing) -> Any:
    return [of_histogram(each) for each in (timing.steady, timing.cold, timing.device)]


def of_histogram(histogram: Histogram) -> Any:
    scale = histogram.scale if histogram.counts else None  # of nothing, there is no scale
    sums = [histogram.zero_count, histogram.sum_ns, histogram.min_ns, histogram.max_ns]
    return [scale, sorted(histogram.counts.items()), *sums]


MAIN = threading.main_thread()


def measured(program: list[Operation]) -> list[Any]:
    """Run a program in a world of its own, and return everything that was measured."""
    world, raised = World(), ""
    hot_path.use_clock(lambda: world.now)
    try:
        world.run(program)
    except Raised as error:
        raised = repr(error)
    gc.collect()  # of both paths at the same moment: it closes the passes that a program has left
    world.do_time(17)
    world.observer.close()
    world.timer.close_passes()
    world.told.append(told(world.timer, EpochRecord(None), ended=True))
    hot_path.use_clock(None)
    return [raised, world.told, dict(world.timer.unmeasured), world.control.faults, world.timer.overhead_ns]


def main() -> None:
    print(json.dumps("reference" if hot_path.COMPILED is None else "compiled"), flush=True)
    gc.disable()
    for line in sys.stdin:
        print(json.dumps(measured(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
