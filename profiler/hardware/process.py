"""This process's CPU time and memory. Its command, arguments and owner are not read."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence

from profiler.hardware.cgroup import Cgroups
from profiler.records.readings import MetricSpec, Reading, Sample

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.readings import Fact


CPU_TIME = MetricSpec("process.cpu.time", "s", "counter", "CPU time of this process.")
CPU_UTILIZATION = MetricSpec(
    "process.cpu.utilization", "1", "gauge", "CPU time over elapsed time and over the CPUs available to the process."
)
MEMORY_USAGE = MetricSpec("process.memory.usage", "By", "updowncounter", "Physical memory of this process.")
USER, SYSTEM = {"cpu.mode": "user"}, {"cpu.mode": "system"}
SPECS = (CPU_TIME, CPU_UTILIZATION, MEMORY_USAGE)


class ProcessProbe:
    """CPU time from the operating system, memory through psutil."""

    name = "process"
    specs = SPECS

    def __init__(self) -> None:
        self._cores: float | None = None
        self._last: tuple[float, float] | None = None

    def start(self) -> None:
        self._cores = Cgroups().available_cores()
        self._last = (time.perf_counter(), time.process_time())

    def facts(self) -> Sequence[Fact]:
        return ()

    def close(self) -> None:
        """Do nothing: the probe holds nothing."""

    def readings(self) -> Sequence[Reading]:
        import psutil

        process = psutil.Process()

        def memory() -> Iterable[Sample]:
            yield Sample(MEMORY_USAGE, process.memory_info().rss)

        return (
            Reading((CPU_TIME,), _cpu_time),
            Reading((CPU_UTILIZATION,), self._utilization),
            Reading((MEMORY_USAGE,), memory),
        )

    def _utilization(self) -> Iterable[Sample]:
        before, self._last = self._last, (time.perf_counter(), time.process_time())
        if before is None or self._cores is None:
            return
        elapsed = self._last[0] - before[0]
        if elapsed > 0:
            yield Sample(CPU_UTILIZATION, (self._last[1] - before[1]) / elapsed / self._cores)


def _cpu_time() -> Iterable[Sample]:
    times = os.times()
    yield Sample(CPU_TIME, times.user, USER)
    yield Sample(CPU_TIME, times.system, SYSTEM)
