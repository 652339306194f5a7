"""Typed stand-ins for things that a test cannot have: a clock to turn, a GPU, and an exporter that keeps its data.

The type checker compares each with the interface of the real thing, so a name that changes there fails here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pynvml
from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult, MetricsData

from profiler.hardware.nvidia.library import NvmlLibrary
from profiler.measure.clocks import Event


class FakeClock:
    """Nanoseconds that pass only on request."""

    def __init__(self, now: int = 0) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now

    def pass_ms(self, milliseconds: float) -> None:
        self.now += round(milliseconds * 1e6)


class FakeDevice:
    """A CUDA stream that runs behind the host by ``lag_ns`` of a clock.

    It has the parts that `profiler.measure.clocks` uses, and nothing with which a host could wait for it.
    """

    def __init__(self, clock: Callable[[], int], lag_ns: int) -> None:
        self.clock = clock
        self.lag_ns = lag_ns
        self.stream: object = "default"
        self.capturing = False
        self.error: Exception | None = None  # what every call raises, as after an error in a kernel
        self.made: list[FakeEvent] = []

    def current_stream(self) -> object:
        return self.stream

    @property
    def events(self) -> int:
        return len(self.made)

    def new_event(self) -> Event:
        self.made.append(FakeEvent(self))
        return self.made[-1]

    def is_capturing(self) -> bool:
        return self.capturing


class FakeEvent:
    """An event that the device reaches ``lag_ns`` after it was recorded."""

    def __init__(self, device: FakeDevice) -> None:
        self._device = device
        self.reached_at = 0

    def record(self, stream: Any, /) -> None:
        if self._device.error is not None:
            raise self._device.error
        self.reached_at = self._device.clock() + self._device.lag_ns

    def query(self) -> bool:
        if self._device.capturing:
            raise RuntimeError("operation not permitted when stream is capturing")
        if self._device.error is not None:
            raise self._device.error
        return self._device.clock() >= self.reached_at

    def elapsed_time(self, end_event: Any, /) -> float:
        return float(end_event.reached_at - self.reached_at) / 1e6


class NvmlError(Exception):
    """The counterpart of ``pynvml.NVMLError``: ``value`` is NVML's return code."""

    def __init__(self, value: int) -> None:
        super().__init__(f"NVML code {value}")
        self.value = value


IDLE_H100: Mapping[str, Any] = {  # as nvidia-smi showed one: driver 590, 80 GB HBM3
    "nvmlDeviceGetName": "NVIDIA H100 80GB HBM3",
    "nvmlDeviceGetMigMode": (0, 0),
    "nvmlDeviceGetEnforcedPowerLimit": 700_000,
    "nvmlDeviceGetUtilizationRates": {"gpu": 50, "memory": 10},
    "nvmlDeviceGetMemoryInfo": {"total": 81_559 * 2**20, "reserved": 479 * 2**20, "used": 4 * 2**30},
    "nvmlDeviceGetPowerUsage": 120_000,
    "nvmlDeviceGetTotalEnergyConsumption": 5_000_000,
    "nvmlDeviceGetTemperature": 40,
    "nvmlDeviceGetClockInfo:1": 1980,
    "nvmlDeviceGetClockInfo:2": 2619,
    "nvmlDeviceGetCurrentClocksEventReasons": 1,
    **{f"field:{number}": 0 for number in (3, 4, 74, 75, 76, 77, 79, 138, 139, 142, 143, 144, 145)},
    "field:82": 38,
    "field:83": 5_000_000,
    "field:185": 120_000,
    "field:186": 118_000,
    **{f"gpm:{number}": value for number, value in ((2, 90.0), (3, 45.0), (5, 60.0), (10, 35.0), (20, 12.0), (21, 34.0))},
    "samples:0": [[118_000, 121_000, 119_500]],
    "samples:1": [[0, 100, 50]],
}


@dataclass(eq=False)
class FakeGpu:
    """One card: an idle H100 by default.

    Args:
        answers: the answers of the calls, by name. Field values are "field:<id>", samples "samples:<kind>", GPM metrics
            "gpm:<id>". The entries of a list are returned one after the other, and its last one from then on.
            ``{"error": code}`` is a return code. None removes a call.
    """

    answers: Mapping[str, Any] = field(default_factory=dict)
    asked: dict[str, int] = field(default_factory=dict)

    def answer(self, call: str) -> Any:
        """Return the next answer to a call.

        Raises:
            NvmlError: the answer is an error, or the card does not have the call.
        """
        answer = {**IDLE_H100, **self.answers}.get(call)
        times = self.asked[call] = self.asked.get(call, 0) + 1
        if isinstance(answer, list):
            answer = answer[min(times, len(answer)) - 1]
        if answer is None:
            raise NvmlError(3)
        if isinstance(answer, dict) and "error" in answer:
            raise NvmlError(answer["error"])
        return answer


class Answer:
    """A struct of NVML's, by its members."""

    def __init__(self, **members: Any) -> None:
        self.__dict__.update(members)


class Driver:
    """The driver's library itself, for calls that fill arrays without ``pynvml``."""

    def nvmlDeviceGetFieldValues(self, handle: FakeGpu, count: int, array: Any, /) -> int:
        for value in array:
            try:
                value.value.ullVal, value.valueType, value.nvmlReturn = handle.answer(f"field:{value.fieldId}"), 3, 0
            except NvmlError as error:
                value.nvmlReturn = error.value
        return 0

    def nvmlDeviceGetSamples(self, handle: FakeGpu, kind: int, since: Any, value_type: Any, count: Any, array: Any, /) -> int:
        if array is None:
            count._obj.value = 120
            return 0
        try:
            values = handle.answer(f"samples:{kind}")
        except NvmlError as error:
            return error.value
        last = since.value or 1
        value_type._obj.value, count._obj.value = 1, len(values)
        for position, value in enumerate(values):
            array[position].timeStamp, array[position].sampleValue.ullVal = last + position + 1, value
        return 0


