"""The number of samples in a batch: found in the batch, or given by the user's own function.

The rule it keeps: a batch is the user's object, and no answer or error of its attributes reaches the loop. A number
that the batch does not show without doubt is unknown.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

from profiler.measure import hot_path
from profiler.records.faults import is_of_a_signal

PLAIN = frozenset((int, float, str, bytes, bool, type(None)))  # types without a shape, skipped at once
DEPTH = 4  # levels that are searched
LOOKS = 32  # objects that are looked at: a list of numbers may be long, and wide on every level
FIELDS = 4  # tensors of one rank that a batch has side by side, at most; if there are more, each is a sample
CHANNELS = (1, 3, 4)  # first dimension of an image


def size_of(item: Any, error: Exception | None = None) -> int | None:
    """Return the first dimension of the first tensor in a batch, which is the number of samples, or None.

    Lists, tuples and mappings are searched, at most four levels deep and 32 objects wide. Anything with a ``shape`` counts
    as a tensor; a batch with a ``batch_size`` of its own is believed. A list of samples has as many samples as parts. A
    list that may hold samples as well as fields leaves the number unknown.

    Args:
        item: the batch.
        error: raised by an attribute of the batch when it was asked before, in C.
    """
    if type(item) in PLAIN:
        return None
    try:
        if error is not None:
            raise error
        usual = _usual(item)
        return next(filter(_is_known, islice(_looks(item, DEPTH), LOOKS)), None) if usual is None else usual
    except Exception as error:  # the attributes of a user's class may raise anything
        if is_of_a_signal(error):
            raise
        return None


batch_size = hot_path.sized_by(size_of)


def call_size(args: Sequence[Any], kwargs: dict[str, Any]) -> int | None:
    """Return the number of samples in the first argument of a call that shows one, or None."""
    return next(filter(_is_known, map(batch_size, islice((*args, *kwargs.values()), LOOKS))), None)


def told_size(function: Callable[[Any], Any], note: Callable[[str], None]) -> Callable[[Any], int | None]:
    """Return the user's ``samples=`` function as one that never raises, and returns a whole number or None.

    Args:
        note: called with a text on each value that could not be used.
    """

    def told(item: Any) -> int | None:
        try:
            value = function(item)
        except Exception as error:
            if is_of_a_signal(error):
                raise
            note(f"samples= raised {type(error).__name__}: samples unknown")
            return None
        if value is None:
            return None
        size = _whole(value)
        if size is None:
            note(f"samples= gave no whole number from 0 up ({type(value).__name__}): samples unknown")
        return size

    return told


class _Ambiguous(Exception):
    """A list may be one of fields or one of samples."""


_is_known = partial(operator.is_not, None)


def _usual(item: Any) -> int | None:
    """Return the size of a tensor, or of inputs and labels that agree; None says nothing. Called at each step: written out."""
    kind = type(item)
    if kind is list or kind is tuple:
        if len(item) != 2:
            return None
        first, second = item  # at once: a shape may be a property, and change the list
        shape, other = getattr(first, "shape", None), getattr(second, "shape", None)
        if not (
            isinstance(shape, tuple) and isinstance(other, tuple) and len(shape) > len(other) == 1 and shape[0] == other[0]
        ):
            return None
    elif isinstance(item, dict):
        return None
    else:
        shape = getattr(item, "shape", None)
    return shape[0] if isinstance(shape, tuple) and shape and type(shape[0]) is int else None


def _looks(item: Any, depth: int) -> Iterator[int | None]:
    """Yield, for each object that is looked at, the number of samples it shows, or None."""
    size: int | None = None
    parts: Iterable[Any] = ()
    if isinstance(item, (list, tuple)):
        size, parts = _of_parts(item), item
    elif type(item) not in PLAIN:
        size, parts = _of_object(item)
    yield size
    for part in parts if depth else ():
        yield from _looks(part, depth - 1)


def _of_object(item: Any) -> tuple[int | None, Iterable[Any]]:
    """Return the size that a tensor, a mapping or another batch shows, and the parts to search."""
    if isinstance(item, dict):  # not asked for attributes, which may be its keys
        return None, item.values()
    shape = _shape(item)
    if shape is not None:
        return (shape[0] if shape else None), ()
    told = getattr(item, "batch_size", None)
    if type(told) is int and told >= 0:
        return told, ()
    if not (hasattr(item, "keys") and hasattr(item, "values")):
        return None, ()
    values = item.values()
    if _shape(values) is not None:  # samples of several lengths, one after another
        raise _Ambiguous
    return None, values


def _of_parts(parts: Sequence[Any]) -> int | None:
    """Return the number of samples that a list shows as a whole. None: its parts are fields, or none of ours to judge.

    Raises:
        _Ambiguous: more than one size is possible.
    """
    if hasattr(parts, "batch_sizes"):  # a packed sequence: its first dimension is of all samples' steps
        raise _Ambiguous
    count, head = len(parts), parts[: FIELDS + 1]
    if count < 2 or type(head[0]) in PLAIN:
        return None
    shapes = [_shape(part) for part in head]
    tensors = [shape for shape in shapes if shape]
    if not tensors:
        return _of_containers(head, count)
    first = tensors[0]
    is_image = len(first) == 3 and first[0] in CHANNELS
    if len(tensors) == len(head) and len({len(shape) for shape in tensors}) == 1:
        are_samples = is_image or len({shape[0] for shape in tensors}) > 1
        if are_samples != (count > FIELDS):  # too few to be sure of samples, or too many to be sure of fields
            raise _Ambiguous
        return count if are_samples else first[0]
    if is_image and not any(len(shape) != 3 and shape[0] == first[0] for shape in tensors):  # one image and its label
        raise _Ambiguous
    return None


def _of_containers(head: Sequence[Any], count: int) -> int | None:
    """Judge a list of tuples or mappings: of samples as a data set gives them, or of fields."""
    if len({type(part) for part in head}) > 1 or not _is_sample(head[0]):
        return None
    if isinstance(head[0], dict) and head[0].keys() != head[1].keys():  # inputs and labels
        return None
    if count <= FIELDS:
        raise _Ambiguous
    return count


def _is_sample(part: Any) -> bool:
    """Return True if a tuple or mapping holds a tensor beside something else, as a sample and its label, or has names."""
    if isinstance(part, dict):
        return any(_shape(value) for value in islice(part.values(), LOOKS))
    ranks = [-1 if shape is None else len(shape) for shape in map(_shape, part[:FIELDS])] if isinstance(part, tuple) else []
    return len(set(ranks)) > 1 and max(ranks) > 0


def _shape(item: Any) -> Sequence[int] | None:
    """Return the shape of a tensor or an array, or None for anything else."""
    if type(item) in PLAIN:
        return None
    shape = None if isinstance(item, dict) else getattr(item, "shape", None)
    if not isinstance(shape, (tuple, list)):
        return None
    return shape if not shape or isinstance(shape[0], int) else None


def _whole(value: Any) -> int | None:
    """Return a whole number from 0 up as an int, or None. A tensor on a GPU is not read: that would wait for the GPU."""
    if isinstance(value, (bool, str, bytes)):
        return None
    try:
        device = getattr(value, "device", "cpu")
        if getattr(device, "type", device) != "cpu":
            return None
        size = int(value) if isinstance(value, float) and value.is_integer() else operator.index(value)
    except Exception as error:  # an object of any class
        if is_of_a_signal(error):
            raise
        return None
    return size if size >= 0 else None
