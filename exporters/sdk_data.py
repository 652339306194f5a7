"""Outgoing measurements as OpenTelemetry's ``MetricsData``: for a program's own exporter, and for Prometheus.

All other destinations get bytes, which `payload` makes without the SDK's classes.
"""

from __future__ import annotations

from typing import Any

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Buckets,
    ExponentialHistogram,
    ExponentialHistogramDataPoint,
    Gauge,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from exporters.allowlist import SCHEMA_URL, SCOPE_NAME
from exporters.measurements import HistogramValue, Outgoing, OutgoingMetric

CUMULATIVE = AggregationTemporality.CUMULATIVE


def metrics_data(outgoing: Outgoing) -> MetricsData:
    """Return the same data in the SDK's classes."""
    metrics = [
        Metric(metric.name, metric.purpose, metric.unit, _data(metric, outgoing.began, outgoing.now))
        for metric in outgoing.metrics
    ]
    scope = ScopeMetrics(
        InstrumentationScope(SCOPE_NAME, outgoing.facts.get("service.version"), SCHEMA_URL), metrics, SCHEMA_URL
    )
    return MetricsData([ResourceMetrics(Resource(outgoing.facts, SCHEMA_URL), [scope], SCHEMA_URL)])


def _data(metric: OutgoingMetric, began: int, now: int) -> Any:
    if metric.kind == "histogram":
        points = [histogram_point(value, attributes, began, now) for attributes, value in metric.points]
        return ExponentialHistogram(points, CUMULATIVE)
    numbers = [NumberDataPoint(attributes, began, now, value) for attributes, value in metric.points]
    if metric.kind == "gauge":
        return Gauge(numbers)
    return Sum(numbers, CUMULATIVE, is_monotonic=metric.kind == "sum")


def histogram_point(value: HistogramValue, attributes: dict[str, Any], began: int, now: int) -> ExponentialHistogramDataPoint:
    """Return a histogram, bucket for bucket."""
    return ExponentialHistogramDataPoint(
        attributes=attributes,
        start_time_unix_nano=began,
        time_unix_nano=now,
        count=value.count,
        sum=value.sum,
        scale=value.scale,
        zero_count=value.zero_count,
        positive=Buckets(value.offset, value.counts),
        negative=Buckets(0, []),
        flags=0,
        min=value.minimum,
        max=value.maximum,
    )
