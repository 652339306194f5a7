"""Check the values of a run log, which anybody may have written, so that every later step can work with them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, TypeVar

T = TypeVar("T")
MAX_WHOLE = 2**63 - 1


def attributes_of(holder: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes of a point or a resource.

    Raises:
        KeyError, TypeError, ValueError: one has no form that ours have.
    """
    found = {}
    for entry in holder.get("attributes", ()):
        key, value = entry["key"], entry["value"]
        if type(key) is not str:
            raise TypeError("an attribute's name is no text")
        text, whole = value.get("stringValue"), value.get("intValue")
        # Nearly all are one of the first two.
        found[key] = text if type(text) is str else whole_64(whole) if type(whole) is str else _value_of(value)
    return found


def _value_of(value: Mapping[str, Any]) -> Any:
    kind, content = next(iter(value.items()))
    if kind == "intValue":
        return whole_64(content)
    if kind == "doubleValue":
        return finite(content)
    if kind == "arrayValue":
        return [_value_of(entry) for entry in content.get("values", ())]
    return of_type({"stringValue": str, "boolValue": bool}[kind], content)


def number_of(point: Mapping[str, Any]) -> float | int:
    """Return the number of a point.

    Raises:
        KeyError, TypeError, ValueError: it has none, or none that was measured.
    """
    return whole_64(point["asInt"]) if "asInt" in point else finite(point["asDouble"])


@lru_cache(4_096, typed=True)  # a log says the same few numbers again and again
def whole_64(text: str | int) -> int:
    """Return a whole number of 64 bits, which JSON holds as text.

    Raises:
        ValueError: it is none.
    """
    if len(str(text)) > 20:
        raise ValueError("a number is longer than 64 bits")
    number = int(text)
    if not -MAX_WHOLE <= number <= MAX_WHOLE:
        raise ValueError("a number is longer than 64 bits")
    return number


def finite(value: Any) -> float:
    """Return a number that every later step can work with.

    Raises:
        ValueError, TypeError: it is none, not finite, or beyond all measurements.
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
