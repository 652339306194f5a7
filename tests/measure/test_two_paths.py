"""Run random programs through the compiled hot path and the one in Python, and compare every number."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from profiler.measure import hot_path
from support.compiled import debug_python, source_with, worker_environment
from support.pythons import other_pythons

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(hot_path.COMPILED is None, reason="the compiled hot path is not built, or EPOCHMETER_PURE is set"),
]
WORKER = Path(__file__).parents[1] / "support" / "two_paths.py"
DURATIONS = st.one_of(st.integers(0, 300), st.integers(0, 10**7), st.sampled_from([0, 1, 10**9, 10**12]))
NAMES = st.sampled_from(["forward", "backward", "optimizer", "data_wait", "a", "checkpoint"])
STAGES = st.sampled_from(["train", "val", "inference"])
HOOKS = st.sampled_from(["forward", "forward_ends", "foreign", "backward", "backward_ends", "optimizer", "optimizer_ends"])
TELL = "from profiler.measure import hot_path; print(hot_path.WHY_PURE)"
BATCHES = st.integers(0, 11)


def operation(name: str, *of: Any) -> Any:
    return st.tuples(st.just(name), *of).map(list)


LEAVES = st.one_of(
    operation("time", DURATIONS),
    operation("enter", NAMES),
    operation("leave", st.integers(0, 3)),
    operation("end", NAMES),
    operation("epoch"),
    operation("device"),
    operation("slice"),
    operation("hook", HOOKS),
    operation("mode", st.booleans(), st.booleans()),
    operation("loader", st.integers(0, 2), st.integers(1, 4)),
    operation("fetch", DURATIONS, BATCHES),
    operation("exhaust", st.booleans()),
)


def containers(inner: Any) -> Any:
    several = st.lists(inner, max_size=5)
    return st.one_of(
        operation("phase", NAMES, several),
        operation("call", NAMES, several),
        operation("pass", STAGES, st.lists(st.tuples(DURATIONS, BATCHES, several), max_size=4), st.booleans()),
        operation("inference", BATCHES, several),
        operation("raise", several),
        operation("thread", several),
    )


PROGRAMS = st.lists(st.recursive(LEAVES, containers, max_leaves=25), max_size=8)
# Loops as they are, so that the usual cases come up as often as the odd ones: cached transitions, and steps in a row.
PHASES = st.lists(st.tuples(st.just("phase"), NAMES, st.just([["time", 250]])).map(list), max_size=4)
NAMED = st.builds(
    lambda steps, wait, inner: [["pass", "train", [[wait + i % 7, 1, inner] for i in range(steps)], False]],
    *(st.integers(1, 40), DURATIONS, PHASES),
)
FOLLOWED = st.builds(
    lambda steps, times, batch: [
        ["loader", 0, steps],
        *(
            each
            for _ in range(steps)
            for each in (
                *(["fetch", times[0], batch], ["time", 30], ["hook", "forward"], ["time", times[1]], ["hook", "forward_ends"]),
                *(["time", 20], ["hook", "backward"], ["time", times[2]], ["hook", "backward_ends"], ["time", 10]),
                *(["hook", "optimizer"], ["time", times[3]], ["hook", "optimizer_ends"], ["time", 5]),
            )
        ),
        ["exhaust", True],
    ],
    *(st.integers(1, 12), st.lists(DURATIONS, min_size=4, max_size=4), BATCHES),
)
WITHOUT_LOADER = st.builds(
    lambda steps, times, evaluates: [
        each
        for i in range(steps)
        for each in (
            *(["hook", "forward"], ["time", times[0]], ["hook", "forward_ends"], ["time", 3]),
            *([["hook", "forward"], ["time", 9], ["hook", "forward_ends"]] if evaluates and i % 3 else []),  # a second module
            *(["hook", "backward"], ["time", times[1]], ["hook", "backward_ends"]),
            *(["hook", "optimizer"], ["time", times[2]], ["hook", "optimizer_ends"], ["time", i % 2]),
        )
    ],
    *(st.integers(1, 30), st.lists(DURATIONS, min_size=3, max_size=3), st.booleans()),
)
DEVICE = st.sampled_from([[], [["device"]]])
PARTS = st.lists(st.one_of(NAMED, FOLLOWED, WITHOUT_LOADER, PROGRAMS), min_size=1, max_size=5)
LOOPS = st.builds(lambda first, parts: first + list(itertools.chain(*parts)), DEVICE, PARTS)


class Worker:
    """A process that runs programs on one of the two paths."""

    def __init__(self, *, is_pure: bool, python: str = sys.executable, **environment: str) -> None:
        given = {**os.environ, **environment, "EPOCHMETER_PURE": "1" if is_pure else "0"}
        self.process = subprocess.Popen(
            [python, str(WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=given
        )
        assert self.answer() == ("reference" if is_pure else "compiled")

    def answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(f"the worker ended: {self.process.communicate(timeout=10)[1]}")
        return json.loads(line)

    def send(self, program: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(program) + "\n")
        self.process.stdin.flush()


@pytest.fixture(scope="module")
def workers() -> Iterator[tuple[Worker, Worker]]:
    both = Worker(is_pure=False), Worker(is_pure=True)
    yield both
    for worker in both:
        worker.process.communicate(timeout=10)


def compared(workers: tuple[Worker, Worker], program: Any) -> None:
    for worker in workers:
        worker.send(program)
    compiled, reference = (worker.answer() for worker in workers)
    assert compiled == reference


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(PROGRAMS)
def test_odd_programs_measure_the_same(workers: tuple[Worker, Worker], program: Any) -> None:
    compared(workers, program)


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(LOOPS)
def test_loops_measure_the_same(workers: tuple[Worker, Worker], program: Any) -> None:
    compared(workers, program)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.one_of(DURATIONS, st.integers(0, 2**62)), max_size=300))
def test_histograms_count_the_same(workers: tuple[Worker, Worker], durations: list[int]) -> None:
    compared(workers, [["phase", "a", [["time", ns % 2**50]]] for ns in durations])


def compare_some(worker: Worker, examples: int) -> None:
    """Compare a worker with the path in Python, run by this Python."""
    both = worker, Worker(is_pure=True)

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(LOOPS)
    def check(program: Any) -> None:
        compared(both, program)

    try:
        check()
    finally:
        for each in both:
            each.process.communicate(timeout=60)
    assert [each.process.returncode for each in both] == [0, 0]


@pytest.mark.proof
@pytest.mark.parametrize("minor", range(10, 15))
def test_one_build_serves_every_python(minor: int) -> None:
    python = other_pythons().get(minor) or pytest.skip(f"Python 3.{minor} is not on this machine")
    compare_some(Worker(is_pure=False, python=python, **worker_environment()), 60)


@pytest.mark.proof
@pytest.mark.parametrize("minor", [10, 12, 13])
def test_builds_of_other_pythons_serve_this_one(minor: int, tmp_path: Path) -> None:
    """pip keeps a wheel that one Python has built, and installs it into another: it is of the stable ABI."""
    python = other_pythons().get(minor) or pytest.skip(f"Python 3.{minor} is not on this machine")
    compare_some(Worker(is_pure=False, **worker_environment(source_with(tmp_path, python=python))), 60)


def test_build_of_other_sources_is_not_used() -> None:
    other = f"import sys, types; sys.modules['profiler.measure.compiled'] = types.ModuleType('compiled'); {TELL}"
    told = subprocess.run(
        [sys.executable, "-c", other], capture_output=True, text=True, env=os.environ | {"EPOCHMETER_PURE": "0"}
    )
    assert (told.returncode, told.stdout.strip()) == (0, "the compiled one is of another version of the sources; install again")


@pytest.mark.proof
def test_sanitizers_find_no_fault(tmp_path: Path) -> None:
    folder = source_with(tmp_path, "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
    libraries = [
        subprocess.check_output(["gcc", f"-print-file-name=lib{name}.so"], text=True).strip() for name in ("asan", "ubsan")
    ]
    environment = {
        **worker_environment(folder),
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONMALLOC": "malloc",
    }
    compare_some(Worker(is_pure=False, **environment), 150)


@pytest.mark.proof
def test_programs_and_misuse_leave_no_reference(tmp_path: Path) -> None:
    python = debug_python() or pytest.skip("no debug build of Python (python3-dbg) is on this machine")
    folder = source_with(tmp_path, "-DPy_DEBUG", python=python)
    programs: list[Any] = []

    @settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(LOOPS)
    def collect(program: Any) -> None:
        programs.append(program)

    collect()
    done = subprocess.run(
        [python, str(WORKER.with_name("hot_path_refs.py"))],
        input="".join(json.dumps(program) + "\n" for program in programs),
        capture_output=True,
        text=True,
        env={**os.environ, **worker_environment(folder)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    left = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(left) == len(programs) + 6
    assert [entry for entry in left if entry[1] >= 20] == []  # twenty repeats; one or two are the counting's own
