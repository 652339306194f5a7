"""The clocks: the host's, and the GPU's through CUDA events.

The rules it keeps: durations never come from the wall clock. No call here synchronises a device, creates a CUDA context, or
records into a CUDA graph that is being captured.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from profiler.records.faults import is_of_a_signal

Clock = Callable[[], int]
host_clock: Clock = time.perf_counter_ns


class Event(Protocol):
    """The part of `torch.cuda.Event` that is used."""

    def record(self, stream: Any, /) -> None: ...
    def query(self) -> bool: ...
    def elapsed_time(self, end_event: Any, /) -> float: ...


class Mark(NamedTuple):
    """An event, and the stream it was recorded on."""

    event: Event
    stream: Any


class DeviceClock:
    """Marks on the current CUDA stream of one device, from a pool of events, read once the device has passed them.

    Nothing here raises. A CUDA error in one of our calls is the program's own, and will show there again. It is kept in
    `fault`, and the clock stands still from then on.

    Args:
        new_event: makes an event with timing on.
        current_stream: returns the stream of the calling thread's work on that device.
        is_capturing: returns True if that stream is being captured into a graph.
    """

    def __init__(
        self, new_event: Callable[[], Event], current_stream: Callable[[], Any], is_capturing: Callable[[], bool]
    ) -> None:
        self._new_event = new_event
        self._current_stream = current_stream
        self._is_capturing = is_capturing
        self._pool: deque[Event] = deque()
        self.fault: str | None = None

    def mark(self) -> Mark | None:
        """Record an event on the current stream. Return None while a graph is being captured, or once the clock has failed."""
        if self.fault is not None:
            return None
        try:
            if self._is_capturing():
                return None
            event = self._pool.pop() if self._pool else self._new_event()
            stream = self._current_stream()
            event.record(stream)
            return Mark(event, stream)
        except Exception as error:
            if is_of_a_signal(error):
                raise
            self.fault = type(error).__name__
            return None

    def elapsed_ns(self, begin: Mark, end: Mark) -> int | None:
        """Return the device time between two marks on one stream in ns, or None while the device has not reached the second.

        The events of marks that were read go back to the pool.
        """
        if self.fault is not None:
            return None
        try:
            # While a graph is being captured, even asking for an event would spoil it.
            if self._is_capturing() or not end.event.query():
                return None
            elapsed = round(begin.event.elapsed_time(end.event) * 1e6)  # torch answers in milliseconds
        except Exception as error:
            if is_of_a_signal(error):
                raise
            self.fault = type(error).__name__
            return None
        self._pool.append(begin.event)
        self._pool.append(end.event)
        return max(elapsed, 0)


def find_device_clock(device: str | None) -> DeviceClock | None:
    """Return the clock of the CUDA device in use, or None while there is none.

    torch is looked up among the imported modules. Nothing is called that would initialise CUDA, or make a context on a
    device that is not in use, which takes some of its memory.

    Args:
        device: "cuda", "cuda:<index>", another kind of device (then there is no clock), or None for the device in use.
    """
    if device is not None and not device.startswith("cuda"):
        return None
    torch = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)
    if cuda is None or not hasattr(cuda, "is_initialized") or not cuda.is_initialized():
        return None
    # The current device alone would not do: a program may name "cuda:1" everywhere and leave device 0 current. An event on a
    # device that is not in use makes a context there, which takes some of its memory. The statistics of torch's allocator show
    # the devices in use, and are read without a context.
    in_use = [index for index in range(cuda.device_count()) if cuda.memory_reserved(index)]
    wanted = int(device[5:]) if device is not None and device.startswith("cuda:") else cuda.current_device()
    if wanted not in in_use:
        if not in_use or device is not None:
            return None
        wanted = in_use[0]  # a program that names its device everywhere, and leaves the current one as it is

    def new_event() -> Event:
        event: Event = cuda.Event(enable_timing=True)
        return event

    return DeviceClock(new_event, lambda: cuda.current_stream(wanted), cuda.is_current_stream_capturing)
