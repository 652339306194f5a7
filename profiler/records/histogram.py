"""A streaming base-2 exponential histogram: the OpenTelemetry data model, in whole nanoseconds.

Bucket ``i`` at scale ``s`` holds the durations ``x`` (in seconds) with ``base**i < x <= base**(i+1)``, where
``base = 2 ** (2 ** -s)``. There are at most 160 buckets. When the range of the values needs more, the scale is lowered
and neighbours are merged, which loses only resolution.
Source: https://opentelemetry.io/docs/specs/otel/metrics/data-model/#exponentialhistogram

The rule it keeps: count, sum, min and max are exact integers. Only percentiles are estimates, with an error of at most
`relative_error`.
"""

from __future__ import annotations

import sys
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import lru_cache
from math import ceil, log2
from typing import Any

MAX_BUCKETS = 160
MAX_SCALE = 20  # the finest scale whose bucket numbers fit 32 bits (OpenTelemetry data model)
NS = 1_000_000_000


@lru_cache(4096)  # the same few hundred in every epoch
def upper_bound_ns(index: int, scale: int) -> int:
    """Return the largest whole number of nanoseconds in bucket ``index``."""
    return int(2.0 ** ((index + 1) * 2.0**-scale) * NS)


def bucket_index(value_ns: int, scale: int) -> int:
    """Return the bucket of a duration: ``ceil(log2(seconds) * 2**scale) - 1``, corrected for rounding."""
    # The logarithm is a rounded double, so a value next to a bound can come out one bucket off. The bounds are whole numbers,
    # and `add` counts by comparing with them. The two loops move the index to the bucket that the bounds give.
    index = ceil(log2(value_ns / NS) * 2.0**scale) - 1
    while value_ns > upper_bound_ns(index, scale):
        index += 1
    while value_ns <= upper_bound_ns(index - 1, scale):
        index -= 1
    return index


def _in_order(values: Sequence[int]) -> tuple[Any, int]:
    """Return the values sorted, and their sum. numpy halves the cost, and is used only if the program has imported it."""
    numpy = sys.modules.get("numpy")
    if len(values) < 256 or not hasattr(numpy, "searchsorted"):  # while another thread imports it, it is half there
        return sorted(values), sum(values)
    array = numpy.array(values, dtype="int64")  # type: ignore[union-attr]
    array.sort()
    return array, int(array.sum())


def _ranks(values: Any, bounds: list[int]) -> list[int]:
    """Return, for each bound, how many of the sorted values do not exceed it."""
    if not isinstance(values, list):
        ranks: list[int] = values.searchsorted(bounds, side="right").tolist()
        return ranks
    position = 0
    return [position := bisect_right(values, bound, position) for bound in bounds]


