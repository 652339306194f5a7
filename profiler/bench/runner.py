"""Run the cases: each in a process of its own, the cases of a group in turns, round by round.

The rule it keeps: a case that fails, hangs or kills its process is reported, and the others go on.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from profiler.bench.plan import MIN_ROUNDS, Case, Machine, Method, groups, halved
from profiler.errors import ArgumentValueError, ProfilerError

# torch is imported once, in a process that does nothing else, and the cases' processes are its copies; elsewhere than on
# Linux, where copies are not safe or not there, each imports it.
CONTEXT: Any = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
START_S = 120.0  # importing torch from a cold disk
END_S = 2.0
FIRST = ("describe",)  # with it, what the others are copied from is started


class WorkerFailed(ProfilerError):
    """A case's process reported an error, or ended."""

    def __init__(self, text: str, *, was_killed: bool = False, timed_out: bool = False, was_skipped: bool = False) -> None:
        super().__init__(text)
        self.was_skipped = was_skipped
        self.was_killed = was_killed  # by the system: most likely for its memory
        self.timed_out = timed_out


@dataclass(eq=False)
class Raw:
    """The raw measurements of a case, launch by launch.

    Attributes:
        seconds: seconds a call, of each block of each launch.
        device: the same on the GPU's clock, for calls that are not waited for (inference).
        each: for inference, the time of each call.
        answers: for each launch the answer to "prepare" (cold, compile, batch, ...), and in the last one the counts.
        blocks: the readings around each block.
        failure: the error that ended the case, or None.
    """

    case: Case
    seconds: list[list[float]] = field(default_factory=list)
    device: list[list[float]] = field(default_factory=list)
    each: list[float] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)
    blocks: list[dict[str, float]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    joules: float | None = None
    failure: WorkerFailed | None = None

    def become(self, case: Case, why: str) -> None:
        """Turn this into another case, and drop the measurements of the previous one."""
        self.case = case
        self.remarks.append(why)
        for measured in (self.seconds, self.device, self.each, self.answers, self.blocks):
            measured.clear()


class Worker:
    """A case's process, and the connection to it."""

    def __init__(self, target: str, *arguments: Any, limit_s: float) -> None:
        self._wire, theirs = CONTEXT.Pipe()
        self._left_s = limit_s
        self._limit_s = limit_s
        usual = multiprocessing.get_start_method()  # for what the case itself starts, a DataLoader's workers
        self._process = CONTEXT.Process(target=_begin, args=(target, usual, theirs, *arguments))
        with _clean() if target in FIRST or CONTEXT.get_start_method() == "spawn" else contextlib.nullcontext():
            self._process.start()
        theirs.close()

    def ask(self, what: str) -> Any:
        """Send a request and return the answer.

        Raises:
            WorkerFailed: it went wrong, the process ended, or it took longer than the case may.
        """
        with contextlib.suppress(OSError):  # it has ended: the answer says how
            self._wire.send(what)
        return self.answer()

    def answer(self) -> Any:
        """Return the process's next answer.

        Raises:
            WorkerFailed: as in `ask`.
        """
        began = time.monotonic()
        try:
            there = self._wire.poll(max(self._left_s, 0.0))
            known, answer = self._wire.recv() if there else (False, "")
        except (EOFError, OSError):
            raise self._ended() from None
        self._left_s -= time.monotonic() - began
        if not there:
            self.kill()
            raise WorkerFailed(f"not done within {self._limit_s:g} s; --time-limit allows more", timed_out=True)
        if not known:
            raise WorkerFailed(answer, was_skipped=known is None)
        return answer

    def ready(self) -> None:
        """Wait until the process has started, so that importing torch disturbs no measurement and counts in no limit.

        Raises:
            WorkerFailed: it has ended instead.
        """
        limit, self._left_s = self._left_s, START_S
        self.answer()
        self._left_s = limit

    def end(self) -> None:
        """Request the end of the process; `kill` then waits a moment before it forces it."""
        with contextlib.suppress(OSError):
            self._wire.send("end")

    def kill(self, patience_s: float = 0.0) -> None:
        """End the process, after waiting for ``patience_s`` seconds."""
        self._process.join(patience_s)
        if self._process.is_alive():
            self._process.kill()
        self._process.join(END_S)
        self._wire.close()

    def _ended(self) -> WorkerFailed:
        self._process.join(END_S)
        code = self._process.exitcode
        if code is not None and code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
            killed = -code == getattr(signal, "SIGKILL", None)
            why = ", as the system does when memory runs out" if killed else ""
            return WorkerFailed(f"its process was ended by {name}{why}", was_killed=killed)
        return WorkerFailed(f"its process ended by itself, with exit code {code}")


@contextlib.contextmanager
def _clean() -> Iterator[None]:
    """Hide the working folder and Ctrl-C from an interpreter that starts now.

    A new interpreter looks into the working folder first, and many folders have a ``profiler.py``. Cases come back to it.
    """
    here, heard = Path.cwd(), signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.chdir(Path(__file__).parents[2])
    try:
        yield
    finally:
        os.chdir(here)
        signal.signal(signal.SIGINT, heard)


def _begin(target: str, start_method: str, wire: Connection, *arguments: Any) -> None:
    """Run in the new process. The target is looked up there, so that this module does not import torch."""
    multiprocessing.set_start_method(start_method, force=True)
    from profiler.bench import worker

    getattr(worker, target)(wire, *arguments)


def describe() -> Machine:
    """Ask a process with torch for the machine's devices and types.

    Raises:
        ProfilerError: torch cannot be imported, or fails.
    """
    if CONTEXT.get_start_method() == "forkserver":
        CONTEXT.set_forkserver_preload(["__main__", "profiler.bench.worker"])
    worker = Worker("describe", limit_s=START_S)
    try:
        machine: Machine = worker.answer()
    except WorkerFailed as error:
        raise ProfilerError(f"torch does not start here: {error}") from None
    finally:
        worker.kill()
    return machine


def look(factories: list[str]) -> None:
    """Check that the user's factories exist.

    Raises:
        ArgumentValueError: one does not, or its module cannot be imported.
    """
    worker = Worker("look", factories, limit_s=START_S)
    try:
        worker.answer()
    except WorkerFailed as error:
        raise ArgumentValueError(str(error)) from None
    finally:
        worker.kill()


def run(cases: Sequence[Case], method: Method, on_step: Callable[[Case], None], on_group: Callable[[list[Raw]], None]) -> None:
    """Measure all cases.

    Args:
        cases: the cases.
        method: how long and how often.
        on_step: called after each step of a case (see `steps`), also a failed one.
        on_group: receives the measurements of a group when it is finished.
    """
    every = list(groups(cases))
    began = time.monotonic()
    for done, group in enumerate(every, 1):
        found = [Raw(case) for case in group]
        launches = _launches(group[0], method)
        until = None if method.budget_s is None else began + method.budget_s * done / len(every)
        for launch in range(launches):
            _launch(found, method, on_step, until, launch == launches - 1)
        on_group(found)


def steps(cases: Iterable[Case], method: Method) -> int:
    """Return how many steps `run` reports."""
    return sum(_launches(case, method) * (method.rounds + 1) for case in cases)


def _launches(case: Case, method: Method) -> int:
    """Return the launches of a case. Ranks that reduce together meet only once."""
    return 1 if case.name == "all_reduce" else method.launches


def follow(case: Case, limit_s: float = 3600.0) -> None:
    """Take this rank's part in the all-reduce that the first rank measures.

    Raises:
        WorkerFailed: it went wrong.
    """
    worker = Worker("follow", case, limit_s=limit_s)
    try:
        worker.answer()
    finally:
        worker.kill(END_S)


# ---- one launch ----------------------------------------------------------------------------------------------------


def _launch(found: Sequence[Raw], method: Method, on_step: Callable[[Case], None], until: float | None, is_last: bool) -> None:
    """Run each case in a new process. They are prepared one after another and measured in turns.

    Args:
        until: the moment (s, monotonic clock) after which only `MIN_ROUNDS` rounds are completed, or None.
    """
    alive = [raw for raw in found if raw.failure is None]
    workers = {id(raw): Worker("measure", raw.case, method, limit_s=method.limit_s) for raw in alive}
    try:
        for raw in alive:
            _attempt(raw, workers[id(raw)].ready)
        for raw in _references_last(found):
            if raw in _measured(found):
                _attempt(raw, lambda raw=raw: _prepare(raw, workers, method))  # type: ignore[misc]
            on_step(raw.case)
        _rounds(found, workers, method.rounds, on_step, until)
        for raw in _measured(found) if is_last else ():
            _count(raw, workers[id(raw)])
        for raw in alive:
            workers[id(raw)].end()
        for raw in alive:
            workers[id(raw)].kill(END_S if raw.failure is None else 0.0)
    except BaseException:
        for raw in alive:
            workers[id(raw)].kill()
        raise


def _rounds(
    found: Sequence[Raw], workers: dict[int, Worker], rounds: int, on_step: Callable[[Case], None], until: float | None
) -> None:
    """Measure one block of each case a round; the order is reversed every other round."""
    for turn in range(rounds):
        is_late = turn >= MIN_ROUNDS and until is not None and time.monotonic() > until
        measured = [] if is_late else _measured(found)
        for raw in measured if turn % 2 == 0 else reversed(measured):
            _attempt(raw, lambda raw=raw: _block(raw, workers[id(raw)]))  # type: ignore[misc]
        for raw in found:
            on_step(raw.case)


def _measured(found: Sequence[Raw]) -> list[Raw]:
    """Return the cases that have not failed. If no model is left, the limits measured beside it are dropped, too."""
    goes_on = [raw for raw in found if raw.failure is None]
    are_wanted = _is_of_limits(found) or not _is_of_limits(goes_on)
    return goes_on if are_wanted else []


def _is_of_limits(found: Sequence[Raw]) -> bool:
    return all(raw.case.suite == "limits" for raw in found)


def _references_last(found: Sequence[Raw]) -> list[Raw]:
    """Sort limits behind models: they are useless if the model cannot be prepared."""
    return sorted(found, key=lambda raw: raw.case.suite == "limits")


def _attempt(raw: Raw, step: Callable[[], None]) -> None:
    """Do a step of a case. A failure ends this case and no other."""
    try:
        if raw.failure is None:
            step()
    except WorkerFailed as error:
        raw.failure = error


def _prepare(raw: Raw, workers: dict[int, Worker], method: Method) -> None:
    """Prepare a case. If the system kills the process, try again with half the batch."""
    while True:
        try:
            answer = workers[id(raw)].ask("prepare")
            break
        except WorkerFailed as error:
            smaller = halved(raw.case) if error.was_killed else None
            if smaller is None:
                raise
            raw.become(smaller, f"{error}; batch {raw.case.batch} halved to {smaller.batch}")
            workers[id(raw)].kill()
            workers[id(raw)] = Worker("measure", smaller, method, limit_s=method.limit_s)
            workers[id(raw)].ready()
    if "halved_from" in answer:
        smaller = replace(raw.case, batch=answer["batch"])
        raw.become(smaller, f"out of memory: batch {answer['halved_from']} halved to {answer['batch']}")
    raw.answers.append(answer)
    raw.seconds.append([])
    raw.device.append([])


def _block(raw: Raw, worker: Worker) -> None:
    answer = worker.ask("block")
    raw.seconds[-1].append(answer["seconds"])
    raw.each += answer.get("each", ())
    raw.device[-1] += [answer["device"]] if "device" in answer else []
    raw.blocks.append(answer["watch"])


def _count(raw: Raw, worker: Worker) -> None:
    """Add energy and counts. If they cannot be known, the times stay."""
    try:
        raw.joules = worker.ask("energy")
        raw.answers[-1].update(worker.ask("count"))
    except WorkerFailed as error:
        raw.remarks.append(f"neither energy nor operations could be counted: {error}")
