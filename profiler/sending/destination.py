"""The destination of measurements, from settings and environment: one exporter's address, credentials and options.

The rule it keeps: an address and its credentials come from the same source. With an address from our own settings, only our
own variables give headers, and only our own settings certificates. With OpenTelemetry's variables, only those count.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from profiler.config.address import check_address, parts_of, shown
from profiler.config.environment import proxies_for, variables
from profiler.errors import SettingsError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.config.resolve import Resolved
    from profiler.config.schema import Settings


METRICS_PATH, LOGS_PATH = "/v1/metrics", "/v1/logs"
PORTS = {"http/protobuf": 4318, "grpc": 4317}
STANDARD = "OTEL_EXPORTER_OTLP_"
OPTIONS = ("ENDPOINT", "PROTOCOL", "HEADERS", "CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY", "TIMEOUT", "COMPRESSION")
OWN_HEADERS = "EPOCHMETER_OTLP_HEADERS"
GA_SECRET = "EPOCHMETER_GA_API_SECRET"  # noqa: S105  the name of the variable
GA_ENDPOINT = "https://www.google-analytics.com"
GA_PATH = "/mp/collect"
FRAMING = {  # RFC 9110, 7.6.1 and 8, and RFC 9112, 6
    *("connection", "keep-alive", "proxy-connection", "proxy-authorization", "te", "trailer", "transfer-encoding", "upgrade"),
    *("host", "expect", "content-length", "content-type", "content-encoding", "content-range"),
    *("forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-http-method-override"),
}
SCRAPED_ON = "127.0.0.1"


def destination(resolved: Resolved) -> dict[str, Any]:
    """Return the fields of an ``exporters.Config`` for the chosen exporter.

    Raises:
        SettingsError: a setting or variable cannot be used, or one is missing.
    """
    settings = resolved.settings
    find = {"otlp": _collector, "ga": _analytics, "prometheus": _scraped}.get(settings.exporter)
    if find is None:
        raise SettingsError(f"there is no destination for exporter={settings.exporter}.")
    found = find(resolved)
    parts = parts_of(found["address"])
    if parts is None:
        raise SettingsError("the destination's address cannot be used.")
    told = {"where": shown(found["address"]), "proxies": proxies_for(parts)}
    return {"target": settings.exporter, "usage": settings.usage, **told, **found}


def in_clear(found: Mapping[str, Any]) -> str:
    """Return a warning if headers, which may hold a password, go to another machine unencrypted; else ""."""
    parts = parts_of(found["address"])
    if parts is None or parts.scheme != "http" or parts.is_here or not found.get("headers"):
        return ""
    return f"the headers for {found['where']} go over the network in clear, and may hold a password; use https://"


def _collector(resolved: Resolved) -> dict[str, Any]:
    settings, given = resolved.settings, _standard_variables()
    if settings.otlp_client_key is not None and settings.otlp_client_certificate is None:
        raise SettingsError("otlp_client_key is the key of a certificate: set otlp_client_certificate too.")
    protocol = _protocol(resolved, given)
    common = {"protocol": protocol, "timeout": _timeout(given), "compression": _compression(given)}
    if settings.otlp_endpoint is not None:
        is_hosts = resolved.values["otlp_endpoint"].source == "host"  # the user's headers are for the user's collector
        return {
            **common,
            "address": _with_path(settings.otlp_endpoint, protocol),
            "headers": {} if is_hosts else _headers(OWN_HEADERS, variables((OWN_HEADERS,)).get(OWN_HEADERS, "")),
            "certificate": settings.otlp_certificate,
            "client_certificate": settings.otlp_client_certificate,
            "client_key": settings.otlp_client_key,
        }
    return {
        **common,
        "address": _standard_address(given, protocol),
        "headers": _headers(*given.get("HEADERS", (STANDARD + "HEADERS", ""))),
        **{key.lower(): given[key][1] for key in ("CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY") if key in given},
    }


def _standard_variables() -> dict[str, tuple[str, str]]:
    """Return, for each option, its variable and value. A variable for metrics goes before one for all signals."""
    names = {f"{STANDARD}{signal}{option}": option for option in OPTIONS for signal in ("", "METRICS_")}
    return {names[name]: (name, value.strip()) for name, value in variables(names).items()}


def _standard_address(given: Mapping[str, tuple[str, str]], protocol: str) -> str:
    if "ENDPOINT" not in given:
        return _with_path(f"http://localhost:{PORTS[protocol]}", protocol)
    name, address = given["ENDPOINT"]
    if "://" not in address and protocol == "grpc":  # gRPC's own form, host:port, is encrypted unless it is said otherwise
        insecure = variables((f"{STANDARD}INSECURE",)).get(f"{STANDARD}INSECURE", "").strip().lower() == "true"
        address = f"{'http' if insecure else 'https'}://{address}"
    check_address(name, address)
    return address if name.endswith("METRICS_ENDPOINT") else _with_path(address, protocol)


def _with_path(base: str, protocol: str) -> str:
    """Return the path of metrics below a collector's base URL. gRPC has none."""
    return base if protocol == "grpc" else base.rstrip("/").removesuffix(METRICS_PATH) + METRICS_PATH


