"""The process that one case is measured in: it builds it, warms it up, times blocks of calls when told to, and ends.

The rules it keeps: it prints nothing on stdout, sends nothing, and ends when the command that started it does.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import psutil
import torch

from profiler.bench import counting, limits, loader, models
from profiler.bench.estimate import is_stable
from profiler.bench.plan import DTYPES, Case, Machine, Method, halved
from profiler.bench.watch import Watch, joules_per_call
from profiler.bench.work import NothingToDoError, Work, dtype_of, is_out_of_memory, set_precision, synchronizer
from profiler.errors import ProfilerError
from profiler.hardware.runtime import short_version

# torch imports its compiler with the first optimizer; here, so that no case's first call has that in it. Nothing may ask for
# CUDA devices: on Linux this module is imported in the process whose copies measure, and CUDA does not survive the copying.
torch.compiler.disable(print)
BUILDERS = {"limits": limits.build, "models": models.build, "yours": models.build, "loader": loader.build}
MAX_TIMES = 10_000  # calls in a block that are timed one by one
MAX_GROWTH = 10
TEXT_LIMIT = 300


def describe(wire: Connection) -> None:
    """Sends the `Machine`, and ends."""
    _quieten()
    wire.send(_answer(machine))


def measure(wire: Connection, case: Case, method: Method) -> None:
    """Says that it is there; answers ``prepare``, then any number of ``block``, ``energy`` and ``count``, until ``end``.

    Every answer is ``(True, what was asked for)``, ``(False, what went wrong, in a line)`` or ``(None, why there is nothing
    to do)``.
    """
    _quieten()
    wire.send((True, None))
    _use(case.device)
    station = Station(case, method)
    with contextlib.suppress(EOFError, OSError):
        while (asked := wire.recv()) != "end":
            wire.send(_answer(getattr(station, asked)))
    station.close()


def follow(wire: Connection, case: Case) -> None:
    """Another rank's share of the all-reduce."""
    _quieten()
    _use(case.device)

    def share() -> bool:
        work = limits.build(case)
        work.call()  # the first rank's first call, which nothing announces
        work.clock.follow(work.call)  # type: ignore[attr-defined]
        return True

    wire.send(_answer(share))


def look(wire: Connection, factories: list[str]) -> None:
    """Whether the user's factories are there; they are not called."""
    _quieten()
    wire.send(_answer(lambda: [models.factory(name) is not None for name in factories]))


def _use(device: str) -> None:
    """Makes a GPU the current one: what names no device of its own, such as an event or a synchronisation, is then right."""
    if device.startswith("cuda"):
        torch.cuda.set_device(device)


def _answer(ask: Callable[[], Any]) -> tuple[bool | None, Any]:
    try:
        return True, ask()
    except NothingToDoError as error:
        return None, str(error)
    except ProfilerError as error:
        return False, str(error)
    except BaseException as error:  # a model of the user's own may raise anything, SystemExit included
        text = " ".join(str(error).split())
        return False, f"{type(error).__name__}: {text[:TEXT_LIMIT]}" if text else type(error).__name__


