"""OTLP over gRPC: the same bytes in one call. Needs ``epochmeter[grpc]``.

No channel is made before the first attempt, so none exists before a fork, and a forked process makes its own.

gRPC's core writes failed handshakes to stderr, past Python, and reads the variable that silences it only at its start. If
the program has not loaded gRPC, it is started silent here. If it has, that is the program's choice.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import RetryInfo
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from requests.utils import DEFAULT_CA_BUNDLE_PATH

from exporters.allowlist import HEADERS
from exporters.config import Answer, Config
from exporters.payload import with_rejected_points
from exporters.transport import MAX_WAIT_S


def _load_silently() -> Any:
    """Return the library. It is silenced while it is loaded, and the environment is left unchanged."""
    quiet = "grpc" not in sys.modules and "GRPC_VERBOSITY" not in os.environ
    if quiet:
        os.environ["GRPC_VERBOSITY"] = "NONE"
    try:
        return importlib.import_module("grpc")
    finally:
        if quiet:
            del os.environ["GRPC_VERBOSITY"]


grpc = _load_silently()
METHODS = {  # by signal; their answers have the same form
    "otlp": "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
    "otlp-logs": "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
}
LATER = {  # the protocol's list (opentelemetry.io/docs/specs/otlp, "OTLP/gRPC response"), and the codes of a broken server
    *(grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.ABORTED, grpc.StatusCode.OUT_OF_RANGE),
    *(grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED),  # for a mended token
    *(grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DATA_LOSS, grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL),
}
OPTIONS = (
    ("grpc.primary_user_agent", HEADERS["user-agent"]),
    ("grpc.enable_retries", 0),  # one attempt is one attempt
    ("grpc.max_receive_message_length", 65_536),  # an answer is short
    ("grpc.use_local_subchannel_pool", 1),  # shared with nobody in the program
)


class OtlpGrpc:
    """Calls a collector."""

    def __init__(self, config: Config) -> None:
        self.where = config.where
        self._config = config
        self._channel: Any = None

    def send(self, body: bytes) -> Answer:
        """Make one attempt."""
        try:
            call = self._open().unary_unary(METHODS[self._config.target], _as_it_is, ExportMetricsServiceResponse.FromString)
            response = call(body, timeout=self._config.timeout, metadata=tuple(self._config.headers.items()))
        except grpc.RpcError as error:
            self.close()  # the next attempt connects anew
            return _refusal(error)
        except OSError as error:
            return Answer("later", f"not sent: {error.strerror}: a file of a certificate", arrived=False)
        return with_rejected_points(Answer("taken", "gRPC OK"), response.partial_success)

    def _open(self) -> Any:
        if self._channel is None:
            parts = urlsplit(self._config.address)
            gzip = grpc.Compression.Gzip if self._config.compression == "gzip" else grpc.Compression.NoCompression
            options = (*OPTIONS, ("grpc.enable_http_proxy", int(bool(self._config.proxies))))
            if parts.scheme == "https":
                self._channel = grpc.secure_channel(parts.netloc, self._credentials(), options, gzip)
            else:
                self._channel = grpc.insecure_channel(parts.netloc, options, gzip)
        return self._channel

    def _credentials(self) -> Any:
        config = self._config
        roots, key, certificate = (
            None if name is None else Path(name).read_bytes()
            for name in (config.certificate or DEFAULT_CA_BUNDLE_PATH, config.client_key, config.client_certificate)
        )
        return grpc.ssl_channel_credentials(roots, key, certificate)

    def close(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()


def _refusal(error: Any) -> Answer:
    code, wait = error.code(), None
    for name, value in error.trailing_metadata() or ():
        if name == "google.rpc.retryinfo-bin":
            with contextlib.suppress(DecodeError):
                delay = RetryInfo.FromString(value).retry_delay
                wait = min(max(delay.seconds + delay.nanos / 1e9, 0.0), MAX_WAIT_S)
    details = (error.details() or "")[:200]
    later = code in LATER or (code is grpc.StatusCode.RESOURCE_EXHAUSTED and wait is not None)
    return Answer("later" if later else "refused", f"gRPC {code.name}: {details}", wait_s=wait)


def _as_it_is(body: bytes) -> bytes:
    return body


def build(config: Config) -> OtlpGrpc:
    """Return the transport for a collector."""
    return OtlpGrpc(config)
