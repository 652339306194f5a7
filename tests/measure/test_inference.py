"""Inference services: calls that overlap, in threads and in tasks of asyncio; latencies, cold start, batch sizes."""

from __future__ import annotations

import asyncio
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from profiler import ArgumentTypeError, Profiler
from profiler.config.paths import runs_path
from profiler.storage.run_log import run_paths
from profiler.storage.run_reader import load
from support.processes import wait_for


class Batch:
    """Something with a first dimension."""

    def __init__(self, size: int) -> None:
        self.shape = (size, 3)


def inference(prof: Profiler) -> dict[str, Any]:
    stage = prof.summary.stages["inference"]
    parts = [entry["total_s"] for entry in stage["phases"].values()]
    assert sum(parts) == pytest.approx(stage.get("call_time_s", stage["duration_s"]), abs=1e-6)
    assert min(parts) >= 0
    return stage


class TestAsyncio:
    def test_concurrent_calls_have_own_latencies(self) -> None:
        with Profiler("service") as prof:

            @prof.inference
            async def predict(batch: Batch, seconds: float) -> float:
                await asyncio.sleep(seconds)
                return seconds

            async def serve() -> list[float]:
                return await asyncio.gather(*(predict(Batch(4), 0.02 + 0.01 * (index % 3)) for index in range(30)))

            began = time.perf_counter()
            assert asyncio.run(serve()) == [0.02, 0.03, 0.04] * 10
            took = time.perf_counter() - began  # on a busy machine, many times what the sleeps are
        stage = inference(prof)
        assert stage["steps"] == stage["latency"]["count"] == 30
        assert stage["samples"] == 120
        assert 0.02 <= stage["latency"]["p50_s"] <= stage["latency"]["max_s"] <= 1.1 * took
        assert 0.04 <= stage["duration_s"] <= took
        assert 0.9 <= stage["call_time_s"] <= 30 * took and stage["call_time_s"] > 5 * stage["duration_s"]  # beside each other
        assert stage["samples_per_s"] == pytest.approx(120 / stage["duration_s"])
        assert stage["latency"]["cold"]["count"] == 1

    def test_phases_belong_to_the_call_they_are_in(self) -> None:
        with Profiler("phases") as prof:

            @prof.phase("fetch")
            async def fetch() -> None:
                await asyncio.sleep(0.01)

            @prof.inference
            async def predict(index: int) -> None:
                await fetch()
                with prof.phase("forward"):
                    await asyncio.sleep(0.005 * (index % 4))
                    with prof.phase("attention"):
                        await asyncio.sleep(0)

            async def serve() -> None:
                await asyncio.gather(*(predict(index) for index in range(12)))

            asyncio.run(serve())
        phases = inference(prof)["phases"]
        assert phases["fetch"]["count"] == phases["forward"]["count"] == 12
        assert phases["forward"]["phases"]["attention"]["count"] == 12
        assert phases["forward"]["total_s"] >= 3 * (0.005 + 0.010 + 0.015)

    def test_failed_or_cancelled_call_is_partial(self) -> None:
        with Profiler("failures") as prof:

            @prof.inference
            async def predict(what: str) -> str:
                await asyncio.sleep(0.005)
                if what == "fail":
                    raise ValueError(what)
                await asyncio.sleep(0.05 if what == "wait" else 0)
                return what

            async def serve() -> list[Any]:
                late = asyncio.create_task(predict("wait"))
                found = await asyncio.gather(predict("fail"), predict("ok"), return_exceptions=True)
                late.cancel()
                return [*found, *await asyncio.gather(late, return_exceptions=True)]

            failed, fine, cancelled = asyncio.run(serve())
        assert (str(failed), fine, type(cancelled)) == ("fail", "ok", asyncio.CancelledError)
        stage = inference(prof)
        assert stage["steps"] == 3
        assert stage["partial"]

    def test_loops_in_tasks_that_take_turns(self) -> None:
        async def worker(prof: Profiler, name: int) -> None:
            for _ in prof.infer([Batch(name)] * 5):
                with prof.phase("forward"):
                    await asyncio.sleep(0.02)

        async def serve(prof: Profiler) -> None:
            await asyncio.gather(*(worker(prof, name) for name in (1, 2, 3)))

        with Profiler("workers") as prof:
            asyncio.run(serve(prof))
        stage = inference(prof)
        assert (stage["steps"], stage["passes"], stage["samples"]) == (15, 3, 30)
        assert stage["phases"]["forward"]["count"] == 15
        assert stage["latency"]["p50_s"] < 0.05  # its own 20 ms, not the turns of the others
        assert not stage["partial"]

    def test_work_handed_to_a_thread_is_separate(self) -> None:
        with Profiler("to_thread") as prof:

            def work() -> None:
                with prof.phase("forward"):
                    time.sleep(0.005)

            @prof.inference
            async def predict() -> None:
                await asyncio.to_thread(work)

            async def serve() -> None:
                await asyncio.gather(*(predict() for _ in range(6)))

            asyncio.run(serve())
        assert inference(prof)["phases"]["forward"]["count"] == 6

    def test_task_outliving_its_call_is_outside(self) -> None:
        with Profiler("outlives") as prof:
            background = []

            async def later() -> None:
                await asyncio.sleep(0.02)
                with prof.phase("later"):
                    pass

            @prof.inference
            async def predict() -> None:
                background.append(asyncio.create_task(later()))

            async def serve() -> None:
                await predict()
                await asyncio.gather(*background)

            asyncio.run(serve())
        assert "later" not in inference(prof)["phases"]
        assert prof.summary.to_dict()["phases"]["later"]["count"] == 1

    def test_thousand_concurrent_calls_use_little_memory(self) -> None:
        with Profiler("many") as prof:

            @prof.inference
            async def predict(begun: list[None], all_begun: asyncio.Event) -> None:
                begun.append(None)
                if len(begun) == 1000:
                    all_begun.set()
                await all_begun.wait()

            async def serve() -> None:
                waiting: tuple[list[None], asyncio.Event] = [], asyncio.Event()
                await asyncio.gather(*(predict(*waiting) for _ in range(1000)))

            tracemalloc.start()
            try:
                asyncio.run(serve())
                first = tracemalloc.get_traced_memory()[0]
                asyncio.run(serve())
                second = tracemalloc.get_traced_memory()[0]
            finally:
                tracemalloc.stop()
            states = [state for state in prof.session.timer.places.all if not state.is_owner]
        assert len(states) == 1000  # places are used again
        assert first < 25_000 * 1000 and second < 1.2 * first
        assert inference(prof)["steps"] == 2000

    def test_training_loop_inside_running_asyncio_loop(self) -> None:
        """As in a notebook, whose cells are run by a task."""

        async def cell(prof: Profiler) -> None:
            for _ in prof.train([Batch(2)] * 4):
                with prof.phase("forward"):
                    pass

        with Profiler("notebook") as prof:
            asyncio.run(cell(prof))
            assert prof.session.timer.places._task_place is None  # the quick way, as without asyncio
        assert prof.summary.stages["train"]["phases"]["forward"]["count"] == 4


