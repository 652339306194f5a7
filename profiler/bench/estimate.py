"""Evaluate repeated times: a median with its confidence interval, percentiles, and whether two medians differ.

Times are in seconds and above 0. No time is discarded: one that a busy machine spoilt makes the interval wider.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median, stdev
from typing import NamedTuple

from profiler.records.student import student

CONFIDENCE = 0.95


class Estimate(NamedTuple):
    """A median and its confidence interval (about 95 %)."""

    middle: float
    low: float
    high: float

    @property
    def uncertainty(self) -> float:
        """Half the interval, as a share of the median."""
        return (self.high - self.low) / 2 / self.middle


class Difference(NamedTuple):
    """The change from one median to another: 0.05 is 5 % more. ``low`` to ``high`` is its interval."""

    change: float
    low: float
    high: float

    @property
    def is_noise(self) -> bool:
        return self.low <= 0 <= self.high


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return a confidence interval of the median that assumes nothing about the distribution.

    It is the narrowest pair of order statistics, the k-th from either end, that holds the median with at least 95 %
    probability. The binomial distribution gives k (David and Nagaraja, Order Statistics, section 7.1). Fewer than six values
    have none. Then the whole range is returned, which holds the median with probability ``1 - 2**(1 - n)``.
    """
    ordered = sorted(values)
    n = len(ordered)
    outside, k = 0.0, 0
    while k < n // 2:
        outside += 2 * math.comb(n, k) / 2**n
        if outside > 1 - CONFIDENCE:
            break
        k += 1
    k = max(k, 1)
    return ordered[k - 1], ordered[n - k]


def estimate(launches: Sequence[Sequence[float]]) -> Estimate:
    """Return the estimate from the times of each launch.

    Blocks of one process share its memory layout and placement. So the spread of the launches' medians is added, by
    Student's t on their logarithms: see Kalibera and Jones, "Rigorous benchmarking in reasonable time", ISMM 2013.

    Raises:
        ValueError: there are no times.
    """
    known = [launch for launch in launches if launch]
    values = [value for launch in known for value in launch]
    middle = median(values)
    low, high = interval(values)
    between = 0.0
    if len(known) > 1:
        logs = [math.log(median(launch)) for launch in known]
        between = student(len(known) - 1) * stdev(logs) / math.sqrt(len(known))
    below, above = math.hypot(math.log(middle / low), between), math.hypot(math.log(high / middle), between)
    return Estimate(middle, middle * math.exp(-below), middle * math.exp(above))


def difference(before: Estimate, after: Estimate) -> Difference:
    """Return the ratio of two medians less 1, with an interval from theirs.

    The distances of the logarithms are added as squares, each side from the two ends that make it (MOVER: Donner and Zou,
    2012, doi:10.1177/0962280210383853).
    """
    change = math.log(after.middle / before.middle)
    below = math.hypot(math.log(after.middle / after.low), math.log(before.high / before.middle))
    above = math.hypot(math.log(after.high / after.middle), math.log(before.middle / before.low))
    return Difference(math.expm1(change), math.expm1(change - below), math.expm1(change + above))


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the smallest value that at least this share of the sorted values do not exceed (nearest rank)."""
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]


def is_stable(times: Sequence[float], within: float) -> bool:
    """Return True if the last three times differ by at most this share of the smallest of them."""
    last = times[-3:]
    return len(last) == 3 and max(last) - min(last) <= within * min(last)
