"""Check the arguments of `Telemetry`. Nothing is loaded for it, because a program's start is not ours to slow."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from profiler.errors import ArgumentTypeError, ArgumentValueError, did_you_mean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


NAME = re.compile("[A-Za-z0-9][A-Za-z0-9_.-]{0,39}")
MODULE = re.compile(r"[A-Za-z_]\w{0,39}", re.ASCII)
DSN = re.compile(  # in the grammar of profiler.config.address, which a program's start does not load
    r"https?://\w+(:\w+)?@([A-Za-z0-9_][A-Za-z0-9_.-]*|\[[0-9A-Fa-f:.]+\])(:(?P<port>[1-9]\d{0,4}))?(/[A-Za-z0-9_~-][\w.~-]*)*/\d+",
    re.ASCII,
)
EXPORTERS = ("otlp", "ga", "none")
HOST_KEYS = (  # the settings that a package may ask for; all others are the user's
    *("sync", "usage", "local", "lines", "crash_reports", "exporter", "otlp_endpoint", "otlp_protocol", "otlp_certificate"),
    # not `ga_endpoint`: the secret that is sent there is the user's
    *("otlp_client_certificate", "otlp_client_key", "ga_measurement_id", "export_interval", "exit_timeout"),
)


def checked_name(what: str, name: Any) -> str:
    """Return a name of 1 to 40 letters, digits, "-", "_" and "."."""
    if not isinstance(name, str):
        raise ArgumentTypeError(f"{what} has a name, a text, not {name!r}")
    if not NAME.fullmatch(name):
        raise ArgumentValueError(f"{what}'s name has 1 to 40 letters, digits, '-', '_' and '.', unlike {name[:60]!r}")
    return name


def checked_names(what: str, names: Any) -> list[str]:
    """Return a list of names."""
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise ArgumentTypeError(f"{what} is declared by its name in a list or tuple, not as {names!r}")
    return [checked_name(what, name) for name in names]


def declared_commands(commands: Any) -> dict[str, tuple[str, ...]]:
    """Return the declared commands, each with the names of its options."""
    if not isinstance(commands, Mapping):
        return dict.fromkeys(checked_names("a command", commands), ())
    return {checked_name("a command", name): tuple(checked_names("an option", options)) for name, options in commands.items()}


def checked_modules(modules: Any) -> tuple[str, ...]:
    """Return the names of import packages."""
    if not isinstance(modules, Iterable):
        raise ArgumentTypeError(f"modules are names of import packages in a list or tuple, not {modules!r}")
    if isinstance(modules, str) or not all(isinstance(name, str) and MODULE.fullmatch(name) for name in modules):
        raise ArgumentValueError(f"modules are names of import packages, such as ('mypackage',), not {modules!r}")
    return tuple(modules)


def host_settings(exporter: Any, settings: Any) -> dict[str, Any]:
    """Check the form of a package's settings. Their values are checked by `Telemetry.check`, and before anything is sent."""
    if exporter == "prometheus":
        raise ArgumentValueError("counts cannot be scraped from a program that has ended: exporter is 'otlp' or 'ga'")
    if isinstance(exporter, str) and exporter not in EXPORTERS:
        raise ArgumentValueError(f"exporter is one of {', '.join(EXPORTERS)} or a MetricExporter, not {exporter!r}")
    if exporter is not None and not isinstance(exporter, str) and not callable(getattr(exporter, "export", None)):
        raise ArgumentTypeError(f"exporter is a name such as 'otlp' or an OpenTelemetry MetricExporter, not {exporter!r}")
    if settings is not None and not isinstance(settings, Mapping):
        raise ArgumentTypeError(f"settings is a mapping such as {{'otlp_endpoint': 'https://...'}}, not {settings!r}")
    for key in settings or {}:
        if key not in HOST_KEYS:
            hint = did_you_mean(str(key), HOST_KEYS)
            raise ArgumentValueError(f"{key!r} is no setting that a package can have a wish about.{hint}")
    return {**(settings or {}), **({"exporter": exporter} if isinstance(exporter, str) else {})}


def allowed_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a package may choose: it can lower consent, and not raise it.

    Raises:
        SettingsError: a value cannot be used.
    """
    from profiler.config.schema import CONSENT, check_settings

    return {key: value for key, value in check_settings(settings).items() if key not in CONSENT or value is False}


def checked_flag(name: str, value: Any) -> bool:
    """Return True or False, and nothing that only looks like it."""
    if not isinstance(value, bool):
        raise ArgumentTypeError(f"{name} is True or False, not {value!r}")
    return value


def checked_dsn(dsn: Any) -> str | None:
    """Return a Sentry DSN, or None."""
    if dsn is None:
        return None
    found = DSN.fullmatch(dsn) if isinstance(dsn, str) else None
    if found is None or int(found["port"] or 1) > 65_535:
        raise ArgumentValueError(
            "crash_dsn is a Sentry DSN such as 'https://key@host/42', of letters, digits and . _ ~ - alone"
        )
    return found[0]
