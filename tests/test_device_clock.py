"""Device time: marks that are read when the device has passed them, and never waited for."""

from __future__ import annotations

import sys
import threading
import types
from typing import Any

import pytest

from profiler.clocks import DeviceClock, find_device_clock
from profiler.record import EpochRecord
from profiler.testing import FakeClock, FakeDevice
from profiler.timing import Stage, Timer, batch_size

MS = 1_000_000


@pytest.fixture
def device(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> FakeDevice:
    """A CUDA device that runs 4 ms behind the host."""
    fake = FakeDevice(clock, 4 * MS)
    device_clock = DeviceClock(fake.new_event, fake.is_capturing)
    monkeypatch.setattr(Timer, "device_clock", lambda self: device_clock)
    return fake


def loop(timer: Timer, clock: FakeClock, steps: int) -> None:
    for _ in timer.iterate(Stage.TRAIN, range(steps), batch_size):
        with timer.phase("forward"):
            clock.pass_ms(3)


def test_device_time_stands_beside_host_time(clock: FakeClock, device: FakeDevice) -> None:
    timer = Timer()
    loop(timer, clock, 10)
    clock.pass_ms(10)
    record = EpochRecord(0)
    timer.take(record)
    forward = record.stages["train"].phases[("forward",)]
    assert forward.count == 10
    assert forward.device.count == 9  # the first step is warm-up
    assert forward.device.sum_ns == 27 * MS
    assert device.events < 12  # marks are used again


def test_waiting_for_data_is_the_hosts_alone(clock: FakeClock, device: FakeDevice) -> None:
    timer = Timer()
    for _ in timer.iterate(Stage.TRAIN, range(5), batch_size):
        pass
    assert device.events == 0


def test_another_threads_phases_are_not_marked_on_the_loops_stream(clock: FakeClock, device: FakeDevice) -> None:
    timer = Timer()

    def elsewhere() -> None:
        with timer.phase("forward"):
            clock.pass_ms(1)

    for _ in timer.iterate(Stage.TRAIN, range(3), batch_size):
        with timer.phase("forward"):
            clock.pass_ms(1)
        marks = device.events
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert device.events == marks


def test_marks_that_are_not_reached_are_not_waited_for(clock: FakeClock, device: FakeDevice) -> None:
    device.lag_ns = 10**12
    timer = Timer()
    loop(timer, clock, 5)
    record = EpochRecord(0)
    timer.take(record)
    forward = record.stages["train"].phases[("forward",)]
    assert (forward.count, forward.device.count) == (5, 0)


def test_nothing_is_recorded_into_a_graph_that_is_captured(clock: FakeClock, device: FakeDevice) -> None:
    device.capturing = True
    timer = Timer()
    loop(timer, clock, 5)
    assert device.events == 0


def torch_with(initialized: bool) -> Any:
    class Cuda:
        @staticmethod
        def is_initialized() -> bool:
            return initialized

        @staticmethod
        def is_current_stream_capturing() -> bool:
            return False

    fake = types.ModuleType("torch")
    fake.cuda = Cuda()  # type: ignore[attr-defined]  # asking it for an Event would fail: it has none
    return fake


@pytest.mark.parametrize(
    ("initialized", "device_name", "found"), [(False, None, False), (True, None, True), (True, "cpu", False)]
)
def test_cuda_is_used_only_where_the_program_uses_it(
    monkeypatch: pytest.MonkeyPatch, initialized: bool, device_name: str | None, found: bool
) -> None:
    monkeypatch.setitem(sys.modules, "torch", torch_with(initialized))
    assert (find_device_clock(device_name) is not None) is found
