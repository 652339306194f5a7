"""The number of samples in a batch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

PLAIN = frozenset((int, float, str, bytes, bool, type(None)))  # types without a shape, skipped at once


def batch_size(item: Any, depth: int = 4) -> int | None:
    """Return the first dimension of the first tensor in a batch, which is the number of samples, or None.

    Lists, tuples and mappings are searched, at most four levels deep. Anything with a ``shape`` counts as a tensor.
    """
    kind = type(item)
    if kind in PLAIN:
        return None
    parts: Iterable[Any] = ()
    if kind is list or kind is tuple or isinstance(item, (list, tuple)):
        parts = item
    else:
        try:
            shape = getattr(item, "shape", None)
            if shape is not None:
                return int(shape[0])
        except (TypeError, IndexError, ValueError, RuntimeError):  # a tensor without dimensions; RuntimeError: a nested tensor
            return None
        if hasattr(item, "keys") and hasattr(item, "values"):
            parts = item.values()
    for part in parts if depth else ():
        size = batch_size(part, depth - 1)
        if size is not None:
            return size
    return None
