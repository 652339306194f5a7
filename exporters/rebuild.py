"""Outgoing data, rebuilt from the list: a metric, an attribute, a fact or a number that it does not name has no way out.

The rule it keeps: rebuild, never filter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from exporters.allowlist import ListedMetric, metrics, sendable_facts
from exporters.bounds import MAX_POINTS, is_within
from exporters.measurements import Measured, Outgoing, OutgoingMetric, Snapshot
from exporters.rules import Declared, Rule, coarse, significant, size_class


def rebuild(data: Snapshot, target: str = "otlp", declared: Declared | None = None) -> Outgoing:
    """Return new data with the listed metrics and facts for this destination, always in the same order."""
    points: dict[tuple[str, str], list[Measured]] = {}
    for point in data.points:
        points.setdefault((point.name, point.kind), []).append(point)
    found, left_out = [], 0
    for entry in metrics(target, declared):
        metric, out = _metric(entry, points.get((entry.name, entry.kind), ()))
        left_out += out
        if metric is not None:
            found.append(metric)
    return Outgoing(sendable_facts(data.facts, target, declared), tuple(found), data.began, data.now, left_out)


def _metric(entry: ListedMetric, points: Iterable[Measured]) -> tuple[OutgoingMetric | None, int]:
    """Return the listed metric with the sendable ones of its points, if any, and the number of those out of bounds."""
    found: dict[tuple[str, ...], tuple[dict[str, Any], Any]] = {}
    left_out = 0
    for point in points:
        attributes = _attributes(entry, point.attributes)
        if attributes is None:
            continue
        if not is_within(entry, point.value) or len(found) >= MAX_POINTS:
            left_out += 1
            continue
        order = tuple(f"{name}={value}" for name, value in attributes.items())
        value = point.value if entry.kind == "histogram" else sendable_number(entry, point.value)
        found.setdefault(order, (attributes, value))
    if not found:
        return None, left_out
    ordered = tuple(found[order] for order in sorted(found))
    return OutgoingMetric(entry.name, entry.purpose, entry.unit, entry.kind, ordered), left_out


def _attributes(entry: ListedMetric, found: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the listed attributes in sendable form, or None if the point has others, lacks one, or has an unsendable value."""
    rules: Mapping[str, Rule] = entry.attributes
    if set(found) - set(rules) or set(rules) - set(found) - set(entry.optional):
        return None
    sendable = {name: coarse(rule, found[name]) for name, rule in rules.items() if name in found}
    return None if None in sendable.values() else sendable


def sendable_number(entry: ListedMetric, value: int | float) -> int | float:
    """Return a metric's number in the form that may be sent."""
    if entry.sizes:
        return size_class(value, entry.sizes)
    return value if entry.digits is None else significant(value, entry.digits)
