"""Try whether anybody listens at a collector's address, when the user has just named it. Not a byte of data is sent."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

from profiler.errors import SettingsError
from profiler.sending.destination import destination

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.config.resolve import Resolved

PATIENCE_S = 1.0
PORTS = {"http": 80, "https": 443}


def why_unreachable(resolved: Resolved) -> str:
    """Return why no connection to the chosen collector can be made now; "" if one can, or if nothing may be sent.

    An address behind a proxy is not tried: only the proxy can reach it.
    """
    if not resolved.may_send or resolved.settings.exporter != "otlp":
        return ""
    try:
        chosen = destination(resolved)
        parts = urlsplit(str(chosen["address"]))
        port = parts.port or PORTS.get(parts.scheme, 0)
    except (SettingsError, ValueError):  # resolving reports it
        return ""
    if chosen["proxies"] or not parts.hostname or not port:
        return ""
    try:
        socket.create_connection((parts.hostname, port), timeout=PATIENCE_S).close()
    except TimeoutError:
        return f"no answer within {PATIENCE_S:g} s"
    except (OSError, UnicodeError) as error:
        return getattr(error, "strerror", None) or str(error)
    return ""
