"""Causes that are measured inside phases: collections, compilations, waiting for a CPU, loaders, operations, memory."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from profiler import Profiler
from profiler.config.paths import runs_path
from profiler.measure import memory_growth
from profiler.measure.cause_book import CauseBook
from profiler.measure.compiling import CompileWatch
from profiler.measure.garbage import GarbageWatch
from profiler.measure.loop_watch import LoopWatch
from profiler.measure.memory_growth import PeakMemory
from profiler.measure.scheduling import read_scheduled
from profiler.measure.timer import Timer
from profiler.records.causes import COLLECTION, COMPILATION, LOADER_START, ON_CPU, STARVED, CausePlace, Cost, Costs
from profiler.records.loader import LoaderFacts
from profiler.records.run import Run
from profiler.records.vocabulary import Stage
from profiler.storage.run_log import run_paths
from profiler.storage.run_reader import load

LINUX = pytest.mark.skipif(not Path("/proc/thread-self/schedstat").exists(), reason="the system counts no such times")


def recorded() -> Run:
    return load(run_paths(runs_path())[0])


def spent(costs: Costs, cause: str, stage: str = "train", phase: str | None = None) -> float:
    """Return the seconds of a cause in a stage, or in one phase of it."""
    return sum(c.ns for p, c in costs.items() if p[:2] == (cause, stage) and phase in (None, p.phase)) / 1e9


class TestCollections:
    def test_each_counts_in_its_phase(self) -> None:
        timer, book = Timer(), CauseBook()
        watch = GarbageWatch(timer.owner, timer.edges.has_begun, book)
        segment = timer.begin(Stage.TRAIN)
        held = [[number] for number in range(200_000)]
        watch.start()
        try:
            with timer.phase("forward"), timer.phase("attention"):
                gc.collect()
            gc.collect()
            gc.collect()
        finally:
            watch.stop()
        segment.close(partial=False)
        watch.add_up()
        taken, _ = book.take()
        del held
        assert taken[CausePlace(COLLECTION, "train", "forward")].times >= 1
        assert taken[CausePlace(COLLECTION, "train", "")].times >= 2
        assert sum(cost.ns for cost in taken.values()) == watch.spent_ns > 0
        watch.add_up()
        assert book.take() == ({}, {})

    def test_a_run_keeps_them_by_phase(self) -> None:
        held = [[number] for number in range(300_000)]
        with Profiler("collects", interval=0.05) as prof:
            for _ in prof.epochs(2):
                for _ in prof.train(range(3)):
                    with prof.phase("backward"):
                        gc.collect()
        del held
        run = recorded()
        whole = run.whole()
        inside = spent(whole.costs, COLLECTION, "train", "backward")
        assert 0.5 < inside / (whole.stages["train"].phases["backward",].total_ns / 1e9) <= 1.001
        in_slices = sum(one.costs.get((COLLECTION, "train"), 0) for one in run.slices) / 1e9
        assert in_slices == pytest.approx(spent(whole.costs, COLLECTION))


class Handler:
    """What torch calls back, in the shape of ``torch._dynamo.callback.callback_handler``."""

    def __init__(self) -> None:
        self.start_callbacks: list[Any] = []
        self.end_callbacks: list[Any] = []

    def register_start_callback(self, callback: Any) -> None:
        self.start_callbacks.append(callback)

    def register_end_callback(self, callback: Any) -> None:
        self.end_callbacks.append(callback)


class TestCompilations:
    def test_real_ones_count_in_their_phase(self) -> None:
        torch = pytest.importorskip("torch")
        net = torch.compile(torch.nn.Linear(4, 4), backend="eager")
        import torch._dynamo.callback as real

        before = len(real.callback_handler.start_callbacks)
        with Profiler("compiles", interval=0.05) as prof:
            for step in prof.train(range(4)):
                with prof.phase("forward"):
                    net(torch.ones(2 + step // 2 * 3, 4))
        costs = recorded().whole().costs
        cost = costs[CausePlace(COMPILATION, "train", "forward")]
        assert cost.times >= 1 and 0 < cost.ns / 1e9 <= recorded().whole().stages["train"].phases["forward",].total_ns / 1e9
        assert len(real.callback_handler.start_callbacks) == before

    def test_callbacks_come_back_after_reset(self, monkeypatch: pytest.MonkeyPatch) -> None:
        timer, handler = Timer(), Handler()
        module = type(sys)("torch._dynamo.callback")
        vars(module)["callback_handler"] = handler
        monkeypatch.setitem(sys.modules, "torch._dynamo.callback", module)
        watch = CompileWatch(timer.owner, timer.edges.has_begun, CauseBook())
        watch.look()
        watch.look()
        assert len(handler.start_callbacks) == len(handler.end_callbacks) == 1
        handler.start_callbacks.clear()
        handler.end_callbacks.clear()
        watch.look()
        assert len(handler.start_callbacks) == 1
        watch.stop()
        watch.stop()
        watch.look()
        assert not handler.start_callbacks and not handler.end_callbacks

    def test_an_end_alone_counts_nothing(self) -> None:
        timer, book = Timer(), CauseBook()
        CompileWatch(timer.owner, timer.edges.has_begun, book)._ends()
        assert book.take() == ({}, {})


@LINUX
class TestScheduling:
    def test_busy_thread_is_on_a_cpu(self) -> None:
        before = read_scheduled(threading.get_native_id())
        until = time.thread_time() + 0.1
        while time.thread_time() < until:
            pass
        after = read_scheduled(threading.get_native_id())
        assert before is not None and after is not None
        assert after.on_cpu - before.on_cpu == pytest.approx(0.1e9, rel=0.3)

    def test_sleeping_thread_is_not(self) -> None:
        before = read_scheduled(threading.get_native_id())
        time.sleep(0.1)
        after = read_scheduled(threading.get_native_id())
        assert before is not None and after is not None and after.on_cpu - before.on_cpu < 0.05e9

    @pytest.mark.parametrize("thread", [None, -1, 2**31 - 1])
    def test_unknown_thread_has_no_times(self, thread: int | None) -> None:
        assert read_scheduled(thread) is None

    @pytest.mark.parametrize("answer", [b"0 0 0\n", b"", b"1 2\n", b"not numbers at all"])
    def test_kernel_that_counts_nothing(self, answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "read", lambda file, most: answer)
        assert read_scheduled(threading.get_native_id()) is None

    @pytest.mark.slow
    def test_starved_loop_is_seen_in_its_phase(self) -> None:
        hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4 * (os.cpu_count() or 1))]
        try:
            with Profiler("starved", interval=0.2) as prof:
                for _ in prof.train(range(10)):
                    with prof.phase("forward"):
                        until = time.thread_time() + 0.05
                        while time.thread_time() < until:
                            pass
        finally:
            for hog in hogs:
                hog.kill()
                hog.wait()
        whole = recorded().whole()
        wall = whole.stages["train"].duration_ns / 1e9
        assert spent(whole.costs, ON_CPU) + spent(whole.costs, STARVED) == pytest.approx(wall, rel=0.25)
        assert spent(whole.costs, STARVED, "train", "forward") > 0.4 * wall
        assert prof.summary.verdict["kind"] == "starved"


class TestLoaders:
    def test_settings_and_start_are_kept(self) -> None:
        data = pytest.importorskip("torch.utils.data")
        loader = data.DataLoader(list(range(12)), batch_size=3, num_workers=1, prefetch_factor=4)
        with Profiler("loads", interval=0.05) as prof:
            for _ in prof.epochs(2):
                list(prof.train(loader))
            list(prof.validate(data.DataLoader(list(range(4)), batch_size=2)))
        run = recorded()
        assert run.loaders == {"train": LoaderFacts(1, 3, False, 4, False), "val": LoaderFacts(0, 2)}
        start = run.whole().costs[CausePlace(LOADER_START, "train", "data_wait")]
        assert start.times == 2 and 0 < start.ns <= run.whole().stages["train"].phases["data_wait",].total_ns

    def test_busy_workers_are_measured(self) -> None:
        data = pytest.importorskip("torch.utils.data")
        with Profiler("busy workers", interval=0.1) as prof:
            list(prof.train(data.DataLoader(Busy(), batch_size=4, num_workers=1)))
        readings = {key[0]: reading for key, reading in recorded().whole().readings.items()}
        busy = readings["epochmeter.loader.worker.cpu.utilization"]
        assert 0.2 < busy.total / busy.count <= 1.2
        assert readings["epochmeter.loader.worker.memory.usage"].maximum > 1e6

    def test_loader_that_tells_nothing_is_left_alone(self) -> None:
        data = pytest.importorskip("torch.utils.data")

        class Odd(data.DataLoader):  # type: ignore[misc,name-defined]
            @property
            def num_workers(self) -> int:
                if "is_made" in vars(self):
                    raise RuntimeError("ask later")
                return 0

            @num_workers.setter
            def num_workers(self, value: int) -> None:
                pass

            def __iter__(self) -> Any:
                return iter(range(3))

        odd = Odd([1, 2, 3])
        vars(odd)["is_made"] = True
        with Profiler("odd") as prof:
            assert list(prof.train(odd)) == [0, 1, 2]
        assert recorded().loaders == {}

    def test_other_iterables_are_no_loaders(self) -> None:
        with Profiler("lists") as prof:
            list(prof.train([1, 2, 3]))
            list(prof.train(iter([1, 2, 3])))
            assert list(prof.train([])) == []
        assert recorded().loaders == {}


class Busy:
    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> int:
        until = time.thread_time() + 0.02
        while time.thread_time() < until:
            pass
        return index


def test_operations_of_training_are_counted() -> None:
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
    nodes, waiting = set(), [net(torch.ones(2, 4)).sum().grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in nodes and "Accumulate" not in node.name():
            nodes.add(node)
            waiting += [following for following, _ in node.next_functions]
    with Profiler("operations") as prof:
        for _ in prof.epochs(2):
            for _ in prof.train(range(5)):
                net(torch.ones(2, 4)).sum().backward()
            with torch.no_grad():
                for _ in prof.validate(range(3)):
                    net(torch.ones(2, 4))
    stages = recorded().whole().stages
    assert stages["train"].operations == 10 * len(nodes)
    assert stages["val"].operations == 0


class TestMemory:
    def grow(self, peaks: list[int | None], monkeypatch: pytest.MonkeyPatch, clock: Any) -> PeakMemory:
        memory = PeakMemory()
        for peak in peaks:
            monkeypatch.setattr(memory_growth, "peak_bytes", lambda peak=peak: peak)
            clock.now += 50_000_000
            memory.look()
        return memory

    def test_steady_growth_has_a_slope(self, monkeypatch: pytest.MonkeyPatch, clock: Any) -> None:
        growth = self.grow([number * 2**20 for number in range(300)], monkeypatch, clock).growth()
        assert growth is not None and growth.fit > 0.999
        assert growth.by == pytest.approx(299 * 2**20, rel=0.05)

    def test_one_jump_is_no_line(self, monkeypatch: pytest.MonkeyPatch, clock: Any) -> None:
        growth = self.grow([2**20] * 40 + [2**30] * 40, monkeypatch, clock).growth()
        assert growth is not None and growth.fit < 0.8

    @pytest.mark.parametrize("peaks", [[], [5, 6, 7], [9] * 20, [None] * 20])
    def test_nothing_to_tell(self, peaks: list[int | None], monkeypatch: pytest.MonkeyPatch, clock: Any) -> None:
        assert self.grow(peaks, monkeypatch, clock).growth() is None

    def test_peak_is_that_of_the_system(self) -> None:
        peak = memory_growth.peak_bytes()
        assert peak is None or 10 * 2**20 < peak < 2**42


def test_step_numbers_count_over_epochs() -> None:
    torch = pytest.importorskip("torch")
    data = torch.utils.data.DataLoader(torch.ones(40, 4), batch_size=4)
    net = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with Profiler("numbers") as prof:
        prof.session.observation.follow_everything()
        for _ in range(4):
            for x in data:
                net(x).sum().backward()
                optimizer.step()
                time.sleep(0.03 if prof.session.timer.owner.trees and _ == 3 else 0)
    slow = sorted(recorded().whole().stages["train"].slowest, key=lambda step: -step.duration_ns)[:8]
    assert {step.epoch for step in slow} == {3}
    assert all(step.number == 30 + step.step for step in slow)


def test_watch_without_lines_still_sees_the_cpu() -> None:
    timer, book = Timer(), CauseBook()
    watch = LoopWatch(timer, book)
    watch.start(samples_lines=False)
    stop = threading.Event()
    thread = threading.Thread(target=lambda: watch.rest(stop, 0.05))
    thread.start()
    thread.join(5)
    _, lines = book.take()
    assert lines == {} and not thread.is_alive()


def test_book_is_taken_while_it_is_written() -> None:
    book = CauseBook()

    class Forgotten:
        def __del__(self) -> None:
            taken.append(book.take())  # as the end of a forgotten loop does

    taken: list[Any] = []
    with book._lock:
        forgotten: Any = Forgotten()
        del forgotten
    book.add_cost(COLLECTION, ("train", ""), 5)
    assert taken == [({}, {})] and book.take()[0] == {CausePlace(COLLECTION, "train", ""): Cost(5, 1)}


def test_collections_are_added_up_once_at_a_time() -> None:
    timer, book = Timer(), CauseBook()
    watch = GarbageWatch(timer.owner, timer.edges.has_begun, book)
    with watch._lock:
        watch.add_up()
    assert book.take() == ({}, {})
