"""A package's facts, each apart from the others: its author learns how frequent each is, and not which go together.

Together, the facts of one payload may tell one machine from all others. Apart, each is in a payload of its own, with an id and
an hour that it shares with nothing else.
"""

from __future__ import annotations

import secrets

from exporters.allowlist import facts
from exporters.measurements import Measured, Snapshot

KEPT = ("service.name", "service.version", "service.instance.id", "epochmeter.app.name", "epochmeter.app.version")
ALONE = ("service.name", "service.version", "epochmeter.app.name")  # beside a fact, the same for all of a package's users
SUMMARY = Measured("epochmeter.usage.summaries", "sum", 1, {})
HOUR_NS = 3_600_000_000_000


def facts_apart(data: Snapshot) -> tuple[Snapshot, list[Snapshot]]:
    """Return the same measurements without the facts of their machine, and each of these facts alone."""
    hour = data.now // HOUR_NS * HOUR_NS
    shared = {name: data.facts[name] for name in ALONE if name in data.facts}
    single = [
        Snapshot({**shared, "service.instance.id": secrets.token_hex(6), name: data.facts[name]}, [SUMMARY], hour, hour)
        for name in facts("otlp")
        if name in data.facts and name not in KEPT
    ]
    return data._replace(facts={name: data.facts[name] for name in KEPT if name in data.facts}), single
