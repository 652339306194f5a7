"""OTLP over HTTP, by OpenTelemetry's own exporter, kept from what it would do beside sending.

What is kept from it, each measured: it draws from Python's global random numbers at every export; it logs to the
host's handlers, and so does urllib3; it adds the host's ``OTEL_EXPORTER_OTLP_HEADERS`` to whatever endpoint it is given,
and counts a redirect as delivered; requests adds credentials from ``~/.netrc``, tells which decompressors are installed,
and takes on the headers and spans of a host that traces its requests; gzip writes the time into its header.
"""

from __future__ import annotations

import gzip
import logging
import threading
from collections.abc import Iterable
from typing import Any

import requests
from opentelemetry import context
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics.export import MetricExportResult, MetricsData
from requests.adapters import HTTPAdapter
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.util import parse_url

from exporters.allowlist import HEADERS
from exporters.config import Config, Release

TRANSPORT_HEADERS = ("host", "content-length", "connection", "proxy-authorization")
PATH = "/v1/metrics"
_sending = threading.local()


class Session(requests.Session):
    """Sends no byte that was not released, no header but those meant for this destination, and follows no redirect.

    Args:
        release: asked before each attempt, with the very bytes in hand.
        own_headers_only: the endpoint is from our settings, so headers from the environment are for somebody else.
    """

    def __init__(self, release: Release, own_headers_only: bool) -> None:
        super().__init__()
        self._release = release
        self._own_headers_only = own_headers_only
        self._names = {*HEADERS, *TRANSPORT_HEADERS}
        self.auth = _no_auth  # with one set, requests does not look into ~/.netrc
        self.headers.clear()
        for scheme in ("http://", "https://"):
            self.mount(scheme, _Adapter(self._names))

    def request(self, method: str | bytes, url: str | bytes, *args: Any, **kwargs: Any) -> requests.Response:
        given = {} if self._own_headers_only else {name.lower(): value for name, value in kwargs["headers"].items()}
        self._names.update(given)
        kwargs["headers"] = {**given, **HEADERS}
        kwargs["allow_redirects"] = False
        answered = self._release(_without_credentials(str(url)), kwargs["data"])
        kwargs["data"] = gzip.compress(kwargs["data"], mtime=0)
        try:
            response = super().request(method, url, *args, **kwargs)
        except requests.RequestException as error:
            answered(f"no answer: {type(error).__name__}")
            raise
        answered(f"HTTP {response.status_code}")
        if 300 <= response.status_code < 400:
            raise requests.exceptions.InvalidURL("the collector answered with a redirect, which is not followed")
        return response


class _Adapter(HTTPAdapter):
    """Connections that put only these headers on the wire, whoever adds others on the way there."""

    def __init__(self, names: set[str]) -> None:
        self._pools = {
            scheme: type(pool.__name__, (pool,), {"ConnectionCls": _only(names, pool.ConnectionCls)})
            for scheme, pool in (("http", HTTPConnectionPool), ("https", HTTPSConnectionPool))
        }
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = self._pools

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        manager.pool_classes_by_scheme = self._pools
        return manager


def _only(names: Iterable[str], connection: Any) -> Any:
    """A connection class that passes over every header but these. Tracers add theirs here, at the latest."""

    def putheader(self: Any, header: str | bytes, *values: Any) -> None:
        name = header.decode("latin-1") if isinstance(header, bytes) else header
        if name.lower() in names:
            connection.putheader(self, header, *values)

    return type(connection.__name__, (connection,), {"putheader": putheader})


def _no_auth(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _without_credentials(url: str) -> str:
    return str(parse_url(url)._replace(auth=None, query=None, fragment=None).url)


class QuietExporter(OTLPMetricExporter):
    """The exporter, invisible to a host that traces its own requests or listens to every logger."""

    def export(self, metrics_data: MetricsData, timeout_millis: float | None = 10_000, **kwargs: Any) -> MetricExportResult:
        untraced = context.set_value(context._SUPPRESS_INSTRUMENTATION_KEY, True)  # as OpenTelemetry's own readers do
        token = context.attach(untraced)
        _sending.now = True
        try:
            return super().export(metrics_data, timeout_millis, **kwargs)
        finally:
            _sending.now = False
            context.detach(token)


def build(config: Config, release: Release) -> OTLPMetricExporter:
    """The exporter for a collector."""
    exporter = QuietExporter(
        endpoint=None if config.endpoint is None else config.endpoint.rstrip("/") + PATH,
        timeout=config.timeout,
        compression=Compression.NoCompression,  # the bytes are released as they are, and compressed after that
        session=Session(release, own_headers_only=config.endpoint is not None),
        meter_provider=NoOpMeterProvider(),
    )
    _keep_to_itself(exporter)
    return exporter


def _keep_to_itself(exporter: OTLPMetricExporter) -> None:
    """No draw from the program's random numbers, no log lines in the program's output.

    The SDK has no switch for either; a test sees whether these two names still do it.
    """
    client = exporter._client
    quiet = logging.Logger("epochmeter.otlp")  # not in logging's tree: it has no handlers and no parent
    quiet.addHandler(logging.NullHandler())
    client._logger = quiet
    client._compute_backoff = lambda retry: 2.0**retry  # type: ignore[method-assign]
    for name in ("urllib3.connectionpool", "urllib3.util.retry"):
        logging.getLogger(name).addFilter(_is_not_ours)


def _is_not_ours(record: logging.LogRecord) -> bool:
    """Whether a log record is of the program's own requests."""
    return not getattr(_sending, "now", False)
