"""GPM: the activity of a GPU's units between two samples of its counters (Hopper and newer)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from ctypes import sizeof
from typing import Any

from profiler.errors import ProbeUnavailableError
from profiler.hardware.nvidia.library import UNASKED_CODES
from profiler.hardware.nvidia.specs import DRAM, NVLINK_RATE, PCIE_RATE, SM_ACTIVITY, SM_OCCUPANCY, TENSOR
from profiler.records.readings import Sample

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.hardware.nvidia.gpu import Gpu
    from profiler.records.readings import Attributes, MetricSpec, Samples


GPM_GAP_S = 0.1  # two GPM samples lie further apart than this (nvml.h)
MIB = 2**20


class Gpm:
    """The GPM metrics of one GPU, over the time since the last tick."""

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
        """Take a sample, and return the metrics between it and the previous one."""
        if self._query is None:
            self._prepare()
        at = self._clock()
        if self._taken_at is not None and at - self._taken_at <= GPM_GAP_S:
            return ()
        before = self._taken_at
        self._take_sample(self._samples[1])
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

    def _take_sample(self, sample: Any) -> None:
        gpu, library = self._gpu, self._library
        if gpu.instance_id is None:
            library.nvmlGpmSampleGet(gpu.handle, sample)
        else:
            library.nvmlGpmMigSampleGet(gpu.handle, gpu.instance_id, sample)

    def forget(self, gpu: Gpu) -> None:
        """Discard the samples of a lost GPU."""
        if gpu is self._gpu:
            self._taken_at = None

    def free(self) -> None:
        """Free the samples."""
        samples, self._samples, self._query, self._view = self._samples, [], None, memoryview(b"")
        for sample in samples:
            self._library.nvmlGpmSampleFree(sample)
