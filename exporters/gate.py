"""The gate before every exporter: asks for consent, and builds what goes out from the list.

The rule it keeps: rebuild, never filter. What goes out is made by walking the list and copying what it names, so a
metric, an attribute or a fact that nobody has listed has no way out. Consent is asked at every export, before the data
is looked at and again before it is handed on; the exporter itself is not even made before the first "yes".
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from opentelemetry.sdk.metrics.export import (
    ExponentialHistogram,
    ExponentialHistogramDataPoint,
    Gauge,
    Metric,
    MetricExporter,
    MetricExportResult,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from exporters.allowlist import METRICS, OTHER, RESOURCE, Entry, Random, Rule

SCHEMA_URL = "https://opentelemetry.io/schemas/1.44.0"
SCOPE = InstrumentationScope("epochmeter", None, SCHEMA_URL)


class GatedExporter(MetricExporter):
    """An exporter that hands on what the list names, and that only with consent.

    Args:
        make: gives the exporter behind the gate; called after the first "yes".
        consent: whether data may leave now.
    """

    def __init__(self, make: Callable[[], MetricExporter], consent: Callable[[], bool]) -> None:
        super().__init__()
        self._make = make
        self._consent = consent
        self._inner: MetricExporter | None = None
        self.refused = 0

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> MetricExportResult:
        """Hands on what may leave of this data; without consent nothing, which counts as a failure to export."""
        if not self._consent():
            return self._refuse()
        outgoing = rebuild(metrics_data)
        if self._inner is None:
            self._inner = self._make()
            for name in ("_preferred_temporality", "_preferred_aggregation"):
                setattr(self, name, getattr(self._inner, name, getattr(self, name)))
        if not self._consent():
            return self._refuse()
        return self._inner.export(outgoing, timeout_millis, **kwargs)

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return self._inner is None or self._inner.force_flush(timeout_millis)

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        if self._inner is not None:
            self._inner.shutdown(timeout_millis, **kwargs)

    def _refuse(self) -> MetricExportResult:
        self.refused += 1
        return MetricExportResult.FAILURE


def rebuild(data: MetricsData) -> MetricsData:
    """New data with what the list names, made from nothing."""
    return MetricsData([_resource_metrics(entry) for entry in data.resource_metrics])


def _resource_metrics(source: ResourceMetrics) -> ResourceMetrics:
    metrics = [metric for scope in source.scope_metrics for metric in scope.metrics]
    rebuilt = [_metric(entry, metrics) for entry in METRICS]
    known = source.resource.attributes
    facts = {entry.name: coarse(entry.rule, known[entry.name]) for entry in RESOURCE if entry.name in known}
    resource = Resource({name: value for name, value in facts.items() if value is not None}, SCHEMA_URL)
    return ResourceMetrics(resource, [ScopeMetrics(SCOPE, [m for m in rebuilt if m is not None], SCHEMA_URL)], SCHEMA_URL)


def _metric(entry: Entry, metrics: Iterable[Metric]) -> Metric | None:
    """The listed metric with the points that can be told, or None where there are none."""
    points: dict[tuple[tuple[str, Any], ...], Any] = {}
    data: Any = None
    for metric in metrics:
        if metric.name == entry.name and _kind(metric.data) == entry.kind:
            data = metric.data
            for point in data.data_points:
                attributes = _attributes(entry.attributes, point.attributes or {})
                if attributes is not None:
                    points.setdefault(tuple(sorted(attributes.items())), _point(entry, point, attributes))
    if not points:
        return None
    return Metric(entry.name, entry.purpose, entry.unit, _like(data, list(points.values())))


def _kind(data: Any) -> str:
    if isinstance(data, ExponentialHistogram):
        return "histogram"
    if isinstance(data, Gauge):
        return "gauge"
    if isinstance(data, Sum):
        return "sum" if data.is_monotonic else "updowncounter"
    return "unknown"


def _like(data: Any, points: list[Any]) -> Any:
    if isinstance(data, ExponentialHistogram):
        return ExponentialHistogram(points, data.aggregation_temporality)
    if isinstance(data, Gauge):
        return Gauge(points)
    return Sum(points, data.aggregation_temporality, data.is_monotonic)


def _attributes(rules: Mapping[str, Rule], found: Mapping[str, Any]) -> dict[str, Any] | None:
    """The listed attributes as they may be told; None where one has a value that may not, or the point has others."""
    if set(found) - set(rules):
        return None
    told = {name: coarse(rule, found[name]) for name, rule in rules.items() if name in found}
    return None if None in told.values() else told


def _point(entry: Entry, point: Any, attributes: dict[str, Any]) -> Any:
    if isinstance(point, ExponentialHistogramDataPoint):
        return ExponentialHistogramDataPoint(
            attributes=attributes,
            start_time_unix_nano=point.start_time_unix_nano,
            time_unix_nano=point.time_unix_nano,
            count=point.count,
            sum=point.sum,
            scale=point.scale,
            zero_count=point.zero_count,
            positive=point.positive,
            negative=point.negative,
            flags=0,
            min=point.min,
            max=point.max,
        )
    value = point.value if entry.digits is None else significant(point.value, entry.digits)
    return NumberDataPoint(attributes, point.start_time_unix_nano, point.time_unix_nano, value)


def coarse(rule: Rule, value: Any) -> Any:
    """A value as it may be told, or None where it may not."""
    if isinstance(rule, Random):
        return value if isinstance(value, str) and re.fullmatch(f"[0-9a-f]{{{rule.digits}}}", value) else None
    if rule.upward and isinstance(value, (int, float)):
        return next((size for size in rule.values if size >= value), rule.values[-1])  # type: ignore[operator]
    if rule.contained and isinstance(value, str):
        found = [str(word) for word in rule.values if str(word) in value.replace("GeForce ", "")]
        return max(found, key=len, default=OTHER)  # a GH200 is no H200
    for known in rule.values:
        if known == value and type(known) is type(value):
            return known
    return OTHER if OTHER in rule.values else None


def significant(value: int | float, digits: int) -> int | float:
    """The number with so many significant digits; a whole number stays whole."""
    if not value or not math.isfinite(value):
        return value
    rounded = round(value, digits - 1 - math.floor(math.log10(abs(value))))
    return int(rounded) if isinstance(value, int) else rounded
