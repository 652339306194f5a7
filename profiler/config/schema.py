"""Every setting with its default, its help line and the check of its value."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple

from profiler.config.address import check_address, shown
from profiler.config.word_grammar import CHECKS
from profiler.errors import ArgumentTypeError, SettingsError, did_you_mean

EXPORTERS = ("none", "otlp", "ga", "prometheus")
TRUE_WORDS = ("true", "1", "yes", "on")
FALSE_WORDS = ("false", "0", "no", "off")
Source = Literal["default", "host", "file", "argument", "environment", "unreadable file"]


def setting(default: Any, help_text: str) -> Any:
    """Return a field of `Settings` with its help line."""
    return field(default=default, metadata={"help": help_text})


@dataclass(frozen=True)
class Settings:
    """Every setting with its default. A new one is one more line here: the command line and the checks read it."""

    sync: bool = setting(True, "may anything leave this machine at all; False is final")
    exporter: str = setting("none", "where measurements go: none, otlp, ga, or prometheus (which fetches them)")
    local: bool = setting(True, "keep the run log on this machine")
    crash_reports: bool = setting(
        False, "may crashes of packages be reported: to their Sentry, with sentry-sdk, or your collector"
    )
    usage: bool = setting(True, "may usage counters be exported")
    otlp_endpoint: str | None = setting(None, "the collector's base URL; default http://localhost:4318")
    otlp_protocol: str = setting("http/protobuf", "http/protobuf or grpc")
    otlp_certificate: str | None = setting(None, "file with the certificates to trust, for otlp_endpoint")
    otlp_client_certificate: str | None = setting(None, "file with our own certificate, for otlp_endpoint")
    otlp_client_key: str | None = setting(None, "file with the key of our own certificate")
    ga_measurement_id: str | None = setting(None, "G-...; the API secret comes from EPOCHMETER_GA_API_SECRET alone")
    ga_endpoint: str | None = setting(None, "another Google Analytics endpoint: the EU's, or a proxy")
    service_name: str | None = setting(None, "whose run it is, for your own collector; default epochmeter")
    labels: str | None = setting(None, "your words for it, for your own collector: team:vision,job:nightly")
    otlp_resource: str | None = setting(None, "names of OTEL_RESOURCE_ATTRIBUTES that your own collector gets")
    slice_s: float = setting(10.0, "seconds after which what a run has measured is on disk at the latest")
    lines: bool = setting(True, "sample which line of the run's code is busy; for the run log on this machine alone")
    tariff: str | None = setting(None, "what a kWh costs, such as 0.30 or 0.30 EUR, for the report's ledger")
    export_interval: float = setting(60.0, "seconds between exports during a run; a run always exports at its end")
    exit_timeout: float = setting(1.0, "seconds that the end of a run waits for a delivery; 0: not at all")
    outbox_mb: int = setting(64, "megabytes that may wait for delivery; the oldest go first")
    outbox_days: int = setting(30, "days that measurements may wait for delivery")
    prometheus_port: int = setting(9464, "with exporter=prometheus, the port on 127.0.0.1 that is scraped")
    retention_days: int = setting(90, "days after which local run logs and copies of sent payloads are removed")


KEYS: dict[str, Any] = {entry.name: entry.default for entry in fields(Settings)}
HELP: dict[str, str] = {entry.name: entry.metadata["help"] for entry in fields(Settings)}
CONSENT = ("sync", "crash_reports", "usage", "local", "lines")  # an explicit False of these is final, whoever set it
DESTINATION = ("sync", "exporter", "otlp_endpoint", "ga_measurement_id", "ga_endpoint")  # a change of these sets a new date
WHERE = (  # a destination is chosen as a whole
    *("exporter", "otlp_endpoint", "otlp_protocol", "otlp_certificate", "otlp_client_certificate", "otlp_client_key"),
    *("ga_measurement_id", "ga_endpoint"),
)
OFF_WORDS = ("track", "telemetry", "disable", "optout", "optedout", "consent", "privacy", "offline", "send", "upload")
OFF_PARTS = {"off", "no", "not", "never", "dnt", "opt", "stop"}  # as whole words of a name
FROM_ZERO = ("exit_timeout",)  # settings whose number may be 0
HIGHEST = {"prometheus_port": 65_535}  # upper limits other than 999,999,999
CHOICES = {"exporter": EXPORTERS, "otlp_protocol": ("http/protobuf", "grpc")}


class ResolvedValue(NamedTuple):
    """The value of a setting that is in force, and its source."""

    value: Any
    source: Source
    detail: str = ""


def displayed(key: str, value: Any) -> Any:
    """Return a value as it is displayed: an address without the parts of its path that may be a token."""
    return shown(value) if key.endswith("_endpoint") and isinstance(value, str) else value


def check_key(key: str) -> str:
    """Return the key, if a setting has that name.

    Raises:
        SettingsError: no setting has; close names are suggested.
    """
    if key not in KEYS:
        raise SettingsError(f"there is no setting {key!r}.{did_you_mean(key, KEYS)} Settings: {', '.join(KEYS)}.")
    return key


def mistyped(name: str, value: Any) -> str:
    """Return a fault, in words, if an unknown name looks as if it were to switch something off; "" if it does not.

    A wrong guess switches off too much, and says so. The other mistake would send against the user's word.

    Args:
        name: a key of the settings file, or a variable's name without its prefix.
        value: its value.
    """
    import difflib  # only needed for unknown names

    plain, parts = re.sub("[^a-z]", "", name.lower()), set(re.split("[^a-z]+", name.lower()))
    if isinstance(value, Mapping):  # an "off" may have been put a level too deep
        inner = next(filter(None, (mistyped(str(key), one) for key, one in value.items())), "")
        return inner and f"there is no setting {name!r}, and in it stands something that looks like an 'off'."
    is_false = value is False or str(value).strip().lower() in (*FALSE_WORDS, "none", "disabled", "never")
    close = difflib.get_close_matches(plain, [key.replace("_", "") for key in (*CONSENT, "exporter")], cutoff=0.7)
    if not (is_false or close or parts & OFF_PARTS or any(word in plain for word in OFF_WORDS)):
        return ""
    return f"there is no setting {name!r}, which looks like an 'off'.{did_you_mean(name.lower(), KEYS)}"


def check_value(key: str, value: Any, *, strict: bool = False) -> Any:
    """Return the value in the setting's own type. Text such as "off" or "60" is converted unless ``strict``.

    Raises:
        SettingsError: the setting cannot take it; the text says which values it takes.
    """
    default = KEYS[check_key(key)]
    if isinstance(default, bool):
        return _boolean(key, value, strict)
    if isinstance(default, (int, float)):
        return _checked_number(key, value, type(default), strict)
    if value is None and default is None:
        return None
    if not isinstance(value, str) or not value.strip():
        unset = "; 'none' unsets it" if default is None else ""
        raise SettingsError(f"{key} takes text, not {value!r}{unset}.")
    if default is None and not strict and value.lower() == "none":
        return None
    if key in CHOICES and value not in CHOICES[key]:
        expected = ", ".join(CHOICES[key])
        raise SettingsError(f"{key} takes one of {expected}, not {value!r}.{did_you_mean(value, CHOICES[key])}")
    if key.endswith("_endpoint"):
        check_address(key, value)
    if key in CHECKS:
        CHECKS[key](value)
    if key == "ga_measurement_id" and not re.fullmatch("G-[A-Z0-9]{4,20}", value):
        raise SettingsError(f"{key} takes a web stream's id, such as G-ABC123DEF4, not {value!r}.")
    return value


def check_settings(settings: Any) -> dict[str, Any]:
    """Return settings given in code, each in its own type.

    Raises:
        SettingsError: they are no mapping, or a key or value cannot be used.
    """
    if settings is not None and not isinstance(settings, Mapping):
        raise SettingsError(f"settings is a mapping such as {{'sync': False}}, not {settings!r}")
    return {check_key(key): check_value(key, value) for key, value in (settings or {}).items()}


def check_exporter(exporter: Any) -> None:
    """Check that an exporter is a name, or an object with a method ``export``.

    Raises:
        ArgumentTypeError: it is neither.
    """
    if exporter is not None and not isinstance(exporter, str) and not callable(getattr(exporter, "export", None)):
        raise ArgumentTypeError(f"exporter is a name such as 'otlp' or an OpenTelemetry MetricExporter, not {exporter!r}")


def _boolean(key: str, value: Any, strict: bool) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower() if isinstance(value, (str, int)) else ""
    if not strict and word in TRUE_WORDS:
        return True
    if not strict and word in FALSE_WORDS:
        return False
    raise SettingsError(f"{key} takes true or false (or 1/0, yes/no, on/off), not {value!r}.")


def _checked_number(key: str, value: Any, kind: type, strict: bool) -> Any:
    try:
        if isinstance(value, bool) or (strict and not isinstance(value, (int, float))):
            raise ValueError
        number = kind(value)
        if not (0 < number <= HIGHEST.get(key, 999_999_999) or (number == 0 and key in FROM_ZERO)):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        expected = "a whole number" if kind is int else "a number"
        least = "from 0" if key in FROM_ZERO else f"from 1 to {HIGHEST[key]}" if key in HIGHEST else "above 0, below a billion"
        raise SettingsError(f"{key} takes {expected} {least}, not {value!r}.") from None
    return number
