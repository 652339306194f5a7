"""AMD GPUs through ROCm's own Python package, amdsmi: utilization, memory, power, temperature, energy.

The rules it keeps are those of the NVML probe. The card's name is not read, because amdsmi returns it only together with
the serial number. Tested against recordings. The calls: https://rocm.docs.amd.com/projects/amdsmi/
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from profiler.config.environment import variable
from profiler.errors import ProbeUnavailableError
from profiler.hardware.gpu import (
    ENERGY,
    MEMORY_LIMIT,
    MEMORY_USAGE,
    POWER,
    TEMPERATURE,
    UTILIZATION,
    check_device,
    memory_class_gb,
)
from profiler.hardware.visible import parse
from profiler.records.readings import Fact, Reading, Sample

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.readings import Attributes


SPECS = (UTILIZATION, MEMORY_USAGE, MEMORY_LIMIT, POWER, TEMPERATURE, ENERGY)
ABSENT_CODES = (2, 3, 10)  # not supported, not yet implemented, no permission (amdsmi_status_t)
VARIABLES = ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
POWER_KEYS = ("socket_power", "current_socket_power", "average_socket_power")  # by version of ROCm, which has one of them
ENERGY_KEYS = ("energy_accumulator", "power")  # the same counter, renamed
SENSORS = ("HOTSPOT", "EDGE")  # the die's hottest spot, or its edge if that is all there is
MILLI_FROM = 1000  # versions differ in giving degrees or thousandths: no die is that hot


class AmdLibrary(Protocol):
    """The part of ``amdsmi`` that is used."""

    AmdSmiException: type[Exception]
    AmdSmiInitFlags: Any
    AmdSmiMemoryType: Any
    AmdSmiTemperatureType: Any
    AmdSmiTemperatureMetric: Any

    def amdsmi_init(self, flag: Any, /) -> Any: ...
    def amdsmi_get_processor_handles(self) -> Sequence[Any]: ...
    def amdsmi_get_gpu_activity(self, handle: Any, /) -> Mapping[str, Any]: ...
    def amdsmi_get_gpu_memory_total(self, handle: Any, kind: Any, /) -> int: ...
    def amdsmi_get_gpu_memory_usage(self, handle: Any, kind: Any, /) -> int: ...
    def amdsmi_get_power_info(self, handle: Any, /) -> Mapping[str, Any]: ...
    def amdsmi_get_temp_metric(self, handle: Any, sensor: Any, metric: Any, /) -> Any: ...
    def amdsmi_get_energy_count(self, handle: Any, /) -> Mapping[str, Any]: ...


def load_amdsmi() -> AmdLibrary:
    """Return ``amdsmi``."""
    library: AmdLibrary = importlib.import_module("amdsmi")
    return library


class AmdProbe:
    """The GPUs that the run may use.

    Args:
        load: gives the library; tests give a recording.
        device: "cuda:1" for one of the visible GPUs (torch calls AMD's so, too); None for all of them.
    """

    name = "amd"
    specs = SPECS

    def __init__(self, load: Callable[[], AmdLibrary] = load_amdsmi, device: str | None = None) -> None:
        self._load = load
        self._wanted = device
        self._device = int(device[5:]) if device is not None and device.startswith("cuda:") else None
        self._library: Any = None
        self._gpus: dict[int, Any] = {}

    def start(self) -> None:
        check_device(self._wanted, "cuda")
        try:
            self._library = library = self._load()
        except ImportError:
            raise ProbeUnavailableError("the package amdsmi, which comes with ROCm, is not installed") from None
        except Exception as error:  # it loads the driver's library when it is imported
            raise ProbeUnavailableError(f"amdsmi does not start: {type(error).__name__}") from None
        try:
            library.amdsmi_init(library.AmdSmiInitFlags.INIT_AMD_GPUS)
            handles = library.amdsmi_get_processor_handles()
        except library.AmdSmiException as error:
            raise ProbeUnavailableError(f"amdsmi does not start: {type(error).__name__}") from None
        self._gpus = {index: handles[index] for index in self._visible(len(handles))}
        if not self._gpus:
            raise ProbeUnavailableError("no AMD GPU is visible to this process")

    def close(self) -> None:
        """Do nothing: others in this process may use the library."""

    def facts(self) -> Sequence[Fact]:
        return [
            Fact("gpus", "memory_class_gb", partial(self._guarded, partial(self._memory_class, handle)), index)
            for index, handle in self._gpus.items()
        ]

    def readings(self) -> Sequence[Reading]:
        return [row for index, handle in self._gpus.items() for row in self._rows(index, handle)]

    def energy(self) -> Mapping[str, float]:
        found = {}
        for index, handle in self._gpus.items():
            try:
                found[f"gpu-{index}"] = self._joules(handle)
            except (self._library.AmdSmiException, ProbeUnavailableError):  # its reading says so
                continue
        return found

    def _visible(self, count: int) -> list[int]:
        """Return the visible GPUs by torch's rule: HIP's variable before ROCR's before CUDA's."""
        named = parse(next((text for text in map(variable, VARIABLES) if text is not None), None))
        if named is None:
            found = list(range(count))
        elif any(isinstance(name, str) for name in named):
            raise ProbeUnavailableError("GPUs that are chosen by UUID are not read: choose them by number")
        else:
            numbers = [int(name) for name in named]
            found = numbers[: next((at for at, number in enumerate(numbers) if number >= count), len(numbers))]
        return found if self._device is None else found[self._device : self._device + 1]

    def _rows(self, index: int, handle: Any) -> list[Reading]:
        gpu = {"hw.id": f"gpu-{index}"}
        typed, general = {**gpu, "hw.type": "gpu"}, {**gpu, "hw.gpu.task": "general"}
        die = {"hw.id": f"gpu-{index}-die", "hw.parent": f"gpu-{index}", "hw.sensor_location": "gpu_die"}
        asked: tuple[tuple[Any, Callable[[Any, Attributes], Iterable[Sample]], Attributes], ...] = (
            ((UTILIZATION,), self._utilization, general),
            ((MEMORY_USAGE, MEMORY_LIMIT), self._memory, gpu),
            ((POWER,), self._power, typed),
            ((TEMPERATURE,), self._temperature, die),
            ((ENERGY,), self._energy, typed),
        )
        return [Reading(specs, partial(self._guarded, partial(read, handle, at))) for specs, read, at in asked]

    def _guarded(self, read: Callable[[], Any]) -> Any:
        """Return the answer.

        Raises:
            ProbeUnavailableError: the card does not have this reading.
        """
        try:
            return read()
        except self._library.AmdSmiException as error:
            code = getattr(error, "err_code", None)
            if code in ABSENT_CODES:
                raise ProbeUnavailableError(f"amdsmi answers {code}") from None
            raise

    def _utilization(self, handle: Any, at: Attributes) -> Iterable[Sample]:
        busy = _first_number(self._library.amdsmi_get_gpu_activity(handle), "gfx_activity")
        return (Sample(UTILIZATION, busy / 100, at),)

    def _memory(self, handle: Any, at: Attributes) -> Iterable[Sample]:
        library = self._library
        kind = library.AmdSmiMemoryType.VRAM
        used, total = library.amdsmi_get_gpu_memory_usage(handle, kind), library.amdsmi_get_gpu_memory_total(handle, kind)
        return (Sample(MEMORY_USAGE, used, at), Sample(MEMORY_LIMIT, total, at))

    def _power(self, handle: Any, at: Attributes) -> Iterable[Sample]:
        return (Sample(POWER, _first_number(self._library.amdsmi_get_power_info(handle), *POWER_KEYS), at),)

    def _temperature(self, handle: Any, at: Attributes) -> Iterable[Sample]:
        library = self._library
        now = library.AmdSmiTemperatureMetric.CURRENT
        for place in SENSORS:
            try:
                answer = library.amdsmi_get_temp_metric(handle, getattr(library.AmdSmiTemperatureType, place), now)
            except library.AmdSmiException as error:
                if getattr(error, "err_code", None) not in ABSENT_CODES:
                    raise
                continue
            if isinstance(answer, (int, float)):
                return (Sample(TEMPERATURE, answer / 1000 if answer >= MILLI_FROM else answer, at),)
        raise ProbeUnavailableError("the card does not report its temperature")

    def _energy(self, handle: Any, at: Attributes) -> Iterable[Sample]:
        return (Sample(ENERGY, self._joules(handle), at),)

    def _joules(self, handle: Any) -> float:
        answer = self._library.amdsmi_get_energy_count(handle)  # its resolution is in uJ
        return _first_number(answer, *ENERGY_KEYS) * _first_number(answer, "counter_resolution") / 1e6

    def _memory_class(self, handle: Any) -> int:
        return memory_class_gb(self._library.amdsmi_get_gpu_memory_total(handle, self._library.AmdSmiMemoryType.VRAM))


def _first_number(answer: Mapping[str, Any], *keys: str) -> float:
    """Return the first of these entries that is a number. A missing value is the text "N/A" there."""
    for key in keys:
        value = answer.get(key)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return value
    raise ProbeUnavailableError(f"amdsmi does not report {keys[0]}")
