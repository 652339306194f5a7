"""Medians with their intervals, and how the ways of a case stand beside its floor."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from case import FLOOR, Case, Figure

CONFIDENCE = 0.95


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return an interval that holds the median at 95 % or more, by order statistics; few values give all of their range.

    The k-th smallest and k-th largest of n hold it with the probability 1 - 2 P(X < k), X binomial (n, 1/2): the sign test.
    """
    ordered = sorted(values)
    n, outside, k = len(ordered), 0.0, 0
    while k < (n - 1) // 2:
        outside += 2 * math.comb(n, k) / 2**n
        if outside > 1 - CONFIDENCE:
            break
        k += 1
    k = max(k - 1, 0)
    return ordered[k], ordered[n - 1 - k]


def summed_up(values: Sequence[float]) -> dict[str, Any]:
    """Return the median, its interval and the values of a number that was measured several times."""
    low, high = interval(values)
    return {"median": statistics.median(values), "interval": [low, high], "values": list(values)}


def beside(case: Case, figure: Figure, found: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, Any]]:
    """Return what each way told, and how it stands beside the floor's value of the same turn.

    A way may tell the floor of its own process, as ``floor_<figure>``: then that one is taken.
    """
    floors = [way.name for way in case.ways if way.whose == FLOOR]
    rows = {}
    for name, entries in found.items():
        values = [entry[figure.key] * figure.scale for entry in entries]
        row: dict[str, Any] = summed_up(values)
        if figure.against:
            own = [entry.get(f"floor_{figure.key}") for entry in entries]
            turns = own if own[0] is not None else [entry[figure.key] for entry in found[floors[0]]]
            pairs = list(zip(values, (turn * figure.scale for turn in turns), strict=True))  # type: ignore[operator]
            row[figure.against] = summed_up([a / b if figure.against == "ratio" else a - b for a, b in pairs])
        rows[name] = row
    return rows
