"""The list in print: as data, and as the page ``docs/telemetry.md``. Everything here is made from the list."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from exporters.allowlist import (
    CRASH,
    GA_HEADERS,
    HEADERS,
    MAX_FRAMES,
    METRICS,
    OWN_DESTINATIONS,
    RESOURCE,
    SCHEMA_URL,
    SCOPE_NAME,
    SENTRY_HEADERS,
    USAGE,
    ListedFact,
    ListedMetric,
)
from exporters.ga_payload import CONSENT, COUNTED, DURATIONS, EVENT, TIMES
from exporters.ga_payload import vocabulary as ga_words
from exporters.rules import DEV, LABEL, SAID, Declared, Frame, OfApp, Random, Rule, Version, Whole, Words, as_text, filled

BUCKETS = "base-2 exponential histogram of at most 160 buckets, with count, sum, min and max"
PAGE_HEAD = """# What can leave your machine

`make docs` makes this page from [`exporters/allowlist.py`](../exporters/allowlist.py), and a test compares the two.
`epochmeter telemetry schema` prints the same for your installed version.

By default nothing leaves. If you choose a destination, payloads are built from this list only, and the final bytes are checked
against it. The same holds if a package that embeds Epochmeter chose the destination, after a notice to you.
[privacy.md](privacy.md) shows how to choose, check and switch off.

Every data point also has two times in nanoseconds: when the run began, and when the point was taken.
"""


OWN_VALUES = "letters, digits, `_`, `-` and `.`, at most 64"
OWN_WORDS = {
    "service.name": "`service_name`; or `OTEL_SERVICE_NAME`, if `otlp_resource` names `service.name`",
    f"{LABEL}<key>": "`labels`, at most 8",
    "<attribute>": "`otlp_resource`, which names it among `OTEL_RESOURCE_ATTRIBUTES`; at most 8",
}
DECLARED = {
    "app": "the package's name",
    "features": "the features that the package has declared",
    "commands": "the commands that the package has declared",
    "options": "the options that the package has declared",
    "told": "the facts that the package has declared, each with one of its words",
}


def schema(declared: Declared | None = None) -> dict[str, Any]:
    """Return everything that can leave: metrics, facts about the machine, crash reports, and the headers of a request.

    Args:
        declared: the declarations of a package, or None.

    Returns:
        ``metrics`` and ``resource`` (one object an entry), ``own_words`` (of the user), ``request`` (its headers), ``ga``
        (the same as events for Google Analytics), ``crash`` (crash reports), and ``vocabulary``: every text that can be in a
        payload, except random ones, whose form is in ``random``, and the user's own words.
    """
    return {
        "schema": 1,
        "metrics": [_metric(entry, declared) for entry in METRICS],
        "resource": [_fact(entry, declared) for entry in RESOURCE],
        "own_words": {"attributes": list(OWN_WORDS), "values": SAID, "most": 8, "destinations": list(OWN_DESTINATIONS)},
        "crash": {"parts": [_fact(entry, declared) for entry in CRASH], "headers": dict(SENTRY_HEADERS)},
        "request": {"path": "/v1/metrics", "headers": dict(HEADERS)},
        "ga": {
            "event": EVENT,
            "metrics": {word: list(cells) for word, cells in ga_words(declared).items()},
            "headers": dict(GA_HEADERS),
        },
        "vocabulary": vocabulary(declared),
        "random": {entry.name: f"[0-9a-f]{{{entry.rule.digits}}}" for entry in RESOURCE if isinstance(entry.rule, Random)},
    }


def vocabulary(declared: Declared | None = None) -> list[str]:
    """Return every text that can be in a payload, except random ones, versions of packages, and places in code."""
    found = {SCHEMA_URL, SCOPE_NAME}
    for entry in METRICS:
        found |= {entry.name, entry.unit, entry.purpose, *entry.attributes}
    rules = [rule for entry in METRICS for rule in entry.attributes.values()]
    found |= {fact.name for fact in (*RESOURCE, *CRASH)}
    rules += [fact.rule for fact in (*RESOURCE, *CRASH)]
    found |= {text for rule in rules for text in _texts(filled(rule, declared))}
    for word, cells in ga_words(declared).items():
        found |= {word, *cells}
    return sorted({*found, EVENT, *CONSENT.values()})


def request_headers(target: str) -> dict[str, str]:
    """Return the headers of a request to this destination."""
    return dict({"ga": GA_HEADERS, "sentry": SENTRY_HEADERS}.get(target, HEADERS))


def _texts(rule: Rule) -> Iterator[str]:
    if isinstance(rule, Words):
        yield from (value for value in rule.values if isinstance(value, str))


def _fact(entry: ListedFact, declared: Declared | None) -> dict[str, Any]:
    common = {"name": entry.name, "purpose": entry.purpose, "since": entry.since}
    return {**common, "destinations": list(entry.destinations), **_rule(entry.rule, declared)}


def _metric(entry: ListedMetric, declared: Declared | None = None) -> dict[str, Any]:
    return {
        "name": entry.name,
        "kind": entry.kind,
        "unit": entry.unit,
        "value": value_in_words(entry),
        "purpose": entry.purpose,
        "since": entry.since,
        "destinations": list(entry.destinations),
        "attributes": {name: _rule(rule, declared) for name, rule in entry.attributes.items()},
    }


def _rule(rule: Rule, declared: Declared | None) -> dict[str, Any]:
    if isinstance(rule, Random):
        return {"random": f"{rule.digits} hexadecimal digits, drawn anew for each run"}
    if isinstance(rule, Whole):
        return {"form": f"a whole number from 0 to {rule.most:,}"}
    if isinstance(rule, OfApp) and declared is None:
        return {"form": DECLARED[rule.what]}
    if isinstance(rule, Version):
        return {"form": f"a released version, such as 1.2.3; any other is {DEV}"}
    if isinstance(rule, Frame):
        own = "the package's own modules" if declared is None else " and ".join(declared.modules)
        return {"form": f"at most {MAX_FRAMES}: module:function:+line for those of {own}; those of other code as other"}
    return {"values": list(getattr(filled(rule, declared), "values", ()))}


def value_in_words(entry: ListedMetric) -> str:
    """Return the precision of a metric's value, in words."""
    if entry.kind == "histogram":
        return BUCKETS
    if entry.sizes:
        return f"the nearest of {', '.join(map(str, entry.sizes))} GiB"
    return "exact" if entry.digits is None else f"{entry.digits} significant digits"


