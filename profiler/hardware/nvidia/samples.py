"""The samples that the driver takes by itself, many within a second."""

from __future__ import annotations

from collections.abc import Iterable
from ctypes import byref, c_uint, c_ulonglong
from typing import Any

from profiler.errors import ProbeUnavailableError
from profiler.hardware.nvidia.library import TOO_SMALL, call_driver
from profiler.records.readings import Samples

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.hardware.nvidia.gpu import Gpu
    from profiler.records.readings import MetricSpec


WHOLE_TYPES = (1, 2, 3)  # of nvmlValueType_t: unsigned int, unsigned long, unsigned long long
SAMPLES = "nvmlDeviceGetSamples"


class SampleBuffer:
    """The driver's samples of one kind since the last tick, in one call."""

    def __init__(self, library: Any, gpu: Gpu, kind: int, spec: MetricSpec, per: int) -> None:
        self._library = library
        self._gpu = gpu
        self._kind = kind
        self._spec = spec
        self._per = per
        self._last: int | None = None  # timestamp, in us
        self._array: Any = None

    def read(self) -> Iterable[Samples]:
        """Return the new samples."""
        library, handle, kind = self._library, self._gpu.handle, self._kind
        value_type, count = c_uint(), c_uint()
        if self._array is None:  # the driver returns the number of samples it keeps
            call_driver(library, SAMPLES, handle, kind, c_ulonglong(), byref(value_type), byref(count), None)
            self._array = (library.c_nvmlSample_t * count.value)()
        count.value = len(self._array)
        last, array = self._last, self._array
        try:
            call_driver(library, SAMPLES, handle, kind, c_ulonglong(last or 0), byref(value_type), byref(count), array)
        except library.NVMLError as error:
            if getattr(error, "value", None) != TOO_SMALL:
                raise
            self._array = None  # the driver keeps more by now; the next tick asks again
            return ()
        if value_type.value not in WHOLE_TYPES:
            raise ProbeUnavailableError("the samples are no whole numbers")
        given = memoryview(array).cast("B")[: 16 * count.value]  # timestamp and value, in turn, of 64 bits each
        stamps = given.cast("Q")[::2].tolist()
        if not stamps:
            return ()
        self._last = max(stamps)
        if last is None:  # samples from before the run
            return ()
        is_narrow = value_type.value == WHOLE_TYPES[0]
        values = (given.cast("I")[2::4] if is_narrow else given.cast("Q")[1::2]).tolist()
        if min(stamps) <= last:
            values = [value for stamp, value in zip(stamps, values, strict=True) if stamp > last]
        return (Samples(self._spec, values, self._per, self._gpu.card),) if values else ()