class TestThreads:
    def test_samples_a_second_of_overlapping_calls(self, home: Path) -> None:
        with Profiler("rate") as prof:
            calls: list[tuple[float, float]] = []

            def forward(batch: Batch) -> None:
                began = time.perf_counter()
                time.sleep(0.01)
                calls.append((began, time.perf_counter()))

            answer = prof.inference(forward)
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(answer, [Batch(4)] * 40))
        stage, took = inference(prof), max(end for _, end in calls) - min(began for began, _ in calls)
        assert stage["samples_per_s"] == pytest.approx(160 / took, rel=0.2)
        recorded = load(run_paths(runs_path())[0]).whole().stages["inference"]
        assert recorded.beside_ns == pytest.approx((stage["call_time_s"] - stage["duration_s"]) * 1e9)
        assert stage["call_time_s"] > 2 * stage["duration_s"]

    def test_call_within_a_call_is_beside_nothing(self) -> None:
        with Profiler("within") as prof:
            inner = prof.inference(lambda: time.sleep(0.01))
            prof.inference(lambda: [inner(), time.sleep(0.01)])()
        assert "call_time_s" not in inference(prof)

    def test_percentiles_cold_start_and_batch_sizes(self) -> None:
        with Profiler("threads") as prof:
            seen = []

            @prof.inference
            def predict(batch: Batch, *, scale: float = 1.0) -> float:
                time.sleep(0.05 if not seen else 0.002)
                seen.append(batch)
                return scale

            assert predict(Batch(1)) == 1.0  # the cold one
            threads = [
                threading.Thread(target=lambda size=size: [predict(Batch(size), scale=2.0) for _ in range(10)])
                for size in (2, 4, 8)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        stage = inference(prof)
        assert stage["steps"] == 31
        assert stage["samples"] == 1 + 10 * (2 + 4 + 8)
        assert stage["batch_size"] == {"count": 31, "mean": pytest.approx(141 / 31), "min": 1, "max": 8, "p50": 4}
        cold = stage["latency"]["cold"]
        assert cold["count"] == 1 and cold["total_s"] >= 0.05
        assert stage["latency"]["p50_s"] < 0.05
        assert "inference: 1 to 8 samples" in str(prof.summary)
        assert load(run_paths(runs_path())[0]).whole().stages["inference"].batch.count == 31

    def test_samples_are_found_among_named_arguments_too(self) -> None:
        with Profiler("named") as prof:

            @prof.inference
            def predict(*, batch: Batch) -> None: ...

            predict(batch=Batch(5))
        assert inference(prof)["samples"] == 5

    @pytest.mark.parametrize("by_other_thread", [False, True])
    def test_a_service_is_on_disk_before_it_ends(self, by_other_thread: bool) -> None:
        prof = Profiler("service", interval=0.02, settings={"slice_s": 0.1}).start()
        predict = prof.inference(lambda: None)

        def call() -> None:
            predict()
            predict()

        def kept() -> int:
            wait_for(lambda: [path for path in run_paths(runs_path()) if path.stat().st_size])
            stages = load(run_paths(runs_path())[0]).whole().stages
            return stages["inference"].steps if "inference" in stages else 0

        if by_other_thread:
            thread = threading.Thread(target=call)
            thread.start()
            thread.join()
        else:
            call()
        wait_for(lambda: prof.session.timer.is_slice_due or kept())
        if not by_other_thread:
            predict()  # the call during which the slice is due closes it
        expected = 2 + (not by_other_thread)
        wait_for(lambda: kept() == expected)
        assert load(run_paths(runs_path())[0]).state == "running"
        prof.stop()
        assert kept() == expected

    def test_after_the_run_calls_pass_through(self) -> None:
        prof = Profiler("over")
        predict = prof.inference(lambda: 3)

        @prof.inference
        async def answer() -> int:
            return 4

        predict()
        prof.stop()
        assert predict() == 3
        assert asyncio.run(answer()) == 4
        assert inference(prof)["steps"] == 1


def test_generator_functions_are_refused() -> None:
    prof = Profiler("generators")

    def stream() -> Iterator[int]:
        yield 1

    async def stream_slowly() -> AsyncIterator[int]:
        yield 1

    for function in (stream, stream_slowly, 3):
        with pytest.raises(ArgumentTypeError, match="returns its result"):
            prof.inference(function)  # type: ignore[arg-type]
