"""NVIDIA GPUs through NVML: what those that the run may use do, second by second and within the second.

The rules it keeps:

- One initialisation in a process, in the sampling thread. A handle is taken once, and only of a GPU that the run may use.
- One `nvmlDeviceGetFieldValues` and one GPM sample a tick for each GPU; what is dear or changes slowly, every tenth tick.
- Each GPU and each reading fails alone: what a card does not support disappears without a word; a lost card is asked
  again after a while that doubles, from 1 to 30 s.
- Serial numbers and PCI addresses are not asked for. UUIDs are asked for only to find the run's GPUs, and not kept.

What the calls mean: https://docs.nvidia.com/deploy/nvml-api/; GPM is on Hopper and newer.
"""

from __future__ import annotations

import importlib
import os
import struct
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from ctypes import byref, c_uint, c_ulonglong, sizeof
from functools import partial
from typing import Any, NamedTuple, Protocol

from profiler.config.resolve import variable
from profiler.errors import ProbeUnavailableError
from profiler.hardware.gpu import (
    ENERGY,
    FIRST_REST_S,
    LONGEST_REST_S,
    MEMORY_LIMIT,
    MEMORY_USAGE,
    POWER,
    TEMPERATURE,
    UTILIZATION,
    check_device,
    memory_class_gb,
)
from profiler.hardware.visible import ordinals, parse
from profiler.records.readings import NO_ATTRIBUTES, Fact, MetricSpec, Reading, Sample, Samples

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.readings import Attributes, Number


CONTROLLER = MetricSpec(
    "epochmeter.gpu.memory.controller.utilization", "1", "gauge", "Share of time in which GPU memory was read or written."
)
MEMORY_RESERVED = MetricSpec("epochmeter.gpu.memory.reserved", "By", "updowncounter", "GPU memory that the driver keeps.")
POWER_INSTANT = MetricSpec(
    "epochmeter.gpu.power.instant", "W", "gauge", "Power draw at the moment, where it can be told apart."
)
POWER_SAMPLES = MetricSpec(
    "epochmeter.gpu.power.samples", "W", "histogram", "Power draw as the driver samples it, within seconds."
)
UTILIZATION_SAMPLES = MetricSpec(
    "epochmeter.gpu.utilization.samples", "1", "histogram", "Utilization as the driver samples it, within seconds."
)
CLOCK = MetricSpec("epochmeter.gpu.clock.frequency", "Hz", "gauge", "Clock of the multiprocessors, and of the memory.")
THROTTLED = MetricSpec("epochmeter.gpu.throttled_time", "s", "counter", "Time in which the clocks were held down, by reason.")
STATUS = MetricSpec(
    "hw.status", "1", "updowncounter", "1 for the state that the GPU is in; degraded: slowed by heat or a brake."
)
ERRORS = MetricSpec("hw.errors", "{error}", "counter", "ECC errors since the driver was loaded.")
REMAPPED = MetricSpec("epochmeter.gpu.memory.remapped_rows", "{row}", "updowncounter", "Rows of GPU memory that were replaced.")
IO = MetricSpec("hw.gpu.io", "By", "counter", "Bytes over PCIe.")
NVLINK_IO = MetricSpec("epochmeter.gpu.nvlink.io", "By", "counter", "Bytes over NVLink, all links together.")
SM_ACTIVITY = MetricSpec("epochmeter.gpu.sm.utilization", "1", "gauge", "Share of multiprocessors that were busy.")
SM_OCCUPANCY = MetricSpec("epochmeter.gpu.sm.occupancy", "1", "gauge", "Active warps, of those that there could be.")
TENSOR = MetricSpec("epochmeter.gpu.tensor.utilization", "1", "gauge", "Share of time in which tensor cores worked.")
DRAM = MetricSpec("epochmeter.gpu.dram.utilization", "1", "gauge", "GPU memory bandwidth in use, of what there is.")
PCIE_RATE = MetricSpec("epochmeter.gpu.pcie.throughput", "By/s", "gauge", "Bytes a second over PCIe.")
NVLINK_RATE = MetricSpec("epochmeter.gpu.nvlink.throughput", "By/s", "gauge", "Bytes a second over NVLink.")
GPM = (SM_ACTIVITY, SM_OCCUPANCY, TENSOR, DRAM, PCIE_RATE, NVLINK_RATE)
SPECS = (
    *(UTILIZATION, CONTROLLER, MEMORY_USAGE, MEMORY_LIMIT, MEMORY_RESERVED, POWER, POWER_INSTANT, POWER_SAMPLES),
    *(UTILIZATION_SAMPLES, TEMPERATURE, ENERGY, CLOCK, THROTTLED, STATUS, ERRORS, REMAPPED, IO, NVLINK_IO, *GPM),
)

