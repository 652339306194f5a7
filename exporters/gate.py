"""The gate before every exporter: ask for consent, build the outgoing data from the list, and check it.

The rules it keeps: rebuild, never filter. The outgoing data is made by walking the list and copying its entries, so an
unlisted metric, attribute or fact has no way out. Consent is asked before the data is read, again before it is handed on,
and again (by the courier) with the bytes in hand before each attempt to send. Data of which no copy can be kept is not
sent.
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

from exporters.allowlist import SCHEMA_URL, SCOPE_NAME, Entry, metrics, told_facts
from exporters.config import Record
from exporters.payload import encode, told
from exporters.rules import Declared, Rule, coarse

SCOPE = InstrumentationScope(SCOPE_NAME, None, SCHEMA_URL)
OWN = "an exporter of the program's own"


class Gate:
    """The gate before one destination.

    Args:
        consent: returns True if data may leave now.
        target: a name in `TARGETS`; the list holds the data of that destination.
        form: the module that makes and checks its bodies.
        usage: True if usage counters may be part of the data.

    Attributes:
        refused: how often there was no consent.
        dropped: bodies with parts that are not on the list.
        reason: why the last data was not let through; "" if it was, or if there was no consent.
    """

    def __init__(self, consent: Callable[[], bool], target: str, form: Any, usage: bool = True) -> None:
        self._consent = consent
        self._target = target
        self._form = form
        self._usage = usage
        self.refused = 0
        self.dropped = 0
        self.reason = ""

    def outgoing(
        self, data: MetricsData, yield_gil: Callable[[], None] = lambda: None, declared: Declared | None = None
    ) -> MetricsData | None:
        """Return the sendable part of this data, rebuilt from the list, or None without consent.

        Args:
            data: the data.
            yield_gil: called between two pieces of work, so that the loop's thread gets its turn.
            declared: the declarations of the embedding package that produced the data, or None.
        """
        self.reason = ""
        if not self._consent():
            self.refused += 1
            return None
        yield_gil()
        outgoing = rebuild(data, self._target, declared)
        yield_gil()
        return outgoing

    def bodies(
        self, data: MetricsData, yield_gil: Callable[[], None] = lambda: None, declared: Declared | None = None
    ) -> list[bytes]:
        """Return the checked bodies; none without consent, and none if one of them has a fault."""
        outgoing = self.outgoing(data, yield_gil, declared)
        if outgoing is None:
            return []
        bodies: list[bytes] = self._form.bodies(outgoing, self._usage)
        yield_gil()
        for body in bodies:
            if not self.passes(body, yield_gil, declared):
                return []
            yield_gil()
        if not self._consent():
            self.refused += 1
            return []
        return bodies

    def passes(self, body: bytes, yield_gil: Callable[[], None] = lambda: None, declared: Declared | None = None) -> bool:
        """Return True if these bytes hold only listed data for this destination. Asked again before they are sent.

        Args:
            body: the bytes.
            yield_gil: called between two pieces of work.
            declared: the declarations of the embedding package that produced them, or None.
        """
        fault = self._form.first_fault(body, self._target, yield_gil, declared)
        if fault is None:
            return True
        self.dropped += 1
        self.reason = f"an export was dropped: {fault}"[:300]
        return False


class GatedExporter(MetricExporter):
    """An exporter of the program behind the gate: it gets the data of a collector, with a copy kept.

    Args:
        exporter: the program's own.
        gate: the gate.
        consent: asked once more with the bytes in hand.
        record: keeps a copy before they are handed on; an OSError from it stops them.
        declared: the declarations of the embedding package that produced the data, or None.

    Attributes:
        reason: why the last export failed; "" if it did not, or if there was no consent.
    """

    def __init__(
        self,
        exporter: MetricExporter,
        gate: Gate,
        consent: Callable[[], bool],
        record: Record,
        declared: Declared | None = None,
    ) -> None:
        super().__init__(getattr(exporter, "_preferred_temporality", None), getattr(exporter, "_preferred_aggregation", None))
        self._exporter = exporter
        self.gate = gate
        self._consent = consent
        self._record = record
        self._declared = declared
        self.reason = ""

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> MetricExportResult:
        """Hand on the sendable part of this data. Without consent nothing is handed on, which counts as a failure."""
        outgoing = self.gate.outgoing(metrics_data, declared=self._declared)
        self.reason = self.gate.reason
        if outgoing is None:
            return MetricExportResult.FAILURE
        body = encode(outgoing)
        passes = self.gate.passes(body, declared=self._declared)
        self.reason = self.gate.reason
        if not passes:
            return MetricExportResult.FAILURE
        if not self._consent():
            self.gate.refused += 1
            return MetricExportResult.FAILURE
        try:
            answered = self._record(OWN, body)
        except OSError as error:
            self.reason = f"nothing was sent, because it cannot be noted what is sent: {error.strerror}"
            return MetricExportResult.FAILURE
        result = self._exporter.export(outgoing, timeout_millis, **kwargs)
        answered(getattr(result, "name", "no answer"))
        if result is not MetricExportResult.SUCCESS:
            self.reason = "an export was not taken"
        return result

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Call the exporter's own."""
        return self._exporter.force_flush(timeout_millis)

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        """Call the exporter's own."""
        self._exporter.shutdown(timeout_millis, **kwargs)


def rebuild(data: MetricsData, target: str = "otlp", declared: Declared | None = None) -> MetricsData:
    """Return new data with the listed metrics and facts for this destination, always in the same order."""
    return MetricsData([_resource_metrics(entry, target, declared) for entry in data.resource_metrics])


def _resource_metrics(source: ResourceMetrics, target: str, declared: Declared | None) -> ResourceMetrics:
    found = [metric for scope in source.scope_metrics for metric in scope.metrics]
    rebuilt = [_metric(entry, found) for entry in metrics(target, declared)]
    resource = Resource(told_facts(source.resource.attributes, target, declared), SCHEMA_URL)
    return ResourceMetrics(resource, [ScopeMetrics(SCOPE, [m for m in rebuilt if m is not None], SCHEMA_URL)], SCHEMA_URL)


def _metric(entry: Entry, metrics: Iterable[Metric]) -> Metric | None:
    """Return the listed metric with its sendable points, or None if there are none."""
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
    """Return the listed attributes in sendable form, or None if the point has others, or an unsendable value."""
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
