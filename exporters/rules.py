"""How a value may be told: by a word that is written down, in a class, or with few digits."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

OTHER = "other"
GIB = 2**30


@dataclass(frozen=True)
class Words:
    """An attribute whose values are written down.

    Attributes:
        values: the words; anything else is told as ``other`` if that is one of them, else not at all.
        contained: the value is told as the longest word that it contains (a card's full name as "H100").
        upward: numbers; the value is told as the next one that is not below it.
    """

    values: tuple[str | int | bool, ...]
    contained: bool = False
    upward: bool = False


@dataclass(frozen=True)
class Random:
    """An attribute that is drawn at random for each run: lower-case hexadecimal digits, exactly this many."""

    digits: int


Rule = Words | Random


def coarse(rule: Rule, value: Any) -> Any:
    """A value as it may be told, or None where it may not."""
    if isinstance(rule, Random):
        return value if isinstance(value, str) and re.fullmatch(f"[0-9a-f]{{{rule.digits}}}", value) else None
    if rule.upward and isinstance(value, (int, float)):
        return next((size for size in rule.values if size >= value), rule.values[-1])  # type: ignore[operator]
    if rule.contained and isinstance(value, str):
        found = [str(word) for word in rule.values if str(word) in value.replace("GeForce ", "")]
        return max(found, key=len, default=OTHER)  # a GH200 is no H200
    for known in rule.values:
        if known == value and type(known) is type(value):
            return known
    return OTHER if OTHER in rule.values else None


def significant(value: int | float, digits: int) -> int | float:
    """The number with so many significant digits; a whole number stays whole."""
    if not value or not math.isfinite(value):
        return value
    rounded = round(value, digits - 1 - math.floor(math.log10(abs(value))))
    return int(rounded) if isinstance(value, int) else rounded


def size_class(value: int | float, sizes: tuple[int, ...]) -> int:
    """A size in bytes as the nearest class, which is given in GiB: an 80 GB card has 79.6 GiB."""
    return min(sizes, key=lambda size: abs(size * GIB - value)) * GIB
