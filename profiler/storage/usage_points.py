"""The counts of a package as points."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from profiler.records.run import FACT_NAMES
from profiler.storage.points import point_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.storage.points import Point
    from profiler.storage.usage_ledger import Counts


def usage_points(counts: Counts) -> Iterable[Point]:
    """Yield a package's counts."""
    for feature, times in counts.features.items():
        yield point_of("epochmeter.usage.features", "sum", times, {"epochmeter.usage.feature": feature})
    for command, times in counts.commands.items():
        yield point_of("epochmeter.usage.commands", "sum", times, {"epochmeter.usage.command": command})
    for command, options in counts.options.items():
        for option, times in options.items():
            at = {"epochmeter.usage.command": command, "epochmeter.usage.option": option}
            yield point_of("epochmeter.usage.options", "sum", times, at)
    for word, outcomes in counts.told.items():
        for outcome, times in outcomes.items():
            yield point_of(
                "epochmeter.usage.facts", "sum", times, {"epochmeter.usage.fact": word, "epochmeter.usage.outcome": outcome}
            )


def runtime_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of the probe `runtime` by the names that they are sent under."""
    return {FACT_NAMES.get(("runtime", key), f"epochmeter.runtime.{key}"): value for key, value in facts.items()}
