"""Which GPUs are the run's: by torch's devices, or by CUDA_VISIBLE_DEVICES before CUDA is in use.

UUIDs are compared in memory only, and never kept.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from profiler.config.environment import variable
from profiler.errors import ProbeUnavailableError
from profiler.hardware.nvidia.gpu import Gpu
from profiler.hardware.nvidia.library import LOST_CODES, code_of
from profiler.hardware.visible import ordinals, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.hardware.nvidia.library import NvmlCalls


Chosen = dict[int, tuple[int, Any]]  # by CUDA's number: NVML's number, and the handle of a MIG instance or None


class GpuSelection:
    """The machine's GPUs, and the run's among them.

    Args:
        calls: the library.
        device: CUDA's number of the run's only device; None for all that CUDA shows.
        on_lost: called with a GPU that is the run's and does not answer.

    Attributes:
        gpus: all GPUs of the machine.
        is_confirmed: True once torch's own devices have confirmed the selection.
    """

    def __init__(self, calls: NvmlCalls, device: int | None, on_lost: Callable[[Gpu], None]) -> None:
        self._calls = calls
        self._library = calls.library
        self._device = device
        self._on_lost = on_lost
        self._handles: dict[int, Any] = {}
        self.gpus = [Gpu(index) for index in range(self._library.nvmlDeviceGetCount())]
        self.is_confirmed = False

    def confirm(self) -> None:
        """Select again once the program uses CUDA: then the UUIDs of its devices are known.

        A rank's own device is known only once it has tensors there.
        """
        cuda = None if self.is_confirmed else _cuda_in_use()
        if cuda is not None and (not _is_rank() or any(map(cuda.memory_reserved, range(cuda.device_count())))):
            self.select(is_final=True)
            self.is_confirmed = True

    def select(self, *, is_final: bool = False) -> bool:
        """Take the handles of the run's GPUs. Return False if it is not known yet which they are."""
        # torch's own UUIDs are certain, but known only once the program uses CUDA; asking earlier would initialise it. Until
        # then CUDA_VISIBLE_DEVICES gives the order, and `confirm` selects again. A launcher shows every rank all GPUs of
        # the machine, so a rank's own device is known only when it has tensors there.
        chosen = self._by_torch()
        if chosen is None:
            chosen = self._by_environment()
        if chosen is None:
            return False
        if self._device is not None:
            chosen = {order: place for order, place in chosen.items() if order == self._device}
        elif _is_rank() and not is_final and len(chosen) > 1:
            return False  # this rank sees the GPUs of all ranks
        for gpu in self.gpus:
            gpu.handle = gpu.lost_until = None
        for order, (index, instance) in chosen.items():
            gpu = self.gpus[index]
            gpu.cuda_index, gpu.chosen = order, instance
            try:
                self._add_instance(gpu, instance)
            except ProbeUnavailableError:
                continue
            except self._calls.error as error:  # without permission, it is not the run's
                if code_of(error) in LOST_CODES:
                    self._on_lost(gpu)
        return True

    def take_again(self, gpu: Gpu) -> None:
        """Take a new handle of the same card, and of the same MIG instance on it.

        Raises:
            ProbeUnavailableError, NVMLError: it is gone, or does not answer.
        """
        self._handles.pop(gpu.index, None)
        if gpu.handle is None:  # it was lost before it could be taken
            self._add_instance(gpu, gpu.chosen)
            return
        handle, number = self._handle(gpu.index), gpu.instance_id
        if number is None:
            gpu.take(handle, None, None)
            return
        for instance in self._instances(handle):
            if self._calls.call("nvmlDeviceGetGpuInstanceId", instance) == number:
                gpu.take(handle, instance, number)
                return
        raise ProbeUnavailableError("the MIG instance is gone")

    def _add_instance(self, gpu: Gpu, instance: Any) -> None:
        handle = self._handle(gpu.index)
        number = None if instance is None else self._calls.call("nvmlDeviceGetGpuInstanceId", instance)
        gpu.take(handle, instance, number)

    def _handle(self, index: int) -> Any:
        if index not in self._handles:
            self._handles[index] = self._library.nvmlDeviceGetHandleByIndex(index)
        return self._handles[index]

    def _by_torch(self) -> Chosen | None:
        """Return the GPU of each of torch's devices, or None if torch does not know."""
        cuda = _cuda_in_use()
        if cuda is None:
            return None
        found: Chosen = {}
        for order in range(cuda.device_count()):
            try:
                uuid = getattr(cuda.get_device_properties(order), "uuid", None)
            except (AssertionError, RuntimeError):  # CUDA has failed: the program will see it, too
                return None
            places = (self._calls.attempt(partial(self._of_uuid, f"{kind}-{uuid}")) for kind in ("GPU", "MIG"))
            place = next(filter(None, places), None)
            if uuid is None or place is None:
                return None
            found[order] = place
        in_use = [order for order in found if cuda.memory_reserved(order)]
        return {order: found[order] for order in in_use} if in_use and _is_rank() and self._device is None else found

    def _of_uuid(self, uuid: str) -> tuple[int, Any]:
        """Return NVML's number of a card and, for the UUID of a MIG instance, the instance's handle."""
        library = self._library
        handle = library.nvmlDeviceGetHandleByUUID(uuid)
        if not uuid.startswith("MIG-"):
            return library.nvmlDeviceGetIndex(handle), None
        return library.nvmlDeviceGetIndex(self._calls.call("nvmlDeviceGetDeviceHandleFromMigDeviceHandle", handle)), handle

    def _by_environment(self) -> Chosen | None:
        """Return the GPUs that CUDA_VISIBLE_DEVICES names, or None if CUDA's order of them may differ from NVML's."""
        named = parse(variable("CUDA_VISIBLE_DEVICES"))
        count = len(self.gpus)
        if named is None:
            return self._as_cuda_shows(range(count))
        if named and isinstance(named[0], str):
            return self._by_uuid([str(name) for name in named])
        numbers = [number if isinstance(number, int) and number < count else None for number in named]
        if None in numbers:  # CUDA stops at the first number that does not exist
            del numbers[numbers.index(None) :]
        is_ordered = variable("CUDA_DEVICE_ORDER") == "PCI_BUS_ID" or len(numbers) in (0, count) or self._are_alike()
        return self._as_cuda_shows([number for number in numbers if number is not None]) if is_ordered else None

    def _as_cuda_shows(self, indices: Sequence[int]) -> Chosen:
        """Return these GPUs, or the first MIG instance alone: CUDA then shows no other GPU.

        Source: "CUDA Device Enumeration", MIG User Guide.
        """
        if _is_rank() and len(indices) > 1:  # this rank's own is not known yet, and no other card is to be woken
            return _in_order(indices)
        for index in indices:
            handle = self._calls.attempt(partial(self._handle, index))
            instance = None if handle is None else next(self._instances(handle), None)
            if instance is not None:
                return {0: (index, instance)}
        return _in_order(indices)

    def _by_uuid(self, named: list[str]) -> Chosen:
        if named[0].startswith("MIG-"):  # CUDA shows one MIG instance to a process
            found = self._calls.attempt(partial(self._of_uuid, named[0]))
            return {} if found is None else {0: found}
        uuids = []
        for gpu in self.gpus:
            handle = self._calls.attempt(partial(self._handle, gpu.index))
            uuid = None if handle is None else self._calls.attempt(partial(self._library.nvmlDeviceGetUUID, handle))
            uuids.append(uuid or "")
        return _in_order(ordinals(named, uuids))

    def _are_alike(self) -> bool:
        """Return True if all GPUs are of one kind: then CUDA's order, the fastest first, is NVML's."""
        handles = [self._calls.attempt(partial(self._handle, gpu.index)) for gpu in self.gpus]
        return len({self._library.nvmlDeviceGetName(handle) for handle in handles if handle is not None}) <= 1

    def _instances(self, handle: Any) -> Iterator[Any]:
        """Yield the MIG instances on a card; none if MIG is off."""
        calls = self._calls
        if (calls.attempt(lambda: calls.call("nvmlDeviceGetMigMode", handle)) or (0,))[0] != 1:
            return
        for slot in range(calls.call("nvmlDeviceGetMaxMigDeviceCount", handle)):  # some slots are empty
            instance = calls.attempt(partial(calls.call, "nvmlDeviceGetMigDeviceHandleByIndex", handle, slot))
            if instance is not None:
                yield instance


def _in_order(indices: Iterable[int]) -> Chosen:
    return {order: (index, None) for order, index in enumerate(indices)}


def _is_rank() -> bool:
    """Return True if this process is one of several on this machine that share its GPUs."""
    return (variable("LOCAL_WORLD_SIZE") or "1") != "1"


def _cuda_in_use() -> Any:
    """Return ``torch.cuda`` if this process uses it already, else None. Nothing here initialises CUDA."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    return cuda if cuda is not None and hasattr(cuda, "is_initialized") and cuda.is_initialized() else None
