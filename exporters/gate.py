"""The gate before every exporter: asks for consent, builds what goes out from the list, checks it, and notes it.

The rules it keeps: rebuild, never filter. What goes out is made by walking the list and copying what it names, so a
metric, an attribute or a fact that nobody has listed has no way out. Consent is asked at every export before the data is
looked at, again before it is handed on, and again by the exporter with the bytes in hand. The exporter itself is not even
made before the first "yes". What cannot be noted in the log of what was sent does not go.
"""

from __future__ import annotations

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

from exporters.allowlist import METRICS, RESOURCE, SCHEMA_URL, SCOPE_NAME, Entry
from exporters.config import Answered, ExporterError, Record, Release
from exporters.payload import encode, first_fault, told
from exporters.rules import Rule, coarse

SCOPE = InstrumentationScope(SCOPE_NAME, None, SCHEMA_URL)
OWN = "an exporter of the program's own"


class GatedExporter(MetricExporter):
    """An exporter that hands on what the list names, and that only with consent.

    Args:
        make: gives the exporter behind the gate, which calls the function it is given before each attempt to send.
            Called after the first "yes".
        consent: whether data may leave now.
        record: notes where the bytes go, before they go; what it raises as OSError stops them.
        target: a name in `TARGETS`; the list says what that destination gets.

    Attributes:
        refused: exports that had no consent.
        dropped: exports whose bytes held what is not on the list.
        reason: why the last export failed; empty where it did not, or where there was no consent.
    """

    def __init__(
        self, make: Callable[[Release], MetricExporter], consent: Callable[[], bool], record: Record, target: str = "otlp"
    ) -> None:
        super().__init__()
        self._make = make
        self._consent = consent
        self._record = record
        self._target = target
        self._inner: MetricExporter | None = None
        self._checked: bytes | None = None
        self._answered: Answered | None = None
        self.refused = 0
        self.dropped = 0
        self.reason = ""

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> MetricExportResult:
        """Hands on what may leave of this data; without consent nothing, which counts as a failure to export."""
        self.reason, self._checked, self._answered = "", None, None
        if not self._consent():
            return self._refuse()
        outgoing = rebuild(metrics_data, self._target)
        body = encode(outgoing)
        fault = first_fault(body, self._target)
        if fault is not None:
            self.dropped += 1
            self.reason = f"an export was dropped: {fault}"[:300]
            return MetricExportResult.FAILURE
        if self._inner is None:
            self._inner = self._make(self.release)
            for name in ("_preferred_temporality", "_preferred_aggregation"):
                setattr(self, name, getattr(self._inner, name, getattr(self, name)))
        if not self._consent():
            return self._refuse()
        self._checked = body
        refused = self.refused
        result = self._inner.export(outgoing, timeout_millis, **kwargs)
        if result is not MetricExportResult.SUCCESS and self.refused == refused:
            self.reason = self.reason or "an export was not taken"
        return result

    def release(self, where: str, body: bytes) -> Answered:
        """The last word before each attempt to send: with the very bytes in hand, and noted before they go.

        Returns:
            A function to call with what the destination answered.

        Raises:
            ExporterError: they may not go.
        """
        if body != self._checked:
            self.dropped += 1
            self.reason = "an export was dropped: the bytes to send are not the ones that were checked"
            raise ExporterError(self.reason)
        if not self._consent():
            self._refuse()
            raise ExporterError("there is no consent to send")
        if self._answered is None:
            try:
                self._answered = self._record(where, body)
            except OSError as error:
                self.reason = f"nothing was sent, because it cannot be noted what is sent: {error.strerror}"
                raise ExporterError(self.reason) from error
        return self._answered

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return self._inner is None or self._inner.force_flush(timeout_millis)

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        if self._inner is not None:
            self._inner.shutdown(timeout_millis, **kwargs)

    def _refuse(self) -> MetricExportResult:
        self.refused += 1
        return MetricExportResult.FAILURE


class HandedOver(MetricExporter):
    """An exporter that the program brought along: it gets what any other would get, noted as any other."""

    def __init__(self, exporter: MetricExporter, release: Release) -> None:
        super().__init__(getattr(exporter, "_preferred_temporality", None), getattr(exporter, "_preferred_aggregation", None))
        self._exporter = exporter
        self._release = release

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> MetricExportResult:
        try:
            answered = self._release(OWN, encode(metrics_data))
        except ExporterError:
            return MetricExportResult.FAILURE
        result = self._exporter.export(metrics_data, timeout_millis, **kwargs)
        answered(getattr(result, "name", "no answer"))
        return result

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return self._exporter.force_flush(timeout_millis)

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        self._exporter.shutdown(timeout_millis, **kwargs)


def rebuild(data: MetricsData, target: str = "otlp") -> MetricsData:
    """New data with what the list names for this destination, made from nothing, always in the same order."""
    return MetricsData([_resource_metrics(entry, target) for entry in data.resource_metrics])


def _resource_metrics(source: ResourceMetrics, target: str) -> ResourceMetrics:
    metrics = [metric for scope in source.scope_metrics for metric in scope.metrics]
    rebuilt = [_metric(entry, metrics) for entry in METRICS if target in entry.destinations]
    known = source.resource.attributes
    facts = {
        entry.name: coarse(entry.rule, known[entry.name])
        for entry in RESOURCE
        if entry.name in known and target in entry.destinations
    }
    resource = Resource({name: value for name, value in facts.items() if value is not None}, SCHEMA_URL)
    return ResourceMetrics(resource, [ScopeMetrics(SCOPE, [m for m in rebuilt if m is not None], SCHEMA_URL)], SCHEMA_URL)


def _metric(entry: Entry, metrics: Iterable[Metric]) -> Metric | None:
    """The listed metric with the points that can be told, or None where there are none."""
    points: dict[tuple[str, ...], Any] = {}
    data: Any = None
    for metric in metrics:
        if metric.name == entry.name and _kind(metric.data) == entry.kind:
            data = metric.data
            for point in data.data_points:
                attributes = _attributes(entry.attributes, point.attributes or {})
                if attributes is not None:
                    order = tuple(f"{name}={value}" for name, value in attributes.items())
                    points.setdefault(order, _point(entry, point, attributes))
    if not points:
        return None
    return Metric(entry.name, entry.purpose, entry.unit, _like(data, [points[order] for order in sorted(points)]))


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
    value = told(entry, point.value)
    return NumberDataPoint(attributes, point.start_time_unix_nano, point.time_unix_nano, value)
