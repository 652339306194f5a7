"""The work of a case (`Work`), and the clocks that time it. Needs torch; runs in the case's own process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from profiler.errors import ProfilerError

Call = Callable[[], object]


class Clock(Protocol):
    def block(self, call: Call, times: int) -> float:
        """Make that many calls, and return their time in seconds, the device's work included."""

    def each(self, call: Call, times: int) -> list[float]:
        """Return the time of each call, from the request to the answer."""


@dataclass
class Work:
    """One call of a case.

    Attributes:
        call: the call.
        clock: its clock.
        samples: samples in a call, or None.
        flops: floating-point operations in a call; None if there are none, or torch counts them (`counted`).
        moved: bytes in a call; None as for ``flops``.
        counted: True if torch's counters can be run over a call.
        each: True if calls are timed one by one, for their percentiles.
        children: True if other processes do the work.
        compile: compiles the work, and returns its call.
        close: called once, at the end.
    """

    call: Call
    clock: Clock
    samples: int | None = None
    flops: float | None = None
    moved: float | None = None
    counted: bool = False
    each: bool = False
    children: bool = False
    compile: Callable[[], Call] | None = None
    close: Callable[[], None] = lambda: None


class NothingToDoError(ProfilerError):
    """There is nothing to measure. This is no failure."""


class HostClock:
    """The host's monotonic clock, with the device idle at both ends."""

    def __init__(self, device: str) -> None:
        self.synchronize = synchronizer(device)

    def block(self, call: Call, times: int) -> float:
        self.synchronize()
        began = time.perf_counter_ns()
        for _ in range(times):
            call()
        self.synchronize()
        return (time.perf_counter_ns() - began) / 1e9

    def each(self, call: Call, times: int) -> list[float]:
        found = []
        self.synchronize()
        for _ in range(times):
            began = time.perf_counter_ns()
            call()
            self.synchronize()
            found.append((time.perf_counter_ns() - began) / 1e9)
        return found


class EventClock(HostClock):
    """CUDA's own clock for blocks: two events on the current stream, with the calls between them."""

    def __init__(self, device: str) -> None:
        super().__init__(device)
        self._began, self._ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def block(self, call: Call, times: int) -> float:
        self.synchronize()
        self._began.record()
        for _ in range(times):
            call()
        self._ended.record()
        self._ended.synchronize()
        milliseconds: float = self._began.elapsed_time(self._ended)
        return milliseconds / 1e3


def clock_for(device: str) -> Clock:
    """Return the clock for a device."""
    return EventClock(device) if device.startswith("cuda") else HostClock(device)


def synchronizer(device: str) -> Callable[[], None]:
    """Return a function that waits for the device. On a CPU it does nothing."""
    if device == "cpu":
        return lambda: None
    found: Any = getattr(torch, device.split(":")[0]).synchronize
    return found  # type: ignore[no-any-return]


def dtype_of(name: str | None) -> Any:
    """Return torch's type. tf32 is float32 that tensor cores may round."""
    return torch.float32 if name in (None, "tf32") else getattr(torch, str(name))


def set_precision(name: str | None) -> None:
    """Use TF32 only if it was requested."""
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = name == "tf32"


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in a tensor, list, tuple or dictionary, at any depth."""
    if isinstance(value, torch.Tensor):
        yield value
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, (tuple, list)) else ()
    for part in inner:
        yield from tensors(part)


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if an error means that memory ran out."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        words in text for words in ("out of memory", "can't allocate memory", "not enough memory")
    )