ABSENT_CODES = (3, 4, 13)  # NotSupported, NoPermission, FunctionNotFound: this card, or its driver, cannot tell
UNASKED_CODES = (2, *ABSENT_CODES, 26)  # InvalidArgument, Deprecated: of one field among many, the same
NOTHING_NEW_CODES = (6, 10, 21, 27)  # NotFound, Timeout, NoData, NotReady
LOST_CODES = (1, 15, 16, 28, 999)  # Uninitialized, GpuIsLost, ResetRequired, GpuNotFound, Unknown
UNINITIALISED, TOO_SMALL, NO_LIBRARY = 1, 7, 12
SLOW_TICKS = 10
GPM_GAP_S = 0.1  # two GPM samples lie further apart than this (nvml.h)
ALL_LINKS = 0xFFFFFFFF  # scope of NVLink fields: "aggregate value summed up across all links" (nvml.h)
DEGRADED = 0x8 | 0x20 | 0x40 | 0x80  # HW slowdown, SW and HW thermal slowdown, power brake; a power cap is normal
WHOLE_TYPES = (1, 2, 3)  # of nvmlValueType_t: unsigned int, unsigned long, unsigned long long
WIDE_TYPES = (2, 3, 4)  # 64 bits: a counter of bytes in 32 wraps within a tick
CURES = {
    NO_LIBRARY: "no NVIDIA driver library was found (in a container, NVIDIA_DRIVER_CAPABILITIES must have 'utility')",
    9: "the NVIDIA driver is not loaded: load the kernel module, or reboot",
    18: "the NVIDIA driver and its library differ in version, as after an upgrade: reboot",
    999: "NVML answers 'unknown error', as in a container whose GPU was taken away: restart the container",
}
MIB = 2**20
FIELD_VALUE = struct.Struct("IIqqIiQ")  # nvmlFieldValue_t: id, scope, timestamp, latency, type, return code, value
SAMPLES = "nvmlDeviceGetSamples"


class Library(Protocol):
    """The part of ``pynvml`` (package nvidia-ml-py) that every version and driver has."""

    NVMLError: type[Exception]
    nvmlLib: Any
    c_nvmlFieldValue_t: Any
    c_nvmlSample_t: Any

    def nvmlInit(self) -> Any: ...
    def nvmlShutdown(self) -> Any: ...
    def nvmlDeviceGetCount(self) -> int: ...
    def nvmlDeviceGetHandleByIndex(self, index: int, /) -> Any: ...
    def nvmlDeviceGetHandleByUUID(self, uuid: str, /) -> Any: ...
    def nvmlDeviceGetIndex(self, handle: Any, /) -> int: ...
    def nvmlDeviceGetUUID(self, handle: Any, /) -> str: ...
    def nvmlDeviceGetName(self, handle: Any, /) -> str | bytes: ...
    def nvmlDeviceGetMemoryInfo(self, handle: Any, version: Any = None) -> Any: ...
    def nvmlDeviceGetUtilizationRates(self, handle: Any, /) -> Any: ...
    def nvmlDeviceGetPowerUsage(self, handle: Any, /) -> int: ...
    def nvmlDeviceGetTemperature(self, handle: Any, sensor: int, /) -> int: ...
    def nvmlDeviceGetClockInfo(self, handle: Any, kind: int, /) -> int: ...
    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any, /) -> int: ...


def load_library() -> Library:
    library: Library = importlib.import_module("pynvml")
    return library


_initialised: tuple[int, object] | None = None  # process and library: NVML counts its users, and we are one


def _initialise(library: Library) -> None:
    """Once in a process; a forked child is another one."""
    global _initialised
    if _initialised != (os.getpid(), library):
        library.nvmlInit()
        _initialised = (os.getpid(), library)


