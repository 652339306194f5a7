"""Recognise a loader: two loaders over the same data have the same key."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from typing import Any


class LoaderKeys:
    """The keys of loaders: equal for the same data set, or for one made anew in the place of another that is gone."""

    def __init__(self) -> None:
        self._known: list[tuple[Callable[[], Any], Hashable]] = []  # data sets, each with its type and length

    def key(self, loader: Any) -> int:
        """Return the key of a loader."""
        data = getattr(loader, "dataset", getattr(loader, "_dataset", loader))
        try:
            kind: Any = (type(data), len(data))
        except Exception:  # user code: a data set without a length may raise anything
            kind = type(data)
        for position, (reference, _) in enumerate(self._known):
            if reference() is data:
                return position
        entry = _reference(data), kind
        for position, (reference, known) in enumerate(self._known):
            if reference() is None and known == kind:
                self._known[position] = entry
                return position
        self._known.append(entry)
        return len(self._known) - 1


def _reference(thing: Any) -> Callable[[], Any]:
    try:
        return weakref.ref(thing)
    except TypeError:  # a list, for example
        return lambda: thing
