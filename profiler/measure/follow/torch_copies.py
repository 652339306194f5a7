"""Put our hooks into torch, and keep them out of every copy, pickle and file.

The rule it keeps: the program's copies and files are the same, byte for byte, with and without us. Our hooks lie in torch's own
ordered dicts. While any is in place, ordered dicts are reduced here, and those that hold our hooks leave them out. torch's
counter of hooks is not touched, because the numbers of the user's hooks are saved with a module.
"""

from __future__ import annotations

import contextlib
import copyreg
import functools
import gc
import itertools
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any


class Copies:
    """The dicts that hold hooks of ours, and the reduction of ordered dicts while there are any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ours: dict[int, tuple[weakref.ref[Any], frozenset[int]]] = {}  # by id of a dict: it, and our keys in it
        self._before: Callable[[Any], Any] | None = None  # the program's own reduction of ordered dicts

    def add(self, hooks: OrderedDict[int, Any], key: int) -> None:
        """Leave a key of a dict out of its copies."""
        with self._lock:
            if not self._ours:
                self._before = copyreg.dispatch_table.get(OrderedDict)
                copyreg.dispatch_table[OrderedDict] = self._reduce
            self._ours[id(hooks)] = weakref.ref(hooks), self._keys(hooks) | {key}

    def discard(self, place: int, key: int) -> None:
        """Forget a key in the dict of this id. The last one restores the original."""
        with self._lock:
            reference, keys = self._ours.pop(place, (None, frozenset()))
            if reference is not None and keys - {key}:
                self._ours[place] = reference, keys - {key}
            if self._ours or copyreg.dispatch_table.get(OrderedDict) != self._reduce:
                return
            if self._before is None:
                del copyreg.dispatch_table[OrderedDict]
            else:
                copyreg.dispatch_table[OrderedDict] = self._before

    def _keys(self, hooks: OrderedDict[Any, Any]) -> frozenset[int]:
        reference, keys = self._ours.get(id(hooks), (None, frozenset()))
        return keys if reference is not None and reference() is hooks else frozenset()  # an id is used again after its dict

    def _reduce(self, hooks: OrderedDict[Any, Any]) -> Any:
        keys = self._keys(hooks)
        if keys:
            kept = OrderedDict((key, value) for key, value in hooks.items() if key not in keys)
            vars(kept).update(vars(hooks))
            hooks = kept
        return hooks.__reduce__() if self._before is None else self._before(hooks)


class Hook(functools.partial):  # type: ignore[type-arg]
    """A hook that becomes a function that does nothing where a copy or pickle has it after all.

    That is a pickler with a table of reductions of its own, or a module whose dicts the program has replaced.
    """

    __name__ = "hook"  # programs that list the hooks of a module ask for it

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (contextlib.nullcontext(), "__exit__")


COPIES = Copies()
_NUMBERS = itertools.count(-1, -1)  # torch counts its own from 0 up; torch.compile reads plain numbers only


class PlacedHooks:
    """Hooks of ours in dicts of torch, as its ``register_..._hook`` functions put them there, but for the key.

    Args:
        places: dicts of hooks, each with the hook to put there. They are not held.
    """

    def __init__(self, *places: tuple[OrderedDict[int, Any], Any]) -> None:
        self._key = next(_NUMBERS)
        self._places = [(id(hooks), weakref.ref(hooks)) for hooks, _ in places]
        for hooks, value in places:
            COPIES.add(hooks, self._key)
            hooks[self._key] = value

    def remove(self) -> None:
        """Remove the hooks."""
        for place, reference in self._places:
            hooks = reference()
            if hooks is not None:
                hooks.pop(self._key, None)
            COPIES.discard(place, self._key)


def drop_passed_on(hook: Any) -> None:
    """Remove a hook of ours from dicts that torch has copied it to: quantising in place hands hooks on to new modules.

    It looks through all objects, so call it only if something more than ours holds the hook.
    """
    for holder in gc.get_referrers(hook):
        if type(holder) is OrderedDict:
            for key in [key for key, value in holder.items() if value is hook]:
                del holder[key]