class Gpu:
    """One card, or the MIG instance on it that the run has.

    ``handle`` is the card's, None while the run may not use it; ``instance`` the MIG instance's, which knows its memory
    and its multiprocessors, while power, heat and clocks are the card's.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        self.handle: Any = None
        self.instance: Any = None
        self.instance_id: int | None = None
        self.cuda_index: int | None = None
        self.chosen: Any = None  # the handle of the MIG instance that it is to be taken with
        self.remap_trouble: bool | None = None
        self.has_fields: set[int] = set()  # those that were answered
        self.lost_until: float | None = None
        self.rest_s = FIRST_REST_S
        self.card: dict[str, str] = {"hw.id": f"gpu-{index}"}
        self.typed = {**self.card, "hw.type": "gpu"}
        self.own: dict[str, str] = dict(self.card)  # what is of the instance, where there is one
        self.general = {**self.card, "hw.gpu.task": "general"}
        self.states = {state: {**self.typed, "hw.state": state} for state in ("ok", "degraded", "failed", "predicted_failure")}

    @property
    def is_ours(self) -> bool:
        """Whether the run may use it, lost or not."""
        return self.handle is not None or self.lost_until is not None

    @property
    def is_asked(self) -> bool:
        return self.handle is not None and self.lost_until is None

    def take(self, handle: Any, instance: Any, instance_id: int | None) -> None:
        self.handle, self.instance, self.instance_id = handle, instance, instance_id
        self.own["hw.id"] = self.card["hw.id"] if instance_id is None else f"{self.card['hw.id']}/mig-{instance_id}"

    def sensor(self, part: str, location: str) -> dict[str, str]:
        return {"hw.id": f"gpu-{self.index}-{part}", "hw.parent": f"gpu-{self.index}", "hw.sensor_location": location}


class NvmlProbe:
    """The GPUs that the run may use.

    Args:
        load: gives the library; tests give a fake or a recording.
        device: "cuda:1" for one of those that CUDA shows; None for all of them.
        clock: seconds, for the rests of lost GPUs.
    """

    name = "nvml"
    specs = SPECS

    def __init__(
        self,
        load: Callable[[], Library] = load_library,
        device: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load = load
        self._wanted = device
        self._device = int(device[5:]) if device is not None and device.startswith("cuda:") else None
        self._clock = clock
        self._library: Any = None
        self._gpus: list[Gpu] = []
        self._handles: dict[int, Any] = {}
        self._is_confirmed = False  # by the UUIDs of the devices that torch uses
        self._memory_version: Any = None
        self._gpm: list[Gpm] = []

    def start(self) -> None:
        global _initialised
        check_device(self._wanted, "cuda")
        try:
            self._library = library = self._load()
        except ImportError:
            raise ProbeUnavailableError("the package nvidia-ml-py is not installed: pip install nvidia-ml-py") from None
        try:
            _initialise(library)
            self._gpus = [Gpu(index) for index in range(library.nvmlDeviceGetCount())]
            is_known = self._select()
        except library.NVMLError as error:
            code = getattr(error, "value", None)
            if code == UNINITIALISED:
                _initialised = None
            raise ProbeUnavailableError(
                CURES.get(code or 0, f"NVML does not start: {error}"),
                is_trouble=code != NO_LIBRARY,
                may_come=code not in (NO_LIBRARY, *ABSENT_CODES),
            ) from None
        if is_known and not any(gpu.is_ours for gpu in self._gpus):
            there_are = len(self._gpus)
            which = "" if self._device is None else f" as {self._wanted}"
            raise ProbeUnavailableError(
                f"no NVIDIA GPU is visible to this process{which}" + (f", of {there_are} that there are" if there_are else ""),
                is_trouble=self._device is not None,
            )
        self._memory_version = getattr(library, "nvmlMemory_v2", None)

    def close(self) -> None:
        """NVML itself stays initialised: others in this process may use it, and there may be another run."""
        for gpm in self._gpm:
            gpm.free()

    def facts(self) -> Sequence[Fact]:
        asked: dict[str, Callable[[Gpu], str | Number | None]] = {
            "name": self._name,
            "memory_class_gb": self._memory_class,
            "power_limit_w": lambda gpu: self._call("nvmlDeviceGetEnforcedPowerLimit", gpu.handle) / 1000,
            "cuda_index": lambda gpu: gpu.cuda_index if self._is_confirmed else None,  # else it is assumed, from a variable
            "mig_instance": lambda gpu: gpu.instance_id,
        }
        return [
            Fact("gpus", key, partial(self._guarded, gpu, partial(read, gpu)), gpu.index, late=True)
            for gpu in self._gpus
            for key, read in asked.items()
        ]

    def readings(self) -> Sequence[Reading]:
        return [Reading((), self._look), *(row for gpu in self._gpus for row in self._rows(gpu))]

    def energy(self) -> Mapping[str, float]:
        found = {}
        for gpu in self._gpus:
            if gpu.is_asked:
                try:
                    found[gpu.card["hw.id"]] = self._library.nvmlDeviceGetTotalEnergyConsumption(gpu.handle) / 1000
                except self._library.NVMLError:  # its reading says so
                    continue
        return found

    # ---- which GPUs ------------------------------------------------------------------------------------------------

    def _look(self) -> Iterable[Sample]:
        """Once the program uses CUDA, the UUIDs of its devices say which GPUs are the run's; a rank's own, once it has
        tensors there."""
        cuda = None if self._is_confirmed else _cuda_in_use()
        if cuda is not None and (not _is_rank() or any(map(cuda.memory_reserved, range(cuda.device_count())))):
            self._select(is_confirmed=True)
            self._is_confirmed = True
        return ()

    def _select(self, *, is_confirmed: bool = False) -> bool:
        """Takes the handles of the run's GPUs; False where it is not known yet which they are."""
        chosen = self._by_torch()
        if chosen is None:
            chosen = self._by_environment()
        if chosen is None:
            return False
        if self._device is not None:
            chosen = {order: place for order, place in chosen.items() if order == self._device}
        elif _is_rank() and not is_confirmed and len(chosen) > 1:
            return False  # it sees the GPUs of all ranks
        for gpu in self._gpus:
            gpu.handle = gpu.lost_until = None
        for order, (index, instance) in chosen.items():
            gpu = self._gpus[index]
            gpu.cuda_index, gpu.chosen = order, instance
            try:
                self._take(gpu, instance)
            except ProbeUnavailableError:
                continue
            except self._library.NVMLError as error:  # without permission, it is not the run's
                if getattr(error, "value", None) in LOST_CODES:
                    self._lose(gpu)
        return True

    def _take(self, gpu: Gpu, instance: Any) -> None:
        handle = self._handle(gpu.index)
        gpu.take(handle, instance, None if instance is None else self._call("nvmlDeviceGetGpuInstanceId", instance))

    def _handle(self, index: int) -> Any:
        if index not in self._handles:
            self._handles[index] = self._library.nvmlDeviceGetHandleByIndex(index)
        return self._handles[index]

    def _take_again(self, gpu: Gpu) -> None:
        """The same card, and the same instance on it."""
        self._handles.pop(gpu.index, None)
        if gpu.handle is None:  # it was lost before it could be taken
            self._take(gpu, gpu.chosen)
            return
        handle, number = self._handle(gpu.index), gpu.instance_id
        if number is None:
            gpu.take(handle, None, None)
            return
        for instance in self._instances(handle):
            if self._call("nvmlDeviceGetGpuInstanceId", instance) == number:
                gpu.take(handle, instance, number)
                return
        raise ProbeUnavailableError("the MIG instance is gone")

    def _attempt(self, read: Callable[[], Any]) -> Any:
        """The answer, or None: a device that is counted may yet be kept from this container."""
        try:
            return read()
        except (self._library.NVMLError, ProbeUnavailableError):
            return None

    def _by_torch(self) -> dict[int, tuple[int, Any]] | None:
        """For each of torch's devices the GPU, and its MIG instance or None; None where torch cannot tell."""
        cuda = _cuda_in_use()
        if cuda is None:
            return None
        found: dict[int, tuple[int, Any]] = {}
        for order in range(cuda.device_count()):
            try:
                uuid = getattr(cuda.get_device_properties(order), "uuid", None)
            except (AssertionError, RuntimeError):  # CUDA has failed: the program will see it, too
                return None
            handle = next(
                filter(None, (self._attempt(partial(self._of_uuid, f"{kind}-{uuid}")) for kind in ("GPU", "MIG"))), None
            )
            if uuid is None or handle is None:
                return None
            found[order] = handle
        in_use = [order for order in found if cuda.memory_reserved(order)]
        return {order: found[order] for order in in_use} if in_use and _is_rank() and self._device is None else found

    def _of_uuid(self, uuid: str) -> tuple[int, Any]:
        """The GPU's number and, where it is the UUID of a MIG instance, the instance's handle."""
        library = self._library
        handle = library.nvmlDeviceGetHandleByUUID(uuid)
        if not uuid.startswith("MIG-"):
            return library.nvmlDeviceGetIndex(handle), None
        return library.nvmlDeviceGetIndex(self._call("nvmlDeviceGetDeviceHandleFromMigDeviceHandle", handle)), handle

    def _by_environment(self) -> dict[int, tuple[int, Any]] | None:
        """The same by CUDA_VISIBLE_DEVICES; None where its numbers may be in another order than NVML's."""
        named = parse(variable("CUDA_VISIBLE_DEVICES"))
        count = len(self._gpus)
        if named is None:
            return self._as_cuda_shows(range(count))
        if named and isinstance(named[0], str):
            return self._by_uuid([str(name) for name in named])
        numbers = [number if isinstance(number, int) and number < count else None for number in named]
        if None in numbers:  # CUDA stops at the first that is not there
            del numbers[numbers.index(None) :]
        is_ordered = variable("CUDA_DEVICE_ORDER") == "PCI_BUS_ID" or len(numbers) in (0, count) or self._are_alike()
        return self._as_cuda_shows([number for number in numbers if number is not None]) if is_ordered else None

    def _as_cuda_shows(self, indices: Sequence[int]) -> dict[int, tuple[int, Any]]:
        """CUDA shows one MIG instance, the first, and then no other GPU ("CUDA Device Enumeration", MIG User Guide)."""
        if _is_rank() and len(indices) > 1:  # it is not yet known which is this rank's, and none is woken for nothing
            return _in_order(indices)
        for index in indices:
            handle = self._attempt(partial(self._handle, index))
            instance = None if handle is None else next(self._instances(handle), None)
            if instance is not None:
                return {0: (index, instance)}
        return _in_order(indices)

    def _by_uuid(self, named: list[str]) -> dict[int, tuple[int, Any]]:
        if named[0].startswith("MIG-"):  # CUDA shows one MIG instance to a process
            found = self._attempt(partial(self._of_uuid, named[0]))
            return {} if found is None else {0: found}
        uuids = []
        for gpu in self._gpus:
            handle = self._attempt(partial(self._handle, gpu.index))
            uuids.append("" if handle is None else self._attempt(partial(self._library.nvmlDeviceGetUUID, handle)) or "")
        return _in_order(ordinals(named, uuids))

    def _are_alike(self) -> bool:
        """Whether all GPUs are of one kind: then CUDA's order, the fastest first, is NVML's."""
        handles = [self._attempt(partial(self._handle, gpu.index)) for gpu in self._gpus]
        return len({self._library.nvmlDeviceGetName(handle) for handle in handles if handle is not None}) <= 1

    def _instances(self, handle: Any) -> Iterator[Any]:
        """The MIG instances on a card; none where MIG is off."""
        if (self._attempt(lambda: self._call("nvmlDeviceGetMigMode", handle)) or (0,))[0] != 1:
            return
        for slot in range(self._call("nvmlDeviceGetMaxMigDeviceCount", handle)):  # with gaps
            instance = self._attempt(partial(self._call, "nvmlDeviceGetMigDeviceHandleByIndex", handle, slot))
            if instance is not None:
                yield instance

    # ---- failing ---------------------------------------------------------------------------------------------------

    def _call(self, name: str, *arguments: Any) -> Any:
        """A call that older bindings, or drivers, do not have."""
        function = getattr(self._library, name, None)
        if function is None:
            raise ProbeUnavailableError(f"this version of nvidia-ml-py has no {name}")
        return function(*arguments)

    def _first_known(self, names: Sequence[str], *arguments: Any) -> Any:
        """The answer of the first of these calls that the binding and the driver both have."""
        for name in names:
            try:
                return self._call(name, *arguments)
            except ProbeUnavailableError:
                continue
            except self._library.NVMLError as error:
                if getattr(error, "value", None) != 13:
                    raise
        raise ProbeUnavailableError(f"neither is known: {', '.join(names)}")

    def _guarded(self, gpu: Gpu, read: Callable[[], Any]) -> Any:
        """The answer, or None while the GPU is not the run's, or lost.

        Raises:
            ProbeUnavailableError: the card cannot tell this.
        """
        if not gpu.is_asked:
            return None
        try:
            return read()
        except self._library.NVMLError as error:
            self._judge(gpu, error)
            return None

    def _answered(self, gpu: Gpu, read: Callable[[], Iterable[Sample | Samples]]) -> Sequence[Sample | Samples]:
        """The samples of a row, none while there are none."""
        if gpu.handle is None or gpu.lost_until is not None:
            return ()
        try:
            return tuple(read())
        except self._library.NVMLError as error:
            self._judge(gpu, error)
            return ()

    def _judge(self, gpu: Gpu, error: Any) -> None:
        """What an error means: nothing for now, or that it is raised, as it came or as `ProbeUnavailableError`."""
        code = getattr(error, "value", None)
        if code in ABSENT_CODES:
            raise ProbeUnavailableError(str(error)) from None
        if code in NOTHING_NEW_CODES:
            return
        if code in LOST_CODES:
            self._lose(gpu)
        raise error

    def _lose(self, gpu: Gpu) -> None:
        gpu.lost_until = self._clock() + gpu.rest_s
        gpu.rest_s = min(gpu.rest_s * 2, LONGEST_REST_S)
        for gpm in self._gpm:
            gpm.forget(gpu)

    def _recover(self, gpu: Gpu) -> None:
        """Takes the handle of a lost GPU anew, once its rest is over. NVML is begun anew only where no GPU is left."""
        global _initialised
        library = self._library
        if gpu.lost_until is None or self._clock() < gpu.lost_until:
            return
        try:
            if all(other.lost_until is not None for other in self._gpus if other.is_ours):
                self._attempt(library.nvmlShutdown)
                _initialised = None
                _initialise(library)
            self._take_again(gpu)
            library.nvmlDeviceGetName(gpu.handle)
            gpu.lost_until = None
        except (library.NVMLError, ProbeUnavailableError):
            self._lose(gpu)

    # ---- readings --------------------------------------------------------------------------------------------------

    def _rows(self, gpu: Gpu) -> list[Reading]:
        fields = Fields(self._library, gpu)
        gpm = Gpm(self._library, gpu, self._clock)
        self._gpm.append(gpm)

        def row(specs: tuple[MetricSpec, ...], read: Callable[[], Iterable[Sample | Samples]], every: int = 1) -> Reading:
            return Reading(specs, partial(self._answered, gpu, read), every)

        return [
            Reading((STATUS,), partial(self._states, gpu)),
            row((UTILIZATION, CONTROLLER), partial(self._utilization, gpu)),
            row((MEMORY_USAGE,), partial(self._memory_in_use, gpu)),
            row((MEMORY_LIMIT, MEMORY_RESERVED), partial(self._memory_there_is, gpu), SLOW_TICKS),
            row(tuple(field.spec for field in (*QUICK, *SLOW)), fields.read_all, SLOW_TICKS),
            row(tuple(field.spec for field in QUICK), fields.read),
            Reading((STATUS,), partial(self._prediction, gpu), SLOW_TICKS),
            Reading((POWER,), partial(self._power, gpu)),
            Reading((ENERGY,), partial(self._energy, gpu)),
            row(GPM, gpm.read),
            row((TEMPERATURE,), partial(self._temperature, gpu, gpu.sensor("die", "gpu_die")), SLOW_TICKS),
            *(
                row((CLOCK,), partial(self._clock_rate, gpu, kind, {**gpu.card, "epochmeter.gpu.clock": word}), SLOW_TICKS)
                for kind, word in ((1, "sm"), (2, "memory"))
            ),
            row((POWER_SAMPLES,), Buffer(self._library, gpu, 0, POWER_SAMPLES, 1000).read),
            row((UTILIZATION_SAMPLES,), Buffer(self._library, gpu, 1, UTILIZATION_SAMPLES, 100).read, SLOW_TICKS),
        ]

    def _states(self, gpu: Gpu) -> Iterable[Sample]:
        """Whether it is there, and whether heat or a brake slows it now. A lost GPU's way back begins here."""
        if not gpu.is_ours:
            return ()
        self._recover(gpu)
        try:
            reasons = self._guarded(gpu, partial(self._reasons, gpu)) or 0
        except ProbeUnavailableError:
            reasons = 0
        except self._library.NVMLError:
            if gpu.lost_until is None:
                raise
            reasons = 0  # its state says so
        is_lost, is_degraded = gpu.lost_until is not None, bool(reasons & DEGRADED)
        states = gpu.states
        return (
            Sample(STATUS, int(not is_lost and not is_degraded), states["ok"]),
            Sample(STATUS, int(is_degraded), states["degraded"]),
            Sample(STATUS, int(is_lost), states["failed"]),
        )

    def _prediction(self, gpu: Gpu) -> Iterable[Sample]:
        """What rows of memory that wait to be replaced, or could not be, say of the card."""
        if gpu.is_asked:
            gpu.rest_s = FIRST_REST_S
            if gpu.remap_trouble is not None:
                return (Sample(STATUS, int(gpu.remap_trouble), gpu.states["predicted_failure"]),)
        return ()

    def _reasons(self, gpu: Gpu) -> int:
        """Renamed with driver 535; the older name leaves with CUDA 14."""
        names = ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons")
        return int(self._first_known(names, gpu.handle))

    def _utilization(self, gpu: Gpu) -> Iterable[Sample]:
        rates = self._library.nvmlDeviceGetUtilizationRates(gpu.handle)
        return (Sample(UTILIZATION, rates.gpu / 100, gpu.general), Sample(CONTROLLER, rates.memory / 100, gpu.card))

    def _memory_in_use(self, gpu: Gpu) -> Iterable[Sample]:
        return (Sample(MEMORY_USAGE, self._own_memory(gpu).used, gpu.own),)

    def _memory_there_is(self, gpu: Gpu) -> Iterable[Sample]:
        info = self._own_memory(gpu)
        yield Sample(MEMORY_LIMIT, info.total, gpu.own)
        reserved = getattr(info, "reserved", None)
        if reserved is not None:
            yield Sample(MEMORY_RESERVED, reserved, gpu.own)

    def _own_memory(self, gpu: Gpu) -> Any:
        info = self._memory(gpu)
        if not info.total:  # the GPU shares the host's memory, and NVML cannot tell
            raise ProbeUnavailableError("the GPU has no memory of its own")
        return info

    def _memory(self, gpu: Gpu) -> Any:
        """Version 2 tells the driver's reserved memory apart; drivers before 510 know only version 1."""
        handle = gpu.handle if gpu.instance is None else gpu.instance
        if self._memory_version is not None:
            try:
                return self._library.nvmlDeviceGetMemoryInfo(handle, version=self._memory_version)
            except self._library.NVMLError as error:
                if getattr(error, "value", None) != 13:
                    raise
                self._memory_version = None
        return self._library.nvmlDeviceGetMemoryInfo(handle)

    def _power(self, gpu: Gpu) -> Iterable[Sample]:
        """Where no field value tells it."""
        if POWER_AVERAGE in gpu.has_fields:
            return ()
        milliwatts = self._guarded(gpu, lambda: self._library.nvmlDeviceGetPowerUsage(gpu.handle))
        return () if milliwatts is None else (Sample(POWER, milliwatts / 1000, gpu.typed),)

    def _energy(self, gpu: Gpu) -> Iterable[Sample]:
        """Where no field value tells it."""
        if ENERGY_COUNTER in gpu.has_fields:
            return ()
        millijoules = self._guarded(gpu, lambda: self._library.nvmlDeviceGetTotalEnergyConsumption(gpu.handle))
        return () if millijoules is None else (Sample(ENERGY, millijoules / 1000, gpu.typed),)

    def _temperature(self, gpu: Gpu, attributes: Attributes) -> Iterable[Sample]:
        """The older call leaves with CUDA 14."""
        names = ("nvmlDeviceGetTemperatureV", "nvmlDeviceGetTemperature")
        return (Sample(TEMPERATURE, self._first_known(names, gpu.handle, 0), attributes),)

    def _clock_rate(self, gpu: Gpu, kind: int, attributes: Attributes) -> Iterable[Sample]:
        return (Sample(CLOCK, self._library.nvmlDeviceGetClockInfo(gpu.handle, kind) * 10**6, attributes),)

    def _name(self, gpu: Gpu) -> str:
        name = self._library.nvmlDeviceGetName(gpu.handle)
        return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)

    def _memory_class(self, gpu: Gpu) -> int | None:
        total = self._memory(gpu).total
        return memory_class_gb(total) if total else None


