"""Points in the classes of OpenTelemetry's SDK, for the test that compares our JSON with its encoder's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    ExponentialHistogram,
    Gauge,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.metrics.export import (
    Histogram as StatisticsHistogram,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

import profiler
from exporters.sdk_data import histogram_point
from profiler.sending.snapshot import histogram_value
from profiler.storage.points import SCHEMA_URL, SCOPE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.reading_record import ReadingRecord
    from profiler.storage.metric_rows import Attributes
    from profiler.storage.points import Point


DELTA, CUMULATIVE = AggregationTemporality.DELTA, AggregationTemporality.CUMULATIVE


def metrics_data(
    resource: Mapping[str, Any],
    points: Iterable[Point],
    temporality: AggregationTemporality,
    began: int,
    now: int,
    extra: Attributes,
) -> MetricsData:
    """Return points as the SDK's classes. ``extra`` attributes are added to each."""
    groups: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        groups.setdefault((point.name, point.kind), []).append(point)
    metrics = [
        Metric(name, group[0].help, group[0].unit, _data(kind, group, temporality, began, now, extra))
        for (name, kind), group in groups.items()
    ]
    scope = InstrumentationScope(SCOPE, profiler.__version__, SCHEMA_URL)
    return MetricsData(
        [ResourceMetrics(Resource(resource, SCHEMA_URL), [ScopeMetrics(scope, metrics, SCHEMA_URL)], SCHEMA_URL)]
    )


def _data(kind: str, group: list[Point], temporality: AggregationTemporality, began: int, now: int, extra: Attributes) -> Any:
    if kind == "histogram":
        return ExponentialHistogram(
            [histogram_point(histogram_value(p.value), {**p.attributes, **extra}, began, now) for p in group], temporality
        )
    if kind == "statistics":
        return StatisticsHistogram([_statistics(p.value, {**p.attributes, **extra}, began, now) for p in group], temporality)
    numbers = [NumberDataPoint({**p.attributes, **extra}, began, now, p.value) for p in group]
    if kind == "gauge":
        return Gauge(numbers)
    if kind == "updowncounter":
        return Sum(numbers, CUMULATIVE, is_monotonic=False)
    return Sum(numbers, temporality, is_monotonic=True)


def _statistics(reading: ReadingRecord, attributes: Attributes, began: int, now: int) -> HistogramDataPoint:
    """Return count, sum, min and max of a reading as a histogram of one bucket."""
    return HistogramDataPoint(
        attributes=dict(attributes),
        start_time_unix_nano=began,
        time_unix_nano=now,
        count=reading.count,
        sum=reading.total,
        bucket_counts=[reading.count],
        explicit_bounds=[],
        min=reading.minimum,
        max=reading.maximum,
    )
