"""A page that a Prometheus server scrapes: pulled, not sent. Needs ``epochmeter[prometheus]``.

OpenTelemetry's own exporter renders the page, from data that came through the gate. It does not support exponential
histograms, so they become ordinary ones with a bound at each power of two. Buckets nest, so no count is a guess.

The rule it keeps: consent is asked at each scrape, and a copy of each shown page is kept like other sent data.
"""

from __future__ import annotations

import contextlib
import math
import socket
import threading
import time
from collections.abc import Callable, Iterable
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics.export import (
    ExponentialHistogram,
    ExponentialHistogramDataPoint,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    ResourceMetrics,
    ScopeMetrics,
)
from prometheus_client import CollectorRegistry, make_wsgi_app

from exporters.config import Answered, Config, ExporterError, Record
from exporters.measurements import Outgoing
from exporters.sdk_data import metrics_data

LOWEST, HIGHEST = -20, 14  # bounds from 2**-20 s, a microsecond, to 2**14 s, four and a half hours
CONNECTION_S = 5.0  # for a whole request and its answer
MAX_CONNECTIONS = 8
LOOPBACK = ("127.0.0.1", "localhost")
BOUNDS = tuple(2.0**exponent for exponent in range(LOWEST, HIGHEST + 1))
Start = Callable[..., Any]