class Field(NamedTuple):
    """A field value of NVML: its number, what it tells, and how many of its unit are one of ours."""

    id: int
    spec: MetricSpec
    attributes: Attributes = NO_ATTRIBUTES
    per: float = 1
    scope: int = 0
    is_wide: bool = False  # only where it has 64 bits


POWER_AVERAGE, POWER_NOW, ENERGY_COUNTER = 185, 186, 83
PATIENCE = 5  # refusals in a row of a field that was answered before
REMAP_TROUBLE = (144, 145)  # pending, failed
# Of software's and hardware's thermal slowdown and the power brake. nvml.h of CUDA 13 has them at 269, where a driver 580
# still answers at 251, as nvml.h of CUDA 12 has it (github.com/NVIDIA/k8s-test-infra/pull/691); each has another thing,
# of power smoothing, where the other has these.
HELD_DOWN = ((251, 252, 253), (269, 270, 271))
QUICK = (
    Field(ENERGY_COUNTER, ENERGY, {"hw.type": "gpu"}, 1000),
    Field(POWER_AVERAGE, POWER, {"hw.type": "gpu"}, 1000),
    Field(POWER_NOW, POWER_INSTANT, {}, 1000),
)
SLOW = (  # counters among them lose nothing by being read less often
    Field(82, TEMPERATURE, {"hw.sensor_location": "hbm"}),
    *(  # cumulative, in ns
        Field(number, THROTTLED, {"epochmeter.gpu.throttle_reason": reason}, 10**9)
        for number, reason in ((74, "power_cap"), (75, "thermal"), (76, "sync_boost"), (77, "board_limit"), (79, "reliability"))
    ),
    *(
        Field(number, THROTTLED, {"epochmeter.gpu.throttle_reason": reason}, 10**9, is_wide=True)
        for numbers in HELD_DOWN
        for number, reason in zip(numbers, ("sw_thermal", "hw_thermal", "power_brake"), strict=True)
    ),
    *(
        Field(number, spec, {"network.io.direction": direction}, per, scope, is_wide)
        for spec, transmit, receive, per, scope, is_wide in (
            (IO, 197, 198, 1, 0, True),
            (NVLINK_IO, 138, 139, 1 / 1024, ALL_LINKS, False),
        )
        for number, direction in ((transmit, "transmit"), (receive, "receive"))
    ),
    *(
        Field(number, spec, {**typed, "error.type": kind})
        for spec, typed, corrected, uncorrected in ((ERRORS, {"hw.type": "gpu"}, 3, 4), (REMAPPED, {}, 142, 143))
        for number, kind in ((corrected, "corrected"), (uncorrected, "uncorrected"))
    ),
    *(Field(number, STATUS) for number in REMAP_TROUBLE),
)


