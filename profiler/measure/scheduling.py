"""How long a thread ran on a CPU, and how long it was ready and waited for one, as Linux's scheduler counts it.

Source: https://docs.kernel.org/scheduler/sched-stats.html, /proc/<pid>/schedstat.
"""

from __future__ import annotations

import os
import sys
from typing import NamedTuple


class Scheduled(NamedTuple):
    """The times of a thread since it began (ns)."""

    on_cpu: int
    waiting: int


def read_scheduled(thread: int | None, process: int | str = "self") -> Scheduled | None:
    """Return the times of a thread, or None if the system does not count them.

    Args:
        thread: its number in the system, as of `threading.get_native_id`; None if unknown.
        process: the number of its process; "self" for this one.
    """
    if thread is None or sys.platform != "linux":
        return None
    try:
        file = os.open(f"/proc/{process}/task/{thread}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            on_cpu, waiting, runs = (int(word) for word in os.read(file, 128).split())
        finally:
            os.close(file)
    except (OSError, ValueError):
        return None
    return Scheduled(on_cpu, waiting) if runs and on_cpu else None  # zeros: the kernel does not count