class FakeNvml:
    """The part of ``pynvml`` that the probe uses, over a list of `FakeGpu`, or a recording of real ones."""

    NVMLError: type[Exception] = NvmlError
    nvmlMemory_v2 = 0x02000028
    NVML_GPM_METRICS_GET_VERSION = 1
    c_nvmlGpmMetricsGet_t = pynvml.c_nvmlGpmMetricsGet_t
    c_nvmlFieldValue_t = pynvml.c_nvmlFieldValue_t
    c_nvmlSample_t = pynvml.c_nvmlSample_t

    def __init__(self, *gpus: FakeGpu, init_error: int | None = None, knows_memory_v2: bool = True) -> None:
        self.gpus = list(gpus)
        self.init_error = init_error
        self.knows_memory_v2 = knows_memory_v2
        self.inits = 0
        self.samples = 0  # of GPM, that are held
        self.nvmlLib: Any = Driver()
        self._sampled = FakeGpu()

    @classmethod
    def recorded(cls, path: Path) -> FakeNvml:
        """Play a recording of ``make record-nvml``."""
        recording = json.loads(path.read_text("utf-8"))
        absent = dict.fromkeys(IDLE_H100)
        return cls(*(FakeGpu({**absent, **gpu}) for gpu in recording["gpus"]))

    def nvmlInit(self) -> None:
        self.inits += 1
        if self.init_error is not None:
            raise NvmlError(self.init_error)

    def nvmlShutdown(self) -> None:
        self.inits -= 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int, /) -> FakeGpu:
        gpu = self.gpus[index]
        error = gpu.answers.get("nvmlDeviceGetHandleByIndex")
        if error is not None:
            raise NvmlError(error["error"])
        return gpu

    def nvmlDeviceGetHandleByUUID(self, uuid: str, /) -> FakeGpu:
        for gpu in self.gpus:
            if self.nvmlDeviceGetUUID(gpu) == uuid:
                return gpu
        raise NvmlError(6)

    def nvmlDeviceGetIndex(self, handle: FakeGpu, /) -> int:
        return self.gpus.index(handle)

    def nvmlDeviceGetUUID(self, handle: FakeGpu, /) -> str:
        return f"GPU-{self.gpus.index(handle):08x}-0000-0000-0000-000000000000"  # invented: recordings hold none

    def nvmlDeviceGetMigMode(self, handle: FakeGpu, /) -> tuple[int, int]:
        current, pending = handle.answer("nvmlDeviceGetMigMode")
        return current, pending

    def nvmlDeviceGetName(self, handle: FakeGpu, /) -> str | bytes:
        name: str | bytes = handle.answer("nvmlDeviceGetName")
        return name

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: FakeGpu, /) -> int:
        return int(handle.answer("nvmlDeviceGetEnforcedPowerLimit"))

    def nvmlDeviceGetMemoryInfo(self, handle: FakeGpu, version: Any = None) -> Answer:
        if version is not None and not self.knows_memory_v2:
            raise NvmlError(13)
        return Answer(**handle.answer("nvmlDeviceGetMemoryInfo"))

    def nvmlDeviceGetUtilizationRates(self, handle: FakeGpu, /) -> Answer:
        return Answer(**handle.answer("nvmlDeviceGetUtilizationRates"))

    def nvmlDeviceGetPowerUsage(self, handle: FakeGpu, /) -> int:
        return int(handle.answer("nvmlDeviceGetPowerUsage"))

    def nvmlDeviceGetTemperature(self, handle: FakeGpu, sensor: int, /) -> int:
        return int(handle.answer("nvmlDeviceGetTemperature"))

    def nvmlDeviceGetClockInfo(self, handle: FakeGpu, kind: int, /) -> int:
        return int(handle.answer(f"nvmlDeviceGetClockInfo:{kind}"))

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: FakeGpu, /) -> int:
        return int(handle.answer("nvmlDeviceGetCurrentClocksEventReasons"))

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: FakeGpu, /) -> int:
        return int(handle.answer("nvmlDeviceGetTotalEnergyConsumption"))

    def nvmlGpmQueryDeviceSupport(self, handle: FakeGpu, /) -> Answer:
        known = {**IDLE_H100, **handle.answers}
        return Answer(isSupportedDevice=int(any(known[key] is not None for key in known if key.startswith("gpm:"))))

    def nvmlGpmSampleAlloc(self) -> Any:
        self.samples += 1
        return pynvml.c_nvmlGpmSample_t()

    def nvmlGpmSampleFree(self, sample: Any, /) -> None:
        self.samples -= 1

    def nvmlGpmSampleGet(self, handle: FakeGpu, sample: Any, /) -> None:
        self._sampled = handle

    def nvmlGpmMetricsGet(self, query: Any, /) -> None:
        """Return the metrics of the GPU that was sampled last."""
        for metric in query.metrics[: query.numMetrics]:
            try:
                metric.value, metric.nvmlReturn = self._sampled.answer(f"gpm:{metric.metricId}"), 0
            except NvmlError as error:
                metric.nvmlReturn = error.value


def _is_library(fake: FakeNvml) -> NvmlLibrary:
    return fake  # the type checker's proof that the fake has the real one's interface


class RecordingExporter(MetricExporter):
    """An exporter that keeps its data."""

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
