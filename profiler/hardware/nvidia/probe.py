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

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from profiler.config.environment import variable
from profiler.errors import ProbeUnavailableError
from profiler.hardware.gpu import (
    ENERGY,
    FIRST_BACKOFF_S,
    LONGEST_BACKOFF_S,
    MEMORY_LIMIT,
    MEMORY_USAGE,
    POWER,
    TEMPERATURE,
    UTILIZATION,
    check_device,
    memory_class_gb,
)
from profiler.hardware.nvidia.fields import ENERGY_COUNTER, POWER_AVERAGE, QUICK, SLOW, Fields
from profiler.hardware.nvidia.gpm import Gpm
from profiler.hardware.nvidia.gpu import Gpu
from profiler.hardware.nvidia.library import (
    ABSENT_CODES,
    CURES,
    LOST_CODES,
    NO_LIBRARY,
    NOTHING_NEW_CODES,
    UNINITIALISED,
    load_library,
)
from profiler.hardware.nvidia.samples import Buffer
from profiler.hardware.nvidia.selection import _cuda_in_use, _in_order, _is_rank
from profiler.hardware.nvidia.specs import (
    CLOCK,
    CONTROLLER,
    GPM,
    MEMORY_RESERVED,
    POWER_SAMPLES,
    SPECS,
    STATUS,
    UTILIZATION_SAMPLES,
)
from profiler.hardware.visible import ordinals, parse
from profiler.records.readings import Fact, Reading, Sample

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.hardware.nvidia.library import Library
    from profiler.records.readings import Attributes, MetricSpec, Number, Samples


SLOW_TICKS = 10
DEGRADED = 0x8 | 0x20 | 0x40 | 0x80  # HW slowdown, SW and HW thermal slowdown, power brake; a power cap is normal


_initialised: tuple[int, object] | None = None  # process and library: NVML counts its users, and we are one


def _initialise(library: Library) -> None:
    """Once in a process; a forked child is another one."""
    global _initialised
    if _initialised != (os.getpid(), library):
        library.nvmlInit()
        _initialised = (os.getpid(), library)


class NvmlProbe:
    """The GPUs that the run may use.

    Args:
        load: gives the library; tests give a fake or a recording.
        device: "cuda:1" for one of those that CUDA shows; None for all of them.
        clock: seconds, for the back-off of lost GPUs.
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
        gpu.lost_until = self._clock() + gpu.backoff_s
        gpu.backoff_s = min(gpu.backoff_s * 2, LONGEST_BACKOFF_S)
        for gpm in self._gpm:
            gpm.forget(gpu)

    def _recover(self, gpu: Gpu) -> None:
        """Takes the handle of a lost GPU anew, once its back-off is over. NVML is begun anew only where no GPU is left."""
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
            gpu.backoff_s = FIRST_BACKOFF_S
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
