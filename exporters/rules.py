"""The form in which a value may be sent: a listed word, a class, or few digits.

The rules `OfApp` and `Frame` are filled in with the declarations of a package that embeds us (`Declared`).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Any

OTHER, DEV = "other", "dev"
NAME = re.compile("[A-Za-z0-9][A-Za-z0-9_.-]{0,39}")  # of what a package declares
MODULE = re.compile(r"[A-Za-z_]\w{0,39}", re.ASCII)
GIB = 2**30
SERVICE_NAME, LABEL = "service.name", "epochmeter.label."
SAID = "[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"  # of the user's own words
ATTRIBUTE = r"(?=.{1,90}\Z)[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*"
OURS = ("epochmeter.", "telemetry.", "service.version", "service.instance.id", "host.arch", "os.type", "process.runtime.")
PUBLISHED = r"(20\d\d|\d{1,3})(\.\d{1,3}){0,2}((a|b|rc|\.post)\d{1,2})?"  # of a version, a year in front perhaps


@dataclass(frozen=True)
class Words:
    """An attribute with listed values.

    Attributes:
        values: the words. Any other value becomes ``other`` if that is one of them, and is left out if not.
        contained: the value becomes the longest word that it contains (a card's full name becomes "H100").
        upward: the value, a number, becomes the next listed one that is not below it.
    """

    values: tuple[str | int | bool, ...]
    contained: bool = False
    upward: bool = False


@dataclass(frozen=True)
class Whole:
    """A whole number from 0 to this one, as it is."""

    most: int


@dataclass(frozen=True)
class Random:
    """An attribute drawn at random for each run: exactly this many lower-case hexadecimal digits."""

    digits: int


@dataclass(frozen=True)
class OfApp:
    """An attribute whose values a package declares: "app", "features", "commands", "options" or "told"."""

    what: str


@dataclass(frozen=True)
class Version:
    """A released version unchanged, such as 1.2.3 or 2.0rc1. Any other becomes ``dev``, because it may name a commit."""


@dataclass(frozen=True)
class Frame:
    """A frame of a traceback as ``module:function:+line``, with the line counted from the function's first one.

    A frame outside these modules becomes ``other``.
    """

    modules: tuple[str, ...] = ()


Rule = Words | Whole | Random | OfApp | Version | Frame


@dataclass(frozen=True)
class Declared:
    """The declarations of a package that embeds us, and the user's own words: their part of the list.

    Attributes:
        app: the package's name, "" for none.
        modules: its import packages.
        features: names of features.
        commands: names of commands, each with the names of its options.
        said: the user's own words for whose run it is, as resource attributes; for the user's own collector alone.
        told: the facts of its runs, each with one of its words: ``task.detect``.
    """

    app: str
    modules: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    commands: tuple[tuple[str, tuple[str, ...]], ...] = ()
    said: tuple[tuple[str, str], ...] = ()
    told: tuple[str, ...] = ()

    @property
    def of_package(self) -> Declared | None:
        """The declarations of the package alone, without the user's own words; None if there is no package."""
        return replace(self, said=()) if self.app else None

    def words(self, what: str) -> tuple[str, ...]:
        """Return the names of one kind, in their order."""
        if what == "app":
            return (self.app,)
        if what == "features":
            return self.features
        if what == "told":
            return self.told
        if what == "commands":
            return tuple(name for name, _ in self.commands)
        return tuple(dict.fromkeys(option for _, options in self.commands for option in options))


def declared_from(data: Any) -> Declared:
    """Return declarations that were kept as JSON.

    Raises:
        ValueError, KeyError, TypeError: they are none.
    """
    commands = tuple((name, tuple(options)) for name, options in data["commands"])
    said = tuple((str(name), str(value)) for name, value in data.get("said", ()))
    found = Declared(data["app"], tuple(data["modules"]), tuple(data["features"]), commands, said, tuple(data.get("told", ())))
    if not all(may_be_said(name, value) for name, value in said) or len(dict(said)) < len(said):
        raise ValueError("a word of the user's in it cannot be one")
    kinds = ("app", "features", "commands", "options", "told") if found.app or found.modules else ()
    names = [name for what in kinds for name in found.words(what)]
    if not all(NAME.fullmatch(name) for name in names) or not all(MODULE.fullmatch(name) for name in found.modules):
        raise ValueError("a name in it cannot be one")
    return found


def may_be_said(name: str, value: str) -> bool:
    """Return True if a user may say this of a run: a service's name, a label, or an attribute that is none of ours."""
    is_ours = name.startswith(OURS) and not name.startswith(LABEL)
    known = name == SERVICE_NAME or re.fullmatch(ATTRIBUTE, name, re.ASCII) is not None
    return known and not is_ours and re.fullmatch(SAID, value, re.ASCII) is not None


def filled(rule: Rule, declared: Declared | None) -> Rule:
    """Return a rule with the declarations filled in. Without declarations, no value fits."""
    if isinstance(rule, OfApp):
        return Words(() if declared is None else declared.words(rule.what))
    if isinstance(rule, Frame):
        return Frame(() if declared is None else declared.modules)
    return rule


def coarse(rule: Rule, value: Any) -> Any:
    """Return a value in the form that may be sent, or None if it may not."""
    if isinstance(rule, Random):
        return value if isinstance(value, str) and re.fullmatch(f"[0-9a-f]{{{rule.digits}}}", value) else None
    if isinstance(rule, Whole):
        return value if type(value) is int and 0 <= value <= rule.most else None
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
    return value if re.fullmatch(PUBLISHED, value, re.ASCII) else DEV


def _frame(rule: Frame, value: Any) -> str:
    parts = value.split(":") if isinstance(value, str) else []
    if len(parts) != 3 or parts[0].partition(".")[0] not in rule.modules:
        return OTHER
    whole = re.fullmatch(r"[\w.]{1,120}:[\w.<>]{1,120}:\+\d{1,6}", str(value), re.ASCII)
    return str(value) if whole else OTHER


def as_text(value: Any) -> str:
    """Return a value as text."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def significant(value: int | float, digits: int) -> int | float:
    """Return the number with that many significant digits. A whole number stays whole."""
    if not value or not math.isfinite(value):
        return value
    rounded = round(value, digits - 1 - math.floor(math.log10(abs(value))))
    return int(rounded) if isinstance(value, int) else rounded


def size_class(value: int | float, sizes: tuple[int, ...]) -> int:
    """Return a size in bytes as the nearest class, given in GiB: an 80 GB card has 79.6 GiB."""
    return min(sizes, key=lambda size: abs(size * GIB - value)) * GIB
