"""The process of one case: it builds the case, warms it up, times blocks of calls on request, and ends.

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
    """Send the `Machine`, and end."""
    _quieten()
    wire.send(_answer(machine))


def measure(wire: Connection, case: Case, method: Method) -> None:
    """Report that the process is ready, then answer ``prepare`` and any number of ``block``, ``energy`` and ``count``.

    Every answer is ``(True, result)``, ``(False, error in a line)`` or ``(None, reason why there is nothing to do)``. The
    request ``end`` ends the process.
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
    """Take another rank's part in the all-reduce."""
    _quieten()
    _use(case.device)

    def share() -> bool:
        work = limits.build(case)
        work.call()  # the first rank's first call, which nothing announces
        work.clock.follow(work.call)  # type: ignore[attr-defined]
        return True

    wire.send(_answer(share))


def look(wire: Connection, factories: list[str]) -> None:
    """Check that the user's factories exist. They are not called."""
    _quieten()
    wire.send(_answer(lambda: [models.factory(name) is not None for name in factories]))


def _use(device: str) -> None:
    """Make a GPU the current one, for calls that name no device, such as an event or a synchronisation."""
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
        """Build the case, call it for the first time, and warm it up. If memory runs out, halve the batch."""
        asked = self._case.batch
        while True:
            try:
                answer = self._prepare()
                break
            except BaseException as error:
                smaller = halved(self._case)
                if smaller is None or not is_out_of_memory(error):
                    raise
                self._case, self._work = smaller, None
            _free(self._case.device)
        if self._case.batch != asked:
            answer["halved_from"] = asked
        return {**answer, "batch": self._case.batch}

    def _prepare(self) -> dict[str, Any]:
        case = self._case
        set_precision(case.dtype)
        self._work = work = BUILDERS[case.suite](case)
        set_precision(case.dtype)  # whatever a module of the user's has set meanwhile
        self._call = work.call
        self._watch.has_children = work.children
        answer: dict[str, Any] = {"cold": self._first(case.device)}
        _hush()
        if work.compile is not None:
            self._call = work.compile()
            answer["compile"] = self._first(case.device)
        stable = self._warm_up(work)
        answer.update(samples=work.samples, flops=work.flops, moved=work.moved, stable=stable, times=self._times)
        return {name: value for name, value in answer.items() if value is not None}

    def block(self) -> dict[str, Any]:
        """Time one block: seconds a call, and for inference the time of each call."""
        work = self._ready()
        self._watch.before()
        if work.each:
            each = work.clock.each(self._call, self._times)
            answer: dict[str, Any] = {"seconds": sum(each) / len(each), "each": each}
            if self._case.device.startswith("cuda"):
                answer["device"] = work.clock.block(self._call, self._times) / self._times
        else:
            answer = {"seconds": work.clock.block(self._call, self._times) / self._times}
        return {**answer, "watch": self._watch.after()}

    def energy(self) -> float | None:
        """Return the joules of a call, or None if the device does not count them."""
        source = self._watch.energy
        if source is None:
            return None
        clock = self._ready().clock
        return joules_per_call(
            lambda: sum(source.energy().values()), lambda n: clock.block(self._call, n), self._times, self._method.energy_s
        )

    def count(self) -> dict[str, Any]:
        """Return the peak of memory so far, and the floating-point operations and bytes of one call."""
        answer: dict[str, Any] = {"memory": self._memory_peak()}
        work = self._ready()
        if work.counted:
            counters = (("flops", counting.flops), ("moved", counting.moved))
            for name, counter in counters[: 1 if self._case.compiled else 2]:  # compiled operators are fused, and move less
                with contextlib.suppress(Exception):  # a model that cannot be called so is measured all the same
                    answer[name] = counter(work.call)
        return {name: value for name, value in answer.items() if value is not None}

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
        """Find the number of calls of a block, and repeat blocks until three in a row take the same time.

        Return True if they did.
        """
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
        """Return bytes: on a GPU, torch's peak allocation; on a CPU, the growth of the process."""
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
    """Leave Ctrl-C to the command, send a model's prints to stderr, and drop torch's warnings."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    with contextlib.suppress(OSError, ValueError):
        os.dup2(2, 1)


def _hush() -> None:
    """Drop a model's prints in later calls; the first call has shown them."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


# ---- what there is -------------------------------------------------------------------------------------------------


def machine() -> Machine:
    """Return the devices and types that torch has here. A type counts if a product of two small matrices works."""
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
