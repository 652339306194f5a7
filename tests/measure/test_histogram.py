"""The exponential histogram against OpenTelemetry's own mapping, and against the exact answers."""

from __future__ import annotations

from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.metrics._internal.exponential_histogram.mapping.exponent_mapping import ExponentMapping
from opentelemetry.sdk.metrics._internal.exponential_histogram.mapping.logarithm_mapping import LogarithmMapping

from profiler.records.histogram import MAX_BUCKETS, NS, Histogram, bucket_index, upper_bound_ns

durations = st.integers(min_value=0, max_value=10**15)
lists = st.lists(durations, min_size=1, max_size=600)


def of(values: list[int]) -> Histogram:
    histogram = Histogram()
    histogram.add(values)
    return histogram


@given(st.integers(min_value=1, max_value=10**15), st.integers(min_value=-4, max_value=20))
def test_buckets_are_opentelemetrys(value: int, scale: int) -> None:
    mapping = LogarithmMapping(scale) if scale > 0 else ExponentMapping(scale)
    ours, theirs = bucket_index(value, scale), mapping.map_to_index(value / NS)
    # Within a nanosecond of a bound the two may round apart; the value is then on the bound of our bucket.
    near = min(abs(value - upper_bound_ns(ours, scale)), abs(value - upper_bound_ns(ours - 1, scale))) <= 1
    assert ours == theirs or (near and abs(ours - theirs) <= max(1, 2**scale * 2 // value))


@given(st.integers(min_value=1, max_value=10**15), st.integers(min_value=-4, max_value=20))
def test_a_value_lies_within_its_buckets_bounds(value: int, scale: int) -> None:
    index = bucket_index(value, scale)
    assert upper_bound_ns(index - 1, scale) < value <= upper_bound_ns(index, scale)


@given(lists)
def test_count_sum_min_and_max_are_exact(values: list[int]) -> None:
    histogram = of(values)
    assert histogram.count == len(values)
    assert histogram.sum_ns == sum(values)
    assert (histogram.min_ns, histogram.max_ns) == (min(values), max(values))
    assert histogram.zero_count == values.count(0)


@given(lists, st.sampled_from([0.01, 0.5, 0.9, 0.99, 1.0]))
def test_percentiles_are_within_the_stated_error(values: list[int], share: float) -> None:
    histogram = of(values)
    exact = sorted(values)[max(1, ceil(share * len(values))) - 1]
    found = histogram.percentile(share)
    assert found is not None
    assert abs(found * NS - exact) <= exact * histogram.relative_error * 1.0001 + 1


@given(lists, lists)
def test_merging_is_counting_both(first: list[int], second: list[int]) -> None:
    merged = of(first)
    merged.merge(of(second))
    both = of(first + second)
    assert (merged.count, merged.sum_ns, merged.min_ns, merged.max_ns) == (
        *(both.count, both.sum_ns, both.min_ns, both.max_ns),
    )
    coarse = min(merged.scale, both.scale)
    merged.coarsen(coarse)
    both.coarsen(coarse)
    assert merged.counts == both.counts


@given(st.lists(lists, min_size=1, max_size=5))
def test_at_most_160_buckets_whatever_comes(rounds: list[list[int]]) -> None:
    histogram = Histogram()
    for values in rounds:
        histogram.add(values)
        _, counts = histogram.dense()
        assert len(counts) <= MAX_BUCKETS
    assert histogram.count == sum(map(len, rounds))


def test_adding_in_parts_is_adding_at_once() -> None:
    values = [(step * 7919) % 100_003 for step in range(5000)]
    parts = Histogram()
    for start in range(0, 5000, 700):
        parts.add(values[start : start + 700])
    whole = of(values)
    coarse = min(parts.scale, whole.scale)
    parts.coarsen(coarse)
    whole.coarsen(coarse)
    assert parts.counts == whole.counts


def test_numpy_changes_nothing_but_the_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numpy")
    values = [(step * 7919) % 100_003 for step in range(2048)]
    with_numpy = of(values)
    monkeypatch.setitem(__import__("sys").modules, "numpy", None)
    without = of(values)
    assert (with_numpy.counts, with_numpy.scale, with_numpy.sum_ns) == (without.counts, without.scale, without.sum_ns)


def test_an_empty_histogram_knows_no_percentile() -> None:
    assert Histogram().percentile(0.5) is None
    assert Histogram().dense() == (0, [])


def test_equal_values_are_told_exactly() -> None:
    assert of([2_000_000] * 10).percentile(0.5) == 0.002
