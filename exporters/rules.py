"""How a value may be told: by a word that is written down, in a class, or with few digits.

The blanks of the list (`OfApp`, `Frame`) are filled with what a package that embeds us has declared (`Declared`).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

OTHER, DEV = "other", "dev"
NAME = re.compile("[A-Za-z0-9][A-Za-z0-9_.-]{0,39}")  # of what a package declares
MODULE = re.compile(r"[A-Za-z_]\w{0,39}", re.ASCII)
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


@dataclass(frozen=True)
class OfApp:
    """An attribute whose values a package that embeds us declares: "app", "features", "commands" or "options"."""

    what: str


@dataclass(frozen=True)
class Version:
    """A released version as it is, such as 1.2.3 or 2.0rc1; any other is ``dev``: it may name a commit."""


@dataclass(frozen=True)
class Frame:
    """A frame of a traceback as ``module:function:+line``, the line counted from the function's first one, where it is of
    one of these modules or within one; any other is ``other``."""

    modules: tuple[str, ...] = ()


Rule = Words | Random | OfApp | Version | Frame


@dataclass(frozen=True)
class Declared:
    """What a package that embeds us has declared: its part of the list.

    Attributes:
        app: the package's name.
        modules: the import packages that are its own.
        features: names of features.
        commands: names of commands, each with the names of its options.
    """

    app: str
    modules: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    commands: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def words(self, what: str) -> tuple[str, ...]:
        """The names of one kind, in their order."""
        if what == "app":
            return (self.app,)
        if what == "features":
            return self.features
        if what == "commands":
            return tuple(name for name, _ in self.commands)
        return tuple(dict.fromkeys(option for _, options in self.commands for option in options))


def declared_from(data: Any) -> Declared:
    """A declaration that was kept as JSON.

    Raises:
        ValueError, KeyError, TypeError: it is none.
    """
    commands = tuple((name, tuple(options)) for name, options in data["commands"])
    found = Declared(data["app"], tuple(data["modules"]), tuple(data["features"]), commands)
    names = [name for what in ("app", "features", "commands", "options") for name in found.words(what)]
    if not all(NAME.fullmatch(name) for name in names) or not all(MODULE.fullmatch(name) for name in found.modules):
        raise ValueError("a name in it cannot be one")
    return found


def filled(rule: Rule, declared: Declared | None) -> Rule:
    """A rule with its blank filled; where nobody has declared anything, no value fits."""
    if isinstance(rule, OfApp):
        return Words(() if declared is None else declared.words(rule.what))
    if isinstance(rule, Frame):
        return Frame(() if declared is None else declared.modules)
    return rule


def coarse(rule: Rule, value: Any) -> Any:
    """A value as it may be told, or None where it may not."""
    if isinstance(rule, Random):
        return value if isinstance(value, str) and re.fullmatch(f"[0-9a-f]{{{rule.digits}}}", value) else None
    if isinstance(rule, Version):
        return _version(value)
    if isinstance(rule, Frame):
        return _frame(rule, value)
    if isinstance(rule, OfApp):
        return None  # nobody has declared anything
    if rule.upward and isinstance(value, (int, float)):
        return next((size for size in rule.values if size >= value), rule.values[-1])  # type: ignore[operator]
    if rule.contained and isinstance(value, str):
        found = [str(word) for word in rule.values if str(word) in value.replace("GeForce ", "")]
        return max(found, key=len, default=OTHER)  # a GH200 is no H200
    for known in rule.values:
        if known == value and type(known) is type(value):
            return known
    return OTHER if OTHER in rule.values else None


def _version(value: Any) -> str | None:
    if not isinstance(value, str):
        return None
    return value if re.fullmatch(r"\d{1,4}(\.\d{1,4}){0,3}((a|b|rc|\.post)\d{1,3})?", value, re.ASCII) else DEV


def _frame(rule: Frame, value: Any) -> str:
    parts = value.split(":") if isinstance(value, str) else []
    if len(parts) != 3 or parts[0].partition(".")[0] not in rule.modules:
        return OTHER
    whole = re.fullmatch(r"[\w.]{1,120}:[\w.<>]{1,120}:\+\d{1,6}", str(value), re.ASCII)
    return str(value) if whole else OTHER


def as_text(value: Any) -> str:
    """A value where only text can stand."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def significant(value: int | float, digits: int) -> int | float:
    """The number with so many significant digits; a whole number stays whole."""
    if not value or not math.isfinite(value):
        return value
    rounded = round(value, digits - 1 - math.floor(math.log10(abs(value))))
    return int(rounded) if isinstance(value, int) else rounded


def size_class(value: int | float, sizes: tuple[int, ...]) -> int:
    """A size in bytes as the nearest class, which is given in GiB: an 80 GB card has 79.6 GiB."""
    return min(sizes, key=lambda size: abs(size * GIB - value)) * GIB