def logs_address(address: str, protocol: str) -> str | None:
    """Return a collector's address for logs, or None: one for metrics alone does not give it."""
    if protocol == "grpc":
        return address
    return address.removesuffix(METRICS_PATH) + LOGS_PATH if address.endswith(METRICS_PATH) else None


def _protocol(resolved: Resolved, given: Mapping[str, tuple[str, str]]) -> str:
    chosen = resolved.values["otlp_protocol"]
    if chosen.source != "default" or resolved.settings.otlp_endpoint is not None or "PROTOCOL" not in given:
        return str(chosen.value)
    name, protocol = given["PROTOCOL"]
    if protocol not in PORTS:
        raise SettingsError(f"{name} takes one of {', '.join(PORTS)}, not {protocol!r}.")
    return protocol


def _timeout(given: Mapping[str, tuple[str, str]]) -> float:
    """Return seconds, as OpenTelemetry for Python reads its variable."""
    name, text = given.get("TIMEOUT", ("", "10"))
    try:
        seconds = float(text)
        if not 0 < seconds <= 3600:
            raise ValueError
    except ValueError:
        raise SettingsError(f"{name} takes a number of seconds above 0, not {text!r}.") from None
    return seconds


def _compression(given: Mapping[str, tuple[str, str]]) -> str:
    name, word = given.get("COMPRESSION", ("", "gzip"))
    if word not in ("gzip", "none"):
        raise SettingsError(f"{name} takes gzip or none, not {word!r}.")
    return word


def _headers(name: str, text: str) -> dict[str, str]:
    """Return headers from ``key=value,key=value``, percent-encoded as in OpenTelemetry. An error does not show the value."""
    found = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = entry.partition("=")
        key, value = key.strip().lower(), unquote(value.strip())
        if not equals or not key.isascii() or not key.replace("-", "").replace("_", "").replace(".", "").isalnum():
            raise SettingsError(f"{name} takes key=value pairs with commas between them; one of yours is not such a pair.")
        if key.replace("_", "-") in FRAMING or key.startswith("grpc-"):
            raise SettingsError(f"{name}: {key!r} says how a request is framed or forwarded, and is not yours to set.")
        if any(ord(character) < 32 or ord(character) > 255 for character in value):
            raise SettingsError(f"{name}: the value of {key!r} has a character that no header can have.")
        found[key] = value
    return found


def _analytics(resolved: Resolved) -> dict[str, Any]:
    settings = resolved.settings
    secret = variables((GA_SECRET,)).get(GA_SECRET, "").strip()
    if settings.ga_measurement_id is None:
        raise SettingsError("exporter=ga needs the stream's id: epochmeter settings ga_measurement_id=G-XXXXXXX.")
    if not secret:
        raise SettingsError(f"exporter=ga needs the stream's API secret, in the variable {GA_SECRET}, and nowhere else.")
    base = (settings.ga_endpoint or GA_ENDPOINT).rstrip("/")
    address = base if check_address("ga_endpoint", base).path else base + GA_PATH
    return {"protocol": "ga4", "address": address, "measurement_id": settings.ga_measurement_id, "secret": secret}


def _scraped(resolved: Resolved) -> dict[str, Any]:
    return {"protocol": "prometheus", "address": f"http://{SCRAPED_ON}:{resolved.settings.prometheus_port}/metrics"}


def in_words(resolved: Resolved) -> str:
    """Return the destination in words for the user. An address from the environment is not shown, because it may be a secret.

    Raises:
        SettingsError: as in `destination`.
    """
    settings: Settings = resolved.settings
    if settings.exporter == "none":
        return shown(settings.otlp_endpoint or f"http://localhost:{PORTS['http/protobuf']}")
    found = destination(resolved)
    named = _standard_variables().get("ENDPOINT")
    if settings.exporter == "otlp" and settings.otlp_endpoint is None and named is not None:
        return f"the collector that {named[0]} names"
    return shown(str(found["address"]))
