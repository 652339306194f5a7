"""Threads that come and go, Profilers beside each other, and Profilers that nobody holds."""

from __future__ import annotations

import contextlib
import gc
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest

from profiler import Profiler
from profiler.session.unheld import NOTE
from profiler.storage.run_log import run_paths
from profiler.storage.run_reader import load
from support.processes import python, wait_for


def in_thread(work: Any, *args: Any) -> None:
    thread = threading.Thread(target=work, args=args)
    thread.start()
    thread.join()


class TestThreadsThatEnd:
    def test_their_places_are_used_again(self) -> None:
        with Profiler("server") as prof:

            @prof.inference
            def answer() -> None:
                with prof.phase("forward"):
                    pass

            for _ in range(300):
                in_thread(answer)
            assert len(prof.session.timer.places.all) < 10  # one; a thread's end may come a moment after its join
        stage = prof.summary.stages["inference"]
        assert (stage["steps"], stage["phases"]["forward"]["count"]) == (300, 300)

    def test_what_they_leave_open_ends_with_them(self) -> None:
        with Profiler("left") as prof:
            held = []

            def work() -> None:
                prof.phase("never left").__enter__()
                iterator = iter(prof.infer(range(5)))
                held.append(iterator)
                next(iterator)

            in_thread(work)
            wait_for(lambda: not any(state.segments for state in prof.session.timer.places.all))
            in_thread(lambda: prof.phase("mine").__enter__().__exit__())
            assert list(held[0]) == [1, 2, 3, 4]  # the loop goes on elsewhere
        told = prof.summary.to_dict()
        assert told["phases"]["mine"]["count"] == 1 and "phases" not in told["phases"]["mine"]
        assert told["stages"]["inference"]["steps"] == 5


class TestDepth:
    def test_a_thread_has_its_own(self) -> None:
        with Profiler("deep") as prof, contextlib.ExitStack() as stack:
            for level in range(32):
                stack.enter_context(prof.phase(f"level {level}"))

            def work() -> None:
                with prof.phase("mine"):
                    pass

            in_thread(work)
        told = prof.summary.to_dict()
        assert told["phases"]["mine"]["count"] == 1 and "notes" not in told

    def test_too_deep_is_said(self) -> None:
        with Profiler("deep") as prof:
            with contextlib.ExitStack() as stack:
                for level in range(35):
                    stack.enter_context(prof.phase(f"level {level}"))
            with prof.phase("after"):
                pass
        told = prof.summary.to_dict()
        assert told["notes"] == {"phases nested deeper than 32 levels were not measured": 3}
        assert told["phases"]["after"]["count"] == 1

    def test_too_many_names_are_said(self) -> None:
        with Profiler("names") as prof:
            for number in range(260):
                with prof.phase(f"name {number}"):
                    pass
        told = prof.summary.to_dict()
        assert told["phases"]["(more phases)"]["count"] == 4
        (note,) = told["notes"]
        assert "256 names" in note and told["notes"][note] == 4