class Fields:
    """The field values of a GPU: one call a tick, without those that it has refused; every tenth with the slow ones.

    The call goes past pynvml's wrapper, which makes an array at each.
    """

    def __init__(self, library: Any, gpu: Gpu) -> None:
        self._library = library
        self._gpu = gpu
        self._are_read = False  # in this tick, with the slow ones
        self._quick = [*map(self._placed, QUICK)]
        self._slow = [*map(self._placed, SLOW)]
        self._arrays: dict[bool, Any] = {}  # with the slow ones, and without
        self._refusals: dict[int, int] = {}  # in a row, of fields that were answered before

    def _placed(self, field: Field) -> Field:
        """With the attributes of this GPU."""
        own = self._gpu.sensor("hbm", "hbm") if field.spec is TEMPERATURE else {**self._gpu.card, **field.attributes}
        return field._replace(attributes=own)

    def read_all(self) -> Iterable[Sample]:
        """All of them, now and then; before `read` in that tick, which then has nothing to do."""
        self._are_read = True
        return self._read([*self._quick, *self._slow], with_slow=True)

    def read(self) -> Iterable[Sample]:
        was_read, self._are_read = self._are_read, False
        return () if was_read else self._read(self._quick, with_slow=False)

    def _read(self, asked: Sequence[Field], *, with_slow: bool) -> Iterable[Sample]:
        if not asked:
            raise ProbeUnavailableError("no field is supported")
        array = self._array(with_slow, asked)
        _call_past(self._library, "nvmlDeviceGetFieldValues", self._gpu.handle, len(asked), array)
        found, refused = [], set[int]()
        for field, (*_, kind, code, raw) in zip(asked, FIELD_VALUE.iter_unpack(array), strict=True):
            if code == 0 and not (field.is_wide and kind not in WIDE_TYPES):
                sample = self._sample(field, _number(kind, raw))
                if sample is not None:
                    found.append(sample)
            elif code == 0 or code in UNASKED_CODES:
                if self._is_refused(field):
                    refused.add(field.id)
            elif code in LOST_CODES[:-1]:
                raise self._library.NVMLError(code)
        if with_slow:
            refused |= self._misnumbered({field.id for field in asked} - refused)
        if refused:
            dropped = {id(field.attributes) for field in asked if field.id in refused}
            found = [sample for sample in found if id(sample.attributes) not in dropped]
            self._quick = [field for field in self._quick if field.id not in refused]
            self._slow = [field for field in self._slow if field.id not in refused]
            self._arrays.clear()
        return found

    def _is_refused(self, field: Field) -> bool:
        """Whether it is not to be asked any more: at once, or after some times where it was answered before."""
        self._gpu.has_fields.discard(field.id)
        if field.id not in self._refusals:
            return True
        self._refusals[field.id] += 1
        return self._refusals[field.id] >= PATIENCE

    @staticmethod
    def _misnumbered(answered: set[int]) -> set[int]:
        """Of the two numberings of what held the clocks down, the one that is not this driver's; both, where all of both
        are answered, or not all of either."""
        asked = [numbers for numbers in HELD_DOWN if answered.intersection(numbers)]
        whole = [numbers for numbers in asked if answered.issuperset(numbers)]
        return {number for numbers in asked if [numbers] != whole for number in numbers}

    def _array(self, with_slow: bool, asked: Sequence[Field]) -> Any:
        array = self._arrays.get(with_slow)
        if array is None:
            array = self._arrays[with_slow] = (self._library.c_nvmlFieldValue_t * len(asked))()
            for value, field in zip(array, asked, strict=True):
                value.fieldId, value.scopeId = field.id, field.scope
        return array

    def _sample(self, field: Field, value: Number) -> Sample | None:
        gpu = self._gpu
        gpu.has_fields.add(field.id)
        self._refusals[field.id] = 0
        if field.id in REMAP_TROUBLE:
            gpu.remap_trouble = bool(value) or (field.id == REMAP_TROUBLE[1] and bool(gpu.remap_trouble))
            return None
        if field.id == POWER_NOW and POWER_AVERAGE not in gpu.has_fields:
            return None  # the one reading that there is, is of the moment
        return Sample(field.spec, value if field.per == 1 else value / field.per, field.attributes)


