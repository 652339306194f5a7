"""The rules of Google Analytics' Measurement Protocol, written down apart from our own code, and a server that keeps them.

Sources: developers.google.com/analytics/devguides/collection/protocol/ga4/reference, .../sending-events ("Limitations"),
.../validating-events, and support.google.com/analytics/answer/13316687 (reserved names).
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

RESERVED_EVENTS = {
    *("ad_activeview", "ad_click", "ad_exposure", "ad_query", "ad_reward", "adunit_exposure", "app_clear_data"),
    *("app_exception", "app_install", "app_remove", "app_store_refund", "app_update", "app_upgrade"),
    *("dynamic_link_app_open", "dynamic_link_app_update", "dynamic_link_first_open", "error", "firebase_campaign"),
    *("firebase_in_app_message_action", "firebase_in_app_message_dismiss", "firebase_in_app_message_impression"),
    *("first_open", "first_visit", "notification_dismiss", "notification_foreground", "notification_open"),
    *("notification_receive", "notification_send", "os_update", "session_start", "user_engagement", "ad_impression"),
    *("in_app_purchase", "screen_view", "click", "file_download", "form_start", "form_submit", "page_view"),
    *("scroll", "video_start", "video_progress", "video_complete", "view_complete", "view_search_results"),
}
RESERVED_PREFIXES = ("_", "firebase_", "ga_", "google_", "gtag.")
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
TOP = {
    *("client_id", "user_id", "timestamp_micros", "user_properties", "user_data", "consent", "non_personalized_ads"),
    *("user_location", "ip_override", "device", "user_agent", "validation_behavior", "events"),
}


def messages(body: bytes, now: float | None = None) -> list[dict[str, str]]:
    """Return the complaints of Google's validation server, with ``ENFORCE_RECOMMENDATIONS``; none if the body is valid."""
    return [{"fieldPath": path, "validationCode": code} for path, code in _faults(body, time.time() if now is None else now)]


def _faults(body: bytes, now: float) -> Iterator[tuple[str, str]]:
    if len(body) > 130_000:
        yield "", "VALUE_OUT_OF_BOUNDS"
    try:
        request = json.loads(body)
    except ValueError:
        yield "", "VALUE_INVALID"
        return
    for name in set(request) - TOP:
        yield name, "NAME_INVALID"
    if not isinstance(request.get("client_id"), str) or not re.fullmatch(r"[1-9]\d*\.[1-9]\d*", request["client_id"]):
        yield "client_id", "VALUE_INVALID"
    micros = request.get("timestamp_micros")
    if micros is not None and not (isinstance(micros, int) and -72 * 3600 <= micros / 1e6 - now <= 60):
        yield "timestamp_micros", "VALUE_OUT_OF_BOUNDS"
    for name, value in request.get("consent", {}).items():
        if name not in ("ad_user_data", "ad_personalization") or value not in ("GRANTED", "DENIED"):
            yield f"consent.{name}", "VALUE_INVALID"
    yield from _list_faults(request.get("events"))


def _list_faults(events: Any) -> Iterator[tuple[str, str]]:
    if not isinstance(events, list) or not events:
        yield "events", "VALUE_REQUIRED"
        return
    if len(events) > 25:
        yield "events", "EXCEEDED_MAX_ENTITIES"
    for event in events:
        yield from _event_faults(event)


def _event_faults(event: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield from _name_faults("events.name", event.get("name"))
    if event.get("name") in RESERVED_EVENTS:
        yield "events.name", "NAME_RESERVED"
    params = event.get("params", {})
    if len(params) > 25:
        yield "events.params", "EXCEEDED_MAX_ENTITIES"
    for name, value in params.items():
        yield from _name_faults(f"events.params.{name}", name)
        if isinstance(value, str):
            if len(value) > 100:
                yield f"events.params.{name}", "VALUE_OUT_OF_BOUNDS"
        elif isinstance(value, bool) or not isinstance(value, (int, float)):
            yield f"events.params.{name}", "VALUE_INVALID"


def _name_faults(path: str, name: Any) -> Iterator[tuple[str, str]]:
    if not isinstance(name, str) or not NAME.fullmatch(name) or name.startswith(RESERVED_PREFIXES):
        yield path, "NAME_INVALID"
    elif len(name) > 40:
        yield path, "VALUE_OUT_OF_BOUNDS"


@dataclass
class Google:
    """A stand-in for Google's servers, on loopback: collects, and validates on its other path."""

    url: str
    status: int = 204
    hangs_up: bool = False
    collected: list[dict[str, Any]] = field(default_factory=list)
    queries: list[dict[str, list[str]]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    faults: list[dict[str, str]] = field(default_factory=list)
    validated: list[dict[str, Any]] = field(default_factory=list)

    def cells(self) -> list[tuple[str, str, int]]:
        """Everything that was counted."""
        events = [event["params"] for body in self.collected for event in body["events"]]
        return [(params["metric"], params["cell"], params["n"]) for params in events]


@contextmanager
def google() -> Iterator[Google]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            parts = urlsplit(self.path)
            found.queries.append(parse_qs(parts.query))
            found.headers.append({name.lower(): value for name, value in self.headers.items()})
            if parts.path == "/debug/mp/collect":
                found.validated.append(json.loads(body))
                self._answer(200, json.dumps({"validationMessages": messages(body)}).encode())
                return
            found.faults += messages(body)
            found.collected.append(json.loads(body))
            if found.hangs_up:
                self.close_connection = True
                return
            self._answer(found.status if parts.path == "/mp/collect" else 404, b"")

        def _answer(self, status: int, content: bytes) -> None:
            self.send_response(status)
            if status != 204:
                self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Google(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