class Histogram:
    """Durations in nanoseconds, counted in exponential buckets. Not thread-safe: the caller holds its lock."""

    __slots__ = ("_bounds", "_first", "counts", "max_ns", "min_ns", "scale", "sum_ns", "zero_count")

    def __init__(self, scale: int = MAX_SCALE) -> None:
        self.scale = scale  # to begin with: the finest there will be
        self.counts: dict[int, int] = {}
        self.zero_count = 0
        self.sum_ns = 0
        self.min_ns: int | None = None
        self.max_ns: int | None = None
        self._first = 0  # the bucket that _bounds starts with
        self._bounds: list[int] = []  # upper bounds from the lowest to the highest bucket in use

    @property
    def count(self) -> int:
        return self.zero_count + sum(self.counts.values())

    @property
    def relative_error(self) -> float:
        """The largest error of a percentile, as a share of it: half a bucket's width, ``2 ** 2 ** -(scale+1) - 1``."""
        return float(2.0**2.0 ** -(self.scale + 1)) - 1.0

    def add(self, values_ns: Sequence[int]) -> None:
        """Count durations (whole nanoseconds, ``>= 0``).

        They are sorted once and cut at the bucket bounds, which costs a third of one logarithm a value.
        """
        if not values_ns:
            return
        values, total = _in_order(values_ns)
        zeros, *_ = _ranks(values, [0])
        low, high, counts = int(values[0]), int(values[-1]), self.counts
        if zeros < len(values):
            self._make_room(int(values[zeros]), high)
            counts = self.counts.copy()
            self._count(values, zeros, counts)
        # All at once: no call, and so no exception of a signal's handler, comes between these lines. What is interrupted
        # before can be added again.
        self.counts = counts
        self.sum_ns += total
        self.zero_count += zeros
        if self.min_ns is None or low < self.min_ns:
            self.min_ns = low
        if self.max_ns is None or high > self.max_ns:
            self.max_ns = high

    def _count(self, values: Any, zeros: int, counts: dict[int, int]) -> None:
        """Count sorted values, but for the zeros at their begin."""
        # Both ways cost one step for each item walked over: the bounds for a full buffer of 2,048 values, the values for the
        # few that an epoch's end leaves in it.
        if len(values) - zeros < len(self._bounds) and isinstance(values, list):
            self._add_few(values[zeros:], counts)
            return
        before = zeros
        for index, rank in enumerate(_ranks(values, self._bounds), self._first):
            if rank > before:
                counts[index] = counts.get(index, 0) + rank - before
                before = rank

    def _add_few(self, values: list[int], counts: dict[int, int]) -> None:
        """Count sorted values that are fewer than the buckets: then a walk over the values is shorter."""
        bounds, upper, position = self._bounds, 0, 0
        for value in values:
            if value > upper:
                position = bisect_left(bounds, value, position)
                upper = bounds[position]
            index = self._first + position
            counts[index] = counts.get(index, 0) + 1

    def merge(self, other: Histogram) -> None:
        """Add the other histogram to this one. The coarser of the two scales is kept."""
        if other.min_ns is not None and other.max_ns is not None:
            self._take_extremes(other.min_ns, other.max_ns)
        self.sum_ns += other.sum_ns
        self.zero_count += other.zero_count
        if not other.counts:
            return
        self.coarsen(min(self.scale, other.scale))
        shift = other.scale - self.scale
        if self.counts or shift:
            for index, count in other.counts.items():
                self.counts[index >> shift] = self.counts.get(index >> shift, 0) + count
        else:
            self.counts = other.counts.copy()
        self._fit(min(self.counts), max(self.counts))

    def percentile(self, share: float) -> float | None:
        """Return the duration in seconds that ``share`` (0 to 1) of the measurements do not exceed, or None without any.

        The nearest-rank definition, read at the geometric middle of the bucket that holds the rank.
        """
        count = self.count
        if not count or self.min_ns is None or self.max_ns is None:
            return None
        rank = max(1, ceil(share * count))
        seen = self.zero_count
        value = 0.0
        if rank > seen:
            for index in sorted(self.counts):
                seen += self.counts[index]
                if seen >= rank:
                    value = 2.0 ** ((index + 0.5) * 2.0**-self.scale)
                    break
        return min(max(value, self.min_ns / NS), self.max_ns / NS)

    def count_above(self, value_ns: int) -> int:
        """Return how many values are in the buckets above that of this value, or in its own."""
        if value_ns <= 0:
            return self.count
        first = bucket_index(value_ns, self.scale)
        return sum(count for index, count in self.counts.items() if index >= first)

    def above(self, value_ns: int) -> tuple[int, int]:
        """Return how many values are in the buckets above that of this value, and about their sum (ns)."""
        if not self.counts or self.max_ns is None:
            return 0, 0
        first = bucket_index(max(value_ns, 1), self.scale) + 1
        found = {index: count for index, count in self.counts.items() if index >= first}
        total = sum(count * min(2.0 ** ((index + 0.5) * 2.0**-self.scale) * NS, self.max_ns) for index, count in found.items())
        return sum(found.values()), round(total)

    def dense(self) -> tuple[int, list[int]]:
        """Return ``(offset, counts)`` with every bucket from the lowest to the highest in use, as in OpenTelemetry's format."""
        if not self.counts:
            return 0, []
        low, high = min(self.counts), max(self.counts)
        return low, [self.counts.get(index, 0) for index in range(low, high + 1)]

    @classmethod
    def of(
        cls, *, scale: int, counts: dict[int, int], zero_count: int, sum_ns: int, min_ns: int | None, max_ns: int | None
    ) -> Histogram:
        """Return a histogram from its stored parts. It keeps ``counts``, which holds no empty bucket."""
        histogram = cls()
        histogram.scale = scale
        histogram.counts = counts
        histogram.zero_count = zero_count
        histogram.sum_ns = sum_ns
        histogram.min_ns = min_ns
        histogram.max_ns = max_ns
        return histogram

    def coarsen(self, scale: int) -> None:
        """Lower the scale and merge neighbours: bucket ``i`` goes to ``i >> steps``."""
        steps = self.scale - scale
        if steps <= 0:
            return
        merged: dict[int, int] = {}
        for index, count in self.counts.items():
            merged[index >> steps] = merged.get(index >> steps, 0) + count
        self.counts = merged
        self.scale = scale
        self._bounds = []

    def _take_extremes(self, low: int, high: int) -> None:
        self.min_ns = low if self.min_ns is None else min(self.min_ns, low)
        self.max_ns = high if self.max_ns is None else max(self.max_ns, high)

    def _make_room(self, low_ns: int, high_ns: int) -> None:
        """Prepare the bounds for values from ``low_ns`` to ``high_ns``, at a scale at which all buckets fit."""
        if self._bounds and upper_bound_ns(self._first - 1, self.scale) < low_ns and high_ns <= self._bounds[-1]:
            return
        low, high = bucket_index(low_ns, self.scale), bucket_index(high_ns, self.scale)
        low, high = self._fit(min(low, *self.counts, high), max(high, *self.counts, low))
        bounds = [upper_bound_ns(index, self.scale) for index in range(low, high + 1)]
        self._first, self._bounds = low, bounds

    def _fit(self, low: int, high: int) -> tuple[int, int]:
        # Lowering the scale by one squares the base, so two neighbouring buckets become one. A shift to the right also rounds
        # the negative numbers of buckets below one second in the right direction, which a division towards 0 would not.
        steps = 0
        while (high >> steps) - (low >> steps) >= MAX_BUCKETS:
            steps += 1
        self.coarsen(self.scale - steps)
        return low >> steps, high >> steps
