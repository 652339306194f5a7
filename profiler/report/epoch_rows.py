"""Which epochs of a long run a table shows: the first, the last, the slowest, and those that are unlike the others."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any, NamedTuple

SHOWN = 12  # epochs of a longer run
ENDS = 2  # of them, at either end
KINDS = 4  # of the slowest, and of the most unlike
SLOW = 1.1  # times the usual time: less is no news
NOISE = 6.0  # times the median distance from the usual time: less is noise (of 1,000 normal values none, as a rule)
UNLIKE = 0.05  # of an epoch's time is in other phases than usual: less is no news


class EpochRow(NamedTuple):
    """An epoch to show, or how many are left out between two.

    Attributes:
        epoch: the epoch of the document, None for a gap.
        why: the reason to show it, in words, or "".
        left_out: how many epochs stand in the gap.
    """

    epoch: dict[str, Any] | None
    why: str = ""
    left_out: int = 0


def epoch_rows(epochs: Sequence[dict[str, Any]], *, shows_all: bool = False) -> Iterator[EpochRow]:
    """Yield the epochs to show, in their order, and the gaps between them; with ``shows_all`` there is no gap."""
    reasons = {**_unlike(epochs), **_slowest(epochs)}
    shown = set(range(len(epochs)))
    if len(epochs) > SHOWN and not shows_all:
        shown = {*range(ENDS), *range(len(epochs) - ENDS, len(epochs)), *reasons}
    before = -1
    for position in sorted(shown):
        if position > before + 1:
            yield EpochRow(None, left_out=position - before - 1)
        yield EpochRow(epochs[position], reasons.get(position, ""))
        before = position


def pace(epoch: dict[str, Any]) -> float:
    """Return the time that a step of an epoch took (s); of an epoch without steps, its whole time."""
    steps = sum(stage["steps"] for stage in epoch["stages"])
    spent: float = sum(stage["duration_s"] for stage in epoch["stages"])
    return spent / steps if steps else float(epoch["duration_s"])


def makeup(epoch: dict[str, Any]) -> dict[tuple[str, str], float]:
    """Return each phase's share of an epoch's time in its stages."""
    spent = {(stage["stage"], name): phase["total_s"] for stage in epoch["stages"] for name, phase in stage["phases"].items()}
    whole = sum(spent.values())
    return {key: value / whole for key, value in spent.items()} if whole else {}


def _slowest(epochs: Sequence[dict[str, Any]]) -> dict[int, str]:
    paces = list(map(pace, epochs))
    usual = median(paces) if paces else 0.0
    noise = median(abs(value - usual) for value in paces) if paces else 0.0
    found = _highest(paces, lambda value: value > max(SLOW * usual, usual + NOISE * noise) > 0)
    return {position: f"{paces[position] / usual:.1f} x the usual step" for position in found}


def _unlike(epochs: Sequence[dict[str, Any]]) -> dict[int, str]:
    makeups = list(map(makeup, epochs))
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    for shares in makeups:
        for key, value in shares.items():
            values[key].append(value)
    usual = {key: median([*known, *[0.0] * (len(epochs) - len(known))]) for key, known in values.items()}
    more = [{key: value - usual[key] for key, value in shares.items()} for shares in makeups]
    found = _highest([sum(value for value in change.values() if value > 0) for change in more], lambda value: value > UNLIKE)
    reasons = {}
    for position in found:
        key = max(more[position], key=lambda one: more[position][one])
        reasons[position] = f"{makeups[position][key]:.0%} in {key[1]}"
    return reasons


def _highest(values: Sequence[float], is_notable: Callable[[float], bool]) -> list[int]:
    notable = (position for position, value in enumerate(values) if is_notable(value))
    return heapq.nlargest(KINDS, notable, key=lambda position: values[position])
