"""Which line is busy: what a sample finds, and what is never read."""

from __future__ import annotations

import dis
import gc
import json
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

from profiler import Profiler, Telemetry
from profiler import settings as saved
from profiler.config.paths import runs_path
from profiler.measure.lines import Busy, LineFinder, called_at
from profiler.records.causes import MOST_LINES, MOST_LINES_OF_RUN, Line, Lines, busiest, merge_lines
from profiler.storage.run_log import run_paths
from profiler.storage.run_reader import load
from support.processes import python

NAMES_CALLS = pytest.mark.skipif(sys.version_info < (3, 11), reason="bytecode has no places in the source before 3.11")


def sampled(work: Callable[[threading.Event], None]) -> Busy | None:
    """Return the busy line of a thread that does this work, once it is in the middle of it."""
    begun, end = threading.Event(), threading.Event()

    def target() -> None:
        begun.set()
        work(end)

    thread = threading.Thread(target=target)
    thread.start()
    begun.wait(5)
    time.sleep(0.05)
    try:
        assert thread.ident is not None
        finder = LineFinder()
        found = finder.find(thread.ident)
        return None if found is None else finder.busy(found)
    finally:
        end.set()
        thread.join(5)


def waits_in_library(end: threading.Event) -> None:
    end.wait(5)


def sleeps_in_built_in(end: threading.Event) -> None:
    while not end.is_set():
        time.sleep(0.2)


def calls_through_json(end: threading.Event) -> None:
    json.dumps(object(), default=lambda _: end.wait(5))