def rule_in_words(described: Mapping[str, Any]) -> str:
    """Return the values of an attribute or a fact, in words."""
    for form in ("random", "form"):
        if form in described:
            return str(described[form])
    return ", ".join(_shortened([as_text(value) for value in described["values"]]))


def _shortened(values: list[str]) -> Iterable[str]:
    """Return long series by their ends, each kind apart: gpu-0 to gpu-15, gpu-0-die to gpu-15-die."""
    if len(values) <= 8 or any(" " in value for value in values) or all(value.isdigit() for value in values):
        return values
    kinds: dict[str, list[str]] = {}
    for value in values:
        kinds.setdefault(re.sub(r"\d+", "#", value), []).append(value)
    if len(kinds) > 4:  # names that happen to have numbers in them
        return values
    return [f"{kind[0]} to {kind[-1]}" if len(kind) > 2 else ", ".join(kind) for kind in kinds.values()]


def _last_columns(entry: Mapping[str, Any]) -> str:
    return f"{entry['purpose']} | {', '.join(entry['destinations'])} | {entry['since']}"


def _ga_page() -> Iterator[str]:
    """Return the data for Google Analytics, with the metrics of the same cells in one row."""
    yield "## As events for Google Analytics\n"
    yield f"With `exporter=ga`, a run is sent once, at its end: one request with one event `{EVENT}` for each cell, with the"
    yield f"parameters `metric`, `cell`, `n` (how often, as {', '.join(map(str, TIMES))}), `session_id` (random) and"
    yield "`engagement_time_msec` (1). Each request has a random `client_id`, and an hour up to a day before the measurement."
    yield "Use for advertising is denied. No user, no location, no device, and no id is sent twice. No body says which other"
    yield "ones are of the same machine."
    yield f"\nOf {' and '.join(f'`{name}`' for name in COUNTED)} there is a request for each cell; of other durations, for the"
    yield "median only; of facts, one. `usage` names the stages and phases of the run, unless `usage=false`.\n"
    yield "| cells | metrics |\n|---|---|"
    rows: dict[tuple[str, ...], list[str]] = {}
    for word, cells in ga_words().items():
        rows.setdefault(cells, []).append(f"`{word}`")
    for cells, words in rows.items():
        values = (
            "the declarations of a package that embeds us, and its version"
            if not cells
            else f"powers of two: {cells[0]}, {cells[1]}, ... {cells[-1]}"
            if cells == DURATIONS
            else ", ".join(_shortened(list(cells)))
        )
        yield f"| {values} | {', '.join(words)} |"


