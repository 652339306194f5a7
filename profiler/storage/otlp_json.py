"""Points as OTLP JSON: the lines of the run log.

OpenTelemetry's encoder makes the same by way of three other forms (the SDK's classes, protobuf's messages, dictionaries).
That is several times the work, on the loop's own thread at the end of each epoch. The text is put together here without
dictionaries, which halves it once more. A test compares it with that of OpenTelemetry's encoder.
Format: https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding (64-bit integers are strings, enums numbers).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from json.encoder import encode_basestring_ascii
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
KINDS = {  # of a point: the key of its data, and what stands behind the points
    "histogram": ("exponentialHistogram", f',"aggregationTemporality":{DELTA}'),
    "statistics": ("histogram", f',"aggregationTemporality":{DELTA}'),
    "gauge": ("gauge", ""),
    "updowncounter": ("sum", f',"aggregationTemporality":{CUMULATIVE}'),
    "sum": ("sum", f',"aggregationTemporality":{DELTA},"isMonotonic":true'),
}
_text = functools.lru_cache(maxsize=1024)(encode_basestring_ascii)  # names and words, which come again in each line


def line(resource: Attributes, points: Iterable[Point], began: int, now: int, extra: Attributes) -> str:
    """Return one ``ExportMetricsServiceRequest`` with the measurements between two moments (ns since 1970), as JSON.

    Args:
        resource: the facts of the run.
        points: the measurements.
        began: the first moment.
        now: the second one.
        extra: attributes of each point.
    """
    found: dict[tuple[str, str], tuple[Point, list[str]]] = {}
    moment = f'"timeUnixNano":"{now}"'
    span = f'"startTimeUnixNano":"{began}",{moment}'
    added = _entries(extra)
    for point in points:
        own = _entries(point.attributes)
        attributes = ",".join((own, added)) if own and added else own or added
        times = moment if point.kind == "gauge" else span
        text = f'{{"attributes":[{attributes}],{times},{_value(point)}}}' if attributes else f"{{{times},{_value(point)}}}"
        found.setdefault((point.name, point.kind), (point, []))[1].append(text)
    metrics = ",".join(_metric(point, texts) for point, texts in found.values())
    scope = f'{{"scope":{{"name":{_text(SCOPE)},"version":{_text(profiler.__version__)}}},"metrics":[{metrics}],{_schema()}}}'
    return (
        f'{{"resourceMetrics":[{{"resource":{{"attributes":[{_entries(resource)}]}},"scopeMetrics":[{scope}],{_schema()}}}]}}'
    )


def _schema() -> str:
    return f'"schemaUrl":{_text(SCHEMA_URL)}'


def _metric(point: Point, texts: list[str]) -> str:
    key, behind = KINDS.get(point.kind, KINDS["sum"])
    head = f'"name":{_text(point.name)},"description":{_text(point.help)},"unit":{_text(point.unit)}'
    return f'{{{head},"{key}":{{"dataPoints":[{",".join(texts)}]{behind}}}}}'


def _value(point: Point) -> str:
    if point.kind == "histogram":
        return _histogram(point.value)
    if point.kind == "statistics":
        return _statistics(point.value)
    return f'"asInt":"{point.value}"' if isinstance(point.value, int) else f'"asDouble":{_number(point.value)}'


def _histogram(histogram: Histogram) -> str:
    """Return a histogram in seconds, bucket for bucket, without zeros, as this format wants it."""
    offset, counts = histogram.dense()
    parts = [f'"sum":{_number(histogram.sum_ns / NS)}']
    if counts or histogram.zero_count:
        parts.insert(0, f'"count":"{histogram.count}"')
    if histogram.scale:
        parts.append(f'"scale":{histogram.scale}')
    if histogram.zero_count:
        parts.append(f'"zeroCount":"{histogram.zero_count}"')
    if counts:
        begins = f'"offset":{offset},' if offset else ""
        parts.append(f'"positive":{{{begins}"bucketCounts":["{_joined(counts)}"]}}')
    parts.append(f'"min":{_number((histogram.min_ns or 0) / NS)},"max":{_number((histogram.max_ns or 0) / NS)}')
    return ",".join(parts)


def _joined(counts: list[int]) -> str:
    return '","'.join(map(str, counts))


def _statistics(reading: ReadingRecord) -> str:
    """Return count, sum, min and max of a reading as a histogram of one bucket."""
    total, low, high = (_number(float(value)) for value in (reading.total, reading.minimum, reading.maximum))
    return f'"count":"{reading.count}","sum":{total},"bucketCounts":["{reading.count}"],"min":{low},"max":{high}'


def _entries(attributes: Mapping[str, Any]) -> str:
    return ",".join([f'{{"key":{_text(key)},"value":{_any(value)}}}' for key, value in attributes.items()])


def _any(value: Any) -> str:
    if isinstance(value, str):
        return f'{{"stringValue":{_text(value)}}}'
    if isinstance(value, bool):
        return '{"boolValue":true}' if value else '{"boolValue":false}'
    if isinstance(value, int):
        return f'{{"intValue":"{int(value)}"}}'
    if isinstance(value, float):
        return f'{{"doubleValue":{_number(value)}}}'
    return f'{{"arrayValue":{{"values":[{",".join(map(_any, value))}]}}}}'


def _number(value: float) -> str:
    return float.__repr__(value) if -1e308 < value < 1e308 else json.dumps(value)
