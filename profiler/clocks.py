"""The clocks: the host's, and the GPU's through CUDA events.

The rules they keep: durations never come from the wall clock; no call here synchronises a device, creates a CUDA
context, or records into a CUDA graph that is being captured.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

Clock = Callable[[], int]
host_clock: Clock = time.perf_counter_ns


class Event(Protocol):
    """The part of `torch.cuda.Event` that is used."""

    def record(self) -> None: ...
    def query(self) -> bool: ...
    def elapsed_time(self, end_event: Any, /) -> float: ...


class DeviceClock:
    """Marks on the current CUDA stream, taken from a pool and read only once the device has passed them.

    Args:
        new_event: makes an event with timing on.
        is_capturing: whether the current stream is being captured into a graph.
    """

    def __init__(self, new_event: Callable[[], Event], is_capturing: Callable[[], bool]) -> None:
        self._new_event = new_event
        self._is_capturing = is_capturing
        self._pool: deque[Event] = deque()

    def mark(self) -> Event | None:
        """An event recorded on the current stream, or None while a graph is being captured."""
        if self._is_capturing():
            return None
        event = self._pool.pop() if self._pool else self._new_event()
        event.record()
        return event

    def elapsed_ns(self, begin: Event, end: Event) -> int | None:
        """Device time between two marks in ns, or None while the device has not reached the second one.

        A mark that was read goes back to the pool.
        """
        if not end.query():
            return None
        elapsed = round(begin.elapsed_time(end) * 1e6)  # torch answers in milliseconds
        self._pool.append(begin)
        self._pool.append(end)
        return max(elapsed, 0)


def find_device_clock(device: str | None) -> DeviceClock | None:
    """The CUDA clock, if this process already uses CUDA and the user did not name another device.

    torch is looked up among what is already imported, and asked for nothing that would initialise CUDA.
    """
    if device is not None and not device.startswith("cuda"):
        return None
    torch = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)
    if cuda is None or not cuda.is_initialized():
        return None

    def new_event() -> Event:
        event: Event = cuda.Event(enable_timing=True)
        return event

    return DeviceClock(new_event, cuda.is_current_stream_capturing)
