"""Check the values of a run log, which anybody may have written, for what every later step can work with."""

from __future__ import annotations

from typing import Any, TypeVar

T = TypeVar("T")
MAX_WHOLE = 2**63 - 1


def whole_64(text: str | int) -> int:
    """Return a whole number of 64 bits, which JSON holds as text.

    Raises:
        ValueError: it is none.
    """
    if type(text) is str and len(text) < 19 and text.isdecimal():  # nearly all: a fleet has billions of them
        return int(text)
    if len(str(text)) > 20:
        raise ValueError("a number is longer than 64 bits")
    number = int(text)
    if not -MAX_WHOLE <= number <= MAX_WHOLE:
        raise ValueError("a number is longer than 64 bits")
    return number


def finite(value: Any) -> float:
    """Return a number that every later step can work with.

    Raises:
        ValueError, TypeError: it is none, not finite, or beyond what can be measured.
    """
    number = float(value)
    if not abs(number) <= MAX_WHOLE:
        raise ValueError("a number is not finite, or too large")
    return number


def whole_upto(value: Any, most: int) -> Any:
    """Return a whole number from 0 on, or None for None.

    Raises:
        ValueError: it is neither.
    """
    if value is not None and not (type(value) is int and 0 <= value <= most):
        raise ValueError("an attribute is no such number")
    return value


def of_type(kind: type[T], value: Any) -> T:
    """Return a value of this type.

    Raises:
        TypeError: it is of another.
    """
    if not isinstance(value, kind):
        raise TypeError("an attribute has another type")
    return value


def one_of(words: tuple[Any, ...], value: Any) -> Any:
    """Return one of these words.

    Raises:
        ValueError: it is another.
    """
    if value not in words:
        raise ValueError("an attribute has no known value")
    return value
