"""The one parser of addresses: a closed grammar, in which every other parser reads the same host.

An address that two parsers could read differently is refused. So are characters that a shell, a terminal or a log could
take for their own. Secrets belong into headers: there is no place for them but the path, which is not shown.
"""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple

from profiler.errors import SettingsError

NUMERIC = re.compile(r"[0-9.]+|0[xX][0-9A-Fa-f.xX]*")  # a host that only some programs read as a number
SEGMENT = r"(?!\.{1,2}(?:/|$))[A-Za-z0-9._~+,=:-]*"
ADDRESS = re.compile(
    r"(?P<scheme>https?)://(?P<host>[A-Za-z0-9_][A-Za-z0-9_.-]*|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[1-9][0-9]{0,4}))?"
    rf"(?P<path>(?:/{SEGMENT})*)"
)
SHOWN = re.compile(r"v\d|metrics|logs|traces|otlp|api|mp|collect|debug|envelope|opentelemetry|ingest|\d{1,10}")  # of a path
HIDDEN = "..."
SECRETS = {"ga_endpoint": "EPOCHMETER_GA_API_SECRET", "otlp_endpoint": "EPOCHMETER_OTLP_HEADERS"}


class Parts(NamedTuple):
    """The parts of an address."""

    scheme: str
    host: str
    port: int | None
    path: str

    @property
    def netloc(self) -> str:
        """Host and port, as in the address."""
        return self.host if self.port is None else f"{self.host}:{self.port}"

    @property
    def is_here(self) -> bool:
        """True if it leads to this machine."""
        import ipaddress

        try:
            found = ipaddress.ip_address(self.host.strip("[]"))
        except ValueError:
            return self.host.lower().removesuffix(".") == "localhost"
        mapped = getattr(found, "ipv4_mapped", None)
        return found.is_loopback or (mapped is not None and mapped.is_loopback)


def parts_of(address: str) -> Parts | None:
    """Return the parts of an address, or None if it is none in our grammar."""
    found = ADDRESS.fullmatch(address)
    if found is None:
        return None
    port = None if found["port"] is None else int(found["port"])
    if (NUMERIC.fullmatch(found["host"]) or found["host"].startswith("[")) and not _is_ip(found["host"]):
        return None
    return None if port is not None and port > 65_535 else Parts(found["scheme"], found["host"], port, found["path"])


def _is_ip(host: str) -> bool:
    import ipaddress

    try:
        return bool(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        return False


def check_address(name: str, value: str) -> Parts:
    """Return the parts of an address that can be posted to.

    Args:
        name: the setting or variable that holds it.
        value: the address.

    Raises:
        SettingsError: it cannot; the text does not repeat the address, as it may hold a password.
    """
    if not value.startswith(("http://", "https://")):
        raise SettingsError(f"{name} takes an address that starts with http:// or https://, not {_shown_here(name, value)}.")
    parts = parts_of(value)
    if parts is not None:
        if name == "ga_endpoint" and parts.scheme == "http" and not parts.is_here:
            raise SettingsError(f"{name} takes an address that starts with https://, as the secret is part of the request.")
        return parts
    secret = SECRETS.get(name, "OTEL_EXPORTER_OTLP_HEADERS")
    if "@" in value:
        raise SettingsError(f"{name} takes an address without a user name and password: give them as a header in {secret}.")
    if "?" in value or "#" in value:
        raise SettingsError(f"{name} takes an address without ? and #: a key belongs into {secret}.")
    raise SettingsError(
        f"{name} takes an address with a host, and a port from 1 to 65535 if any, such as https://collector.example:4318/path, "
        "of letters, digits and . _ ~ + , = : - alone."
    )


def _shown_here(name: str, value: str) -> str:
    is_plain = name.islower() and re.fullmatch(r"[A-Za-z0-9.:/_-]+", value) is not None
    return repr(value) if is_plain else "this one"


def shown(address: str) -> str:
    """Return an address as it may be shown and kept: parts of its path that may be a token are left out."""
    parts = parts_of(address)
    if parts is None:
        return "an address that cannot be shown"
    segments = [segment if SHOWN.fullmatch(segment) or not segment else HIDDEN for segment in parts.path.split("/")]
    return f"{parts.scheme}://{parts.netloc}{'/'.join(segments)}"


def known_by(address: str) -> str:
    """Return a text by which an address is recognised: as it is shown, with a mark if a part of it is not shown."""
    text = shown(address)
    return text if text == address else f"{text}#{hashlib.sha256(address.encode()).hexdigest()[:12]}"
