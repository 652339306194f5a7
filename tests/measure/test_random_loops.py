"""Loops of random shape, against a second account of the same time.

The clock stands still but for the work that a loop says it does. So the two accounts must be equal, not nearly equal; only
percentiles come from a histogram, which tells how far off they may be.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import random
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from profiler import Profiler
from profiler.measure import clocks, hot_path
from profiler.records.run import Run
from profiler.records.timing import SLOWEST_KEPT
from profiler.storage.run_log import run_paths
from profiler.storage.run_reader import load
from support.processes import python

PHASES = ("forward", "backward", "optimizer", "mine")
STAGES = ("train", "validate", "infer")
NAMES = {"train": "train", "validate": "val", "infer": "inference"}
ERROR = 2 ** (1 / 16) - 1  # of a percentile: half a bucket of the coarsest histogram that such loops have


@dataclass
class StageAccount:
    steps: int = 0
    passes: int = 0
    partial: int = 0
    duration: int = 0
    step_times: list[int] = field(default_factory=list)
    steady: list[int] = field(default_factory=list)  # the same without the stage's first step, which is told apart
    is_warm: bool = False  # its first step has begun
    phases: dict[tuple[str, ...], list[int]] = field(default_factory=lambda: defaultdict(list))


@dataclass
class Frame:
    """A pass, or what lies outside all passes. Its clock stands still while another pass lies inside it."""

    account: StageAccount
    open: list[tuple[str, int]] = field(default_factory=list)  # names, and the frame's clock when they began
    clock: int = 0
    step_began: int = 0
    is_in_step: bool = False
    is_cold: bool = False  # the stage's first step is the first one here


class Failure(Exception):
    """Of the loop's own."""


class World:
    """A loop of random shape, run under a Profiler, and the account of it."""

    def __init__(self, seed: int, profiler: Profiler, clock: list[int]) -> None:
        self.random = random.Random(seed)
        self.prof = profiler
        self.clock = clock
        self.stages: dict[str, StageAccount] = defaultdict(StageAccount)
        self.outside = StageAccount()
        self.frames = [Frame(self.outside)]
        self.passes = 0
        self.is_sliced = False  # slices are due at any moment

    def work(self) -> None:
        if self.is_sliced and self.random.random() < 0.3:
            self.prof.session.timer.ask_for_slice()
        took = self.random.choice((1, 20, 300, 4_000)) * self.random.randint(1_000, 2_000)
        self.clock[0] += took
        self.frames[-1].clock += took

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        frame = self.frames[-1]
        frame.open.append((name, frame.clock))
        try:
            yield
        finally:
            path = tuple(name for name, _ in frame.open)
            _, began = frame.open.pop()
            frame.account.phases[path].append(frame.clock - began)

    def do(self, depth: int) -> None:
        """Do a part of a step: work, perhaps in a phase, perhaps with a whole pass inside."""
        for _ in range(self.random.randint(0, 3)):
            kind = self.random.random()
            if kind < 0.4 or depth > 4:
                self.work()
            elif kind < 0.9:
                name = self.random.choice(PHASES)
                with self.prof.phase(name), self.phase(name):
                    self.do(depth + 1)
            elif self.passes < 40:
                with contextlib.suppress(Failure):
                    self.go_over(self.random.choice(STAGES), depth + 1)

    def items(self, frame: Frame, count: int) -> Iterator[None]:
        for _ in range(count + 1):
            self.end_step(frame)
            with self.phase("data_wait"):
                self.work()
            if _ == count:
                return
            frame.is_in_step = True
            frame.account.steps += 1
            yield

    def end_step(self, frame: Frame) -> None:
        if frame.is_in_step:
            took = frame.clock - frame.step_began
            frame.account.step_times.append(took)
            frame.account.steady += [] if frame.is_cold else [took]
            frame.is_cold = False
        frame.is_in_step, frame.step_began = False, frame.clock

    def go_over(self, kind: str, depth: int) -> None:
        self.passes += 1
        account = self.stages[NAMES[kind]]
        frame = Frame(account, is_cold=not account.is_warm)
        account.is_warm = True
        count, ending = self.random.randint(0, 7), self.random.choice(("all", "all", "all", "break", "raise"))
        stop_at = self.random.randint(0, 7)
        self.frames.append(frame)
        account.passes += 1
        is_whole = True
        try:
            for number, _ in enumerate(getattr(self.prof, kind)(self.items(frame, count))):
                self.do(depth)
                if number == stop_at and ending != "all":
                    is_whole = False
                    if ending == "raise":
                        raise Failure
                    break
        finally:
            self.end_step(frame)
            account.is_warm = account.is_warm and not frame.is_cold  # an empty loader warms nothing up
            account.partial += not is_whole
            account.duration += frame.clock
            self.frames.pop()

    def run(self) -> None:
        for _ in range(self.random.randint(1, 3)):
            self.do(0)
            for _ in self.prof.epochs(self.random.randint(1, 3)):
                for _ in range(self.random.randint(0, 2)):
                    with contextlib.suppress(Failure):
                        self.go_over(self.random.choice(STAGES), 1)
                    self.do(2)


