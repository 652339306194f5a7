"""The grammar of the user's own words: a service's name, labels, and names of resource attributes."""

from __future__ import annotations

import re

from profiler.errors import SettingsError

MOST = 8  # labels, and names of attributes
VALUE = re.compile("[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
LABEL = re.compile("[a-z][a-z0-9_]{0,63}")
NAME = re.compile(r"(?=.{1,64}\Z)[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*")
LABEL_PREFIX = "epochmeter.label."
SERVICE_NAME = "service.name"
OURS = ("epochmeter.", "telemetry.", "service.version", "service.instance.id", "host.arch", "os.type", "process.runtime.")
VALUES = "letters, digits, '_', '-' and '.', at most 64, the first one a letter or digit"


def check_service_name(text: str) -> str:
    """Return the name of a service.

    Raises:
        SettingsError: it cannot be one.
    """
    if not VALUE.fullmatch(text):
        raise SettingsError(f"service_name takes {VALUES}, not {text!r}.")
    return text


def labels_in(text: str) -> dict[str, str]:
    """Return the labels of a text such as ``team:vision,job:nightly``.

    Raises:
        SettingsError: it is no such text.
    """
    found: dict[str, str] = {}
    for part in text.split(","):
        key, colon, value = part.strip().partition(":")
        if key in found:
            raise SettingsError(f"labels has the key {key!r} twice.")
        if not colon or not LABEL.fullmatch(key) or not VALUE.fullmatch(value):
            expected = "key:value pairs with commas between them, such as team:vision,job:nightly"
            forms = f"keys: lower-case letters, digits and '_', at most 64; values: {VALUES}"
            raise SettingsError(f"labels takes {expected} ({forms}); {part.strip()!r} is none.")
        found[key] = value
    if len(found) > MOST:
        raise SettingsError(f"labels takes at most {MOST} labels, not {len(found)}.")
    return found


def names_in(text: str) -> tuple[str, ...]:
    """Return the attribute names of a text such as ``k8s.job.name,k8s.namespace.name``.

    Raises:
        SettingsError: it is no such text, or one of them is an attribute that we set.
    """
    found = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for name in found:
        if not NAME.fullmatch(name):
            form = "lower-case letters, digits, '_' and '.', at most 64, with commas between the names"
            raise SettingsError(f"otlp_resource takes names of attributes, such as k8s.job.name ({form}), not {name!r}.")
        if name.startswith(OURS):
            raise SettingsError(f"otlp_resource cannot copy {name!r}, which epochmeter sets itself.")
    if len(found) > MOST:
        raise SettingsError(f"otlp_resource takes at most {MOST} names, not {len(found)}.")
    return found


TARIFF = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(?: ?([A-Za-z]{3}|[$€£¥]))?")


def tariff_in(text: str) -> tuple[float, str]:
    """Return the price of a kWh and its currency ("" for none) from a text such as ``0.30 EUR``.

    Raises:
        SettingsError: it is no such text.
    """
    found = TARIFF.fullmatch(text.strip())
    if found is None:
        raise SettingsError(f"tariff takes what a kWh costs, such as 0.30 or '0.30 EUR', not {text!r}.")
    return float(found[1]), found[2] or ""


CHECKS = {"tariff": tariff_in, "service_name": check_service_name, "labels": labels_in, "otlp_resource": names_in}
