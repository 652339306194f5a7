"""Points as OTLP JSON: the lines of the run log.

OpenTelemetry's encoder makes the same by way of three other forms (the SDK's classes, protobuf's messages, dictionaries).
That is several times the work, on the loop's own thread at the end of each epoch. A test compares the two.
Format: https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding (64-bit integers are strings, enums numbers).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import profiler
from profiler.records.histogram import NS
from profiler.storage.points import SCHEMA_URL, SCOPE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.histogram import Histogram
    from profiler.records.reading_record import ReadingRecord
    from profiler.storage.metric_rows import Attributes
    from profiler.storage.points import Point


DELTA, CUMULATIVE = 1, 2


def request(resource: Attributes, points: Iterable[Point], began: int, now: int, extra: Attributes) -> dict[str, Any]:
    """Return one ``ExportMetricsServiceRequest`` with the measurements between two moments (ns since 1970)."""
    metrics: dict[tuple[str, str], dict[str, Any]] = {}
    now_only = {"timeUnixNano": str(now)}
    times = {"startTimeUnixNano": str(began), **now_only}
    added = _attributes(extra)
    for point in points:
        key = (point.name, point.kind)
        if key not in metrics:
            metrics[key] = {"name": point.name, "description": point.help, "unit": point.unit, **_empty_data(point.kind)}
        ((_, data),) = [entry for entry in metrics[key].items() if isinstance(entry[1], dict)]
        attributes = [*_attributes(point.attributes), *added]
        lasted = now_only if point.kind == "gauge" else times
        data["dataPoints"].append({**({"attributes": attributes} if attributes else {}), **lasted, **_value(point)})
    scope = {
        "scope": {"name": SCOPE, "version": profiler.__version__},
        "metrics": list(metrics.values()),
        "schemaUrl": SCHEMA_URL,
    }
    return {
        "resourceMetrics": [
            {"resource": {"attributes": _attributes(resource)}, "scopeMetrics": [scope], "schemaUrl": SCHEMA_URL}
        ]
    }


def _empty_data(kind: str) -> dict[str, Any]:
    if kind == "histogram":
        return {"exponentialHistogram": {"dataPoints": [], "aggregationTemporality": DELTA}}
    if kind == "statistics":
        return {"histogram": {"dataPoints": [], "aggregationTemporality": DELTA}}
    if kind == "gauge":
        return {"gauge": {"dataPoints": []}}
    if kind == "updowncounter":
        return {"sum": {"dataPoints": [], "aggregationTemporality": CUMULATIVE}}
    return {"sum": {"dataPoints": [], "aggregationTemporality": DELTA, "isMonotonic": True}}


def _value(point: Point) -> dict[str, Any]:
    if point.kind == "histogram":
        return _histogram(point.value)
    if point.kind == "statistics":
        return _statistics(point.value)
    return {"asInt": str(point.value)} if isinstance(point.value, int) else {"asDouble": point.value}


def _histogram(histogram: Histogram) -> dict[str, Any]:
    """Return a histogram in seconds, bucket for bucket, without zeros, as this format wants it."""
    offset, counts = histogram.dense()
    result: dict[str, Any] = {
        "count": str(histogram.count),
        "sum": histogram.sum_ns / NS,
        "scale": histogram.scale,
        "zeroCount": str(histogram.zero_count),
        "positive": {**({"offset": offset} if offset else {}), "bucketCounts": list(map(str, counts))},
        "min": (histogram.min_ns or 0) / NS,
        "max": (histogram.max_ns or 0) / NS,
    }
    if not counts:
        del result["positive"]
    return {key: value for key, value in result.items() if value not in ("0", 0) or key in ("sum", "min", "max")}


def _statistics(reading: ReadingRecord) -> dict[str, Any]:
    """Return count, sum, min and max of a reading as a histogram of one bucket."""
    return {
        "count": str(reading.count),
        "sum": float(reading.total),
        "bucketCounts": [str(reading.count)],
        "min": float(reading.minimum),
        "max": float(reading.maximum),
    }


def _attributes(attributes: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _any(value)} for key, value in attributes.items()]


def _any(value: Any) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, str):
        return {"stringValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    return {"arrayValue": {"values": [_any(entry) for entry in value]}}
