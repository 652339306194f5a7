"""Phases: nesting, exceptions, decorators, handles kept for later, several threads, spans that overlap."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler import ArgumentTypeError, ArgumentValueError, Phase
from profiler.measure import hot_path
from profiler.measure import spans as measure_spans
from profiler.measure.batch_size import batch_size
from profiler.measure.spans import BUFFER_SIZE
from profiler.measure.timer import Timer
from profiler.records.histogram import NS, Histogram
from profiler.records.run import EpochRecord
from profiler.records.timing import Path, StageRecord
from profiler.records.vocabulary import Stage
from profiler.testing import FakeClock
from support.processes import python

MS = 1_000_000


def taken(timer: Timer) -> EpochRecord:
    record = EpochRecord(0)
    timer.take(record, ended=True)
    return record


def totals(stage: StageRecord | EpochRecord) -> dict[Path, tuple[int, int]]:
    """Path: (count, milliseconds)."""
    return {path: (t.count, t.total_ns // MS) for path, t in stage.phases.items()}


def one_step(timer: Timer, body: Any, steps: int = 1) -> StageRecord:
    for _ in timer.iterate(Stage.TRAIN, range(steps), batch_size):
        body()
    return taken(timer).stages["train"]


def test_nested_phases_and_other_add_up(clock: FakeClock) -> None:
    timer = Timer()

    def body() -> None:
        with timer.phase("forward"):
            clock.pass_ms(2)
            with timer.phase("attention"):
                clock.pass_ms(3)
        clock.pass_ms(5)

    stage = one_step(timer, body, steps=4)
    assert totals(stage) == {("data_wait",): (5, 0), ("forward",): (4, 20), ("forward", "attention"): (4, 12)}
    assert stage.duration_ns == 40 * MS
    assert stage.other_ns == 20 * MS


def test_exception_ends_phase_and_passes(clock: FakeClock) -> None:
    timer = Timer()
    with pytest.raises(KeyError), timer.phase("forward"):
        clock.pass_ms(2)
        raise KeyError("the user's own")
    with timer.phase("forward"):
        clock.pass_ms(1)
    assert totals(taken(timer)) == {("forward",): (2, 3)}


def test_a_name_and_its_phase_are_the_same(clock: FakeClock) -> None:
    timer = Timer()
    for name in ("forward", Phase.FORWARD):
        with timer.phase(name):
            clock.pass_ms(1)
    assert totals(taken(timer)) == {("forward",): (2, 2)}


def test_recursion(clock: FakeClock) -> None:
    timer = Timer()

    def descend(depth: int) -> None:
        with timer.phase("level"):
            clock.pass_ms(1)
            if depth:
                descend(depth - 1)

    descend(2)
    path = ("level",)
    assert totals(taken(timer)) == {path: (1, 3), path * 2: (1, 2), path * 3: (1, 1)}


def test_nesting_deeper_than_32_is_passed_through(clock: FakeClock) -> None:
    timer = Timer()

    def descend(depth: int) -> None:
        with timer.phase("level"):
            if depth:
                descend(depth - 1)
            clock.pass_ms(1)

    descend(100)
    found = taken(timer).phases
    assert max(map(len, found)) == measure_spans.MAX_DEPTH
    assert found[("level",)].total_ns == 101 * MS


def test_phase_names_are_bounded(clock: FakeClock) -> None:
    timer = Timer()
    for step in range(measure_spans.MAX_NAMES * 2):
        with timer.phase(f"step {step}"):
            clock.pass_ms(1)
    found = taken(timer).phases
    assert len(found) == measure_spans.MAX_NAMES + 1
    assert found[(measure_spans.TOO_MANY,)].count == measure_spans.MAX_NAMES


def test_kept_handle_counts_where_used(clock: FakeClock) -> None:
    timer = Timer()
    forward = timer.phase("forward")

    def body() -> None:
        with forward:
            clock.pass_ms(3)
            with timer.phase("inner"):
                clock.pass_ms(1)

    stage = one_step(timer, body, steps=2)
    assert totals(stage) == {("data_wait",): (3, 0), ("forward",): (2, 8), ("forward", "inner"): (2, 2)}
    assert not taken(timer).phases


def test_as_a_decorator(clock: FakeClock) -> None:
    timer = Timer()

    @timer.phase("forward")
    def double(x: int) -> int:
        clock.pass_ms(x)
        return 2 * x

    assert double(2) == 4
    assert double.__name__ == "double"
    assert one_step(timer, lambda: double(3)).phases[("forward",)].total_ns == 3 * MS
    assert totals(taken(timer)) == {}


def test_as_a_decorator_of_a_coroutine_function(clock: FakeClock) -> None:
    timer = Timer()

    @timer.phase("fetch")
    async def fetch() -> int:
        clock.pass_ms(1)
        await asyncio.sleep(0)
        clock.pass_ms(1)
        return 7

    assert asyncio.run(fetch()) == 7
    assert totals(taken(timer)) == {("fetch",): (1, 2)}


def test_spans_that_overlap_keep_their_durations(clock: FakeClock) -> None:
    timer = Timer()
    first, second = timer.phase("first"), timer.phase("second")
    first.__enter__()
    clock.pass_ms(1)
    second.__enter__()
    clock.pass_ms(2)
    first.__exit__()
    clock.pass_ms(4)
    second.__exit__()
    with timer.phase("third"):
        clock.pass_ms(1)
    assert totals(taken(timer)) == {("first",): (1, 3), ("second",): (1, 6), ("third",): (1, 1)}


def test_an_exit_without_an_enter_is_ignored(clock: FakeClock) -> None:
    timer = Timer()
    timer.phase("never").__exit__()
    with timer.phase("forward"):
        clock.pass_ms(1)
    assert totals(taken(timer)) == {("forward",): (1, 1)}


def in_thread(function: Any) -> None:
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


def test_another_threads_phases_do_not_disturb_the_loops(clock: FakeClock) -> None:
    timer = Timer()
    kept = timer.phase("forward")

    def elsewhere() -> None:
        with timer.phase("forward"), timer.phase("inner"):
            clock.pass_ms(1)
        with kept:
            clock.pass_ms(1)

    def body() -> None:
        with timer.phase("forward"):
            in_thread(elsewhere)
            clock.pass_ms(5)

    record = EpochRecord(0)
    for _ in timer.iterate(Stage.TRAIN, range(3), batch_size):
        body()
    timer.take(record)
    assert totals(record.stages["train"]) == {("data_wait",): (4, 0), ("forward",): (3, 21)}
    assert totals(record) == {("forward",): (6, 6), ("forward", "inner"): (3, 3)}


def test_many_threads_lose_nothing() -> None:
    timer = Timer()
    shared = timer.phase("shared")

    def work() -> None:
        for _ in timer.iterate(Stage.INFERENCE, range(100), batch_size):
            with timer.phase("a"), timer.phase("b"):
                pass
            with shared:
                pass

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    collected = EpochRecord(0)
    while any(thread.is_alive() for thread in threads):
        timer.take(collected)
        with timer.phase("owner"):
            pass
    for thread in threads:
        thread.join()
    timer.take(collected)
    stage = collected.stages["inference"]
    counts = {path: timing.count for path, timing in stage.phases.items()}
    assert counts == {("data_wait",): 606, ("a",): 600, ("a", "b"): 600, ("shared",): 600}
    assert (stage.steps, stage.step.count, stage.latency.count, stage.passes) == (600, 600, 600, 6)


def test_more_than_a_buffer_full_is_all_there(clock: FakeClock) -> None:
    timer = Timer()
    count = 3 * BUFFER_SIZE + 5
    for _ in range(count):
        with timer.phase("forward"):
            clock.pass_ms(0.001)
    found = taken(timer).phases[("forward",)]
    assert (found.count, found.total_ns) == (count, count * 1000)


def test_phases_during_folding_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler may run at any call of ours; here it does while durations join their histogram."""
    timer = Timer()

    def enter() -> None:
        with timer.phase("forward"):
            pass

    enter()
    merge, add = Histogram.merge, Histogram.add
    struck: list[int] = []

    def strike(*_: Any) -> None:
        if not struck:
            struck.append(1)
            enter()

    monkeypatch.setattr(Histogram, "merge", lambda *given: (strike(), merge(*given))[1])
    monkeypatch.setattr(Histogram, "add", lambda *given: (strike(), add(*given))[1])
    record = taken(timer)
    monkeypatch.undo()
    again = taken(timer).phases.get(("forward",))
    assert struck and record.phases[("forward",)].count + (again.count if again is not None else 0) == 2


