"""OTLP over HTTP, by OpenTelemetry's own exporter, kept from what it would do beside sending.

What is kept from it, each measured: it draws from Python's global random numbers at every export; it logs to the
host's handlers; it adds the host's ``OTEL_EXPORTER_OTLP_HEADERS`` to whatever endpoint it is given, and counts a
redirect as delivered; requests adds credentials from ``~/.netrc``.
"""

from __future__ import annotations

import logging
from typing import Any

import requests
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.metrics import NoOpMeterProvider

from exporters.config import Config, ExporterError

OWN_HEADERS = ("content-type", "content-encoding", "user-agent")
PATH = "/v1/metrics"


class Session(requests.Session):
    """Sends no credentials but those meant for this destination, and follows no redirect.

    Args:
        own_headers_only: the endpoint is from our settings, so headers from the environment are for somebody else.
    """

    def __init__(self, own_headers_only: bool) -> None:
        super().__init__()
        self._own_headers_only = own_headers_only
        self.auth = _no_auth  # with one set, requests does not look into ~/.netrc

    def request(self, method: str | bytes, url: str | bytes, *args: Any, **kwargs: Any) -> requests.Response:
        if self._own_headers_only:
            headers = kwargs.get("headers") or {}
            kwargs["headers"] = {name: value for name, value in headers.items() if name.lower() in OWN_HEADERS}
        kwargs["allow_redirects"] = False
        response = super().request(method, url, *args, **kwargs)
        if 300 <= response.status_code < 400:
            raise requests.exceptions.InvalidURL("the collector answered with a redirect, which is not followed")
        return response


def _no_auth(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def build(config: Config) -> OTLPMetricExporter:
    """The exporter for a collector.

    Raises:
        ExporterError: the protocol is not one of this version's.
    """
    if config.protocol != "http/protobuf":
        raise ExporterError(f"the OTLP protocol {config.protocol!r} is not in this version; there is: http/protobuf")
    exporter = OTLPMetricExporter(
        endpoint=None if config.endpoint is None else config.endpoint.rstrip("/") + PATH,
        timeout=config.timeout,
        compression=Compression.Gzip,
        session=Session(own_headers_only=config.endpoint is not None),
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
