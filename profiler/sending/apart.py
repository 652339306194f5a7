"""A package's facts, each apart from the others: its author learns how frequent each is, and not which go together.

Together, the facts of one payload may single out one machine. Apart, each is in a payload of its own, with an id and
an hour that it shares with nothing else.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import Any

from exporters.allowlist import facts
from exporters.measurements import Measured, Snapshot

KEPT = ("service.name", "service.version", "service.instance.id", "epochmeter.app.name", "epochmeter.app.version")
ALONE = ("service.name", "service.version", "epochmeter.app.name")  # beside a fact, the same for all of a package's users
FACTS = "epochmeter.usage.facts"
SUMMARY = Measured("epochmeter.usage.summaries", "sum", 1, {})
OF_JOB = tuple(f"epochmeter.distributed.{name}" for name in ("rank", "node", "job"))  # an author needs none of these
WORLD_SIZE = "epochmeter.distributed.world_size"
HOUR_NS = 3_600_000_000_000


def facts_apart(data: Snapshot) -> tuple[Snapshot, list[Snapshot]]:
    """Return the same measurements without the facts of their machine, and each of these facts alone."""
    hour = data.now // HOUR_NS * HOUR_NS
    shared = {name: data.facts[name] for name in ALONE if name in data.facts}
    single = [
        Snapshot({**shared, "service.instance.id": secrets.token_hex(6), name: _alone(name, data)}, [SUMMARY], hour, hour)
        for name in facts("otlp")
        if name in data.facts and name not in (*KEPT, *OF_JOB)
    ]
    told = [point for point in data.points if point.name == FACTS]
    single += [
        Snapshot({**shared, "service.instance.id": secrets.token_hex(6)}, points, hour, hour) for points in _by_fact(told)
    ]
    kept = {name: data.facts[name] for name in KEPT if name in data.facts}
    others = [point for point in data.points if point.name != FACTS]
    if not others and single:
        return single[-1], single[:-1]  # of a program that only tells of its runs
    return data._replace(facts=kept, points=others), single


def _by_fact(points: Iterable[Measured]) -> Iterable[list[Measured]]:
    """Return the facts of a package's runs, each apart: its words and outcomes go together, and nothing else with them."""
    found: dict[str, list[Measured]] = {}
    for point in points:
        found.setdefault(point.attributes["epochmeter.usage.fact"].partition(".")[0], []).append(point)
    return found.values()


def _alone(name: str, data: Snapshot) -> Any:
    """Return a fact as an author gets it: of the number of ranks, the next power of two."""
    value = data.facts[name]
    return 1 << (value - 1).bit_length() if name == WORLD_SIZE and isinstance(value, int) else value