class Gpm:
    """What a GPU's units did since the last tick, from two samples of its counters (Hopper and newer)."""

    METRICS = (
        *((2, SM_ACTIVITY, {}, 100), (3, SM_OCCUPANCY, {}, 100), (5, TENSOR, {}, 100), (10, DRAM, {}, 100)),
        *(
            (number, spec, {"network.io.direction": direction}, 1 / MIB)
            for spec, transmit, receive in ((PCIE_RATE, 20, 21), (NVLINK_RATE, 61, 60))
            for number, direction in ((transmit, "transmit"), (receive, "receive"))
        ),
    )

    def __init__(self, library: Any, gpu: Gpu, clock: Callable[[], float]) -> None:
        self._library = library
        self._gpu = gpu
        self._clock = clock
        self._query: Any = None
        self._samples: list[Any] = []  # the older one first
        self._taken_at: float | None = None
        self._rows: list[tuple[MetricSpec, Attributes, float]] = []
        self._metric = struct.Struct("")
        self._view = memoryview(b"")

    def read(self) -> Iterable[Sample | Samples]:
        if self._query is None:
            self._prepare()
        at = self._clock()
        if self._taken_at is not None and at - self._taken_at <= GPM_GAP_S:
            return ()
        before = self._taken_at
        self._take(self._samples[1])
        self._taken_at = at
        self._samples.reverse()
        if before is None:
            return ()
        query = self._query
        query.sample1, query.sample2 = self._samples[1], self._samples[0]
        self._library.nvmlGpmMetricsGet(query)
        return self._answers()

    def _answers(self) -> Iterable[Sample]:
        found, kept = [], []
        for row, (number, code, value) in zip(self._rows, self._metric.iter_unpack(self._view), strict=True):
            if code == 0:
                found.append(Sample(row[0], value / row[2], row[1]))
            if code not in UNASKED_CODES:
                kept.append((number, row))
        if len(kept) < len(self._rows):
            self._ask_for(kept)
        return found

    def _prepare(self) -> None:
        library = self._library
        if not hasattr(library, "nvmlGpmQueryDeviceSupport"):
            raise ProbeUnavailableError("this version of nvidia-ml-py has no GPM")
        if not library.nvmlGpmQueryDeviceSupport(self._gpu.handle).isSupportedDevice:
            raise ProbeUnavailableError("GPM is on Hopper and newer")
        query = library.c_nvmlGpmMetricsGet_t()  # 19 kB: made once
        query.version = library.NVML_GPM_METRICS_GET_VERSION
        own = self._gpu.own
        self._query = query
        self._ask_for([(number, (spec, {**own, **added}, per)) for number, spec, added, per in self.METRICS])
        self._samples = [library.nvmlGpmSampleAlloc(), library.nvmlGpmSampleAlloc()]

    def _ask_for(self, rows: list[tuple[int, tuple[MetricSpec, Attributes, float]]]) -> None:
        if not rows:
            raise ProbeUnavailableError("no GPM metric is supported")
        self._rows = [row for _, row in rows]
        self._query.numMetrics = len(rows)
        for position, (number, _) in enumerate(rows):
            self._query.metrics[position].metricId = number
        # Read as bytes, not member by member of each ctypes struct: id, code, value, three texts.
        size, offset = sizeof(self._query.metrics[0]), type(self._query).metrics.offset
        self._metric = struct.Struct(f"Iid{size - 16}x")
        self._view = memoryview(self._query).cast("B")[offset : offset + size * len(rows)]

    def _take(self, sample: Any) -> None:
        gpu, library = self._gpu, self._library
        if gpu.instance_id is None:
            library.nvmlGpmSampleGet(gpu.handle, sample)
        else:
            library.nvmlGpmMigSampleGet(gpu.handle, gpu.instance_id, sample)

    def forget(self, gpu: Gpu) -> None:
        """After a loss, what was sampled before says nothing."""
        if gpu is self._gpu:
            self._taken_at = None

    def free(self) -> None:
        samples, self._samples, self._query, self._view = self._samples, [], None, memoryview(b"")
        for sample in samples:
            self._library.nvmlGpmSampleFree(sample)


