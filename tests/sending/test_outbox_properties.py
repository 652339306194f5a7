"""A property: whatever faults come in whatever order, each finished epoch is in the sink or in the outbox, never neither.

The faults: answers of every kind, a process that ends between any two of its calls (another one goes on), a disk that is
full for a while, a clock that is set, two processes at once.
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from exporters.config import Answer
from exporters.courier import Courier
from exporters.entry import DestinationKey, Head
from exporters.outbox import Outbox
from profiler.config import folder
from profiler.config.folder import Folder

KEY = DestinationKey("otlp", "http/protobuf", "http://collector", None)
ANSWERS = {
    "taken": Answer("taken", "HTTP 200"),
    "partly": Answer("taken", "HTTP 200, in part", partly=1),
    "later": Answer("later", "HTTP 503"),
    "asks": Answer("later", "HTTP 429", wait_s=60.0),
}


class Killed(BaseException):
    """The process is gone: nothing of it runs any more, not even its clean-up."""


class Faulty:
    """The ``os`` module of a machine with a full disk, or of a process that is about to be killed."""

    def __init__(self) -> None:
        self.steps_left = math.inf
        self.full = False

    def __getattr__(self, name: str) -> Any:
        found = getattr(os, name)
        if name not in ("open", "write", "fsync", "close", "replace", "unlink"):
            return found

        def call(*arguments: Any, **more: Any) -> Any:
            if self.steps_left < 0 and name == "unlink":
                raise Killed  # of the clean-up after the death
            self.steps_left -= 1
            if self.steps_left < 0:
                if name == "close":
                    os.close(*arguments)  # the system does it for the dead
                raise Killed
            if self.full and name == "write":
                raise OSError(28, "No space left on device")
            return found(*arguments, **more)

        return call


class AllPass:
    """A gate for bodies of this test."""

    reason = ""

    def passes(self, *arguments: Any) -> bool:
        return True


class World:
    """Two runs on one machine, a collector, and what went wrong."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now = 1_800_000_000.0
        self.os = Faulty()
        self.finished = {"aa": 0, "bb": 0}  # what is known to have been kept
        self.perhaps = {"aa": 0, "bb": 0}  # what was being kept when the process died
        self.sequence = {"aa": 0, "bb": 0}
        self.sink: dict[str, int] = {}
        self.answers: list[str] = []

    def box(self) -> Outbox:
        return Outbox(Folder(self.folder), clock=lambda: self.now)

    def epoch(self, run: str) -> None:
        self.sequence[run] += 1
        count = self.perhaps[run] = max(self.finished[run], self.perhaps[run]) + 1
        started = {"aa": 1, "bb": 2}[run]
        box = self.box()
        self.alive(lambda: self.put(box, run, started, count))

    def put(self, box: Outbox, run: str, started: int, count: int) -> None:
        box.put(Head(KEY, run, box.now()), started, f"{self.sequence[run]:08d}", f"{run} {count}".encode())
        self.finished[run] = count

    def deliver(self, answers: list[str], dies_after: float = math.inf) -> None:
        self.answers = list(answers)
        self.os.steps_left = dies_after
        self.alive(lambda: self.courier().deliver(lambda: math.inf))
        self.os.steps_left = math.inf

    def alive(self, work: Callable[[], Any]) -> None:
        with contextlib.suppress(Killed, OSError):  # an OSError of `put` is counted by whoever called it
            work()

    def courier(self) -> Courier:
        class Free:
            def acquire(self, timeout: float) -> None:
                pass

            def release(self) -> None:
                pass

        gate: Any = AllPass()
        return Courier(
            self.box(), KEY, gate, lambda: self, lambda: True, lambda where, body: lambda answer: None, lambda _: Free()
        )

    where = "http://collector"

    def send(self, body: bytes) -> Answer:
        answer = ANSWERS[self.answers.pop(0) if self.answers else "taken"]
        if answer.verdict == "taken":
            run, count = body.decode().split()
            self.sink[run] = max(self.sink.get(run, 0), int(count))
        return answer

    def close(self) -> None:
        pass

    def in_outbox(self) -> dict[str, int]:
        found: dict[str, int] = {}
        box = self.box()
        for entry in [*box.waiting(), *box.under_way(), *(entry for entry, _ in box.aside())]:
            run, count = box.body(entry).decode().split()
            found[run] = max(found.get(run, 0), int(count))
        return found

    def check(self) -> None:
        kept = self.in_outbox()
        for run, count in self.finished.items():
            assert max(self.sink.get(run, 0), kept.get(run, 0)) >= count, (run, count, self.sink, kept)
            assert max(self.sink.get(run, 0), kept.get(run, 0)) <= max(count, self.perhaps[run])


def apply(world: World, fault: tuple[str, Any]) -> None:
    kind, value = fault
    if kind == "epoch":
        world.epoch(value)
    elif kind == "epoch, killed":
        world.os.steps_left = value[1]
        world.epoch(value[0])
        world.os.steps_left = math.inf
    elif kind == "deliver":
        world.deliver(value)
    elif kind == "deliver, killed":
        world.deliver(value[0], value[1])
    elif kind == "disk":
        world.os.full = value
    else:
        world.now += value


runs = st.sampled_from(["aa", "bb"])
answers = st.lists(st.sampled_from(sorted(ANSWERS)), max_size=6)
steps = st.integers(0, 40)
faults = st.one_of(
    st.tuples(st.just("epoch"), runs),
    st.tuples(st.just("epoch, killed"), st.tuples(runs, steps)),
    st.tuples(st.just("deliver"), answers),
    st.tuples(st.just("deliver, killed"), st.tuples(answers, steps)),
    st.tuples(st.just("disk"), st.booleans()),
    st.tuples(st.just("clock"), st.sampled_from([-1e9, -100.0, 30.0, 90.0, 86_400.0])),
)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@example([("epoch", "aa"), ("clock", -1e9), ("clock", -1e9), ("deliver", ["later"])])  # a clock before 1970
@given(st.lists(faults, max_size=25))
def test_finished_epochs_are_sent_or_waiting(sequence: list[tuple[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        world = World(Path(name))
        folder.os = world.os  # type: ignore[assignment]
        try:
            for fault in sequence:
                apply(world, fault)
                world.check()
            world.os.full = False
            world.now += 3600  # no destination asks for more patience than an hour
            world.deliver([])
            world.check()
            assert world.in_outbox() == {}
            assert {run: n for run, n in world.finished.items() if n} == {
                run: world.finished[run] for run in world.sink if world.finished[run]
            }
            assert set(world.box().dropped()) <= {"partly"}
        finally:
            folder.os = os
