"""Crash reports as log records over OTLP, with the content of Sentry's, for users with a collector and no Sentry.

Names are OpenTelemetry's (``exception.type``, ``exception.stacktrace``). The record has no text of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import SeverityNumber

from exporters.allowlist import MAX_FRAMES, SCHEMA_URL, SCOPE_NAME, crash, facts, sendable_facts
from exporters.bounds import OTHER_BYTES, time_fault
from exporters.crash_payload import FRAMES
from exporters.payload import attribute_faults, field_faults, parsed
from exporters.rules import Declared, Rule, coarse

EVENT_NAME = "epochmeter.crash"
FIELDS = {  # of OTLP's messages, the fields that may be filled
    "ExportLogsServiceRequest": {"resource_logs"},
    "ResourceLogs": {"resource", "scope_logs", "schema_url"},
    "Resource": {"attributes"},
    "ScopeLogs": {"scope", "log_records", "schema_url"},
    "InstrumentationScope": {"name", "version"},
    "LogRecord": {"time_unix_nano", "observed_time_unix_nano", "severity_number", "attributes", "event_name"},
    "KeyValue": {"key", "value"},
    "AnyValue": {"string_value", "bool_value", "int_value"},
}


def encode(report: Mapping[str, Any]) -> bytes:
    """Return the body of a request with one crash, as rebuilt by `crash_payload.rebuilt`."""
    request = ExportLogsServiceRequest()
    resource = request.resource_logs.add(schema_url=SCHEMA_URL)
    resource.resource.attributes.extend(_attribute(name, value) for name, value in report["facts"].items())
    scope = resource.scope_logs.add(schema_url=SCHEMA_URL)
    scope.scope.name, scope.scope.version = SCOPE_NAME, report["facts"].get("service.version", "")
    scope.log_records.add(
        time_unix_nano=report["time_unix_ns"],
        observed_time_unix_nano=report["time_unix_ns"],  # we observe it as it happens; a later moment would tell more
        severity_number=SeverityNumber.SEVERITY_NUMBER_ERROR,
        event_name=EVENT_NAME,
        attributes=[_attribute("exception.type", report["type"]), _attribute(FRAMES, "\n".join(report["frames"]))],
    )
    return bytes(request.SerializeToString())


def _attribute(name: str, value: Any) -> KeyValue:
    filled = AnyValue(bool_value=value) if isinstance(value, bool) else AnyValue(string_value=str(value))
    return KeyValue(key=name, value=filled)


def readable(body: bytes) -> dict[str, Any]:
    """Return the body as OTLP JSON."""
    found: dict[str, Any] = MessageToDict(ExportLogsServiceRequest.FromString(body), use_integers_for_enums=True)
    return found


def first_fault(
    body: bytes, target: str = "otlp-logs", yield_gil: Callable[[], None] = lambda: None, declared: Declared | None = None
) -> str | None:
    """Return the first part of these bytes that is not on the list, or None."""
    try:
        request = parsed(ExportLogsServiceRequest, body)
        fault = next(_faults(request, declared), None)
        if fault is not None:
            return fault
        report = _decoded(request, declared)
        return time_fault(report["time_unix_ns"], report["time_unix_ns"]) or (None if encode(report) == body else OTHER_BYTES)
    except ValueError as fault:
        return str(fault)


def _decoded(request: ExportLogsServiceRequest, declared: Declared | None) -> dict[str, Any]:
    """Return the report that a request holds, with the sendable facts alone.

    Raises:
        ValueError: it holds none, or several.
    """
    try:
        (resource,) = request.resource_logs
        ((record,),) = (scope.log_records for scope in resource.scope_logs)
    except ValueError:
        raise ValueError("it does not hold one report") from None
    found = {attribute.key: attribute.value.string_value for attribute in record.attributes}
    known = {
        attribute.key: getattr(attribute.value, attribute.value.WhichOneof("value") or "string_value")
        for attribute in resource.resource.attributes
    }
    return {
        "time_unix_ns": record.time_unix_nano,
        "type": found["exception.type"],
        "frames": found[FRAMES].split("\n") if found[FRAMES] else [],
        "facts": sendable_facts(known, "crash", declared),
    }


def _faults(request: ExportLogsServiceRequest, declared: Declared | None) -> Iterator[str]:
    yield from field_faults(request, FIELDS)
    for resource in request.resource_logs:
        yield from attribute_faults("the resource", resource.resource.attributes, facts("crash", declared))
        for scope in resource.scope_logs:
            if (resource.schema_url, scope.schema_url, scope.scope.name) != (SCHEMA_URL, SCHEMA_URL, SCOPE_NAME):
                yield "it has another schema or scope"
            for record in scope.log_records:
                yield from _record_faults(record, crash(declared))


def _record_faults(record: Any, rules: Mapping[str, Rule]) -> Iterator[str]:
    found = {attribute.key: attribute.value.string_value for attribute in record.attributes}
    if set(found) != set(rules) or len(record.attributes) != len(rules):
        yield f"a record has the attributes {', '.join(sorted(found))}"
        return
    frames = found[FRAMES].split("\n") if found[FRAMES] else []
    if len(frames) > MAX_FRAMES or any(coarse(rules[FRAMES], frame) != frame for frame in frames):
        yield "a record has a frame that is not the package's"
    if coarse(rules["exception.type"], found["exception.type"]) != found["exception.type"]:
        yield "a record has a kind of error that is not on the list"
    if record.event_name != EVENT_NAME or record.severity_number != SeverityNumber.SEVERITY_NUMBER_ERROR:
        yield "a record is of another kind"
