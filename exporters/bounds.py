"""The bounds of every number that may leave. A number outside them is no measurement: its point is left out, and counted."""

from __future__ import annotations

import math
import time
from typing import Any

from exporters.allowlist import ListedMetric
from exporters.measurements import HistogramValue

OTHER_BYTES = "its bytes are not those that the list makes of it"  # a body that is not canonical
OTHER_TIME = "its times are not in order, or not those that its destination takes"
MAX_BUCKETS = 160  # OpenTelemetry's own default
SCALES = (-10, 20)
MAX_COUNT = 2**53  # exact in every reader
HIGHEST = {  # by unit: far above what can be measured, far below what could hold a text
    "1": 1e4,
    "s": 1e12,
    "By": 2.0**60,
    "By/s": 1e18,
    "W": 1e6,
    "J": 1e15,
    "Cel": 1e3,
    "Hz": 1e12,
    "{sample}/s": 1e15,
    "{operation}/s": 1e21,
}
BELOW_ZERO = ("Cel",)
MAX_POINTS = 2_000  # of one metric
YEAR_NS = 366 * 86_400 * 10**9
DAY_NS = 86_400 * 10**9
NEARLY = 1e-9  # as a share, for sums of rounded numbers


def is_within(entry: ListedMetric, value: Any) -> bool:
    """Return True if a value of this metric can be a measurement."""
    if entry.kind == "histogram":
        return isinstance(value, HistogramValue) and _is_histogram(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return False
    if entry.unit.startswith("{") and entry.unit not in HIGHEST:
        return isinstance(value, int) and 0 <= value <= MAX_COUNT
    lowest = -HIGHEST[entry.unit] if entry.unit in BELOW_ZERO else 0
    return lowest <= value <= HIGHEST[entry.unit]


def _is_histogram(value: HistogramValue) -> bool:
    """Return True if count, sum, extremes and buckets can be of the same durations (OpenTelemetry's data model)."""
    numbers = (value.sum, value.minimum, value.maximum)
    if not all(math.isfinite(number) and 0 <= number <= HIGHEST["s"] for number in numbers):
        return False
    if not SCALES[0] <= value.scale <= SCALES[1] or len(value.counts) > MAX_BUCKETS or min((0, *value.counts)) < 0:
        return False
    if not 0 < value.count <= MAX_COUNT or value.zero_count < 0 or value.count != value.zero_count + sum(value.counts):
        return False
    most, least = value.count * value.maximum * (1 + NEARLY), value.count * value.minimum * (1 - NEARLY)
    return value.minimum <= value.maximum and least <= value.sum <= most and _are_extremes_in_buckets(value)


def _are_extremes_in_buckets(value: HistogramValue) -> bool:
    """Return True if the first and the last filled bucket are those of the minimum and the maximum."""
    if not value.counts:
        return value.maximum == 0
    if not value.counts[0] or not value.counts[-1]:
        return False
    width = 2.0**-value.scale
    lowest, highest = value.offset * width, (value.offset + len(value.counts)) * width
    if value.maximum <= 0 or abs(math.log2(value.maximum) - highest + width / 2) > width / 2 + 1e-6:
        return False
    return value.zero_count > 0 or abs(math.log2(value.minimum) - lowest - width / 2) <= width / 2 + 1e-6


def time_fault(began: int, now: int) -> str | None:
    """Return what is wrong with the moments of some data (ns since 1970), or None."""
    present = time.time_ns()
    if not present - YEAR_NS <= began <= now <= present + DAY_NS:
        return OTHER_TIME
    return None
