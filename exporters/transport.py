"""One HTTP request, with the headers for this destination and no other.

Excluded here, each measured: requests adds credentials from ``~/.netrc``, sends the installed decompressors, follows
redirects with the body, and takes on the headers and spans of a host that traces its requests. urllib3 logs to the host's
handlers. An answer can be as long as its sender likes.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import requests
from opentelemetry import context
from requests.adapters import HTTPAdapter
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError
from urllib3.util import parse_url

from exporters.config import Answer, Config

TRANSPORT_HEADERS = ("host", "content-length", "connection", "proxy-authorization")
ANSWER_BYTES = 4_096  # of an answer, no more is read
CREDENTIALS = (401, 403, 407)  # all entries wait for a mended token; they would be refused one by one
LATER = (408, 425, 429)  # of the answers of the 4xx kind, those that ask for patience
GRACE_S = 1.0  # by which an attempt may overrun its time before its connection is cut
MAX_WAIT_S = 3600.0  # a destination may ask for more; it is asked again after this
_sending = threading.local()


class Http:
    """Posts to one address.

    Args:
        config: the address, its headers, certificates and timeout.
        fixed: the headers of every request.
    """

    def __init__(self, config: Config, fixed: Mapping[str, str]) -> None:
        self.where = config.where
        self._config = config
        self._headers = {**config.headers, **fixed}
        _check_reading(config.address)
        self._session = requests.Session()
        self._session.trust_env = False  # no proxies, certificates or passwords but those of the configuration
        self._session.proxies = dict(config.proxies)
        self._session.auth = _no_auth  # with one set, requests does not look into ~/.netrc
        self._session.headers.clear()
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, _Adapter({*self._headers, *TRANSPORT_HEADERS}))
        for name in ("urllib3.connectionpool", "urllib3.util.retry"):
            logging.getLogger(name).addFilter(_is_not_ours)

    def post(self, body: bytes, query: Mapping[str, str] | None = None) -> tuple[Answer, bytes, str]:
        """Make one attempt, in a context of its own, without an open span.

        Otherwise a program's Sentry would have our request in its transaction, and among its breadcrumbs.

        Returns:
            the answer, the first bytes of its body, and its content type.
        """
        return contextvars.Context().run(self._unseen, body, query)

    def _unseen(self, body: bytes, query: Mapping[str, str] | None) -> tuple[Answer, bytes, str]:
        untraced = context.set_value(context._SUPPRESS_INSTRUMENTATION_KEY, True)  # as OpenTelemetry's own readers do
        token = context.attach(untraced)
        _sending.now = True
        try:
            with _at_most(self._config.timeout + GRACE_S):
                return self._post(body, query)
        except requests.RequestException as error:
            return Answer("later", f"no answer: {_in_words(error)}", arrived=not _never_left(error)), b"", ""
        except (OSError, ValueError) as error:  # a certificate's file that is not there, an address that is none
            return Answer("later", f"not sent: {error}"[:300], arrived=False), b"", ""
        finally:
            _sending.now = False
            context.detach(token)

    def _post(self, body: bytes, query: Mapping[str, str] | None) -> tuple[Answer, bytes, str]:
        config = self._config
        own: Any = (config.client_certificate, config.client_key) if config.client_key else config.client_certificate
        began = time.monotonic()
        with self._session.post(
            config.address,
            data=body,
            params=query,
            headers=self._headers,
            timeout=config.timeout,
            allow_redirects=False,
            stream=True,
            verify=config.certificate or True,
            cert=own,
        ) as response:
            found, is_whole = b"", False
            try:
                for byte in response.iter_content(1):  # in larger pieces, a server that drips would be waited for
                    found += byte
                    if len(found) >= ANSWER_BYTES or time.monotonic() - began > config.timeout:
                        break
                is_whole = time.monotonic() - began <= config.timeout
            except requests.RequestException:
                pass  # the status has been read; what was cut may have said that a part was not taken
            return _answer(response, is_whole), found, response.headers.get("content-type", "")

    def close(self) -> None:
        """Close the connections."""
        self._session.close()


def _answer(response: requests.Response, is_whole: bool) -> Answer:
    status = response.status_code
    text = f"HTTP {status}"
    if 200 <= status < 300:
        return Answer("taken", text) if is_whole else Answer("later", f"{text}, whose rest did not come")
    if status in CREDENTIALS:
        return Answer("later", f"{text}: the headers or certificates that identify you are not accepted")
    if 300 <= status < 400:
        return Answer("later", f"{text}: a redirect, which is not followed")
    verdict: Any = "refused" if 400 <= status < 500 and status not in LATER else "later"
    return Answer(verdict, text, wait_s=retry_after(response.headers.get("retry-after")))


def retry_after(value: str | None) -> float | None:
    """Return seconds from a ``Retry-After`` header: a number or a date (RFC 9110, 10.2.3); None if it is neither."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return min(max(seconds, 0.0), MAX_WAIT_S) if seconds == seconds else None