def quantile(values: list[int], share: float) -> int:
    """Return a quantile by nearest rank."""
    return sorted(values)[max(1, math.ceil(share * len(values))) - 1]


def check_percentiles(told: dict[str, Any], times: list[int]) -> None:
    for name, share in (("p50_s", 0.5), ("p90_s", 0.9), ("p99_s", 0.99)):
        error = told.get("relative_error", 0.0)
        assert error <= ERROR and told[name] * 1e9 == pytest.approx(quantile(times, share), rel=error + 1e-9, abs=1)


def timings(phases: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    for name, told in phases.items():
        if name != "other":
            yield (*above, name), told
            yield from timings(told.get("phases", {}), (*above, name))


def check(world: World, told: dict[str, Any]) -> None:
    for name, account in world.stages.items():
        stage = told["stages"][name]
        assert (stage["steps"], stage["passes"]) == (account.steps, account.passes)
        assert stage["partial"] is bool(account.partial)
        assert stage["duration_s"] * 1e9 == pytest.approx(account.duration, abs=2)
        found = dict(timings(stage["phases"]))
        assert set(found) == set(account.phases)
        for path, times in account.phases.items():
            assert (found[path]["count"], found[path]["total_s"] * 1e9) == (len(times), pytest.approx(sum(times), abs=2))
            assert found[path]["max_s"] * 1e9 == pytest.approx(max(times), abs=1)
        top = sum(sum(times) for path, times in account.phases.items() if len(path) == 1)
        assert stage["phases"]["other"]["total_s"] * 1e9 == pytest.approx(account.duration - top, abs=4)
        if account.step_times:
            assert stage["step"]["total_s"] * 1e9 == pytest.approx(sum(account.step_times), abs=2)
        if account.steady:
            check_percentiles(stage["step"], account.steady)
    found = dict(timings(told.get("phases", {})))
    assert {path: told["count"] for path, told in found.items()} == {
        path: len(times) for path, times in world.outside.phases.items()
    }
    assert "notes" not in told


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    time = [10**12]
    now: Callable[[], int] = lambda: time[0]  # noqa: E731
    monkeypatch.setattr(clocks, "host_clock", now)
    hot_path.use_clock(now)
    yield time
    hot_path.use_clock(None)


@pytest.mark.parametrize("is_sliced", [False, True])
@pytest.mark.parametrize("seed", range(80))
def test_two_accounts_are_equal(seed: int, is_sliced: bool, clock: list[int], home: Any) -> None:
    with Profiler("random") as prof:
        world = World(seed, prof, clock)
        world.is_sliced = is_sliced
        world.run()
    told = prof.summary.to_dict()
    check(world, told)
    (path,) = run_paths(home / "runs")
    recorded: Run = load(path)
    for name, account in world.stages.items():
        stage = recorded.whole().stages[name]
        assert (stage.steps, stage.passes, stage.partial_passes) == (account.steps, account.passes, account.partial)
        assert stage.duration_ns == pytest.approx(account.duration, abs=2 * len(recorded.epochs) + 2)
        in_slices = [cut.stages[name] for cut in recorded.slices if name in cut.stages]
        assert sum(cut.duration_ns for cut in in_slices) == stage.duration_ns
        assert sum(cut.steps for cut in in_slices) == account.steps
        assert sum(cut.step_ns for cut in in_slices) == stage.step.total_ns
        slowest = sorted(account.step_times, reverse=True)[:SLOWEST_KEPT]
        assert sorted((slow.duration_ns for slow in stage.slowest), reverse=True) == pytest.approx(slowest, abs=1)
    assert sum(epoch.duration_ns for epoch in recorded.epochs) <= recorded.duration_ns
    for before, after in itertools.pairwise(recorded.slices):
        assert before.ended_ns <= after.started_ns + 1


INTERRUPTED = """
import random, signal, sys, time
from profiler import Profiler
class Late(Exception): pass
def raises(*_): raise Late
signal.signal(signal.SIGALRM, raises)
random.seed(1)
late, until = 0, time.monotonic() + 2
with Profiler("interrupted") as prof:
    while time.monotonic() < until:
        try:
            signal.setitimer(signal.ITIMER_REAL, random.uniform(2e-5, 4e-4))
            for _ in prof.train(iter(int, 1)):  # without end, but for the exception
                with prof.phase("a"), prof.phase("b"):
                    pass
                for _ in prof.validate(range(3)):
                    with prof.phase("v"):
                        pass
        except Late:
            late += 1
told = prof.summary.to_dict()
assert late > 500 and "notes" not in told, (late, told.get("notes"))
for part in (told, *told["epochs"]):
    stages = part["stages"].values() if part is told else part["stages"]
    for stage in stages:
        top = sum(phase["total_s"] for phase in stage["phases"].values())
        assert top <= stage["duration_s"] + 1e-3, (stage["stage"], top, stage["duration_s"])
        assert stage["phases"]["other"]["total_s"] >= 0
    whole = part["run"] if part is told else part
    assert sum(stage["duration_s"] for stage in stages) <= 1.01 * whole["duration_s"] + 1e-3
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs setitimer")
def test_exceptions_of_a_signal_come_through() -> None:
    """They strike anywhere, also in our code: none is swallowed. A pass whose end was struck may count a moment twice."""
    answer = python("-c", INTERRUPTED)
    assert (answer.code, answer.err) == (0, "")


@pytest.mark.parametrize("seed", range(40))
def test_interleaved_passes_count_no_moment_twice(seed: int, clock: list[int]) -> None:
    """Generators that are asked in any order: each moment belongs to one pass."""
    rng = random.Random(seed)
    began = clock[0]
    with Profiler("interleaved") as prof:
        open_passes: list[Iterator[Any]] = []
        for _ in range(60):
            if seed % 2 and rng.random() < 0.2:
                prof.session.timer.ask_for_slice()
            if not open_passes or rng.random() < 0.15:
                kind = rng.choice((prof.train, prof.validate, prof.infer))
                open_passes.append(iter(kind(range(rng.randint(0, 6)))))
            if next(one := rng.choice(open_passes), None) is None:
                open_passes.remove(one)
            with prof.phase(rng.choice(PHASES)):
                clock[0] += rng.randint(1, 1000)
            if rng.random() < 0.1:
                open_passes.remove(rng.choice(open_passes)) if open_passes else None
        del open_passes
    told = prof.summary.to_dict()
    passed = (clock[0] - began) / 1e9
    assert sum(stage["duration_s"] for stage in told["stages"].values()) <= passed + 1e-9
    for stage in told["stages"].values():
        top = sum(phase["total_s"] for phase in stage["phases"].values())
        assert top == pytest.approx(stage["duration_s"], abs=1e-8)