class Station:
    """One case in this process."""

    def __init__(self, case: Case, method: Method) -> None:
        self._case, self._method = case, method
        self._work: Work | None = None
        self._call: Callable[[], object] = lambda: None
        self._times = 1
        self._watch = Watch(case.device)
        self._resident = psutil.Process().memory_info().rss

    def prepare(self) -> dict[str, Any]:
        """Builds the case, calls it for the first time, and warms it up. Out of memory halves the batch."""
        asked = self._case.batch
        while True:
            try:
                told = self._prepare()
                break
            except BaseException as error:
                smaller = halved(self._case)
                if smaller is None or not is_out_of_memory(error):
                    raise
                self._case, self._work = smaller, None
            _free(self._case.device)
        if self._case.batch != asked:
            told["halved_from"] = asked
        return {**told, "batch": self._case.batch}

    def _prepare(self) -> dict[str, Any]:
        case = self._case
        set_precision(case.dtype)
        self._work = work = BUILDERS[case.suite](case)
        set_precision(case.dtype)  # whatever a module of the user's has set meanwhile
        self._call = work.call
        self._watch.has_children = work.children
        told: dict[str, Any] = {"cold": self._first(case.device)}
        _hush()
        if work.compile is not None:
            self._call = work.compile()
            told["compile"] = self._first(case.device)
        stable = self._warm_up(work)
        told.update(samples=work.samples, flops=work.flops, moved=work.moved, stable=stable, times=self._times)
        return {name: value for name, value in told.items() if value is not None}

    def block(self) -> dict[str, Any]:
        """One block: seconds a call, and of inference each call's."""
        work = self._ready()
        self._watch.before()
        if work.each:
            each = work.clock.each(self._call, self._times)
            told: dict[str, Any] = {"seconds": sum(each) / len(each), "each": each}
            if self._case.device.startswith("cuda"):
                told["device"] = work.clock.block(self._call, self._times) / self._times
        else:
            told = {"seconds": work.clock.block(self._call, self._times) / self._times}
        return {**told, "watch": self._watch.after()}

    def energy(self) -> float | None:
        """Joules a call, where the device counts them."""
        source = self._watch.energy
        if source is None:
            return None
        clock = self._ready().clock
        return joules_per_call(
            lambda: sum(source.energy().values()), lambda n: clock.block(self._call, n), self._times, self._method.energy_s
        )

    def count(self) -> dict[str, Any]:
        """The peak of memory so far; floating-point operations and bytes of one call."""
        told: dict[str, Any] = {"memory": self._memory_peak()}
        work = self._ready()
        if work.counted:
            counters = (("flops", counting.flops), ("moved", counting.moved))
            for name, counter in counters[: 1 if self._case.compiled else 2]:  # compiled operators are fused, and move less
                with contextlib.suppress(Exception):  # a model that cannot be called so is measured all the same
                    told[name] = counter(work.call)
        return {name: value for name, value in told.items() if value is not None}

    def close(self) -> None:
        if self._work is not None:
            with contextlib.suppress(Exception):
                self._work.close()

    # ---- inside ----------------------------------------------------------------------------------------------------

    def _ready(self) -> Work:
        if self._work is None:
            raise ProfilerError("nothing has been prepared")
        return self._work

    def _first(self, device: str) -> float:
        wait = synchronizer(device)
        wait()
        began = time.perf_counter()
        self._call()
        wait()
        return time.perf_counter() - began

    def _warm_up(self, work: Work) -> bool:
        """Finds how many calls make a block, and goes on until three blocks in a row took as long; whether they did."""
        deadline = time.perf_counter() + self._method.warm_up_s
        times, found, best = 1, list[float](), math.inf
        while True:
            found.append(work.clock.block(self._call, times) / times)
            best = max(min(best, found[-1]), 1e-9)  # one slow call does not make blocks of one call
            longer = min(math.ceil(self._method.block_s / best), times * MAX_GROWTH)
            if longer > 2 * times:
                times, found = longer, []
            elif is_stable(found, self._method.stable) or time.perf_counter() > deadline:
                break
        self._times = min(times, MAX_TIMES) if work.each else times
        return is_stable(found, self._method.stable)

    def _memory_peak(self) -> int | None:
        """Bytes: of a GPU what torch had allocated, of a CPU what the process had beyond what it began with."""
        device = self._case.device
        if device.startswith("cuda"):
            return int(torch.cuda.max_memory_allocated(device))
        if device == "cpu":
            grown = _peak_resident() - self._resident
            return grown if grown > 0 else None
        return None


def _peak_resident() -> int:
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _free(device: str) -> None:
    import gc

    gc.collect()
    kind = getattr(torch, device.split(":")[0], None)
    if kind is not None and hasattr(kind, "empty_cache"):
        kind.empty_cache()


def _quieten() -> None:
    """Ctrl-C is the command's to answer; what a model prints goes to stderr, and torch's warnings nowhere."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    with contextlib.suppress(OSError, ValueError):
        os.dup2(2, 1)


def _hush() -> None:
    """What a model prints in each call is seen once, with the first one."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


# ---- what there is -------------------------------------------------------------------------------------------------


def machine() -> Machine:
    """The devices and types that torch has here. A type is there if a product of two small matrices can be made."""
    devices = ["cpu"]
    devices += [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    devices += ["mps"] if torch.backends.mps.is_available() else []
    facts = {"torch": short_version(torch.__version__), "cuda": short_version(torch.version.cuda)}
    return Machine(
        dtypes={device: tuple(dtype for dtype in DTYPES if _has(device, dtype)) for device in devices},
        memory={device: size for device in devices if (size := _memory(device)) is not None},
        threads=torch.get_num_threads(),
        facts={name: value for name, value in facts.items() if value is not None},
    )


def _has(device: str, dtype: str) -> bool:
    if device.startswith("cuda") and dtype in ("tf32", "bfloat16") and torch.version.cuda is not None:
        if torch.cuda.get_device_capability(device)[0] < 8:  # before Ampere: none, or only emulated
            return False
    elif dtype == "tf32":
        return False
    try:
        matrix = torch.ones(16, 16, device=device).to(dtype_of(dtype))
        torch.mm(matrix, matrix).sum().item()  # waits for it
    except (RuntimeError, TypeError):
        return False
    return True


def _memory(device: str) -> int | None:
    if device == "cpu":
        return int(psutil.virtual_memory().total)
    return int(torch.cuda.get_device_properties(device).total_memory) if device.startswith("cuda") else None