def _never_left(error: requests.RequestException) -> bool:
    """Return True if no byte of the body can have arrived."""
    if isinstance(error, (requests.ConnectTimeout, requests.exceptions.SSLError, requests.exceptions.ProxyError)):
        return True
    cause = getattr(error.args[0] if error.args else None, "reason", None)
    return isinstance(cause, (NewConnectionError, ConnectTimeoutError)) or not isinstance(
        error, (requests.ConnectionError, requests.Timeout)
    )


def _in_words(error: requests.RequestException) -> str:
    """Return the kind of an error and its innermost reason, without the address."""
    if isinstance(error, requests.Timeout):
        return type(error).__name__
    reason, found = "", _inner(error)
    while found is not None:
        reason = getattr(found, "verify_message", "") or getattr(found, "strerror", "") or reason
        found = _inner(found)
    return f"{type(error).__name__}{f' ({reason})' if reason else ''}"


def _inner(error: BaseException) -> BaseException | None:
    """Return the cause of an error: requests and urllib3 keep it in several places."""
    kept = [getattr(error, "reason", None), *error.args, error.__cause__]
    return next((one for one in kept if isinstance(one, BaseException)), None)


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Cut the connection after that time: a server that sends a byte now and then never lets a socket's timeout pass."""
    used: list[Any] = []

    def cut() -> None:
        for connection in used:
            with contextlib.suppress(OSError, AttributeError):
                connection.sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, cut)
    timer.name, timer.daemon = "epochmeter-timer", True
    _sending.used = used
    with contextlib.suppress(RuntimeError):  # an interpreter that is ending starts no thread; it does not wait for us
        timer.start()
    try:
        yield
    finally:
        _sending.used = None
        timer.cancel()
        with contextlib.suppress(RuntimeError):  # as above
            timer.join(1.0)  # at once, and no thread is left behind


def _check_reading(address: str) -> None:
    """Check that the parser which connects reads the host and port that were checked before.

    Raises:
        ValueError: it reads others.
    """
    read, meant = parse_url(address), urlsplit(address)
    host = (read.host or "").strip("[]").lower()
    if (read.scheme, host, read.port, read.auth) != (meant.scheme, meant.hostname, meant.port, None):
        raise ValueError("its address can be read in two ways")


class _Adapter(HTTPAdapter):
    """Connections that send only these headers, even if others are added on the way."""

    def __init__(self, names: set[str]) -> None:
        self._pools = {
            scheme: type(pool.__name__, (pool,), {"ConnectionCls": _only(names, pool.ConnectionCls)})
            for scheme, pool in (("http", HTTPConnectionPool), ("https", HTTPSConnectionPool))
        }
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **{**kwargs, "ssl_context": _tls()})
        self.poolmanager.pool_classes_by_scheme = self._pools

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **{**kwargs, "ssl_context": _tls()})
        manager.pool_classes_by_scheme = self._pools
        return manager


def _tls() -> ssl.SSLContext:
    """Return a context of our own: the usual one writes each connection's keys to the file that SSLKEYLOGFILE names."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _only(names: Iterable[str], connection: Any) -> Any:
    """Return a connection class that drops every other header. Tracers add theirs here at the latest."""

    def putheader(self: Any, header: str | bytes, *values: Any) -> None:
        name = header.decode("latin-1") if isinstance(header, bytes) else header
        if getattr(_sending, "used", None) is not None and self not in _sending.used:
            _sending.used.append(self)
        if name.lower() in names:
            connection.putheader(self, header, *values)

    return type(connection.__name__, (connection,), {"putheader": putheader})


def _no_auth(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _is_not_ours(record: logging.LogRecord) -> bool:
    """Return True if a log record belongs to the program's own requests."""
    return not getattr(_sending, "now", False)