def test_interrupt_in_a_look_up_is_raised() -> None:
    class Refusing(str):
        __slots__ = ()

        def __hash__(self) -> int:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Timer().owner.phase(Refusing("a"))


def test_hundreds_of_phases_keep_their_times(clock: FakeClock) -> None:
    timer = Timer()
    for step in timer.iterate(Stage.TRAIN, range(30), batch_size):
        for _ in range(200):
            with timer.phase("micro"):
                clock.pass_ms(1 + 9 * (step == 28))
    slowest = max(taken(timer).stages["train"].slowest, key=lambda slow: slow.duration_ns)
    assert (slowest.step, slowest.phases["micro"]) == (28, slowest.duration_ns)


@pytest.mark.parametrize("samples", [10**10, 10**30])
def test_batches_beyond_64_bits_are_counted(samples: int) -> None:
    timer = Timer()
    for _ in timer.iterate(Stage.INFERENCE, range(12), lambda item: samples):
        pass
    stage = taken(timer).stages["inference"]
    assert (stage.samples, stage.batch.sum_ns, stage.batch.count) == (12 * samples, 12 * samples * NS, 12)


MANY_STEPS = """
import tracemalloc
from profiler.measure.batch_size import batch_size
from profiler.measure.spans import BUFFER_SIZE
from profiler.measure.timer import Timer
from profiler.records.vocabulary import Stage
timer = Timer()
def run(steps):
    for _ in timer.iterate(Stage.TRAIN, range(steps), batch_size):
        with timer.phase("forward"), timer.phase("inner"):
            pass
        with timer.phase("backward"):
            pass
run(3 * BUFFER_SIZE)
tracemalloc.start()
run(3 * BUFFER_SIZE)
first = tracemalloc.get_traced_memory()[0]
run(30 * BUFFER_SIZE)
print(tracemalloc.get_traced_memory()[0] - first)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_steps() -> None:
    """In a process of its own: what other tests have left running allocates, too."""
    told = python("-c", MANY_STEPS)
    assert told.code == 0, told.err
    assert int(told.out) < 100_000  # the slowest steps, at most 40, are replaced now and then; 30 times the steps add nothing


@pytest.mark.parametrize("name", [None, 3, ["forward"], b"forward", object()])
def test_a_name_of_the_wrong_type(name: Any) -> None:
    with pytest.raises(ArgumentTypeError, match="a phase needs a name"):
        Timer().phase(name)


@pytest.mark.parametrize("name", ["", "  ", "other", "x" * 101])
def test_a_name_that_cannot_be_used(name: str) -> None:
    with pytest.raises(ArgumentValueError):
        Timer().phase(name)


class Program:
    """A random tree of phases, with time passing before, between and after them."""

    def __init__(self, before: int, name: str, inner: list[Program], after: int) -> None:
        self.before, self.name, self.inner, self.after = before, name, inner, after

    def run(self, timer: Timer, clock: FakeClock) -> None:
        clock.now += self.before
        with timer.phase(self.name):
            for program in self.inner:
                program.run(timer, clock)
            clock.now += self.after


programs = st.recursive(
    st.builds(Program, st.integers(0, 999), st.sampled_from("abc"), st.just([]), st.integers(0, 10**6)),
    lambda inner: st.builds(
        Program, st.integers(0, 999), st.sampled_from("abc"), st.lists(inner, max_size=3), st.integers(0, 10**6)
    ),
    max_leaves=12,
)


@settings(max_examples=150)
@given(st.lists(st.lists(programs, max_size=3), min_size=1, max_size=4), st.integers(0, 1000))
def test_the_parts_add_up_whatever_the_loop_does(steps: list[list[Program]], wait: int) -> None:
    fake = FakeClock(5)
    hot_path.use_clock(fake)
    try:
        timer = Timer()

        def loader() -> Any:
            for step in steps:
                fake.now += wait
                yield step

        began = fake.now
        for step in timer.iterate(Stage.TRAIN, loader(), batch_size):
            for program in step:
                program.run(timer, fake)
        stage = taken(timer).stages["train"]
    finally:
        hot_path.use_clock(None)
    assert stage.duration_ns == fake.now - began
    assert stage.step.total_ns == stage.duration_ns
    assert stage.other_ns >= 0
    for path, entry in stage.phases.items():
        inside = sum(t.total_ns for p, t in stage.phases.items() if len(p) == len(path) + 1 and p[: len(path)] == path)
        assert inside <= entry.total_ns
    assert stage.phases[("data_wait",)].total_ns == wait * len(steps)
