"""Typed stand-ins for what a test cannot have: a clock to turn, a GPU, and an exporter that keeps what it gets.

Each is checked against the real thing's interface by the type checker: a name that changes there breaks here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult, MetricsData

from profiler.clocks import Event
from profiler.probes.nvml import Library


class FakeClock:
    """Nanoseconds that pass only when told to."""

    def __init__(self, now: int = 0) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now

    def pass_ms(self, milliseconds: float) -> None:
        self.now += round(milliseconds * 1e6)


class FakeDevice:
    """A CUDA stream that runs behind the host by ``lag_ns`` of a `FakeClock`."""

    def __init__(self, clock: FakeClock, lag_ns: int) -> None:
        self.clock = clock
        self.lag_ns = lag_ns
        self.capturing = False
        self.events = 0

    def new_event(self) -> Event:
        self.events += 1
        return FakeEvent(self)

    def is_capturing(self) -> bool:
        return self.capturing


class FakeEvent:
    """Reached by the device ``lag_ns`` after it was recorded."""

    def __init__(self, device: FakeDevice) -> None:
        self._device = device
        self.reached_at = 0

    def record(self) -> None:
        self.reached_at = self._device.clock.now + self._device.lag_ns

    def query(self) -> bool:
        return self._device.clock.now >= self.reached_at

    def elapsed_time(self, end_event: Any, /) -> float:
        return float(end_event.reached_at - self.reached_at) / 1e6


class NvmlError(Exception):
    """As ``pynvml.NVMLError``: ``value`` is NVML's return code."""

    def __init__(self, value: int) -> None:
        super().__init__(f"NVML code {value}")
        self.value = value


@dataclass
class Memory:
    total: int
    used: int


@dataclass
class Utilization:
    gpu: int
    memory: int


@dataclass
class FakeGpu:
    """One card: the readings of an idle H100 unless told otherwise. ``errors`` gives a call's return code."""

    name: str | bytes = "NVIDIA H100 80GB HBM3"
    total: int = 81_559 * 2**20
    used: int = 4 * 2**30
    utilization: int = 50
    power_mw: int = 120_000
    temperature: int = 40
    energy_mj: int = 5_000_000
    errors: dict[str, int] = field(default_factory=dict)


class FakeNvml:
    """The part of ``pynvml`` that the probe uses, over a list of `FakeGpu`."""

    NVMLError: type[Exception] = NvmlError
    nvmlMemory_v2 = 0x02000028

    def __init__(self, *gpus: FakeGpu, init_error: int | None = None, knows_memory_v2: bool = True) -> None:
        self.gpus = list(gpus)
        self.init_error = init_error
        self.knows_memory_v2 = knows_memory_v2
        self.inits = 0

    def nvmlInit(self) -> None:
        self.inits += 1
        if self.init_error is not None:
            raise NvmlError(self.init_error)

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int, /) -> FakeGpu:
        return self._asked(self.gpus[index], "nvmlDeviceGetHandleByIndex")

    def nvmlDeviceGetName(self, handle: FakeGpu, /) -> str | bytes:
        return self._asked(handle, "nvmlDeviceGetName").name

    def nvmlDeviceGetMemoryInfo(self, handle: FakeGpu, version: Any = None) -> Memory:
        if version is not None and not self.knows_memory_v2:
            raise NvmlError(13)
        gpu = self._asked(handle, "nvmlDeviceGetMemoryInfo")
        return Memory(gpu.total, gpu.used)

    def nvmlDeviceGetUtilizationRates(self, handle: FakeGpu, /) -> Utilization:
        return Utilization(self._asked(handle, "nvmlDeviceGetUtilizationRates").utilization, 10)

    def nvmlDeviceGetPowerUsage(self, handle: FakeGpu, /) -> int:
        return self._asked(handle, "nvmlDeviceGetPowerUsage").power_mw

    def nvmlDeviceGetTemperature(self, handle: FakeGpu, sensor: int, /) -> int:
        return self._asked(handle, "nvmlDeviceGetTemperature").temperature

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: FakeGpu, /) -> int:
        return self._asked(handle, "nvmlDeviceGetTotalEnergyConsumption").energy_mj

    def _asked(self, gpu: FakeGpu, call: str) -> FakeGpu:
        if call in gpu.errors:
            raise NvmlError(gpu.errors[call])
        return gpu


def _is_library(fake: FakeNvml) -> Library:
    return fake  # the type checker's proof that the fake has the real one's interface


class RecordingExporter(MetricExporter):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.exports: list[MetricsData] = []

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> MetricExportResult:
        self.exports.append(metrics_data)
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return True

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        pass
