"""Part of `profiler.hardware.nvidia.probe`."""

from __future__ import annotations

import importlib
from typing import Any, Protocol

ABSENT_CODES = (3, 4, 13)  # NotSupported, NoPermission, FunctionNotFound: this card, or its driver, cannot tell
UNASKED_CODES = (2, *ABSENT_CODES, 26)  # InvalidArgument, Deprecated: of one field among many, the same
NOTHING_NEW_CODES = (6, 10, 21, 27)  # NotFound, Timeout, NoData, NotReady
LOST_CODES = (1, 15, 16, 28, 999)  # Uninitialized, GpuIsLost, ResetRequired, GpuNotFound, Unknown
UNINITIALISED, TOO_SMALL, NO_LIBRARY = 1, 7, 12
CURES = {
    NO_LIBRARY: "no NVIDIA driver library was found (in a container, NVIDIA_DRIVER_CAPABILITIES must have 'utility')",
    9: "the NVIDIA driver is not loaded: load the kernel module, or reboot",
    18: "the NVIDIA driver and its library differ in version, as after an upgrade: reboot",
    999: "NVML answers 'unknown error', as in a container whose GPU was taken away: restart the container",
}


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


def _call_past(library: Any, name: str, *arguments: Any) -> None:
    """A call of the driver's library itself, for what is asked often and wants its arrays kept.

    Raises:
        NVMLError: as pynvml's wrapper does.
    """
    function = getattr(library.nvmlLib, name, None)
    code = 13 if function is None else function(*arguments)
    if code:
        raise library.NVMLError(code)
