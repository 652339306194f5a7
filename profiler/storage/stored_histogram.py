"""Read a histogram of a run log back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from profiler.records.histogram import MAX_SCALE, NS, Histogram
from profiler.storage.checked_values import finite, whole_64

MAX_BUCKETS = 1_024  # of a histogram; ours have 160 at most
MAX_POWER = 1_000.0


def histogram_in(point: Mapping[str, Any], finest: int = MAX_SCALE) -> Histogram:
    """Return a histogram, at no finer scale than this one.

    Raises:
        ValueError: it has no form that ours can have.
    """
    positive = point.get("positive", {})
    scale, offset, zero_count = (
        int(point.get("scale", 0)),
        whole_64(positive.get("offset", 0)),
        whole_64(point.get("zeroCount", 0)),
    )
    texts = positive.get("bucketCounts", ())
    known = {text: whole_64(text) for text in set(texts)}  # few: most buckets hold nothing, or as little as others
    count = whole_64(point.get("count", 0))
    highest = (abs(offset) + len(texts)) * 2.0**-scale  # of a bucket, as a power of two
    if not -10 <= scale <= 20 or len(texts) > MAX_BUCKETS or highest > MAX_POWER or min([*known.values(), zero_count]) < 0:
        raise ValueError("a histogram is none of ours")
    offset, counts = _merged(offset, list(map(known.__getitem__, texts)), max(scale - finest, 0))
    return Histogram.of(
        scale=min(scale, finest),
        counts={index: count for index, count in enumerate(counts, offset) if count},
        zero_count=zero_count,
        sum_ns=round(finite(point.get("sum", 0.0)) * NS),
        min_ns=None if count == 0 else round(finite(point.get("min", 0.0)) * NS),
        max_ns=None if count == 0 else round(finite(point.get("max", 0.0)) * NS),
    )


def _merged(offset: int, counts: list[int], steps: int) -> tuple[int, list[int]]:
    """Return the buckets at a scale that is so many steps coarser: bucket ``i`` goes to ``i >> steps``."""
    # `Histogram.coarsen` does the same for the buckets of a finished histogram. Here they still lie one after another, and
    # adding them up in runs is quicker: a load has billions of them.
    if not steps or not counts:
        return offset, counts
    first, width = offset >> steps, 1 << steps
    begin = ((first + 1) << steps) - offset  # of the second one's
    return first, [sum(counts[:begin]), *(sum(counts[at : at + width]) for at in range(begin, len(counts), width))]
