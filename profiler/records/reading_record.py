"""The readings of one metric, added up over the ticks of the sampler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from profiler.records.histogram import NS, Histogram

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.readings import MetricSpec, Number, Sample, Samples


MAX_WAITING = 250  # values; those that wait at an epoch's end are counted by the loop's thread
SENSOR_SCALE = 7  # percentiles within 0.3 %, closer than any sensor; fewer buckets cost less
READING_PREFIX = "epochmeter.reading."  # the statistics of a reading, in the run log


@dataclass
class ReadingRecord:
    """One metric with one set of attributes, over the ticks of the sampling thread.

    A counter is kept as its growth, so that a counter that runs since the machine's start reports this run alone. A counter
    that falls and stays low was reset; its value is then the growth.

    Attributes:
        spec: the metric.
        attributes: those of its samples.
        count: the number of samples.
        minimum: of the samples, not for counters.
        maximum: of the samples, not for counters.
        total: the sum of the samples, not for counters.
        last: the last sample; for a counter, its growth.
    """

    spec: MetricSpec
    attributes: Mapping[str, str]
    count: int = 0
    minimum: Number = 0
    maximum: Number = 0
    total: Number = 0
    last: Number = 0
    _histogram: Histogram | None = None  # made for the kind "histogram" alone
    _waiting: list[int] = field(default_factory=list)
    _per: int = 1

    @property
    def histogram(self) -> Histogram:
        """The values times 1e9, for the kind "histogram" alone."""
        self.settle()
        return self._own_histogram()

    def settle(self) -> None:
        """Count the waiting values, before another thread may read the record."""
        if self._waiting:
            factor = NS // self._per
            self._own_histogram().add([value * factor for value in self._waiting])
            self._waiting.clear()

    def _own_histogram(self) -> Histogram:
        if self._histogram is None:
            self._histogram = Histogram(SENSOR_SCALE)
        return self._histogram

    def add_all(self, values: Sequence[int], per: int) -> None:
        """Add the values of a source that buffers them: whole numbers, ``per`` of which are one of the metric's unit.

        They wait until there are many, which costs less than counting a few at a time.
        """
        self._waiting += values
        self._per = per
        self.count += len(values)
        if len(self._waiting) > MAX_WAITING:
            self.settle()

    def add(self, value: Number) -> None:
        """Add one sample, or the growth of a counter."""
        if self.spec.kind == "counter":
            self.last += value
        else:
            if not self.count:
                self.minimum = self.maximum = value
            elif value < self.minimum:
                self.minimum = value
            elif value > self.maximum:
                self.maximum = value
            self.total += value
            self.last = value
        self.count += 1

    def merge(self, other: ReadingRecord) -> None:
        """Add a later record of the same metric."""
        if not other.count:
            return
        if self.spec.kind == "counter":
            self.last += other.last
        elif self.spec.kind == "histogram":
            self.histogram.merge(other.histogram)
        else:
            self.minimum = other.minimum if not self.count else min(self.minimum, other.minimum)
            self.maximum = other.maximum if not self.count else max(self.maximum, other.maximum)
            self.total += other.total
            self.last = other.last
        self.count += other.count


ReadingKey = tuple[str, tuple[tuple[str, str], ...]]
Readings = dict[ReadingKey, ReadingRecord]


def merge_readings(into: Readings, other: Readings) -> None:
    """Add later readings."""
    for key, reading in other.items():
        into.setdefault(key, ReadingRecord(reading.spec, reading.attributes)).merge(reading)


def reading_of(readings: Readings, sample: Sample | Samples, key: ReadingKey | None = None) -> ReadingRecord:
    """Return a sample's record, made at the first sample. ``key`` is the sample's, if known."""
    key = reading_key(sample) if key is None else key
    record = readings.get(key)
    if record is None:
        record = readings[key] = ReadingRecord(sample.spec, dict(sample.attributes))
    return record


def reading_key(sample: Sample | Samples) -> ReadingKey:
    """Return the identity of a reading: its metric's name and its attributes."""
    return sample.spec.name, tuple(sorted(sample.attributes.items()))
