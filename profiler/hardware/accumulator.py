"""Add up the samples of all probes until an epoch takes them."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable
from typing import NamedTuple

from profiler.records.energy import RESET_AFTER_NS
from profiler.records.reading_record import reading_key, reading_of
from profiler.records.readings import Samples

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.reading_record import ReadingKey, ReadingRecord, Readings
    from profiler.records.readings import Attributes, MetricSpec, Number, Sample


RESET_AFTER_S = RESET_AFTER_NS / 1e9
MAX_SLOTS = 4096


class _Slot(NamedTuple):
    """The record of one metric of one source.

    It holds the spec and the attributes, so that no other object can take their identity.
    """

    spec: MetricSpec
    attributes: Attributes
    key: ReadingKey
    record: ReadingRecord
    is_counter: bool


class Accumulator:
    """The readings since they were last taken. All methods may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._readings: Readings = {}
        self._slots: dict[tuple[int, int], _Slot] = {}  # by the identity of spec and attributes, which a probe reuses
        self._counters: dict[ReadingKey, Number] = {}
        self._fell_at: dict[ReadingKey, float] = {}  # counters that are lower than before, since when

    def take(self) -> Readings:
        """Remove and return the readings since the last call."""
        with self._lock:
            taken, self._readings = self._readings, {}
            self._slots.clear()
        for record in taken.values():
            record.settle()
        return taken

    def add(self, samples: Iterable[Sample | Samples]) -> None:
        """Add samples. A counter adds its growth since its previous value.

        A value lower than the previous one means the counter was reset. It is ignored for `RESET_AFTER_S` seconds first,
        because a driver sometimes answers too low once.
        """
        slots, isfinite = self._slots, math.isfinite
        with self._lock:
            for sample in samples:
                value = sample[1]
                if isinstance(value, float) and not isfinite(value):
                    continue
                slot = slots.get((id(sample[0]), id(sample[-1]))) or self._slot_for(sample)
                if isinstance(sample, Samples):
                    slot.record.add_all(sample.values, sample.per)
                    continue
                value = sample.value
                if slot.is_counter:
                    before = self._counters.get(slot.key, value)
                    if value < before:
                        fell_at = self._fell_at.setdefault(slot.key, time.monotonic())
                        if time.monotonic() - fell_at < RESET_AFTER_S:
                            continue
                    self._counters[slot.key] = value
                    if self._fell_at:
                        self._fell_at.pop(slot.key, None)
                    value = value - before if value >= before else value
                slot.record.add(value)

    def forget_threads(self) -> None:
        """Reset the lock after a fork: its holder does not exist here."""
        self._lock = threading.Lock()

    def _slot_for(self, sample: Sample | Samples) -> _Slot:
        if len(self._slots) >= MAX_SLOTS:  # a probe that makes its attributes anew each time
            self._slots.clear()
        key = reading_key(sample)
        record = reading_of(self._readings, sample, key)
        slot = _Slot(sample.spec, sample.attributes, key, record, sample.spec.kind == "counter")
        self._slots[id(sample.spec), id(sample.attributes)] = slot
        return slot
