"""NVML's field values: many readings in one call."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from profiler.errors import ProbeUnavailableError
from profiler.hardware.gpu import ENERGY, POWER, TEMPERATURE
from profiler.hardware.nvidia.library import LOST_CODES, UNASKED_CODES, call_driver
from profiler.hardware.nvidia.specs import ERRORS, IO, NVLINK_IO, POWER_INSTANT, REMAPPED, STATUS, THROTTLED
from profiler.records.readings import NO_ATTRIBUTES, Sample

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.hardware.nvidia.gpu import Gpu
    from profiler.records.readings import Attributes, MetricSpec, Number


ALL_LINKS = 0xFFFFFFFF  # scope of NVLink fields: "aggregate value summed up across all links" (nvml.h)
WIDE_TYPES = (2, 3, 4)  # 64 bits: a byte counter of 32 bits wraps within a tick
FIELD_VALUE = struct.Struct("IIqqIiQ")  # nvmlFieldValue_t: id, scope, timestamp, latency, type, return code, value


class Field(NamedTuple):
    """A field value of NVML.

    Attributes:
        id: NVML's number of it.
        spec: the metric it becomes.
        attributes: those of its samples.
        per: how many of its unit are one of the metric's.
        scope: NVML's scope, such as all links.
        is_wide: use it only if it has 64 bits.
    """

    id: int
    spec: MetricSpec
    attributes: Attributes = NO_ATTRIBUTES
    per: float = 1
    scope: int = 0
    is_wide: bool = False


POWER_AVERAGE, POWER_NOW, ENERGY_COUNTER = 185, 186, 83
PATIENCE = 5  # refusals in a row before a field that was answered is dropped
REMAP_TROUBLE = (144, 145)  # pending, failed
# The times of software and hardware thermal slowdown and of the power brake. nvml.h of CUDA 13 numbers them from 269, but a
# driver 580 still answers at 251, as in nvml.h of CUDA 12 (github.com/NVIDIA/k8s-test-infra/pull/691). Each version uses
# the other's numbers for power smoothing, so both are asked and the complete set counts (`_misnumbered`).
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
    """The field values of one GPU: one call a tick without refused fields, every tenth tick with the slow ones.

    The call goes to the driver's library, because pynvml's wrapper makes a new array each time.
    """

    def __init__(self, library: Any, gpu: Gpu) -> None:
        self._library = library
        self._gpu = gpu
        self._are_read = False  # True if this tick has read them with the slow ones
        self._quick = [*map(self._placed, QUICK)]
        self._slow = [*map(self._placed, SLOW)]
        self._arrays: dict[bool, Any] = {}  # True: with the slow fields
        self._refusals: dict[int, int] = {}  # of fields that were answered before: refusals in a row

    def _placed(self, field: Field) -> Field:
        """Return the field with the attributes of this GPU."""
        own = self._gpu.sensor("hbm", "hbm") if field.spec is TEMPERATURE else {**self._gpu.card, **field.attributes}
        return field._replace(attributes=own)

    def read_all(self) -> Iterable[Sample]:
        """Read all fields. Called before `read` in the same tick, which then has nothing to do."""
        self._are_read = True
        return self._read([*self._quick, *self._slow], with_slow=True)

    def read(self) -> Iterable[Sample]:
        """Read the quick fields."""
        was_read, self._are_read = self._are_read, False
        return () if was_read else self._read(self._quick, with_slow=False)

    def _read(self, asked: Sequence[Field], *, with_slow: bool) -> Iterable[Sample]:
        if not asked:
            raise ProbeUnavailableError("no field is supported")
        array = self._array(with_slow, asked)
        call_driver(self._library, "nvmlDeviceGetFieldValues", self._gpu.handle, len(asked), array)
        found, refused = [], set[int]()
        for field, (*_, kind, code, raw) in zip(asked, FIELD_VALUE.iter_unpack(array), strict=True):
            if code == 0 and not (field.is_wide and kind not in WIDE_TYPES):
                sample = self._sample(field, _value_of_type(kind, raw))
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
        """Return True if a refused field is to be dropped: at once, or after `PATIENCE` refusals if it was answered before."""
        self._gpu.has_fields.discard(field.id)
        if field.id not in self._refusals:
            return True
        self._refusals[field.id] += 1
        return self._refusals[field.id] >= PATIENCE

    @staticmethod
    def _misnumbered(answered: set[int]) -> set[int]:
        """Return the numbers of held-down times to drop, because they have another meaning in this driver.

        The numbering that is answered completely is kept. If both are, or neither is, all are dropped.
        """
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
            return None  # the only reading of power is reported as the average
        return Sample(field.spec, value if field.per == 1 else value / field.per, field.attributes)


def _value_of_type(kind: int, raw: int) -> Number:
    """Return a value by its ``nvmlValueType_t``: double, unsigned int, long, long long, signed long long, int, short."""
    if kind in (1, 6):
        return raw & (0xFFFFFFFF if kind == 1 else 0xFFFF)
    if kind in (2, 3):
        return raw
    found: Number = struct.unpack({0: "d", 4: "q", 5: "i4x"}[kind], struct.pack("Q", raw))[0]
    return found
