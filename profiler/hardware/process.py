"""This process's CPU time, memory, and waits for disks. Its command, arguments and owner are not read."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from typing import Any

from profiler.hardware.cgroup import Cgroups
from profiler.records.readings import MetricSpec, Reading, Sample

resource: Any
try:
    import resource
except ImportError:  # Windows
    resource = None

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.readings import Fact


CPU_TIME = MetricSpec("process.cpu.time", "s", "counter", "CPU time of this process.")
CPU_WHOLE = MetricSpec(  # stays on this machine: OpenTelemetry's metric is that of one mode
    *("epochmeter.process.cpu.utilization", "1", "gauge"),
    "CPU time over elapsed time and over the CPUs available to the process.",
)
CPU_UTILIZATION = MetricSpec("process.cpu.utilization", "1", "gauge", "The same, by mode.")
MEMORY_USAGE = MetricSpec("process.memory.usage", "By", "updowncounter", "Physical memory of this process.")
DISK_IO = MetricSpec("process.disk.io", "By", "counter", "What this process has read from disks, and written to them.")
FAULTS = MetricSpec("process.paging.faults", "{fault}", "counter", "Page faults that waited for a disk.")
READ, WRITTEN = {"disk.io.direction": "read"}, {"disk.io.direction": "write"}
MAJOR = {"system.paging.fault.type": "major"}
USER, SYSTEM = {"cpu.mode": "user"}, {"cpu.mode": "system"}
SPECS = (CPU_TIME, CPU_WHOLE, CPU_UTILIZATION, MEMORY_USAGE, DISK_IO, FAULTS)

SELDOM = 5  # ticks, for sums: those of a whole run are exact, as its first and last tick read everything
SHORTEST_S = 0.05  # that a share of CPU time is of


class ProcessProbe:
    """CPU time from the operating system, memory through psutil."""

    name = "process"
    specs = SPECS

    def __init__(self) -> None:
        self._cores: float | None = None
        self._last: tuple[float, float, float, float] | None = None

    def start(self) -> None:
        self._cores = Cgroups().available_cores()
        self._last = _now()

    def facts(self) -> Sequence[Fact]:
        return ()

    def close(self) -> None:
        """Do nothing: the probe holds nothing."""

    def readings(self) -> Sequence[Reading]:
        import psutil

        process = psutil.Process()

        def memory() -> Iterable[Sample]:
            yield Sample(MEMORY_USAGE, process.memory_info().rss)

        def disks() -> Iterable[Sample]:
            counters = process.io_counters()
            return Sample(DISK_IO, counters.read_bytes, READ), Sample(DISK_IO, counters.write_bytes, WRITTEN)

        def faults() -> Iterable[Sample]:
            return (Sample(FAULTS, resource.getrusage(resource.RUSAGE_SELF).ru_majflt, MAJOR),)

        return (
            *([Reading((DISK_IO,), disks, every=SELDOM)] if hasattr(process, "io_counters") else []),  # not on macOS
            *([Reading((FAULTS,), faults, every=SELDOM)] if resource is not None else []),
            Reading((CPU_TIME,), _cpu_time, every=2),
            Reading((CPU_WHOLE, CPU_UTILIZATION), self._utilization),
            Reading((MEMORY_USAGE,), memory),
        )

    def _utilization(self) -> Iterable[Sample]:
        # A share of a moment counts as much in the mean as that of a second. So what lies between two readings that are
        # close, as the first two are, is a part of the next share.
        before, last = self._last, _now()
        elapsed = SHORTEST_S if before is None else last[0] - before[0]
        if elapsed < SHORTEST_S:
            return
        self._last = last
        if before is not None and self._cores is not None:
            whole, user, system = (
                (after - earlier) / elapsed / self._cores for after, earlier in zip(last[1:], before[1:], strict=True)
            )
            yield Sample(CPU_WHOLE, whole)
            yield Sample(CPU_UTILIZATION, user, USER)
            yield Sample(CPU_UTILIZATION, system, SYSTEM)


def _now() -> tuple[float, float, float, float]:
    """Return the clock, and this process's CPU time: whole, in user mode, in system mode (s)."""
    times = os.times()
    return time.perf_counter(), time.process_time(), times.user, times.system


def _cpu_time() -> Iterable[Sample]:
    times = os.times()
    yield Sample(CPU_TIME, times.user, USER)
    yield Sample(CPU_TIME, times.system, SYSTEM)