class TestFinding:
    def test_function_of_a_library_is_named(self) -> None:
        found = sampled(waits_in_library)
        assert found is not None
        assert (found.file, found.function, found.called) == ("test_lines.py", "waits_in_library", "threading.wait")
        assert found.line == waits_in_library.__code__.co_firstlineno + 1

    @NAMES_CALLS
    def test_built_in_function_is_named(self) -> None:
        found = sampled(sleeps_in_built_in)
        assert found is not None
        assert found[2:] == ("sleeps_in_built_in", "sleep")

    def test_innermost_line_of_the_run_counts(self) -> None:
        found = sampled(calls_through_json)
        assert found is not None and (found.function, found.called) == ("<lambda>", "threading.wait")

    def test_ended_thread_has_no_line(self) -> None:
        thread = threading.Thread(target=lambda: None)
        thread.start()
        thread.join()
        assert thread.ident is not None and LineFinder().find(thread.ident) is None

    def test_endless_code_is_forgotten(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("profiler.measure.lines.MAX_KNOWN", 10)
        finder = LineFinder()
        for number in range(50):
            scope: dict[str, object] = {"finder": finder, "get_ident": threading.get_ident}
            source = f"def made_{number}():\n    return finder.busy(finder.find(get_ident()))"
            exec(compile(source, "made.py", "exec"), scope)  # noqa: S102  # code that is made while it runs
            found = scope[f"made_{number}"]()  # type: ignore[operator]
            assert found.function == f"made_{number}"
        assert max(map(len, (finder._whose, finder._words, finder._held))) <= 30

    def test_no_frame_is_kept(self) -> None:
        class Held:
            pass

        alive: list[weakref.ref[Held]] = []

        def work(end: threading.Event) -> None:
            held = Held()
            alive.append(weakref.ref(held))
            end.wait(5)

        sampled(work)
        gc.collect()
        assert alive[0]() is None


RINGS = """
import gc, threading
from profiler.measure.lines import LineFinder
class Ring:
    def __init__(self):
        self.itself, self.of_the_thread = self, threading.local()
        self.of_the_thread.number = 1
finder, collected = LineFinder(), []
gc.callbacks.append(lambda phase, info: collected.append(phase))
gc.set_threshold(3)
for _ in range(2000):
    Ring()
    finder.find(threading.get_ident())
print(len(collected) > 100, gc.isenabled())
"""


REFUSED = """
import gc, sys, threading
from profiler.measure.lines import LineFinder
def refuse(event, _):
    if event == "sys._current_frames":
        raise RuntimeError("refused")
sys.addaudithook(refuse)
try:
    LineFinder().find(threading.get_ident())
except RuntimeError as error:
    print(error, gc.isenabled())
"""


class TestGarbageMeanwhile:
    """Python 3.11 may collect garbage while it gathers the frames; see `frames_of_threads`."""

    def test_the_program_goes_on(self) -> None:
        answer = python("-c", RINGS)
        assert (answer.code, answer.out, answer.err) == (0, "True True\n", "")

    def test_a_collector_that_is_off_stays_off(self) -> None:
        gc.disable()
        try:
            assert LineFinder().find(threading.get_ident()) is not None and not gc.isenabled()
        finally:
            gc.enable()

    def test_a_refusal_leaves_it_on(self) -> None:
        """A program may refuse the question by a hook of `sys.addaudithook`."""
        answer = python("-c", REFUSED)
        assert (answer.code, answer.out, answer.err) == (0, "refused True\n", "")


class TestRun:
    def train(self, **options: object) -> Lines:
        with Profiler("lines", interval=0.05, **options) as prof:  # type: ignore[arg-type]
            for _ in prof.train(range(8)):
                with prof.phase("forward"):
                    slow_forward()
                slow_after()
        return load(run_paths(runs_path())[0]).whole().lines

    def test_lines_are_joined_to_phases(self) -> None:
        lines = self.train()
        found: dict[tuple[str, str, str], int] = {}
        for line, samples in lines.items():
            key = (line.stage, line.phase, line.function)
            found[key] = found.get(key, 0) + samples
        forward, after = found["train", "forward", "slow_forward"], found["train", "", "slow_after"]
        assert forward > after > 0
        assert {line.file for line in lines} <= {"test_lines.py", ""}

    def test_setting_switches_them_off(self) -> None:
        assert self.train(settings={"lines": False}) == {}

    def test_any_off_wins(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("EPOCHMETER_LINES", "0")
        assert self.train(settings={"lines": True}) == {}

    def test_off_in_the_file_is_final(self) -> None:
        saved.update(lines=False)
        assert self.train(settings={"lines": True}) == {}

    def test_packages_that_embed_us_get_none(self) -> None:
        telemetry = Telemetry("linepackage", "1.0.0")
        with telemetry.profiler("train") as prof:
            for _ in prof.train(range(4)):
                slow_forward()
        telemetry.close()
        assert load(run_paths(runs_path())[0]).whole().lines == {}

    def test_log_has_no_folder(self) -> None:
        self.train()
        text = run_paths(runs_path())[0].read_text("utf-8")
        assert "test_lines.py" in text
        assert str(Path(__file__).parent) not in text


def slow_forward() -> None:
    time.sleep(0.1)


def slow_after() -> None:
    time.sleep(0.03)


def many(count: int) -> Lines:
    return {Line("train", "forward", "a.py", number, "f", ""): number for number in range(1, count + 1)}


def calls_in(source: str) -> list[str]:
    """Return what each call in this source calls, in the order of its instructions."""
    code = compile(source, "calls.py", "exec")
    found = []
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("CALL", "CALL_KW", "CALL_FUNCTION_EX"):
            found.append(called_at(code, instruction.offset))
    return found


@NAMES_CALLS
class TestCalls:
    @pytest.mark.parametrize(
        ("source", "names"),
        [
            ("print(1)", ["print"]),
            ("os.fsync(file.fileno())", ["fileno", "fsync"]),
            ("a.b.c.d(1, k=2)", ["d"]),
            ("loss.item() + net(x)", ["item", "net"]),
            ("log(f'{loss.item()}')", ["item", "log"]),
            ("f(*args, **more)", ["f"]),
            ("table[0](1)", ["table"]),
            ("\n".join(f"v{n} = {n}" for n in range(400)) + "\nlate.call()", ["call"]),
        ],
    )
    def test_name_of_each_call(self, source: str, names: list[str]) -> None:
        assert calls_in(source) == names

    @pytest.mark.parametrize("at", [-2, 0, 10_000, 3])
    def test_no_call_has_no_name(self, at: int) -> None:
        assert called_at(compile("x = 1", "a.py", "exec"), at) == ""

    def test_local_name_is_told(self) -> None:
        code = compile("def outer(work):\n    return work()", "a.py", "exec").co_consts[0]
        (at,) = (one.offset for one in dis.get_instructions(code) if one.opname == "CALL")
        assert called_at(code, at) == "work"


class TestBounds:
    def test_few_lines_stay_as_they_are(self) -> None:
        assert busiest(many(MOST_LINES)) == many(MOST_LINES)

    def test_others_are_counted_together(self) -> None:
        kept = busiest(many(100))
        assert len(kept) == MOST_LINES + 1 and sum(kept.values()) == sum(many(100).values())
        assert kept[Line("train", "forward", "", 0, "", "")] == sum(range(1, 101 - MOST_LINES))

    def test_a_run_holds_so_many(self) -> None:
        into: Lines = {}
        merge_lines(into, many(2000))
        assert len(into) == MOST_LINES_OF_RUN + 1 and sum(into.values()) == sum(many(2000).values())