class Page:
    """The page, and the server that shows it.

    Args:
        config: its address.
        fresh: returns the gated data and its bytes; None without consent.
        every: seconds for which a page is reused.
        consent: asked at each scrape.
        record: keeps a copy of a page when it is shown first.

    Raises:
        ExporterError: the port is in use.
    """

    def __init__(
        self,
        config: Config,
        fresh: Callable[[], tuple[Outgoing, bytes] | None],
        every: float,
        consent: Callable[[], bool],
        record: Record,
    ) -> None:
        self.where = config.address
        self._fresh = fresh
        self._every = every
        self._made = -math.inf
        self._body = b""
        self._consent = consent
        self._record = record
        self._page: Any = None
        self._answered: Answered | None = None
        self._times = 0
        self._lock = threading.Lock()
        host, _, port = config.address.removeprefix("http://").removesuffix("/metrics").partition(":")
        try:
            self._server = make_server(host, int(port), self._serve, _Server, _Quiet)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ExporterError(f"nothing can be scraped on {config.address}: {reason}; set another prometheus_port") from error
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="epochmeter-page", daemon=True)
        self._thread.start()

    def _renew(self) -> bool:
        """Return True if there is a page to show."""
        if time.monotonic() - self._made >= self._every:
            fresh = self._fresh()
            if fresh is not None:
                outgoing, self._body = fresh
                self._page = page_of(outgoing)
                self._answered, self._times, self._made = None, 0, time.monotonic()
        return self._page is not None

    def close(self) -> None:
        """Close the socket and every connection. No client is waited for."""
        self._server.shutdown()
        self._server.server_close()
        self._server.cut(0.0)

    def _serve(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        def begin(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
            return start(status, [*headers, ("Server", "epochmeter")], *more)

        with self._lock:
            lacking = self._lacking(environ.get("PATH_INFO"), environ.get("HTTP_HOST", ""))
            if lacking:
                status, text = lacking
                begin(status, [("Content-Type", "text/plain")])
                return [f"{text}\n".encode()]
            answer = list(self._page(environ, begin))
            self._times += 1
            if self._answered is not None:
                self._answered("scraped" if self._times == 1 else f"scraped {self._times} times")
        return answer

    def _lacking(self, path: str | None, host: str) -> tuple[str, str] | None:
        """Return a status and a text if nothing can be shown, or None."""
        if host.rpartition(":")[0] not in LOOPBACK:  # a web page whose name has been led here
            return "403 Forbidden", "this is for programs on this machine, by its address 127.0.0.1"
        if not self._consent():
            return "503 Service Unavailable", "nothing is shown: sending is switched off"
        if path != "/metrics":
            return "404 Not Found", "the measurements are at /metrics"
        if not self._renew():
            return "503 Service Unavailable", "nothing has been measured yet"
        try:
            self._answered = self._answered or self._record(self.where, self._body)
        except OSError:
            return "503 Service Unavailable", "nothing is shown, because no copy of it can be kept"
        return None


def page_of(outgoing: Outgoing) -> Any:
    """Return a WSGI application that shows this data."""
    registry = CollectorRegistry(auto_describe=False)
    reader = PrometheusMetricReader(scope_info_enabled=False, registry=registry)
    data = _without_exponential(metrics_data(outgoing))
    given: Any = lambda *_, **__: data  # noqa: E731
    reader._set_collect_callback(given)  # as a MeterProvider does; there are no instruments here
    return make_wsgi_app(registry)


class _Server(ThreadingMixIn, WSGIServer):
    """A server that no client can hold up, and that does not look up this machine's name, unlike its base class.

    Each connection has a thread of its own, of which there are few, and is cut after `CONNECTION_S`.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, *arguments: Any, **more: Any) -> None:
        self._connections: dict[Any, float] = {}  # when each was made, by the monotonic clock
        super().__init__(*arguments, **more)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Note a connection, and cut the oldest one if there are too many: idle ones must not keep others out."""
        if len(self._connections) >= MAX_CONNECTIONS:
            oldest = min(list(self._connections.items()), key=lambda pair: pair[1])[0]
            self._connections.pop(oldest, None)
            with contextlib.suppress(OSError):
                oldest.shutdown(socket.SHUT_RDWR)
        self._connections[request] = time.monotonic()
        return True

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        self._connections.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Cut old connections; called ten times a second."""
        self.cut(CONNECTION_S)

    def cut(self, seconds: float) -> None:
        """Cut the connections that have lasted so long. Their threads see it and end."""
        for request, began in list(self._connections.items()):
            if time.monotonic() - began >= seconds:
                with contextlib.suppress(OSError):
                    request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Write nothing to the program's stderr: a client that went away, or was cut, is no fault."""

    def server_bind(self) -> None:
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()


class _Quiet(WSGIRequestHandler):
    """A handler that writes nothing to the program's stderr, and does not look up the client."""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the base class names it so
        pass

    def address_string(self) -> str:
        return str(self.client_address[0])


def _without_exponential(data: MetricsData) -> MetricsData:
    return MetricsData(
        [
            ResourceMetrics(
                entry.resource,
                [
                    ScopeMetrics(scope.scope, [_metric(metric) for metric in scope.metrics], scope.schema_url)
                    for scope in entry.scope_metrics
                ],
                entry.schema_url,
            )
            for entry in data.resource_metrics
        ]
    )


def _metric(metric: Metric) -> Metric:
    if not isinstance(metric.data, ExponentialHistogram):
        return metric
    points = [_point(point) for point in metric.data.data_points]
    return Metric(metric.name, metric.description, metric.unit, Histogram(points, metric.data.aggregation_temporality))


def _point(point: ExponentialHistogramDataPoint) -> HistogramDataPoint:
    """Return the counts by power of two: at scale 0, bucket ``i`` holds values above ``2**i`` s, up to ``2**(i+1)`` s."""
    counts = [0] * (len(BOUNDS) + 1)
    counts[0] = point.zero_count
    for step, count in enumerate(point.positive.bucket_counts):
        index = point.positive.offset + step
        exponent = index >> point.scale if point.scale >= 0 else index << -point.scale
        counts[min(max(exponent + 1 - LOWEST, 0), len(BOUNDS))] += count
    return HistogramDataPoint(
        attributes=dict(point.attributes or {}),
        start_time_unix_nano=point.start_time_unix_nano,
        time_unix_nano=point.time_unix_nano,
        count=point.count,
        sum=point.sum,
        bucket_counts=counts,
        explicit_bounds=list(BOUNDS),
        min=point.min,
        max=point.max,
    )
