"""Google Analytics 4 events from measurements: a pure function, under all the rules of the Measurement Protocol.

One request a cell: ``{"name": "m", "params": {"metric": ..., "cell": ..., "n": ...}}``. A metric and its cells are words of
a closed vocabulary made from the list. A duration's cell is the power of two seconds it lies in. Google's protocol answers
"received" to anything, and silently cuts data over its limits, so nothing here exceeds one.

The rule it keeps: marginals only. Facts of one machine in one request would tell that machine from all others, so each
request holds one cell, with a random client of its own and a time of its own. `exporters.entropy` counts its bits.

The rules: developers.google.com/analytics/devguides/collection/protocol/ga4/reference and .../validating-events.
``docs/privacy.md`` lists the sent data, and tests compare the bodies with the rules.
"""

from __future__ import annotations

import itertools
import json
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from exporters.allowlist import METRICS, PHASES, RESOURCE, STAGES, USAGE
from exporters.bounds import OTHER_BYTES, OTHER_TIME
from exporters.measurements import HistogramValue, Outgoing
from exporters.rules import Declared, Version, Words, as_text, coarse, filled

MAX_BYTES = 129_999  # the body is to be below 130,000
EVENT = "m"
USED = "usage"
APP_VERSION = "app_version"
JITTER_HOURS = 24  # a request's time is up to so much before the measurement
TIMES = (1, 10, 100, 1000)  # how often a cell was met, rounded down to one of these
HIGHEST_IDS = (("session_id", 2**31), ("engagement_time_msec", 1))
HOUR_US = 3_600_000_000
MAX_AGE_US = 72 * HOUR_US
LOWEST, HIGHEST = -20, 20  # durations from 2**-20 s, a microsecond, to 2**20 s, twelve days
COUNTED = ("epochmeter.epoch.duration", "epochmeter.stage.duration")  # an event a cell; of all others, the median's cell
COUNTERS = {entry.name: tuple(entry.attributes) for entry in USAGE}  # the counts of a package that embeds us
CONSENT = {"ad_user_data": "DENIED", "ad_personalization": "DENIED"}
IDS = re.compile(r"[1-9][0-9]{0,9}\.[1-9][0-9]{0,9}")
Cell = tuple[str, str, int]  # metric, cell, how often


def draw() -> int:
    """Return a random positive number of at most ten digits."""
    return secrets.randbelow(2**31 - 2) + 1


def bodies(data: Outgoing, usage: bool = True, number: Callable[[], int] = draw) -> list[bytes]:
    """Return the bodies of the requests for this data, as JSON: one for each cell, with ids and a time of its own.

    Google can add up each cell over all machines. No body says which cells are of the same one.

    Args:
        data: the listed data for "ga".
        usage: True to send which stages and phases were used.
        number: draws a random number; the ids and the time are made of it, new for each request.
    """
    if not data.metrics:  # the machine alone is no measurement, and its facts would have no time
        return []
    hour = data.now // 1000 // HOUR_US  # when it was measured, in hours since 1970
    return [
        _body(cell, (hour - number() % JITTER_HOURS) * HOUR_US, number(), f"{number()}.{number()}")
        for cell in _cells(data, usage)
    ]


def _body(cell: Cell, when: int, session: int, client: str) -> bytes:
    metric, word, times = cell
    params = {"metric": metric, "cell": word, "n": times, "session_id": session, "engagement_time_msec": 1}
    request = {
        "client_id": client,
        "timestamp_micros": when,
        "consent": CONSENT,
        "events": [{"name": EVENT, "params": params}],
    }
    return json.dumps(request, separators=(",", ":")).encode("utf-8")


# ---- cells ---------------------------------------------------------------------------------------------------------


def _cells(data: Outgoing, usage: bool) -> Iterator[Cell]:
    """Yield the cells with the class of how often each was met: an exact count would tell one machine from another."""
    for metric, cell, times in _exact_cells(data, usage):
        yield metric, cell, max(number for number in TIMES if number <= max(times, 1))


