"""The NVML library: its calls, its error codes, and its one initialisation in a process.

The meaning of the calls: https://docs.nvidia.com/deploy/nvml-api/
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from profiler.errors import ProbeUnavailableError

ABSENT_CODES = (3, 4, 13)  # NotSupported, NoPermission, FunctionNotFound: this card, or its driver, does not have it
UNASKED_CODES = (2, *ABSENT_CODES, 26)  # also InvalidArgument and Deprecated, for one field among many
NOTHING_NEW_CODES = (6, 10, 21, 27)  # NotFound, Timeout, NoData, NotReady
LOST_CODES = (1, 15, 16, 28, 999)  # Uninitialized, GpuIsLost, ResetRequired, GpuNotFound, Unknown
UNINITIALISED, TOO_SMALL, NO_LIBRARY, FUNCTION_NOT_FOUND = 1, 7, 12, 13
CURES = {
    NO_LIBRARY: "no NVIDIA driver library was found (in a container, NVIDIA_DRIVER_CAPABILITIES must have 'utility')",
    9: "the NVIDIA driver is not loaded: load the kernel module, or reboot",
    18: "the NVIDIA driver and its library differ in version, as after an upgrade: reboot",
    999: "NVML answers 'unknown error', as in a container whose GPU was taken away: restart the container",
}


class NvmlLibrary(Protocol):
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


def load_library() -> NvmlLibrary:
    """Return ``pynvml``.

    Raises:
        ImportError: nvidia-ml-py is not installed.
    """
    library: NvmlLibrary = importlib.import_module("pynvml")
    return library


class NvmlCalls:
    """The calls of one library, with the cases that its bindings leave open: missing functions, absent answers, arrays."""

    _initialised: tuple[int, object] | None = None  # process and library; NVML counts its users, and we are one of them

    def __init__(self, library: Any) -> None:
        self.library = library
        self.error: type[Exception] = library.NVMLError

    def initialise(self) -> None:
        """Initialise NVML once in a process; a forked child is another process.

        Raises:
            NVMLError: NVML does not start.
        """
        if NvmlCalls._initialised != (os.getpid(), self.library):
            self.library.nvmlInit()
            NvmlCalls._initialised = (os.getpid(), self.library)

    def shut_down(self) -> None:
        """Shut NVML down, so that `initialise` starts it anew."""
        self.attempt(self.library.nvmlShutdown)
        self.forget_initialisation()

    @staticmethod
    def forget_initialisation() -> None:
        """Note that NVML is not initialised, after it said so, or in a test."""
        NvmlCalls._initialised = None

    def attempt(self, read: Callable[[], Any]) -> Any:
        """Return the answer, or None: this container may have no access to a device that NVML counts."""
        try:
            return read()
        except (self.error, ProbeUnavailableError):
            return None

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a function that older bindings, or drivers, do not have.

        Raises:
            ProbeUnavailableError: the binding does not have it.
            NVMLError: the call fails.
        """
        function = getattr(self.library, name, None)
        if function is None:
            raise ProbeUnavailableError(f"this version of nvidia-ml-py has no {name}")
        return function(*arguments)

    def first_known(self, names: Sequence[str], *arguments: Any) -> Any:
        """Return the answer of the first of these functions that both the binding and the driver have.

        Raises:
            ProbeUnavailableError: none is there.
            NVMLError: the call fails.
        """
        for name in names:
            try:
                return self.call(name, *arguments)
            except ProbeUnavailableError:
                continue
            except self.error as error:
                if code_of(error) != FUNCTION_NOT_FOUND:
                    raise
        raise ProbeUnavailableError(f"neither is known: {', '.join(names)}")


def code_of(error: BaseException) -> int | None:
    """Return the code of an ``NVMLError``."""
    return getattr(error, "value", None)


def call_driver(library: Any, name: str, *arguments: Any) -> None:
    """Call the driver's own library, for frequent calls whose arrays we keep.

    Raises:
        NVMLError: as from pynvml's wrapper.
    """
    function = getattr(library.nvmlLib, name, None)
    code = FUNCTION_NOT_FOUND if function is None else function(*arguments)
    if code:
        raise library.NVMLError(code)
