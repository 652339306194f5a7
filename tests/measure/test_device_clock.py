"""Device time: marks that are read when the device has passed them, and never waited for."""

from __future__ import annotations

import itertools
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from profiler import Profiler
from profiler.measure.batch_size import batch_size
from profiler.measure.clocks import DeviceClock, find_device_clock
from profiler.measure.timer import Timer
from profiler.records.run import EpochRecord, Run, Sums
from profiler.records.timing import Timing
from profiler.records.vocabulary import Stage
from profiler.report.document import document
from profiler.storage.run_log import run_paths
from profiler.storage.run_reader import load
from profiler.testing import FakeClock, FakeDevice

MS = 1_000_000


@pytest.fixture
def device(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> FakeDevice:
    """Fake a CUDA device that runs 4 ms behind the host."""
    fake = FakeDevice(clock, 4 * MS)
    device_clock = DeviceClock(fake.new_event, fake.current_stream, fake.is_capturing)
    monkeypatch.setattr(Timer, "device_clock", lambda self: device_clock)
    return fake


def loop(timer: Timer, clock: FakeClock, steps: int) -> None:
    for _ in timer.iterate(Stage.TRAIN, range(steps), batch_size):
        with timer.phase("forward"):
            clock.pass_ms(3)


def test_device_time_stands_beside_host_time(clock: FakeClock, device: FakeDevice) -> None:
    timer = Timer()
    loop(timer, clock, 10)
    record = taken(timer, clock)
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


def test_other_threads_phases_get_no_marks(clock: FakeClock, device: FakeDevice) -> None:
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


def test_unreached_marks_are_not_waited_for(clock: FakeClock, device: FakeDevice) -> None:
    device.lag_ns = 10**12
    timer = Timer()
    loop(timer, clock, 5)
    record = EpochRecord(0)
    timer.take(record)
    forward = record.stages["train"].phases[("forward",)]
    assert (forward.count, forward.device.count) == (5, 0)


def taken(timer: Timer, clock: FakeClock) -> EpochRecord:
    """Return the timings, once the device has reached all marks."""
    clock.pass_ms(10)
    record = EpochRecord(0)
    timer.take(record)
    return record


def timed(record: EpochRecord, stage: str, phase: str = "forward") -> tuple[int, int]:
    """How many device times there are, and what they add up to, in ms."""
    device = record.stages[stage].phases[(phase,)].device
    return device.count, device.sum_ns // MS


def test_marks_that_are_reached_late_stay_their_epochs(clock: FakeClock, device: FakeDevice) -> None:
    device.lag_ns = 50 * MS
    timer = Timer()
    loop(timer, clock, 4)  # 12 ms
    first, second = EpochRecord(0), EpochRecord(1)
    assert timer.take(first) == []
    assert timed(first, "train") == (0, 0)
    loop(timer, clock, 30)
    (late,) = timer.take(second)
    assert late.index == 0 and timed(late, "train") == (3, 9)  # without the first step's
    assert (late.duration_ns, late.stages["train"].steps, late.stages["train"].passes) == (0, 0, 0)
    counted, total = timed(second, "train")
    assert (counted, total) == (13, 39)  # those of 90 ms that lie 50 ms back
    clock.pass_ms(50)
    (late,) = timer.take(EpochRecord(2))
    assert timed(late, "train") == (17, 51)
    assert timer.late == []
    assert device.events <= 2 * 34


def test_marks_that_are_reached_late_stay_their_stages(clock: FakeClock, device: FakeDevice) -> None:
    timer = Timer()
    device.lag_ns = 50 * MS
    record = EpochRecord(None)
    for _ in timer.iterate(Stage.VAL, range(4), batch_size):
        with timer.phase("forward"):
            clock.pass_ms(3)
    timer.take(record)
    for _ in timer.iterate(Stage.TRAIN, range(40), batch_size):
        with timer.phase("forward"):
            clock.pass_ms(2)
    clock.pass_ms(50)
    timer.take(record)
    for part in timer.take(EpochRecord(7)):
        record.merge(part)
    assert timed(record, "val") == (3, 9)
    assert timed(record, "train") == (39, 78)


def test_a_late_part_is_in_the_sums_once(clock: FakeClock) -> None:
    run, sums = Run("0a1b", "made", 0), Sums()
    late = EpochRecord(0)
    late.stage("train").phases["forward",] = Timing()
    late.stage("train").phases["forward",].device.add((5,))
    for seen in (False, True):
        run.epochs.append(EpochRecord(0))
        if seen:
            sums.of(run)
        run.epochs[-1].merge(late)
        sums.add_late(len(run.epochs) - 1, late)
        whole = sums.of(run)
        assert whole.stages["train"].phases["forward",].device.count == len(run.epochs)
        assert run.whole().stages["train"].phases["forward",].device.count == len(run.epochs)


def test_phase_across_streams_has_no_device_time(clock: FakeClock, device: FakeDevice) -> None:
    timer = Timer()
    for step in timer.iterate(Stage.TRAIN, range(10), batch_size):
        with timer.phase("forward"):
            clock.pass_ms(3)
            device.stream = f"side {step}"
        with timer.phase("backward"):
            clock.pass_ms(1)
    record = taken(timer, clock)
    assert timed(record, "train") == (0, 0)
    assert timed(record, "train", "backward") == (9, 9)
    assert timer.device_fault is None


def test_phase_around_nested_pass_has_no_device_time(clock: FakeClock, device: FakeDevice) -> None:
    """Its host's clock stops meanwhile, the device's cannot."""
    timer = Timer()
    for _ in timer.iterate(Stage.TRAIN, range(5), batch_size):
        with timer.phase("metrics"):
            for _ in timer.iterate(Stage.VAL, range(5), batch_size):
                with timer.phase("forward"):
                    clock.pass_ms(3)
        with timer.phase("metrics"):
            clock.pass_ms(1)
    record = taken(timer, clock)
    assert record.stages["train"].phases[("metrics",)].count == 10
    assert timed(record, "train", "metrics") == (4, 4)
    assert timed(record, "val") == (24, 72)


def test_phases_that_overlap_have_no_device_time(clock: FakeClock, device: FakeDevice) -> None:
    timer = Timer()
    for _ in timer.iterate(Stage.TRAIN, range(5), batch_size):
        outer = timer.phase("load")
        outer.__enter__()
        inner = timer.phase("forward")
        inner.__enter__()
        outer.__exit__()
        clock.pass_ms(1)
        inner.__exit__()
        with timer.phase("forward"):
            clock.pass_ms(3)
    record = taken(timer, clock)
    assert record.stages["train"].phases[("forward",)].count == 10
    assert timed(record, "train") == (4, 12)


def test_run_notes_unfinished_gpu_work(
    home: Path, clock: FakeClock, device: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.lag_ns = 10**12
    with Profiler("ahead") as prof:
        for _ in prof.train(range(20)):
            with prof.phase("forward"):
                clock.pass_ms(3)
    found = prof.summary.to_dict()
    (note,) = found["notes"].items()
    assert "the GPU was still at work" in note[0] and note[1] == 19
    assert "device_busy" not in found["stages"]["train"]
    assert found["verdict"]["kind"] == "unknown" and "still at work on 19 phases" in found["verdict"]["evidence"][0]


def test_never_reached_marks_are_bounded(clock: FakeClock, device: FakeDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("profiler.measure.spans.MAX_PENDING", 100)
    device.lag_ns = 10**12
    timer = Timer()
    for epoch in range(30):
        loop(timer, clock, 10)
        timer.take(EpochRecord(epoch))
    assert len(timer.late) == 100 and timer.unread == 299


def test_after_a_fork_no_mark_is_made(clock: FakeClock, device: FakeDevice) -> None:
    timer = Timer()
    timer._device_clock = timer.device_clock()
    timer.forget_threads()  # as in the child
    loop(timer, clock, 5)
    assert device.events == 0


def test_late_device_times_come_back_from_the_log(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count(0, MS)
    fake = FakeDevice(lambda: next(ticks), 0)
    device_clock = DeviceClock(fake.new_event, fake.current_stream, fake.is_capturing)
    monkeypatch.setattr(Timer, "device_clock", lambda self: device_clock)
    with Profiler("late") as prof:
        for _ in prof.epochs(3):
            fake.lag_ns = 10**12
            for step in prof.train(range(20)):
                fake.lag_ns = 10**12 if step >= 10 else 0
                with prof.phase("forward"):
                    pass
            for event in fake.made:
                event.reached_at = 0
    found = prof.summary.to_dict()
    assert [epoch["stages"][0]["phases"]["forward"]["device"]["count"] for epoch in found["epochs"]] == [19, 20, 20]
    assert found["stages"]["train"]["phases"]["forward"]["device"]["count"] == 59
    (path,) = run_paths(home / "runs")
    assert document(load(path)) == found


def test_nothing_is_recorded_into_captured_graph(clock: FakeClock, device: FakeDevice) -> None:
    device.capturing = True
    timer = Timer()
    loop(timer, clock, 5)
    assert device.events == 0


def test_graph_captured_in_mid_run_is_untouched(clock: FakeClock, device: FakeDevice) -> None:
    timer = Timer()
    for step in timer.iterate(Stage.TRAIN, range(12), batch_size):
        device.capturing = 4 <= step < 8  # marks of before are waiting meanwhile: not even asked for
        with timer.phase("forward"):
            clock.pass_ms(3)
    record = taken(timer, clock)
    forward = record.stages["train"].phases[("forward",)]
    assert (forward.count, forward.device.count) == (12, 7)
    assert forward.device.sum_ns == 7 * 3 * MS
    assert timer.device_fault is None


def test_an_error_of_cudas_is_the_programs_own(clock: FakeClock, device: FakeDevice) -> None:
    timer = Timer()
    for step in timer.iterate(Stage.TRAIN, range(12), batch_size):
        if step == 6:
            device.error = RuntimeError("CUDA error: device-side assert triggered")
        with timer.phase("forward"):
            clock.pass_ms(3)
    record = EpochRecord(0)
    timer.take(record)
    assert record.stages["train"].phases[("forward",)].count == 12


# ---- hooks ---------------------------------------------------------------------------------------------------------


def trained(steps: int, attach: Callable[[Any, Any], Any], loader: Callable[[range], Any] = iter) -> list[float]:
    import torch

    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    attach(model, optimizer)
    losses = []
    for _ in loader(range(steps)):
        optimizer.zero_grad()
        loss = model(torch.randn(4, 8)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("way", ["passes", "none", "run"])
def test_hooked_phases_have_device_time(home: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    plain = trained(40, lambda *_: None)
    ticks = itertools.count(0, MS)  # a device on which a millisecond passes from one mark, or question, to the next
    fake = FakeDevice(lambda: next(ticks), 0)
    device_clock = DeviceClock(fake.new_event, fake.current_stream, fake.is_capturing)
    monkeypatch.setattr(Timer, "device_clock", lambda self: device_clock)
    with Profiler("hooks") as prof:
        if way == "run":
            prof.session.observation.follow_everything()
            losses = trained(40, lambda *_: None)
        else:
            losses = trained(40, prof.attach, prof.train if way == "passes" else iter)
    assert losses == plain
    stage = prof.summary.stages["train"]
    assert stage["steps"] == 40
    for phase in ("forward", "backward", "optimizer"):
        timed = stage["phases"][phase]
        assert timed["count"] == 40 or way == "run"  # which does not see the very first forward
        assert 33 <= timed["device"]["count"] <= 39, phase
        assert timed["device"]["total_s"] == pytest.approx(timed["device"]["count"] * 1e-3)  # its two marks, nothing between
    assert 0.1 < stage["device_busy"] <= 1
    assert ("device" in stage["phases"].get("after forward", {})) is (way == "run")
    assert fake.events <= 30  # marks are used again
    assert "train on the GPU" in str(prof.summary)
    assert "notes" not in prof.summary.to_dict()


def test_a_failing_clock_is_counted(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeDevice(time.perf_counter_ns, 0)
    fake.error = RuntimeError("CUDA error: an illegal memory access was encountered")
    device_clock = DeviceClock(fake.new_event, fake.current_stream, fake.is_capturing)
    monkeypatch.setattr("profiler.measure.timer.find_device_clock", lambda device: device_clock)
    with Profiler("failing") as prof:
        trained(5, prof.attach)
    assert prof.summary.to_dict()["notes"] == {"the GPU's clock failed: RuntimeError": 1}
    assert prof.summary.stages["train"]["phases"]["forward"]["count"] == 5


# ---- which device --------------------------------------------------------------------------------------------------


class Cuda:
    """torch.cuda; without `Event`, so that asking for one would fail."""

    def __init__(self, initialized: bool, *reserved: int, current: int = 0) -> None:
        self.initialized = initialized
        self.reserved = reserved
        self.current = current
        self.streams: list[int] = []

    def is_initialized(self) -> bool:
        return self.initialized

    def is_current_stream_capturing(self) -> bool:
        return False

    def device_count(self) -> int:
        assert self.initialized, "this call initialises CUDA"
        return len(self.reserved)

    def memory_reserved(self, index: int) -> int:
        return self.reserved[index]

    def current_device(self) -> int:
        assert self.initialized, "this call initialises CUDA"
        return self.current

    def current_stream(self, index: int) -> Any:
        self.streams.append(index)
        return None

    def Event(self, enable_timing: bool) -> Any:
        assert enable_timing
        return types.SimpleNamespace(record=lambda stream: None)


@pytest.mark.parametrize(
    ("cuda", "device", "found"),
    [
        (Cuda(False, 0), None, None),
        (Cuda(True, 5), None, 0),
        (Cuda(True, 5), "cpu", None),
        (Cuda(True, 5), "cuda", 0),
        (Cuda(True, 0), None, None),  # initialised, and not in use yet: a mark would make a context
        (Cuda(True, 0, 5), None, 1),  # a program that names cuda:1 everywhere
        (Cuda(True, 0, 5, current=1), None, 1),
        (Cuda(True, 5, 5), "cuda:1", 1),
        (Cuda(True, 5, 0), "cuda:1", None),
        (Cuda(True, 0, 5), "cuda", None),
    ],
)
def test_clock_belongs_to_device_in_use(
    monkeypatch: pytest.MonkeyPatch, cuda: Cuda, device: str | None, found: int | None
) -> None:
    fake = types.ModuleType("torch")
    fake.cuda = cuda  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", fake)
    device_clock = find_device_clock(device)
    assert (device_clock is None) is (found is None)
    if device_clock is not None:
        assert device_clock.mark() is not None
        assert cuda.streams == [found]
