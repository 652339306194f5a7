"""Passes over a loader: passed through unchanged, timed apart, right when they end early, overlap or nest."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from profiler.measure.batch_size import batch_size
from profiler.measure.timer import Timer
from profiler.records.run import EpochRecord
from profiler.records.timing import StageRecord
from profiler.records.vocabulary import Stage
from profiler.testing import FakeClock

MS = 1_000_000


def stages(timer: Timer) -> dict[str, StageRecord]:
    record = EpochRecord(0)
    timer.take(record, ended=True)
    return record.stages


class Tensor:
    def __init__(self, *shape: int) -> None:
        self.shape = shape


def slow(clock: FakeClock, items: Any, wait_ms: float = 2) -> Iterator[Any]:
    for item in items:
        clock.pass_ms(wait_ms)
        yield item


def test_items_pass_through_unchanged(clock: FakeClock) -> None:
    items = [object(), None, (1, 2), "text"]
    assert list(Timer().iterate(Stage.TRAIN, items, batch_size)) == items


def test_waiting_for_the_loader_is_data_wait(clock: FakeClock) -> None:
    timer = Timer()
    for _ in timer.iterate(Stage.TRAIN, slow(clock, range(5)), batch_size):
        clock.pass_ms(3)
    stage = stages(timer)["train"]
    assert (stage.steps, stage.phases[("data_wait",)].count) == (5, 6)  # the wait that ends the pass is one, too
    assert stage.phases[("data_wait",)].total_ns == 10 * MS
    assert stage.other_ns == 15 * MS
    assert (stage.passes, stage.partial_passes) == (1, 0)


def test_last_wait_is_a_wait_but_no_step(clock: FakeClock) -> None:
    def loader() -> Iterator[int]:
        yield 1
        clock.pass_ms(7)

    timer = Timer()
    list(timer.iterate(Stage.TRAIN, loader(), batch_size))
    stage = stages(timer)["train"]
    wait = stage.phases[("data_wait",)]
    assert (stage.steps, wait.count, wait.total_ns) == (1, 2, 7 * MS)
    assert wait.steady.max_ns == 7 * MS  # a mean can never lie above the maximum


def test_empty_loader_has_one_wait(clock: FakeClock) -> None:
    def loader() -> Iterator[int]:
        clock.pass_ms(7)
        yield from ()

    timer = Timer()
    list(timer.iterate(Stage.TRAIN, loader(), batch_size))
    wait = stages(timer)["train"].phases[("data_wait",)]
    assert (wait.count, wait.total_ns, wait.steady.max_ns) == (1, 7 * MS, 7 * MS)


def test_loader_start_is_part_of_first_wait(clock: FakeClock) -> None:
    class Loader:
        def __iter__(self) -> Iterator[int]:
            clock.pass_ms(4)
            return iter((1, 2))

    timer = Timer()
    list(timer.iterate(Stage.TRAIN, Loader(), batch_size))
    assert stages(timer)["train"].phases[("data_wait",)].cold.sum_ns == 4 * MS


def test_phases_inside_loader_belong_to_wait(clock: FakeClock) -> None:
    timer = Timer()

    def loader() -> Iterator[int]:
        for item in range(3):
            with timer.phase("augment"):
                clock.pass_ms(2)
            yield item

    list(timer.iterate(Stage.TRAIN, loader(), batch_size))
    stage = stages(timer)["train"]
    assert stage.phases[("data_wait", "augment")].total_ns == 6 * MS
    assert stage.other_ns == 0


def test_first_step_is_kept_apart(clock: FakeClock) -> None:
    timer = Timer()
    for _epoch in range(2):
        for step in timer.iterate(Stage.TRAIN, range(3), batch_size):
            with timer.phase("forward"):
                clock.pass_ms(100 if step == 0 and _epoch == 0 else 1)
    forward = stages(timer)["train"].phases[("forward",)]
    assert (forward.cold.count, forward.cold.sum_ns) == (1, 100 * MS)
    assert (forward.steady.count, forward.steady.max_ns) == (5, 1 * MS)
    assert (forward.count, forward.total_ns, forward.max_ns) == (6, 105 * MS, 100 * MS)


def test_empty_loader_warms_nothing_up(clock: FakeClock) -> None:
    timer = Timer()
    list(timer.iterate(Stage.TRAIN, (), batch_size))
    list(timer.iterate(Stage.TRAIN, range(2), batch_size))
    stage = stages(timer)["train"]
    assert (stage.steps, stage.passes, stage.step.cold.count) == (2, 2, 1)


def test_break_counts_and_is_marked_partial(clock: FakeClock) -> None:
    timer = Timer()
    for item in timer.iterate(Stage.VAL, range(10), batch_size):
        clock.pass_ms(1)
        if item == 3:
            break
    stage = stages(timer)["val"]
    assert (stage.steps, stage.step.count, stage.partial_passes) == (4, 4, 1)
    assert stage.duration_ns == 4 * MS


def test_exception_in_body_passes_and_pass_counts(clock: FakeClock) -> None:
    timer = Timer()

    def loop() -> None:
        for item in timer.iterate(Stage.TRAIN, range(10), batch_size):
            with timer.phase("forward"):
                clock.pass_ms(1)
                if item == 2:
                    raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        loop()
    stage = stages(timer)["train"]
    assert (stage.steps, stage.partial_passes, stage.phases[("forward",)].count) == (3, 1, 3)
    assert timer.owner.current is timer.owner.outside.root


def test_an_exception_in_the_loader_passes(clock: FakeClock) -> None:
    def loader() -> Iterator[int]:
        yield 1
        clock.pass_ms(2)
        raise OSError("disk")

    timer = Timer()
    with pytest.raises(OSError, match="disk"):
        list(timer.iterate(Stage.TRAIN, loader(), batch_size))
    stage = stages(timer)["train"]
    assert (stage.steps, stage.partial_passes) == (1, 1)
    assert stage.phases[("data_wait",)].total_ns == 2 * MS


def test_nested_pass_stops_outer_clock(clock: FakeClock) -> None:
    timer = Timer()
    for _ in timer.iterate(Stage.TRAIN, range(2), batch_size):
        clock.pass_ms(1)
        with timer.phase("evaluate"):
            clock.pass_ms(2)
            for _ in timer.iterate(Stage.VAL, range(3), batch_size):
                with timer.phase("forward"):
                    clock.pass_ms(10)
    found = stages(timer)
    assert found["val"].duration_ns == 60 * MS
    assert found["train"].duration_ns == 6 * MS
    assert found["train"].step.total_ns == 6 * MS
    assert found["train"].phases[("evaluate",)].total_ns == 4 * MS
    assert found["train"].other_ns == 2 * MS


def test_passes_that_alternate_share_the_time_once(clock: FakeClock) -> None:
    timer = Timer()
    began = clock.now
    pair = zip(
        timer.iterate(Stage.TRAIN, slow(clock, range(4)), batch_size),
        timer.iterate(Stage.TRAIN, slow(clock, range(3)), batch_size),
        strict=False,
    )
    for _ in pair:
        with timer.phase("forward"):
            clock.pass_ms(5)
    del pair
    stage = stages(timer)["train"]
    assert stage.duration_ns == clock.now - began
    assert stage.phases[("forward",)].count == 3
    assert stage.other_ns >= 0


def test_unfinished_iterator_continues_in_next_epoch(clock: FakeClock) -> None:
    timer = Timer()
    endless = timer.iterate(Stage.TRAIN, iter(int, 1), batch_size)
    counts = []
    for _epoch in range(2):
        for _ in range(3):
            next(endless)
            clock.pass_ms(2)
        timer.close_passes()
        found = stages(timer)["train"]
        counts.append((found.steps, found.duration_ns, found.partial_passes))
    assert counts == [(3, 6 * MS, 1), (3, 6 * MS, 1)]
    endless.close()  # type: ignore[attr-defined]
    assert stages(timer) == {}


def test_a_forgotten_iterator_does_not_stay_open(clock: FakeClock) -> None:
    timer = Timer()
    iterator = timer.iterate(Stage.TRAIN, range(5), batch_size)
    next(iterator)
    del iterator
    assert not timer.is_open(Stage.TRAIN)
    assert stages(timer)["train"].partial_passes == 1


def test_pass_may_move_to_another_thread(clock: FakeClock) -> None:
    timer = Timer()
    iterator = timer.iterate(Stage.TRAIN, slow(clock, range(4)), batch_size)
    next(iterator)
    rest: list[int] = []
    thread = threading.Thread(target=lambda: rest.extend(iterator))
    thread.start()
    thread.join()
    stage = stages(timer)["train"]
    assert rest == [1, 2, 3]
    assert (stage.steps, stage.phases[("data_wait",)].count) == (4, 5)
    assert stage.phases[("data_wait",)].total_ns == 8 * MS


def test_latency_is_the_step_without_its_wait(clock: FakeClock) -> None:
    timer = Timer()
    for _ in timer.iterate(Stage.INFERENCE, slow(clock, range(3), 7), batch_size):
        clock.pass_ms(2)
    stage = stages(timer)["inference"]
    assert (stage.latency.count, stage.latency.total_ns, stage.latency.cold.count) == (3, 6 * MS, 1)


def test_a_decorated_function_is_one_step_of_inference(clock: FakeClock) -> None:
    timer = Timer()

    def predict(x: Any, *, fail: bool = False) -> int:
        with timer.phase("forward"):
            clock.pass_ms(3)
        if fail:
            raise ValueError
        return 7

    timed = timer.call(predict)
    assert [timed(Tensor(8)), timed(Tensor(8))] == [7, 7]
    with pytest.raises(ValueError):
        timed(Tensor(8), fail=True)
    stage = stages(timer)["inference"]
    assert (stage.steps, stage.samples, stage.latency.count, stage.partial_passes) == (3, 24, 3, 1)
    assert stage.phases[("forward",)].total_ns == 9 * MS
