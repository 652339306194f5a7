"""Texts from outside (names, cards, collectors, logs of others) as they may reach a terminal: one rule for all of them.

A terminal obeys the text it shows: an escape sequence recolours or renames it, a line break forges a line, and a mark of
direction turns a text around. So every character that `str.isprintable` refuses is written as its escape.
"""

from __future__ import annotations

from typing import Any


def printable(text: object) -> str:
    """Return a text in one line, with every character that cannot be printed written as its escape."""
    whole = str(text)
    return whole if whole.isprintable() else "".join(one if one.isprintable() else _escape(one) for one in whole)


def printable_lines(text: str) -> str:
    """Return a text whose line breaks are ours, with every other character as in `printable`."""
    return "\n".join(map(printable, text.split("\n")))


def printable_in(data: Any) -> Any:
    """Return plain data with every text in it, names of entries included, as in `printable`."""
    if isinstance(data, str):
        return printable(data)
    if isinstance(data, dict):
        return {printable_in(key): printable_in(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [printable_in(entry) for entry in data]
    return data


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")
