"""The bytes that go out, and their last check against the list.

The rule it keeps: the check knows nothing of how the bytes were made. It takes them apart again, and any part that is not on
the list is a fault. A payload with a fault does not go out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError, Message
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsPartialSuccess,
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    ExponentialHistogramDataPoint,
    Metric,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
)
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from exporters.allowlist import SCHEMA_URL, SCOPE_NAME, ListedMetric, facts, metrics
from exporters.bounds import OTHER_BYTES, time_fault
from exporters.config import Answer
from exporters.measurements import HistogramValue, Measured, Outgoing, OutgoingMetric, Snapshot
from exporters.rebuild import rebuild, sendable_number
from exporters.rules import Declared, Rule, coarse

SAID = 160  # characters kept of a collector's answer
REQUIRED = ("service.name", "service.version", "service.instance.id")
CUMULATIVE = 2  # AGGREGATION_TEMPORALITY_CUMULATIVE
POINT = {"attributes", "start_time_unix_nano", "time_unix_nano"}
FIELDS = {  # of OTLP's messages, the fields that may be filled
    "ExportMetricsServiceRequest": {"resource_metrics"},
    "ResourceMetrics": {"resource", "scope_metrics", "schema_url"},
    "Resource": {"attributes"},
    "ScopeMetrics": {"scope", "metrics", "schema_url"},
    "InstrumentationScope": {"name", "version"},
    "Metric": {"name", "description", "unit", "gauge", "sum", "exponential_histogram"},
    "Gauge": {"data_points"},
    "Sum": {"data_points", "aggregation_temporality", "is_monotonic"},
    "ExponentialHistogram": {"data_points", "aggregation_temporality"},
    "NumberDataPoint": {*POINT, "as_double", "as_int"},
    "ExponentialHistogramDataPoint": {*POINT, "count", "sum", "scale", "zero_count", "positive", "negative", "min", "max"},
    "Buckets": {"offset", "bucket_counts"},
    "KeyValue": {"key", "value"},
    "AnyValue": {"string_value", "bool_value", "int_value"},
}


def bodies(data: Outgoing, usage: bool = True) -> list[bytes]:
    """Return the bodies of the requests for this data: one."""
    return [encode(data)]


def encode(data: Outgoing) -> bytes:
    """Return the body of an OTLP request, before compression: an ``ExportMetricsServiceRequest`` in protobuf.

    OpenTelemetry's own encoder makes the same bytes from the SDK's classes; a test compares the two.
    """
    scope = ScopeMetrics(
        scope=InstrumentationScope(name=SCOPE_NAME, version=data.facts.get("service.version", "")),
        metrics=[_encoded(metric, data.began, data.now) for metric in data.metrics],
        schema_url=SCHEMA_URL,
    )
    resource = Resource(attributes=_encoded_attributes(data.facts))
    resource_metrics = ResourceMetrics(resource=resource, scope_metrics=[scope], schema_url=SCHEMA_URL)
    return bytes(ExportMetricsServiceRequest(resource_metrics=[resource_metrics]).SerializeToString())


def _encoded(metric: OutgoingMetric, began: int, now: int) -> Metric:
    message = Metric(name=metric.name, description=metric.purpose, unit=metric.unit)
    if metric.kind == "histogram":
        message.exponential_histogram.aggregation_temporality = CUMULATIVE  # type: ignore[assignment]  # an enum's number
        points = [_encoded_histogram(value, attributes, began, now) for attributes, value in metric.points]
        message.exponential_histogram.data_points.extend(points)
        return message
    numbers = [_encoded_number(value, attributes, now) for attributes, value in metric.points]
    if metric.kind == "gauge":
        message.gauge.data_points.extend(numbers)
        return message
    for number in numbers:
        number.start_time_unix_nano = began
    message.sum.aggregation_temporality = CUMULATIVE  # type: ignore[assignment]
    message.sum.is_monotonic = metric.kind == "sum"
    message.sum.data_points.extend(numbers)
    return message


def _encoded_number(value: int | float, attributes: Mapping[str, Any], now: int) -> NumberDataPoint:
    point = NumberDataPoint(attributes=_encoded_attributes(attributes), time_unix_nano=now)
    if isinstance(value, int):
        point.as_int = value
    else:
        point.as_double = value
    return point


def _encoded_histogram(
    value: HistogramValue, attributes: Mapping[str, Any], began: int, now: int
) -> ExponentialHistogramDataPoint:
    point = ExponentialHistogramDataPoint(
        attributes=_encoded_attributes(attributes),
        start_time_unix_nano=began,
        time_unix_nano=now,
        count=value.count,
        sum=value.sum,
        scale=value.scale,
        zero_count=value.zero_count,
        min=value.minimum,
        max=value.maximum,
    )
    if value.counts:
        point.positive.offset = value.offset
        point.positive.bucket_counts.extend(value.counts)
    return point


def _encoded_attributes(attributes: Mapping[str, Any]) -> list[KeyValue]:
    return [KeyValue(key=key, value=_encoded_value(value)) for key, value in attributes.items()]


def _encoded_value(value: str | bool | int) -> AnyValue:
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    return AnyValue(int_value=value) if isinstance(value, int) else AnyValue(string_value=value)


def readable(body: bytes) -> dict[str, Any]:
    """Return the body as OTLP JSON."""
    message = ExportMetricsServiceRequest.FromString(body)
    found: dict[str, Any] = MessageToDict(message, use_integers_for_enums=True)
    return found


def first_fault(
    body: bytes, target: str = "otlp", yield_gil: Callable[[], None] = lambda: None, declared: Declared | None = None
) -> str | None:
    """Return the first part of these bytes that the list does not name for this destination, or None.

    Args:
        body: the bytes.
        target: the destination.
        yield_gil: called between two pieces of work, so that other threads get their turn.
        declared: the declarations of the embedding package that produced them, or None.
    """
    try:
        request = parsed(ExportMetricsServiceRequest, body)
        fault = next(_faults(request, target, yield_gil, declared), None)
        if fault is not None:
            return fault
        yield_gil()
        data = decoded(request)
        if fault := time_fault(data.began, data.now):
            return fault
        yield_gil()
        if lacking := [name for name in REQUIRED if name not in data.facts]:
            return f"it does not say its {lacking[0]}"
        return None if encode(rebuild(data, target, declared)) == body else OTHER_BYTES
    except ValueError as fault:
        return str(fault)


def decoded(request: ExportMetricsServiceRequest) -> Snapshot:
    """Return the measurements of a request, as they were before the gate.

    Raises:
        ValueError: it has not one resource with one scope, or no point.
    """
    if [len(resource.scope_metrics) for resource in request.resource_metrics] != [1]:
        raise ValueError("it has not one resource with one scope")
    resource, (scope,) = request.resource_metrics[0].resource, request.resource_metrics[0].scope_metrics
    points, moments = [], set()
    for metric in scope.metrics:
        kind = _metric_kind(metric)
        data = getattr(metric, metric.WhichOneof("data") or "gauge")
        for point in data.data_points:
            value = _histogram_value(point) if kind == "histogram" else _point_value(point)
            points.append(Measured(metric.name, kind, value, _plain(point.attributes)))
            moments.add((point.start_time_unix_nano, point.time_unix_nano))
    starts, ends = {start for start, _ in moments if start}, {end for _, end in moments}
    if len(ends) != 1 or len(starts) > 1:
        raise ValueError("its points are not of one span of time")
    (now,) = ends
    return Snapshot(_plain(resource.attributes), points, starts.pop() if starts else now, now)


def _histogram_value(point: Any) -> HistogramValue:
    return HistogramValue(
        count=point.count,
        sum=point.sum,
        scale=point.scale,
        zero_count=point.zero_count,
        offset=point.positive.offset,
        counts=tuple(point.positive.bucket_counts),
        minimum=point.min,
        maximum=point.max,
    )


def _plain(attributes: Iterable[Any]) -> dict[str, Any]:
    return {entry.key: getattr(entry.value, entry.value.WhichOneof("value") or "string_value") for entry in attributes}


def parsed(kind: Any, body: bytes) -> Any:
    """Return a message of this kind.

    Raises:
        ValueError: it is none, or has fields that OTLP does not know.
    """
    try:
        message, known = kind.FromString(body), kind.FromString(body)
    except DecodeError:
        raise ValueError("it is not an OTLP request") from None
    known.DiscardUnknownFields()
    if known.SerializeToString() != body:
        raise ValueError("it has fields that OTLP does not know")
    return message


def _faults(
    request: ExportMetricsServiceRequest, target: str, yield_gil: Callable[[], None], declared: Declared | None
) -> Iterator[str]:
    yield from field_faults(request, FIELDS)
    yield_gil()
    known = {entry.name: entry for entry in metrics(target, declared)}
    for resource_metrics in request.resource_metrics:
        yield from attribute_faults("the resource", resource_metrics.resource.attributes, facts(target, declared))
        yield from _text_faults(resource_metrics.schema_url, SCHEMA_URL)
        for scope_metrics in resource_metrics.scope_metrics:
            yield from _text_faults(scope_metrics.schema_url, SCHEMA_URL)
            yield from _text_faults(scope_metrics.scope.name, SCOPE_NAME)
            for metric in scope_metrics.metrics:
                yield from _metric_faults(metric, known.get(metric.name))


def field_faults(message: Message, fields: Mapping[str, set[str]]) -> Iterator[str]:
    """Yield every filled field that is not in ``fields``, in this message and all messages inside it."""
    allowed = fields.get(message.DESCRIPTOR.name, set())
    for field, value in message.ListFields():
        if field.name not in allowed:
            yield f"the field {message.DESCRIPTOR.name}.{field.name} is not on the list"
        elif field.message_type is not None:
            for inner in [value] if isinstance(value, Message) else value:
                yield from field_faults(inner, fields)


def _text_faults(text: str, expected: str) -> Iterator[str]:
    if text != expected:
        yield f"{text!r} stands where {expected!r} belongs"


def _metric_faults(metric: Any, entry: ListedMetric | None) -> Iterator[str]:
    if entry is None:
        yield f"the metric {metric.name!r} is not on the list"
        return
    yield from _text_faults(metric.description, entry.purpose)
    yield from _text_faults(metric.unit, entry.unit)
    yield from _text_faults(_metric_kind(metric), entry.kind)
    data = getattr(metric, metric.WhichOneof("data") or "gauge")
    if getattr(data, "aggregation_temporality", CUMULATIVE) != CUMULATIVE:
        yield f"{entry.name} is not cumulative"
    for point in data.data_points:
        yield from attribute_faults(entry.name, point.attributes, entry.attributes)
        if entry.kind != "histogram" and sendable_number(entry, value := _point_value(point)) != value:
            yield f"{entry.name} is {value!r}, which is more exact than the list allows"


def _metric_kind(metric: Any) -> str:
    filled = metric.WhichOneof("data")
    if filled == "sum":
        return "sum" if metric.sum.is_monotonic else "updowncounter"
    return {"exponential_histogram": "histogram", "gauge": "gauge"}.get(filled, "no data")


def _point_value(point: Any) -> int | float:
    found: int | float = getattr(point, point.WhichOneof("value") or "as_int")
    return found


def attribute_faults(where: str, attributes: Iterable[Any], rules: Mapping[str, Rule]) -> Iterator[str]:
    """Yield every attribute (``KeyValue``) that is not on the list, or has a value that is not."""
    seen = set()
    for attribute in attributes:
        kind = attribute.value.WhichOneof("value")
        value = None if kind is None else getattr(attribute.value, kind)
        if attribute.key not in rules or attribute.key in seen:
            yield f"{where} has an attribute {attribute.key!r} that is not on the list"
        elif value is None or coarse(rules[attribute.key], value) != value:
            yield f"{where} has a value of {attribute.key!r} that is not on the list"
        seen.add(attribute.key)


def with_rejected_points(answer: Answer, partial: ExportMetricsPartialSuccess) -> Answer:
    """Return the answer with the number of data points that a collector rejected. Log records use the same form."""
    said, rejected = partial.error_message[:SAID], partial.rejected_data_points
    if not rejected:
        return replace(answer, text=f"{answer.text}: {said}") if said else answer
    return replace(answer, text=f"{answer.text}, but {rejected} data points were not taken: {said}", partly=rejected)
