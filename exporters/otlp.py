"""OTLP over HTTP: checked bytes, posted unchanged.

OpenTelemetry's own exporter is not used, for three reasons. It takes measurements, not bytes that were checked and kept. It
reports only success or failure of an attempt, not ``Retry-After``, partial success or the reason. And while a collector
is down it blocks for seconds and then loses the data (benchmarks/bench_delivery.py).
"""

from __future__ import annotations

import contextlib
import gzip
from dataclasses import replace

from google.protobuf.json_format import Parse, ParseError
from google.protobuf.message import DecodeError
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse

from exporters.allowlist import HEADERS
from exporters.config import Answer, Config
from exporters.payload import SAID, with_rejected_points
from exporters.transport import Http


class Otlp:
    """Posts to a collector."""

    def __init__(self, config: Config) -> None:
        self._gzip = config.compression == "gzip"
        fixed = {name: value for name, value in HEADERS.items() if self._gzip or name != "content-encoding"}
        self._http = Http(config, fixed)
        self.where = self._http.where

    def send(self, body: bytes) -> Answer:
        """Make one attempt. Partial success, in the protocol's sense, is success with a count of the rest."""
        answer, content, kind = self._http.post(gzip.compress(body, mtime=0) if self._gzip else body)
        if answer.verdict != "taken":
            said = _said(content, kind) if content else ""
            return replace(answer, text=f"{answer.text}: {said}") if said else answer
        if kind.startswith("text/html"):  # of a proxy, or a page to log in: no collector has seen it
            return replace(answer, verdict="later", text=f"{answer.text}, with a web page: that is no collector")
        try:
            if kind.startswith("application/json"):
                response = Parse(content, ExportMetricsServiceResponse(), ignore_unknown_fields=True)
            elif kind.startswith("application/x-protobuf"):
                response = ExportMetricsServiceResponse.FromString(content)
            else:
                return answer
        except (DecodeError, ParseError):
            return replace(answer, text=f"{answer.text}, with an answer that cannot be read") if content else answer
        return with_rejected_points(answer, response.partial_success)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()


def _said(content: bytes, kind: str) -> str:
    """Return a collector's reason for a refusal, shortened and printable: a ``google.rpc.Status``, or text."""
    text = content.decode("utf-8", "replace")
    with contextlib.suppress(DecodeError, ParseError):
        if kind.startswith("application/x-protobuf"):
            text = Status.FromString(content).message
        elif kind.startswith("application/json"):
            text = Parse(content, Status(), ignore_unknown_fields=True).message
    return "" if kind.startswith("text/html") else "".join(filter(str.isprintable, " ".join(text.split())))[:SAID]


def build(config: Config) -> Otlp:
    """Return the transport for a collector."""
    return Otlp(config)