class Buffer:
    """What the driver has sampled by itself since the last tick: many values within a second, for one call."""

    def __init__(self, library: Any, gpu: Gpu, kind: int, spec: MetricSpec, per: int) -> None:
        self._library = library
        self._gpu = gpu
        self._kind = kind
        self._spec = spec
        self._per = per
        self._last: int | None = None  # timestamp, in us
        self._array: Any = None

    def read(self) -> Iterable[Samples]:
        library, handle, kind = self._library, self._gpu.handle, self._kind
        value_type, count = c_uint(), c_uint()
        if self._array is None:  # the driver says how many it keeps
            _call_past(library, SAMPLES, handle, kind, c_ulonglong(), byref(value_type), byref(count), None)
            self._array = (library.c_nvmlSample_t * count.value)()
        count.value = len(self._array)
        last, array = self._last, self._array
        try:
            _call_past(library, SAMPLES, handle, kind, c_ulonglong(last or 0), byref(value_type), byref(count), array)
        except library.NVMLError as error:
            if getattr(error, "value", None) != TOO_SMALL:
                raise
            self._array = None  # the driver keeps more by now: asked again in the next tick
            return ()
        if value_type.value not in WHOLE_TYPES:
            raise ProbeUnavailableError("the samples are no whole numbers")
        given = memoryview(array).cast("B")[: 16 * count.value]  # timestamp and value, in turn, of 64 bits each
        stamps = given.cast("Q")[::2].tolist()
        if not stamps:
            return ()
        self._last = max(stamps)
        if last is None:  # what was before the run
            return ()
        is_narrow = value_type.value == WHOLE_TYPES[0]
        values = (given.cast("I")[2::4] if is_narrow else given.cast("Q")[1::2]).tolist()
        if min(stamps) <= last:
            values = [value for stamp, value in zip(stamps, values, strict=True) if stamp > last]
        return (Samples(self._spec, values, self._per, self._gpu.card),) if values else ()


