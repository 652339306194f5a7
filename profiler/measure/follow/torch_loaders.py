"""Recognise a loader: two loaders over the same data have the same key."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

from profiler.records.faults import is_of_a_signal


class _Known(NamedTuple):
    """A data set that was seen, without keeping it alive."""

    is_alive: Callable[[], Any]
    address: int  # tells it from others while it is alive
    kind: Hashable  # its type and length


class LoaderKeys:
    """The keys of loaders: equal for the same data set, or for one made anew in the place of another that is gone."""

    def __init__(self) -> None:
        self._known: list[_Known] = []

    def key(self, loader: Any) -> int:
        """Return the key of a loader."""
        data = getattr(loader, "dataset", getattr(loader, "_dataset", loader))
        try:
            kind: Any = (type(data), len(data))
        except Exception as error:  # user code: a data set without a length may raise anything
            if is_of_a_signal(error):
                raise
            kind = type(data)
        seen = _Known(_life_of(data, loader), id(data), kind)
        places = range(len(self._known))
        same = (place for place in places if self._known[place].address == id(data) and self._is_alive(place))
        replaced = (place for place in places if self._known[place].kind == kind and not self._is_alive(place))
        found = next(itertools.chain(same, replaced), None)
        if found is None:
            self._known.append(seen)
            return len(self._known) - 1
        self._known[found] = seen
        return found

    def _is_alive(self, place: int) -> bool:
        return self._known[place].is_alive() is not None


def _life_of(data: Any, loader: Any) -> Callable[[], Any]:
    """Return a weak reference to the data, or to the loader that holds it: a list has none."""
    for thing in (data, loader):
        try:
            return weakref.ref(thing)
        except TypeError:
            continue
    return _is_gone


def _is_gone() -> None:
    return None
