"""The machine's CPU and memory, and the container's share of them.

The rule it keeps: of the CPU only the family is kept, and of the memory only the class. The CPU's full name, a serial
number, a host name or an address is never kept.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from profiler.hardware.cgroup import Cgroups
from profiler.records.readings import Fact, MetricSpec, Reading, Sample

CPU_UTILIZATION = MetricSpec("system.cpu.utilization", "1", "gauge", "Share of the machine's CPU time in use.")
MEMORY_USAGE = MetricSpec("system.memory.usage", "By", "updowncounter", "Memory in use on the machine.")
MEMORY_UTILIZATION = MetricSpec("system.memory.utilization", "1", "gauge", "Share of the machine's memory in use.")
WORKING_SET = MetricSpec(
    "container.memory.working_set", "By", "updowncounter", "Memory of the container, without cache that can be dropped."
)
CONTAINER_UTILIZATION = MetricSpec(
    "epochmeter.container.memory.utilization", "1", "gauge", "Share of the container's memory limit that its working set takes."
)
AVAILABLE = MetricSpec("container.memory.available", "By", "updowncounter", "Memory limit less the working set.")
THROTTLED = MetricSpec(
    "epochmeter.container.cpu.throttled_time", "s", "counter", "Time for which the CPU quota stopped the container."
)
USED = {"system.memory.state": "used"}
SPECS = (CPU_UTILIZATION, MEMORY_USAGE, MEMORY_UTILIZATION, WORKING_SET, AVAILABLE, CONTAINER_UTILIZATION, THROTTLED)

CPU_FAMILIES = (  # first match wins
    ("Intel Xeon", r"xeon"),
    ("Intel Core", r"intel.*core|core\(tm\)"),
    ("Intel other", r"intel|pentium|celeron"),
    ("AMD EPYC", r"epyc"),
    ("AMD Ryzen Threadripper", r"threadripper"),
    ("AMD Ryzen", r"ryzen"),
    ("AMD other", r"amd"),
    ("Apple M", r"apple"),
    ("AWS Graviton", r"graviton"),
    ("NVIDIA Grace", r"grace|nvidia"),
    ("Ampere Altra", r"ampere|altra"),
    ("ARM Neoverse", r"neoverse"),
    ("ARM other", r"arm|cortex|qualcomm|snapdragon"),
)
ARCHITECTURES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}  # host.arch
ARM_IMPLEMENTERS = {"0x41": "ARM Neoverse", "0x4e": "NVIDIA Grace", "0xc0": "Ampere Altra", "0x61": "Apple M"}


class HostProbe:
    """CPU and memory through psutil, quotas and limits through cgroups."""

    name = "host"
    specs = SPECS

    def __init__(self, cgroups: Cgroups | None = None) -> None:
        self._cgroups = cgroups if cgroups is not None else Cgroups()
        self._limit: int | None = None
        self._busy_idle: tuple[float, float] | None = None

    def start(self) -> None:
        self._limit = self._cgroups.memory_limit()
        self._busy_idle = _busy_and_idle()

    def facts(self) -> Sequence[Fact]:
        return (
            Fact("cpu", "family", lambda: cpu_family(_cpu_brand())),
            Fact("cpu", "architecture", _architecture),
            Fact("cpu", "logical_cores", os.cpu_count),
            Fact("cpu", "available_cores", self._cgroups.available_cores),
            Fact("cpu", "quota_cores", self._cgroups.cpu_quota),
            Fact("memory", "total_class_gib", lambda: size_class_gib(_virtual_memory()[0])),
            Fact("memory", "limit_class_gib", lambda: None if self._limit is None else size_class_gib(self._limit)),
        )

    def close(self) -> None:
        """Do nothing: the probe holds nothing."""

    def readings(self) -> Sequence[Reading]:
        rows = [
            Reading((CPU_UTILIZATION,), self._cpu),
            Reading((MEMORY_USAGE, MEMORY_UTILIZATION), self._memory, every=2),
        ]
        if self._limit is not None and self._cgroups.memory_working_set() is not None:
            rows.append(Reading((WORKING_SET, AVAILABLE, CONTAINER_UTILIZATION), self._container_memory))
        if self._cgroups.throttled_seconds() is not None:
            rows.append(Reading((THROTTLED,), self._throttled))
        return rows

    def _cpu(self) -> Iterable[Sample]:
        # psutil.cpu_percent keeps its last reading per thread and answers 0 the first time: the difference is ours.
        before, self._busy_idle = self._busy_idle, _busy_and_idle()
        if before is not None:
            busy, idle = self._busy_idle[0] - before[0], self._busy_idle[1] - before[1]
            if busy >= 0 and idle >= 0 and busy + idle > 0:
                yield Sample(CPU_UTILIZATION, busy / (busy + idle))

    def _memory(self) -> Iterable[Sample]:
        total, available = _virtual_memory()
        yield Sample(MEMORY_USAGE, total - available, USED)
        yield Sample(MEMORY_UTILIZATION, (total - available) / total, USED)

    def _container_memory(self) -> Iterable[Sample]:
        used = self._cgroups.memory_working_set()
        if used is not None and self._limit is not None:
            yield Sample(WORKING_SET, used)
            yield Sample(AVAILABLE, max(self._limit - used, 0))
            if self._limit > 0:
                yield Sample(CONTAINER_UTILIZATION, used / self._limit)

    def _throttled(self) -> Iterable[Sample]:
        seconds = self._cgroups.throttled_seconds()
        if seconds is not None:
            yield Sample(THROTTLED, seconds)


def _architecture() -> str | None:
    machine = platform.machine().lower()
    return ARCHITECTURES.get(machine, "other") if machine else None


def cpu_family(brand: str | None) -> str | None:
    """Return the family of a CPU from its brand text: a word of `CPU_FAMILIES`, "other", or None without a text."""
    if not brand:
        return None
    if brand in ARM_IMPLEMENTERS:
        return ARM_IMPLEMENTERS[brand]
    text = brand.lower()
    return next((family for family, pattern in CPU_FAMILIES if re.search(pattern, text)), "other")


def size_class_gib(size: int) -> int:
    """Return a memory size as the next power of two in GiB: 31.2 GiB becomes 32."""
    gib = 1
    while gib * 2**30 < size:
        gib *= 2
    return gib


def _busy_and_idle() -> tuple[float, float]:
    import psutil

    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    guest = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)  # Linux counts these in user and nice too
    return sum(times) - guest - idle, idle


def _virtual_memory() -> tuple[int, int]:
    import psutil

    memory = psutil.virtual_memory()
    return memory.total, memory.available


def _cpu_brand() -> str | None:
    """Return the CPU's brand text from the system: 25 us, where py-cpuinfo takes 1.2 s and a child process."""
    if sys.platform == "linux":
        return _linux_cpu_brand(Path("/proc/cpuinfo"))
    if sys.platform == "darwin":
        return _macos_cpu_brand()
    if sys.platform == "win32":
        import winreg

        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, r"HARDWARE\DESCRIPTION\System\CentralProcessor\0") as key:
            return str(winreg.QueryValueEx(key, "ProcessorNameString")[0])
    return None


def _linux_cpu_brand(path: Path) -> str | None:
    """Return the first ``model name``; on ARM, which has none, the ``CPU implementer``."""
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                key, _, value = line.partition(":")
                if key.strip() in ("model name", "CPU implementer"):
                    return value.strip()
    except OSError:
        pass
    return None


def _macos_cpu_brand() -> str | None:
    import ctypes

    library = ctypes.CDLL(None)
    size = ctypes.c_size_t(256)
    text = ctypes.create_string_buffer(size.value)
    failed = library.sysctlbyname(b"machdep.cpu.brand_string", text, ctypes.byref(size), None, 0)
    return None if failed else text.value.decode("utf-8", "replace")