def _call_past(library: Any, name: str, *arguments: Any) -> None:
    """A call of the driver's library itself, for what is asked often and wants its arrays kept.

    Raises:
        NVMLError: as pynvml's wrapper does.
    """
    function = getattr(library.nvmlLib, name, None)
    code = 13 if function is None else function(*arguments)
    if code:
        raise library.NVMLError(code)


def _number(kind: int, raw: int) -> Number:
    """A value as ``nvmlValueType_t`` says: double, unsigned int, long, long long, signed long long, int, unsigned short."""
    if kind in (1, 6):
        return raw & (0xFFFFFFFF if kind == 1 else 0xFFFF)
    if kind in (2, 3):
        return raw
    found: Number = struct.unpack({0: "d", 4: "q", 5: "i4x"}[kind], struct.pack("Q", raw))[0]
    return found


def _in_order(indices: Iterable[int]) -> dict[int, tuple[int, Any]]:
    return {order: (index, None) for order, index in enumerate(indices)}


def _is_rank() -> bool:
    """Whether this process is one of several on this machine that share its GPUs."""
    return (variable("LOCAL_WORLD_SIZE") or "1") != "1"


def _cuda_in_use() -> Any:
    """``torch.cuda`` if this process uses it already, else None: nothing is asked that would initialise CUDA."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    return cuda if cuda is not None and hasattr(cuda, "is_initialized") and cuda.is_initialized() else None