def section(declared: Declared) -> str:
    """Return the data that a package can send, in Markdown, for its own README."""
    app, printed = declared.app, schema(declared)
    lines = [
        f"{app} can send the data in this table, and nothing else, to its author or to a collector that you choose. Before the",
        "first delivery, one line says so and names the destination; its author gets nothing from that run. Crash reports are",
        "sent only if you switch them on. Nothing is sent in CI, in tests, or with one of the switches below. Payloads are",
        "copied from this list, and the final bytes are checked against it. These are not on it, and so never sent: your",
        "names, paths, arguments and values, images and other data, the text of errors, host names, serial numbers.\n",
        "| data | values | for |\n|---|---|---|",
    ]
    of_usage = {entry.name for entry in USAGE}
    for entry in printed["metrics"]:
        rules = entry["attributes"].values()
        if entry["name"] in of_usage and all(rule["values"] for rule in rules):
            values = "; ".join(rule_in_words(rule) for rule in rules)
            lines.append(f"| how often: `{entry['name']}` | {values} | {entry['purpose']} |")
    for entry in printed["resource"]:
        if "crash" in entry["destinations"]:
            lines.append(f"| `{entry['name']}` | {rule_in_words(entry)} | {entry['purpose']} |")
    for entry in printed["crash"]["parts"]:
        values = rule_in_words(entry) if "form" in entry else f"one of {len(entry['values'])} classes, such as `KeyError`"
        lines.append(f"| of a crash, if you switch it on: `{entry['name']}` | {values} | {entry['purpose']} |")
    lines += [
        f"\nOf training runs that {app} measures, also the timings and readings that `epochmeter telemetry schema` lists.\n",
        "```",
        f"{app} telemetry schema           # this list, with every value",
        f"{app} telemetry preview          # the exact bytes; sends nothing",
        f"{app} telemetry log              # a copy of every payload sent",
        f"{app} settings usage=false       # nothing is counted any more",
        f"{app} settings sync=false        # nothing leaves any more; the same: DO_NOT_TRACK=1 in the environment",
        "```",
    ]
    return "\n".join(lines) + "\n"


def page() -> str:
    """Return the reference page, in Markdown."""
    printed = schema()
    lines = [PAGE_HEAD, "## Measurements\n", "| metric | unit | sent as | for | to | since |", "|---|---|---|---|---|---|"]
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
    lines += [
        "\n## Your own words for a run\n",
        "Where you have set them, and only for your own collector or Prometheus: never for Google Analytics, never for a",
        "destination that a package chose, and never in a crash report.\n",
        "| attribute | values | set by |\n|---|---|---|",
    ]
    lines += [f"| `{name}` | {OWN_VALUES} | {by} |" for name, by in OWN_WORDS.items()]
    lines += [
        "\n## Crash reports of packages that embed Epochmeter\n",
        'A report is sent only if you have set `crash_reports=true`, the package reports crashes, and nothing says "off".',
        "It goes to the package's Sentry if `sentry-sdk` is installed, or else as a log record to your",
        "collector. It has the time, these parts, and the facts above that go to `crash`:\n",
        "| part | values | for | since |\n|---|---|---|---|",
    ]
    for entry in printed["crash"]["parts"]:
        lines.append(f"| `{entry['name']}` | {rule_in_words(entry)} | {entry['purpose']} | {entry['since']} |")
    lines += ["\n## The headers of a request\n", "| header | value |", "|---|---|"]
    lines += [f"| `{name}` | `{value}` |" for name, value in printed["request"]["headers"].items()]
    lines.append(
        "\nA request also has `host`, `content-length`, `connection`, the headers that your proxy needs, and the headers that\n"
        "you set for this destination: in `EPOCHMETER_OTLP_HEADERS` for an endpoint of our settings, in\n"
        "`OTEL_EXPORTER_OTLP_HEADERS` for one that OpenTelemetry's variables name. No other header gets through.\n"
        "Over gRPC, the library adds its own version and the kind of system to `user-agent`. To Sentry, `content-type` is\n"
        f"`{SENTRY_HEADERS['content-type']}`, and `x-sentry-auth` is `{SENTRY_HEADERS['x-sentry-auth']}`,\n"
        "with the key from the address of the package's project.\n"
    )
    lines += _ga_page()
    return "\n".join(lines) + "\n"