class TestNobodyHolds:
    def test_a_cell_that_runs_again(self) -> None:
        torch = pytest.importorskip("torch")
        model = torch.nn.Linear(4, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        sessions, others = [], set(threading.enumerate())
        for _ in range(3):  # the name is bound again, as in a notebook
            prof = Profiler("cell")
            handle = prof.attach(model, optimizer)
            for _ in range(4):
                model(torch.ones(2, 4)).sum().backward()
                optimizer.step()
            sessions.append(prof.session)
        wait_for(lambda: [session.state for session in sessions] == ["over", "over", "running"])
        assert [session.run.whole().stages["train"].steps for session in sessions[:2]] == [4, 4]
        assert sessions[0].run.notes == {NOTE: 1}
        del prof
        gc.collect()
        assert sessions[2].state == "running"  # its handle is held
        del handle
        wait_for(lambda: sessions[2].state == "over")
        assert len(model._forward_hooks) == 0
        wait_for(lambda: set(threading.enumerate()) <= others)

    def test_a_loop_holds_it(self) -> None:
        seen = []
        for batch in Profiler("loop").train([1, 2, 3]):
            gc.collect()
            seen.append(batch)
        assert seen == [1, 2, 3]

    def test_a_decorated_function_holds_it(self) -> None:
        prof = Profiler("function")
        session, reference = prof.session, weakref.ref(prof)
        answer = prof.inference(lambda: 1)
        del prof
        gc.collect()
        assert [answer(), answer()] == [1, 1] and session.state == "running"
        del answer
        wait_for(lambda: reference() is None and session.state == "over")


class TestClosedByTheCollector:
    """A loop that was left and forgotten may be closed anywhere, also while our own code holds a lock."""

    def leave(self, prof: Profiler) -> list[Any]:
        epochs, inside = iter(prof.epochs(3)), iter(prof.train(range(5)))
        next(epochs)
        next(inside)
        return [inside, epochs]

    @pytest.mark.parametrize("which", range(3))
    def test_a_lock_is_held(self, home: Path, which: int) -> None:
        with Profiler("locked", interval=0.02) as prof:
            loops, session = self.leave(prof), prof.session
            with (session.timer.lock, *session._keeper.locks)[which]:
                loops.clear()
                assert session.epoch is not None  # not now
            wait_for(lambda: session.epoch is None)
            outside = iter(prof.train(range(5)))
            next(outside)
            with (session.timer.lock, *session._keeper.locks)[which]:
                del outside
            # Under the timer's lock nothing is changed: the next pass, or here the run's end, ends it.
            wait_for(lambda: which == 0 or load(run_paths(home / "runs")[0]).outside.stages)
        self.check(prof)

    def test_the_sampling_thread_does_it(self) -> None:
        with Profiler("elsewhere", interval=0.02) as prof:
            loops = self.leave(prof)
            prof.session.sampler.each_tick.append(loops.clear)
            wait_for(lambda: not loops and prof.session.epoch is None)
            list(prof.train(range(1)))
        self.check(prof)

    def check(self, prof: Profiler) -> None:
        (epoch,) = prof.summary.epochs
        assert [(stage["steps"], stage["partial"]) for stage in epoch["stages"]] == [(1, True)]
        assert prof.summary.stages["train"]["steps"] == 2 and "notes" not in prof.summary.to_dict()

    @pytest.mark.slow
    def test_the_program_goes_on(self) -> None:
        answer = python("-c", FORGETFUL)
        assert (answer.code, answer.out, answer.err) == (0, "True None\n", "")


FORGETFUL = """
import gc, time
from profiler import Profiler
class Ring:
    def __init__(self, *things):
        self.itself, self.things = self, things
forgotten, until = 0, time.monotonic() + 3
gc.set_threshold(200)
with Profiler("forgetful", interval=0.01, settings={"slice_s": 0.02}) as prof:
    while time.monotonic() < until:
        loops = iter(prof.epochs(3)), iter(prof.train(range(5))), iter(prof.validate(range(3)))
        for loop in loops:
            next(loop)
        Ring(*loops)
        del loop, loops
        forgotten += 1
print(forgotten > 100, prof.summary.to_dict().get("notes"))
"""


class TestBesideEachOther:
    @pytest.mark.parametrize("names_passes", [False, True])
    def test_two_threads_each_count_their_own(self, names_passes: bool) -> None:
        torch = pytest.importorskip("torch")
        from torch.utils.data import DataLoader

        told: dict[int, Any] = {}
        together = threading.Barrier(2)

        def train(rows: int) -> None:
            model = torch.nn.Linear(4, 2)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            batches = DataLoader(torch.ones(rows, 4), 2)
            with Profiler("thread") as prof:
                prof.attach(model, optimizer, *(() if names_passes else (batches,)))
                together.wait()
                for _ in range(5):
                    for x in prof.train(batches) if names_passes else batches:
                        model(x).sum().backward()
                        optimizer.step()
                together.wait()
            told[rows] = prof.summary.stages["train"]

        threads = [threading.Thread(target=train, args=(rows,)) for rows in (16, 24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for rows, stage in told.items():
            steps = 5 * rows // 2
            counts = [stage["phases"][name]["count"] for name in ("forward", "backward", "optimizer")]
            assert (stage["steps"], stage["passes"], counts) == (steps, 5, [steps] * 3)

    def test_one_inside_another(self) -> None:
        torch = pytest.importorskip("torch")

        def made() -> Any:
            model = torch.nn.Linear(4, 2)
            return model, torch.optim.SGD(model.parameters(), lr=0.1)

        def step(model: Any, optimizer: Any) -> None:
            model(torch.ones(2, 4)).sum().backward()
            optimizer.step()

        ours, theirs = made(), made()
        with Profiler("outer") as outer:
            outer.attach(*ours)
            for _ in outer.train(range(4)):
                step(*ours)
                with Profiler("inner") as inner:
                    inner.attach(*theirs)
                    for _ in inner.train(range(3)):
                        step(*theirs)
        for prof, steps in ((outer, 4), (inner, 3)):
            stage = prof.summary.stages["train"]
            assert [stage["phases"][name]["count"] for name in ("forward", "backward", "optimizer")] == [steps] * 3

    def test_another_threads_model_is_not_ours(self) -> None:
        torch = pytest.importorskip("torch")
        model, other = torch.nn.Linear(4, 2), torch.nn.Linear(4, 2)
        with Profiler("ours") as prof:
            prof.attach(model)
            in_thread(lambda: other(torch.ones(2, 4)).sum().backward())
        assert prof.summary.to_dict()["stages"] == {}


@pytest.mark.slow
def test_end_of_the_program_waits_for_it(home: Path) -> None:
    """A thread ends the run of a Profiler that nobody holds, and the interpreter would end without it."""
    for _ in range(5):
        answer = python("-c", "from profiler import Profiler\nlist(Profiler('x').train(range(5)))")
        assert (answer.code, answer.err) == (0, "")
    assert [load(path).state for path in run_paths(home / "runs")] == ["finished"] * 5
