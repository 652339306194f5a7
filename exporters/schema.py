"""The list in print: as data, and as the reference page ``docs/telemetry.md``. Nothing here is written by hand twice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from exporters.allowlist import HEADERS, METRICS, RESOURCE, SCHEMA_URL, SCOPE_NAME, Entry
from exporters.rules import Random, Rule

BUCKETS = "base-2 exponential histogram of at most 160 buckets, with count, sum, min and max"
PAGE_HEAD = """# What can leave your machine

This page is made from [`exporters/allowlist.py`](../exporters/allowlist.py) by `make docs`; a test fails where the two
differ. `epochmeter telemetry schema` prints the same from the version that you have installed.

By default nothing of it leaves. Where you choose a destination, what goes there is built from this list alone, and its
final bytes are checked against it again. [privacy.md](privacy.md) says how to choose, check and switch off.

Every data point also has two times in nanoseconds: when the run began, and when the point was taken.
"""


def schema() -> dict[str, Any]:
    """Everything that can leave: metrics, facts about the run's machine, and what the request itself says.

    Returns:
        ``metrics`` and ``resource`` (one object an entry), ``request`` (its headers), and ``vocabulary``: every text
        that can be in a payload, but those drawn at random, whose form is in ``random``.
    """
    return {
        "schema": 1,
        "metrics": [_metric(entry) for entry in METRICS],
        "resource": [
            {
                "name": entry.name,
                "purpose": entry.purpose,
                "since": entry.since,
                "destinations": list(entry.destinations),
                **_rule(entry.rule),
            }
            for entry in RESOURCE
        ],
        "request": {"path": "/v1/metrics", "headers": dict(HEADERS)},
        "vocabulary": vocabulary(),
        "random": {entry.name: f"[0-9a-f]{{{entry.rule.digits}}}" for entry in RESOURCE if isinstance(entry.rule, Random)},
    }


def vocabulary() -> list[str]:
    """Every text that can be in a payload, except what is drawn at random."""
    found = {SCHEMA_URL, SCOPE_NAME}
    for entry in METRICS:
        found |= {entry.name, entry.unit, entry.purpose, *entry.attributes}
    for rule in (rule for entry in METRICS for rule in entry.attributes.values()):
        found |= set(_texts(rule))
    for fact in RESOURCE:
        found |= {fact.name, *_texts(fact.rule)}
    return sorted(found)


def _texts(rule: Rule) -> Iterator[str]:
    if not isinstance(rule, Random):
        yield from (value for value in rule.values if isinstance(value, str))


def _metric(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "kind": entry.kind,
        "unit": entry.unit,
        "value": value_in_words(entry),
        "purpose": entry.purpose,
        "since": entry.since,
        "destinations": list(entry.destinations),
        "attributes": {name: _rule(rule) for name, rule in entry.attributes.items()},
    }


def _rule(rule: Rule) -> dict[str, Any]:
    if isinstance(rule, Random):
        return {"random": f"{rule.digits} hexadecimal digits, drawn anew for each run"}
    return {"values": list(rule.values)}


def value_in_words(entry: Entry) -> str:
    """How exactly a metric is told."""
    if entry.kind == "histogram":
        return BUCKETS
    if entry.sizes:
        return f"the nearest of {', '.join(map(str, entry.sizes))} GiB"
    return "exact" if entry.digits is None else f"{entry.digits} significant digits"


def rule_in_words(described: Mapping[str, Any]) -> str:
    """The values of an attribute or a fact."""
    if "random" in described:
        return str(described["random"])
    values = [str(value).lower() if isinstance(value, bool) else str(value) for value in described["values"]]
    return ", ".join(_shortened(values))


def _shortened(values: list[str]) -> Iterable[str]:
    """Long series as their ends: gpu-0 to gpu-15."""
    series = [value for value in values if value[-1:].isdigit() or value.endswith("-die")]
    if len(values) <= 8 or len(series) < len(values) - 2 or any(" " in value for value in values):
        return values
    if all(value.isdigit() for value in values):
        return values
    return [f"{series[0]} to {series[-1]}", *(value for value in values if value not in series)]


def _last_columns(entry: Mapping[str, Any]) -> str:
    return f"{entry['purpose']} | {', '.join(entry['destinations'])} | {entry['since']}"


def page() -> str:
    """The reference page, in Markdown."""
    printed = schema()
    lines = [PAGE_HEAD, "## Measurements\n", "| metric | unit | told as | for | to | since |", "|---|---|---|---|---|---|"]
    for entry in printed["metrics"]:
        value = "histogram" if entry["kind"] == "histogram" else f"{entry['kind']}: {entry['value']}"
        lines.append(f"| `{entry['name']}` | {entry['unit']} | {value} | {_last_columns(entry)} |")
    lines += [f"\nA histogram is a {BUCKETS}.\n", "### Their attributes\n", "| attribute | values | of |", "|---|---|---|"]
    attributes: dict[tuple[str, str], list[str]] = {}
    for entry in printed["metrics"]:
        for name, rule in entry["attributes"].items():
            attributes.setdefault((name, rule_in_words(rule)), []).append(f"`{entry['name']}`")
    lines += [f"| `{name}` | {values} | {', '.join(metrics)} |" for (name, values), metrics in attributes.items()]
    lines += ["\n## Facts about the run and its machine\n", "| fact | values | for | to | since |", "|---|---|---|---|---|"]
    for entry in printed["resource"]:
        lines.append(f"| `{entry['name']}` | {rule_in_words(entry)} | {_last_columns(entry)} |")
    lines += ["\n## What the request says of itself\n", "| header | value |", "|---|---|"]
    lines += [f"| `{name}` | `{value}` |" for name, value in printed["request"]["headers"].items()]
    lines.append(
        "\nAnd `host`, `content-length`, `connection`, what a proxy of yours needs, and the headers that you set in\n"
        "`OTEL_EXPORTER_OTLP_HEADERS`, where the endpoint is from the environment too. No other header gets through,\n"
        "whoever adds it."
    )
    return "\n".join(lines) + "\n"