def _exact_cells(data: Outgoing, usage: bool) -> Iterator[Cell]:
    used: dict[str, None] = {}
    for metric in data.metrics:
        for attributes, value in metric.points:
            if metric.name in COUNTERS and usage and metric.kind != "histogram":
                cell = ".".join(str(attributes[name]) for name in COUNTERS[metric.name] if name in attributes)
                yield _word(metric.name, {}), cell, int(value)
            if metric.kind != "histogram" or _is_detail(attributes):
                continue
            used |= dict.fromkeys(str(word) for name, word in attributes.items() if name != "epochmeter.cold")
            exponents = _exponents(value)
            if metric.name not in COUNTED:
                exponents = _median(exponents)
            for cell, count in exponents.items():
                yield _word(metric.name, attributes), cell, count
    for name, fact in data.facts.items():
        yield _word(name, {}), as_text(fact), 1
    if usage:
        yield from ((USED, word, 1) for word in used if word in (*STAGES, *PHASES))


def _is_detail(attributes: Mapping[str, Any]) -> bool:
    """Return True for a first step, or a nested phase, which are not sent."""
    return attributes.get("epochmeter.cold") is True or attributes.get("epochmeter.phase.level") == "nested"


def _word(name: str, attributes: Mapping[str, Any]) -> str:
    """Return a metric's word: its name and the words of its attributes."""
    words = [str(attributes[key]) for key in ("epochmeter.stage", "epochmeter.phase") if key in attributes]
    return "_".join([name.removeprefix("epochmeter.").replace(".", "_"), *words])


def _exponents(value: HistogramValue) -> dict[str, int]:
    """Return how many durations lie in each power of two: scale 0 of the histogram, in which the finer buckets nest."""
    found: dict[str, int] = {}
    if value.zero_count:
        found[cell_of(LOWEST - 1)] = value.zero_count
    for step, count in enumerate(value.counts):
        index = value.offset + step
        exponent = index >> value.scale if value.scale >= 0 else index << -value.scale
        if count:
            cell = cell_of(exponent)
            found[cell] = found.get(cell, 0) + count
    return found


def _median(cells: Mapping[str, int]) -> dict[str, int]:
    """Return the cell of the median, once. Cells come in rising order."""
    rank, seen = (sum(cells.values()) + 1) // 2, 0
    for cell, count in cells.items():
        seen += count
        if seen >= rank:
            return {cell: 1}
    return {}


def cell_of(exponent: int) -> str:
    """Return the word for durations above ``2**exponent`` seconds, up to twice that."""
    if exponent < LOWEST:
        return f"up to {_power(LOWEST)} s"
    if exponent >= HIGHEST:
        return f"above {_power(HIGHEST)} s"
    return f"{_power(exponent)} to {_power(exponent + 1)} s"


def _power(exponent: int) -> str:
    return str(2**exponent) if exponent >= 0 else f"1/{2**-exponent}"


DURATIONS = tuple(cell_of(exponent) for exponent in range(LOWEST - 1, HIGHEST + 1))


def vocabulary(declared: Declared | None = None) -> dict[str, tuple[str, ...]]:
    """Return every metric that Google can get, and its cells: from the list, and a package's declarations.

    There are too many versions to list: their cells are ``()``, and `first_fault` checks them by their rule.
    """
    words: dict[str, tuple[str, ...]] = {}
    for entry in METRICS:
        if "ga" in entry.destinations and entry.name not in COUNTERS:
            kept = [name for name in ("epochmeter.stage", "epochmeter.phase") if name in entry.attributes]
            choices = [(None, *getattr(entry.attributes[name], "values", ())) for name in kept]
            for values in itertools.product(*choices):
                attributes = {name: value for name, value in zip(kept, values, strict=True) if value is not None}
                words[_word(entry.name, attributes)] = DURATIONS
    for fact in RESOURCE:
        rule = filled(fact.rule_for("ga"), declared)
        if "ga" in fact.destinations and isinstance(rule, (Words, Version)):
            words[_word(fact.name, {})] = tuple(as_text(value) for value in getattr(rule, "values", ()))
    return {**words, **_counted(declared), USED: (*STAGES, *PHASES)}


