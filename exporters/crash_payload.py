"""Crash reports: rebuilt from the list, and the check of an envelope's bytes.

The rule it keeps: a crash is copied part by part from its record, each as the list allows. The text of an error is on no
list. Sentry's own library makes the envelope (`embedding.crash`); anything it adds is a fault here.

Format: https://develop.sentry.dev/sdk/data-model/envelopes/
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime, timezone
from typing import Any

from exporters.allowlist import MAX_FRAMES, crash, facts, sendable_facts
from exporters.bounds import OTHER_BYTES, time_fault
from exporters.rules import OTHER, Declared, as_text, coarse

ID = re.compile("[0-9a-f]{32}")
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
DSN = re.compile(r"https?://[0-9A-Za-z_-]{1,64}@[0-9A-Za-z.:\[\]-]{1,255}(/[\w./-]{0,255})?/\d{1,20}", re.ASCII)
HEADER = {"event_id", "dsn"}  # no `sent_at`, which would make the sent bytes differ from the preview
ITEM = {"type", "length", "content_type"}
EVENT = {"event_id", "timestamp", "platform", "level", "release", "tags", "exception"}
FIXED = {"platform": "python", "level": "error"}
MOMENT_FORM = "%Y-%m-%dT%H:%M:%SZ"
FRAMES = "exception.stacktrace"


def rebuilt(record: Mapping[str, Any], declared: Declared) -> dict[str, Any]:
    """Return the sendable parts of a crash, copied from its record.

    Args:
        record: ``id``, ``time_unix_ns``, ``types`` (the error's class and its bases), ``frames`` (outermost first) and
            ``facts``.
        declared: the declarations of the package.

    Returns:
        ``id``, ``time_unix_ns``, ``type``, ``frames`` and ``facts``.
    """
    rules = crash(declared)
    types = (coarse(rules["exception.type"], name) for name in record["types"])
    return {
        "id": str(record["id"]) if ID.fullmatch(str(record["id"])) else "0" * 32,
        "time_unix_ns": int(record["time_unix_ns"]) // 1_000_000_000 * 1_000_000_000,
        "type": next((found for found in types if found is not None), "Exception"),
        "frames": list(collapsed(coarse(rules[FRAMES], frame) for frame in record["frames"]))[-MAX_FRAMES:],
        "facts": sendable_facts(record["facts"], "crash", declared),
    }


def collapsed(frames: Iterable[str]) -> Iterator[str]:
    """Return the frames with each run of other code's frames as one."""
    before = ""
    for frame in frames:
        if frame != OTHER or before != OTHER:
            yield frame
        before = frame


def release(report: Mapping[str, Any]) -> str:
    """Return a version of the package in Sentry's form."""
    return f"{report['facts'].get('epochmeter.app.name', OTHER)}@{report['facts'].get('epochmeter.app.version', OTHER)}"


def event(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return a rebuilt record as an event of Sentry's. A frame's place is in its function's name."""
    frames = [{"function": frame, "in_app": frame != OTHER} for frame in report["frames"]]
    return {
        "event_id": report["id"],
        "timestamp": moment(report["time_unix_ns"]),
        **FIXED,
        "release": release(report),
        "tags": {name: as_text(value) for name, value in report["facts"].items()},
        "exception": {"values": [{"type": report["type"], "stacktrace": {"frames": frames}}]},
    }


def envelope(report: Mapping[str, Any], dsn: str) -> bytes:
    """Return the envelope that Sentry's library would make, for the preview, which does not load it. A test compares them."""
    content = _json(event(report))
    item = {"type": "event", "content_type": "application/json", "length": len(content)}
    return b"\n".join((_json({"event_id": report["id"], "dsn": dsn}), _json(item), content)) + b"\n"


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode("utf-8")


def moment(time_unix_ns: int) -> str:
    """Return the time of a crash, rounded down."""
    return datetime.fromtimestamp(time_unix_ns // 1_000_000_000, timezone.utc).strftime(MOMENT_FORM)


# ---- the last check ------------------------------------------------------------------------------------------------


def readable(body: bytes) -> dict[str, Any]:
    """Return the envelope's header and event as data."""
    header, item, content = _parts(body)
    return {**header, "item": item, "event": content}


def _parts(body: bytes) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return an envelope's header, and its item's header and content.

    Raises:
        ValueError, KeyError, TypeError: it is no envelope with one item.
    """
    header, _, rest = body.partition(b"\n")
    item, _, content = rest.partition(b"\n")
    item_header = json.loads(item)
    length = item_header["length"]
    if content[length:] not in (b"", b"\n"):
        raise ValueError("there is more in it than one item")
    return json.loads(header), item_header, json.loads(content[:length])


def first_fault(
    body: bytes, target: str = "sentry", yield_gil: Callable[[], None] = lambda: None, declared: Declared | None = None
) -> str | None:
    """Return the first part of these bytes that is not on the list, or None."""
    try:
        header, item, content = _parts(body)
        fault = next(_faults(header, item, content, declared), None)
        if fault is not None:
            return fault
        report = _decoded(content, declared)
        return time_fault(report["time_unix_ns"], report["time_unix_ns"]) or (
            None if envelope(report, header["dsn"]) == body else OTHER_BYTES
        )
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return "it is not an envelope with one event"


def _decoded(content: Mapping[str, Any], declared: Declared | None) -> dict[str, Any]:
    """Return the report that an event holds, with the sendable facts alone."""
    (only,) = content["exception"]["values"]
    when = datetime.strptime(content["timestamp"], MOMENT_FORM).replace(tzinfo=timezone.utc)
    known = {name: True if value == "true" else value for name, value in content["tags"].items()}
    return {
        "id": content["event_id"],
        "time_unix_ns": int(when.timestamp()) * 1_000_000_000,
        "type": only["type"],
        "frames": [frame["function"] for frame in only["stacktrace"]["frames"]],
        "facts": sendable_facts(known, "crash", declared),
    }


def _faults(
    header: Mapping[str, Any], item: Mapping[str, Any], content: Mapping[str, Any], declared: Declared | None
) -> Iterator[str]:
    yield from _other_keys("the envelope", header, HEADER)
    yield from _other_keys("its item", item, ITEM)
    yield from _other_keys("its event", content, EVENT)
    for name, form in (("event_id", ID), ("dsn", DSN)):
        if not form.fullmatch(header[name]):
            yield f"its {name} has another form"
    if (item["type"], item["content_type"]) != ("event", "application/json"):
        yield "its item is no event"
    if content["event_id"] != header["event_id"] or not MOMENT.fullmatch(content["timestamp"]):
        yield "its event has another id, or a time of another form"
    if any(content[name] != value for name, value in FIXED.items()):
        yield "its event has another platform or level"
    yield from _tag_faults(content, declared)
    yield from _exception_faults(content["exception"], declared)


def _other_keys(where: str, found: Mapping[str, Any], known: set[str]) -> Iterator[str]:
    if set(found) != known:
        yield f"{where} has the fields {', '.join(sorted(found))}"


def _tag_faults(content: Mapping[str, Any], declared: Declared | None) -> Iterator[str]:
    rules = facts("crash", declared)
    for name, value in content["tags"].items():
        parsed = True if value == "true" else value
        if name not in rules or coarse(rules[name], parsed) != parsed:
            yield f"its event has a tag {name!r} that is not on the list, or a value that is not"
    if content["release"] != release({"facts": content["tags"]}):
        yield "its release is not the package's"


def _exception_faults(exception: Mapping[str, Any], declared: Declared | None) -> Iterator[str]:
    rules = crash(declared)
    (only,) = exception["values"]
    yield from _other_keys("its exception", exception, {"values"})
    yield from _other_keys("its exception", only, {"type", "stacktrace"})
    yield from _other_keys("its stack trace", only["stacktrace"], {"frames"})
    if coarse(rules["exception.type"], only["type"]) != only["type"]:
        yield "it has a kind of error that is not on the list"
    frames = only["stacktrace"]["frames"]
    if len(frames) > MAX_FRAMES:
        yield f"it has {len(frames)} frames"
    for frame in frames:
        yield from _other_keys("a frame", frame, {"function", "in_app"})
        if coarse(rules[FRAMES], frame["function"]) != frame["function"] or type(frame["in_app"]) is not bool:
            yield "it has a frame that is not the package's"
