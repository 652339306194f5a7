"""NVIDIA GPUs through NVML: utilization, memory, power, temperature, energy.

The rules it keeps: one initialisation, in the sampling thread; each GPU and each reading fails alone; what a card does
not support disappears without a word. UUIDs, serial numbers and PCI addresses are not asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Protocol

from profiler.errors import ProbeUnavailableError
from profiler.metrics import Fact, MetricSpec, Number, Reading, Sample

UTILIZATION = MetricSpec("hw.gpu.utilization", "1", "gauge", "Share of time in which at least one kernel ran.")
MEMORY_USAGE = MetricSpec("hw.gpu.memory.usage", "By", "updowncounter", "GPU memory in use, the driver's own not counted.")
MEMORY_LIMIT = MetricSpec("hw.gpu.memory.limit", "By", "updowncounter", "GPU memory there is.")
POWER = MetricSpec("hw.power", "W", "gauge", "Power draw as NVML gives it; on Ampere (not GA100) and newer a 1 s average.")
TEMPERATURE = MetricSpec("hw.temperature", "Cel", "gauge", "Temperature of the GPU die.")
ENERGY = MetricSpec("hw.energy", "J", "counter", "Energy used.")
SPECS = (UTILIZATION, MEMORY_USAGE, MEMORY_LIMIT, POWER, TEMPERATURE, ENERGY)

ABSENT_CODES = (3, 4, 13)  # NotSupported, NoPermission, FunctionNotFound
NO_LIBRARY = 12
MEMORY_CLASSES_GB = (4, 6, 8, 10, 11, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 141, 192, 288)
CURES = {
    NO_LIBRARY: "no NVIDIA driver library was found (in a container, NVIDIA_DRIVER_CAPABILITIES must have 'utility')",
    9: "the NVIDIA driver is not loaded: load the kernel module, or reboot",
    18: "the NVIDIA driver and its library differ in version, as after an upgrade: reboot",
}


class Library(Protocol):
    """The part of ``pynvml`` (package nvidia-ml-py) that is used."""

    NVMLError: type[Exception]

    def nvmlInit(self) -> Any: ...
    def nvmlDeviceGetCount(self) -> int: ...
    def nvmlDeviceGetHandleByIndex(self, index: int, /) -> Any: ...
    def nvmlDeviceGetName(self, handle: Any, /) -> str | bytes: ...
    def nvmlDeviceGetMemoryInfo(self, handle: Any, version: Any = None) -> Any: ...
    def nvmlDeviceGetUtilizationRates(self, handle: Any, /) -> Any: ...
    def nvmlDeviceGetPowerUsage(self, handle: Any, /) -> int: ...
    def nvmlDeviceGetTemperature(self, handle: Any, sensor: int, /) -> int: ...
    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any, /) -> int: ...


def load_library() -> Library:
    library: Library = importlib.import_module("pynvml")
    return library


class NvmlProbe:
    """Every GPU that NVML opens for this process.

    Args:
        load: gives the library; tests give a fake or a recording.
    """

    name = "nvml"
    specs = SPECS

    def __init__(self, load: Callable[[], Library] = load_library) -> None:
        self._load = load
        self._library: Any = None
        self._gpus: dict[int, Any] = {}
        self._memory_version: Any = None

    def start(self) -> None:
        try:
            self._library = library = self._load()
        except ImportError:
            raise ProbeUnavailableError("the package nvidia-ml-py is not installed: pip install nvidia-ml-py") from None
        try:
            library.nvmlInit()
            count = library.nvmlDeviceGetCount()
        except library.NVMLError as error:
            code = getattr(error, "value", None)
            raise ProbeUnavailableError(CURES.get(code or 0, f"NVML does not start: {error}")) from None
        for index in range(count):
            try:
                self._gpus[index] = library.nvmlDeviceGetHandleByIndex(index)
            except library.NVMLError:  # counted, yet not ours to open: a device kept from this container
                continue
        if not self._gpus:
            raise ProbeUnavailableError("no NVIDIA GPU is visible to this process")
        self._memory_version = getattr(library, "nvmlMemory_v2", None)

    def facts(self) -> Sequence[Fact]:
        rows = []
        for index, handle in self._gpus.items():
            rows.append(Fact("gpus", "name", self._guard(partial(self._name, handle)), index))
            rows.append(Fact("gpus", "memory_class_gb", self._guard(partial(self._memory_class, handle)), index))
        return rows

    def readings(self) -> Sequence[Reading]:
        return [row for index, handle in self._gpus.items() for row in self._rows(index, handle)]

    def _rows(self, index: int, handle: Any) -> list[Reading]:
        library = self._library
        gpu = {"hw.id": f"gpu-{index}"}
        typed = {**gpu, "hw.type": "gpu"}
        sensor = {"hw.parent": f"gpu-{index}", "hw.id": f"gpu-{index}-die", "hw.sensor_location": "gpu_die"}

        def one(spec: MetricSpec, attributes: dict[str, str], value: Callable[[], Number]) -> Reading:
            return Reading((spec,), self._guard(lambda: (Sample(spec, value(), attributes),)))

        def memory() -> Iterable[Sample]:
            info = self._memory(handle)
            if info.total:  # 0 where the GPU shares the host's memory and NVML cannot tell
                yield Sample(MEMORY_USAGE, info.used, gpu)
                yield Sample(MEMORY_LIMIT, info.total, gpu)

        general = {**gpu, "hw.gpu.task": "general"}
        return [
            one(UTILIZATION, general, lambda: library.nvmlDeviceGetUtilizationRates(handle).gpu / 100),
            Reading((MEMORY_USAGE, MEMORY_LIMIT), self._guard(lambda: tuple(memory()))),
            one(POWER, typed, lambda: library.nvmlDeviceGetPowerUsage(handle) / 1000),
            one(TEMPERATURE, sensor, lambda: self._temperature(handle)),
            one(ENERGY, typed, lambda: library.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000),
        ]

    def _guard(self, read: Callable[[], Any]) -> Callable[[], Any]:
        """The same call; that a card cannot tell is said as `ProbeUnavailableError`, any other fault as it comes."""

        def guarded() -> Any:
            try:
                return read()
            except self._library.NVMLError as error:
                if getattr(error, "value", None) in ABSENT_CODES:
                    raise ProbeUnavailableError(str(error)) from None
                raise

        return guarded

    def _memory(self, handle: Any) -> Any:
        """Version 2 tells the driver's reserved memory apart; drivers before 510 know only version 1."""
        if self._memory_version is not None:
            try:
                return self._library.nvmlDeviceGetMemoryInfo(handle, version=self._memory_version)
            except self._library.NVMLError as error:
                if getattr(error, "value", None) != 13:
                    raise
                self._memory_version = None
        return self._library.nvmlDeviceGetMemoryInfo(handle)

    def _temperature(self, handle: Any) -> int:
        """The newer call where there is one: the older leaves with CUDA 14."""
        library = self._library
        if hasattr(library, "nvmlDeviceGetTemperatureV"):
            try:
                return int(library.nvmlDeviceGetTemperatureV(handle, 0))
            except library.NVMLError as error:
                if getattr(error, "value", None) != 13:
                    raise
        return int(library.nvmlDeviceGetTemperature(handle, 0))

    def _name(self, handle: Any) -> str:
        name = self._library.nvmlDeviceGetName(handle)
        return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)

    def _memory_class(self, handle: Any) -> int | None:
        total = self._memory(handle).total
        return memory_class_gb(total) if total else None


def memory_class_gb(size: int) -> int:
    """The size class of a card's memory: the nearest of the sizes that cards are sold with, in GB."""
    return min(MEMORY_CLASSES_GB, key=lambda known: abs(known * 2**30 - size))
