"""NVIDIA GPUs through NVML: the readings of the run's GPUs, second by second and within the second.

The rules it keeps:

- One initialisation in a process, in the sampling thread. A handle is taken once, and only of a GPU that the run may use.
- One `nvmlDeviceGetFieldValues` and the utilization a tick for each GPU, a GPM sample every second tick. Expensive or slow
  readings come every tenth tick.
- Each GPU and each reading fails alone. A reading that a card does not support disappears silently. A lost card is asked
  again after a back-off that doubles, from 1 to 30 s.
- Serial numbers and PCI addresses are not read. UUIDs are read only to find the run's GPUs, and not kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

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
from profiler.hardware.nvidia.library import (
    ABSENT_CODES,
    CURES,
    FUNCTION_NOT_FOUND,
    LOST_CODES,
    NO_LIBRARY,
    NOTHING_NEW_CODES,
    UNINITIALISED,
    NvmlCalls,
    code_of,
    load_library,
)
from profiler.hardware.nvidia.samples import SampleBuffer
from profiler.hardware.nvidia.selection import GpuSelection
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
from profiler.records.readings import Fact, Reading, Sample

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.hardware.nvidia.gpu import Gpu
    from profiler.hardware.nvidia.library import NvmlLibrary
    from profiler.records.readings import Attributes, MetricSpec, Number, Samples


SLOW_TICKS = 10
SECOND_TICKS = 2  # for what loses nothing by it: averages since the last call, samples that the driver keeps, slow gauges
DEGRADED = 0x8 | 0x20 | 0x40 | 0x80  # HW slowdown, SW and HW thermal slowdown, power brake; a power cap is normal


class NvmlProbe:
    """The GPUs that the run may use.

    Args:
        load: gives the library; tests give a fake or a recording.
        device: "cuda:1" for one of CUDA's devices; None for all of them.
        clock: seconds, for the back-off of lost GPUs.
    """

    name = "nvml"
    specs = SPECS

    def __init__(
        self,
        load: Callable[[], NvmlLibrary] = load_library,
        device: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load = load
        self._wanted = device
        self._device = int(device[5:]) if device is not None and device.startswith("cuda:") else None
        self._clock = clock
        self._library: Any = None
        self._memory_version: Any = None
        self._gpm: list[Gpm] = []

    def start(self) -> None:
        """Initialise NVML and find the run's GPUs.

        Raises:
            ProbeUnavailableError: there are none; the text says why and what to do.
        """
        check_device(self._wanted, "cuda")
        try:
            self._library = library = self._load()
        except ImportError:
            raise ProbeUnavailableError("the package nvidia-ml-py is not installed: pip install nvidia-ml-py") from None
        self._calls = NvmlCalls(library)
        try:
            self._calls.initialise()
            self._selection = GpuSelection(self._calls, self._device, self._lose)
            is_known = self._selection.select()
        except library.NVMLError as error:
            code = code_of(error)
            if code == UNINITIALISED:
                self._calls.forget_initialisation()
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

    @property
    def _gpus(self) -> list[Gpu]:
        return self._selection.gpus

    def close(self) -> None:
        """Free the samples that GPM holds. NVML stays initialised: others in this process, or another run, may use it."""
        for gpm in self._gpm:
            gpm.free()

    def facts(self) -> Sequence[Fact]:
        """Return name, memory class, power limit and numbers of each GPU."""
        readers: dict[str, Callable[[Gpu], str | Number | None]] = {
            "name": self._name,
            "memory_class_gb": self._memory_class,
            "power_limit_w": lambda gpu: self._calls.call("nvmlDeviceGetEnforcedPowerLimit", gpu.handle) / 1000,
            # before torch confirms it, the number is only assumed from an environment variable
            "cuda_index": lambda gpu: gpu.cuda_index if self._selection.is_confirmed else None,
            "mig_instance": lambda gpu: gpu.instance_id,
        }
        return [
            Fact("gpus", key, partial(self._guarded, gpu, partial(read, gpu)), gpu.index, late=True)
            for gpu in self._gpus
            for key, read in readers.items()
        ]

    def readings(self) -> Sequence[Reading]:
        """Return the rows of all GPUs; the first row keeps the selection up to date."""
        return [Reading((), self._confirm_selection), *(row for gpu in self._gpus for row in self._rows(gpu))]

    def energy(self) -> Mapping[str, float]:
        """Return the energy counters of the run's GPUs (J, by ``hw.id``)."""
        found = {}
        for gpu in self._gpus:
            if gpu.is_asked:
                try:
                    found[gpu.card["hw.id"]] = self._library.nvmlDeviceGetTotalEnergyConsumption(gpu.handle) / 1000
                except self._library.NVMLError:  # the reading `ENERGY` counts the fault
                    continue
        return found

    def _confirm_selection(self) -> Iterable[Sample]:
        self._selection.confirm()
        return ()

    # ---- failing ---------------------------------------------------------------------------------------------------

    def _guarded(self, gpu: Gpu, read: Callable[[], Any]) -> Any:
        """Return the answer, or None while the GPU is not the run's, or lost.

        Raises:
            ProbeUnavailableError: the card does not have this reading.
        """
        if not gpu.is_asked:
            return None
        try:
            return read()
        except self._library.NVMLError as error:
            self._handle_error(gpu, error)
            return None

    def _answered(self, gpu: Gpu, read: Callable[[], Iterable[Sample | Samples]]) -> Sequence[Sample | Samples]:
        """Return the samples of a row, or none while the GPU is not the run's, or lost."""
        if gpu.handle is None or gpu.lost_until is not None:
            return ()
        try:
            return tuple(read())
        except self._library.NVMLError as error:
            self._handle_error(gpu, error)
            return ()

    def _handle_error(self, gpu: Gpu, error: Any) -> None:
        """Ignore "nothing new". Raise `ProbeUnavailableError` for an unsupported reading, and every other error unchanged.

        A code that means a lost card begins its back-off.
        """
        code = code_of(error)
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
        """Take a lost GPU's handle again once its back-off is over. NVML is restarted only if no GPU is left."""
        library = self._library
        if gpu.lost_until is None or self._clock() < gpu.lost_until:
            return
        try:
            if all(other.lost_until is not None for other in self._gpus if other.is_ours):
                self._calls.shut_down()
                self._calls.initialise()
            self._selection.take_again(gpu)
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
            row((MEMORY_USAGE,), partial(self._memory_in_use, gpu), SECOND_TICKS),
            row((MEMORY_LIMIT, MEMORY_RESERVED), partial(self._memory_sizes, gpu), SLOW_TICKS),
            row(tuple(field.spec for field in (*QUICK, *SLOW)), fields.read_all, SLOW_TICKS),
            row(tuple(field.spec for field in QUICK), fields.read),
            Reading((STATUS,), partial(self._prediction, gpu), SLOW_TICKS),
            Reading((POWER,), partial(self._power, gpu)),
            Reading((ENERGY,), partial(self._energy, gpu)),
            row(GPM, gpm.read, SECOND_TICKS),
            row((TEMPERATURE,), partial(self._temperature, gpu, gpu.sensor("die", "gpu_die")), SLOW_TICKS),
            *(
                row((CLOCK,), partial(self._clock_rate, gpu, kind, {**gpu.card, "epochmeter.gpu.clock": word}), SLOW_TICKS)
                for kind, word in ((1, "sm"), (2, "memory"))
            ),
            row((POWER_SAMPLES,), SampleBuffer(self._library, gpu, 0, POWER_SAMPLES, 1000).read, SECOND_TICKS),
            row((UTILIZATION_SAMPLES,), SampleBuffer(self._library, gpu, 1, UTILIZATION_SAMPLES, 100).read, SLOW_TICKS),
        ]

    def _states(self, gpu: Gpu) -> Iterable[Sample]:
        """Return the card's state. A lost card is looked for here."""
        if not gpu.is_ours:
            return ()
        self._recover(gpu)
        try:
            reasons = self._guarded(gpu, partial(self._slowdown_reasons, gpu)) or 0
        except ProbeUnavailableError:
            reasons = 0
        except self._library.NVMLError:
            if gpu.lost_until is None:
                raise
            reasons = 0  # the state "failed" reports it
        is_lost, is_degraded = gpu.lost_until is not None, bool(reasons & DEGRADED)
        states = gpu.states
        return (
            Sample(STATUS, int(not is_lost and not is_degraded), states["ok"]),
            Sample(STATUS, int(is_degraded), states["degraded"]),
            Sample(STATUS, int(is_lost), states["failed"]),
        )

    def _prediction(self, gpu: Gpu) -> Iterable[Sample]:
        """Return 1 for a predicted failure: rows of memory wait to be replaced, or could not be."""
        if gpu.is_asked:
            gpu.backoff_s = FIRST_BACKOFF_S
            if gpu.remap_trouble is not None:
                return (Sample(STATUS, int(gpu.remap_trouble), gpu.states["predicted_failure"]),)
        return ()

    def _slowdown_reasons(self, gpu: Gpu) -> int:
        """Return the bits of the present slowdowns. The call was renamed with driver 535; CUDA 14 drops the old name."""
        names = ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons")
        return int(self._calls.first_known(names, gpu.handle))

    def _utilization(self, gpu: Gpu) -> Iterable[Sample]:
        rates = self._library.nvmlDeviceGetUtilizationRates(gpu.handle)
        return (Sample(UTILIZATION, rates.gpu / 100, gpu.general), Sample(CONTROLLER, rates.memory / 100, gpu.card))

    def _memory_in_use(self, gpu: Gpu) -> Iterable[Sample]:
        return (Sample(MEMORY_USAGE, self._own_memory(gpu).used, gpu.own),)

    def _memory_sizes(self, gpu: Gpu) -> Iterable[Sample]:
        info = self._own_memory(gpu)
        yield Sample(MEMORY_LIMIT, info.total, gpu.own)
        reserved = getattr(info, "reserved", None)
        if reserved is not None:
            yield Sample(MEMORY_RESERVED, reserved, gpu.own)

    def _own_memory(self, gpu: Gpu) -> Any:
        info = self._memory(gpu)
        if not info.total:  # the GPU shares the host's memory, and NVML does not know its part
            raise ProbeUnavailableError("the GPU has no memory of its own")
        return info

    def _memory(self, gpu: Gpu) -> Any:
        """Return memory info, version 2 if the driver (510 and newer) has it: it separates the driver's own memory."""
        handle = gpu.handle if gpu.instance is None else gpu.instance
        if self._memory_version is not None:
            try:
                return self._library.nvmlDeviceGetMemoryInfo(handle, version=self._memory_version)
            except self._library.NVMLError as error:
                if code_of(error) != FUNCTION_NOT_FOUND:
                    raise
                self._memory_version = None
        return self._library.nvmlDeviceGetMemoryInfo(handle)

    def _power(self, gpu: Gpu) -> Iterable[Sample]:
        """Read the power draw, unless a field value has it."""
        if POWER_AVERAGE in gpu.has_fields:
            return ()
        milliwatts = self._guarded(gpu, lambda: self._library.nvmlDeviceGetPowerUsage(gpu.handle))
        return () if milliwatts is None else (Sample(POWER, milliwatts / 1000, gpu.typed),)

    def _energy(self, gpu: Gpu) -> Iterable[Sample]:
        """Read the energy counter, unless a field value has it."""
        if ENERGY_COUNTER in gpu.has_fields:
            return ()
        millijoules = self._guarded(gpu, lambda: self._library.nvmlDeviceGetTotalEnergyConsumption(gpu.handle))
        return () if millijoules is None else (Sample(ENERGY, millijoules / 1000, gpu.typed),)

    def _temperature(self, gpu: Gpu, attributes: Attributes) -> Iterable[Sample]:
        """Read the temperature; CUDA 14 drops the older call."""
        names = ("nvmlDeviceGetTemperatureV", "nvmlDeviceGetTemperature")
        return (Sample(TEMPERATURE, self._calls.first_known(names, gpu.handle, 0), attributes),)

    def _clock_rate(self, gpu: Gpu, kind: int, attributes: Attributes) -> Iterable[Sample]:
        return (Sample(CLOCK, self._library.nvmlDeviceGetClockInfo(gpu.handle, kind) * 10**6, attributes),)

    def _name(self, gpu: Gpu) -> str:
        name = self._library.nvmlDeviceGetName(gpu.handle)
        return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)

    def _memory_class(self, gpu: Gpu) -> int | None:
        total = self._memory(gpu).total
        return memory_class_gb(total) if total else None