def _counted(declared: Declared | None) -> dict[str, tuple[str, ...]]:
    """Yield the counts of a package: features, commands, and options as ``command.option``."""
    commands = () if declared is None else declared.commands
    options = tuple(f"{command}.{option}" for command, given in commands for option in given)
    known = {"features": () if declared is None else declared.features, "commands": tuple(name for name, _ in commands)}
    return {_word(name, {}): known.get(name.rpartition(".")[2], options) for name in COUNTERS}


# ---- the last check ------------------------------------------------------------------------------------------------


def readable(body: bytes) -> dict[str, Any]:
    """Return the body as data."""
    found: dict[str, Any] = json.loads(body)
    return found


def first_fault(
    body: bytes, target: str = "ga", yield_gil: Callable[[], None] = lambda: None, declared: Declared | None = None
) -> str | None:
    """Return the first part of these bytes that is not in the vocabulary, or over a limit of the protocol, or None."""
    try:
        request = json.loads(body)
        fault = next(_faults(request, len(body), vocabulary(declared)), None)
        return fault or _time_fault(request["timestamp_micros"]) or (None if _again(request) == body else OTHER_BYTES)
    except (ValueError, KeyError, TypeError, AttributeError):
        return "it is not a body of events"


def _faults(request: Mapping[str, Any], size: int, words: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    if set(request) != {"client_id", "timestamp_micros", "consent", "events"}:
        yield f"it has the fields {', '.join(sorted(map(str, request)))}"
    if size > MAX_BYTES:
        yield f"it has {size} bytes"
    if not IDS.fullmatch(request["client_id"]):
        yield "its client_id is not two random numbers"
    if request["consent"] != CONSENT:
        yield "it does not deny the use for advertising"
    if type(request["timestamp_micros"]) is not int or request["timestamp_micros"] % HOUR_US:
        yield "its time is more exact than an hour"
    if len(request["events"]) != 1:
        yield f"it has {len(request['events'])} events"
    for event in request["events"]:
        yield from _event_faults(event, words)


def _again(request: Mapping[str, Any]) -> bytes:
    """Return the body that is made of the same cell and ids."""
    (event,) = request["events"]
    params = event["params"]
    cell = (params["metric"], params["cell"], params["n"])
    return _body(cell, request["timestamp_micros"], params["session_id"], request["client_id"])


def _time_fault(micros: int) -> str | None:
    """Return a fault if Google would not take the time any more, or not yet."""
    present = time.time_ns() // 1000
    if not present - MAX_AGE_US <= micros <= present + HOUR_US:
        return OTHER_TIME
    return None


def _is_version(params: Mapping[str, Any]) -> bool:
    return bool(params["metric"] == APP_VERSION and coarse(Version(), params["cell"]) == params["cell"])


def _event_faults(event: Mapping[str, Any], words: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    if set(event) != {"name", "params"} or event["name"] != EVENT:
        yield "it has an event of another name or with other fields"
    params = event["params"]
    if set(params) != {"metric", "cell", "n", "session_id", "engagement_time_msec"}:
        yield f"an event has the parameters {', '.join(sorted(map(str, params)))}"
    if params["metric"] not in words:
        yield f"the metric {params['metric']!r} is not on the list"
    elif params["cell"] not in words[params["metric"]] and not _is_version(params):
        yield f"{params['cell']!r} is no cell of {params['metric']}"
    if params["n"] not in TIMES or type(params["n"]) is not int:
        yield "an event has a number of times that is no class"
    if any(type(params[name]) is not int or not 1 <= params[name] <= most for name, most in HIGHEST_IDS):
        yield "an event has a number that is not a whole one above 0, or too large"
