"""Count the floating-point operations of a call, by torch's own counter, and the bytes its operators move."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from profiler.bench.work import Call, tensors

MOVES_NOTHING = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
READS_NOTHING = ("zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "new_zeros", "new_ones", "new_full")
GATHERS = ("embedding", "index", "index_select", "gather", "take")  # of a table, as much as is taken is read


def flops(call: Call) -> int | None:
    """Return the operations of matrix products, convolutions and attention, or None if the counter knows none of them.

    For this one call attention is split into matrix products: on a CPU the counter does not see the fused operator.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() or None


def moved(call: Call) -> int | None:
    """Return the bytes that the operators read and write if no tensor stays in a cache. Views move nothing."""
    with Moved() as counter:
        call()
    return counter.total or None


class Moved(TorchDispatchMode):
    """Add up the sizes of each operator's inputs and outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = list(tensors((args, kwargs)))
        made = list(tensors(result))
        places = {_place(tensor) for tensor in given}
        name = func.overloadpacket.__name__
        is_view = bool(made) and not func._schema.is_mutable and all(_place(tensor) in places for tensor in made)
        if is_view or name in MOVES_NOTHING:
            return result
        written = sum(map(_size, made)) if made else sum(map(_size, _written(func, args)))
        if name in GATHERS:
            read = written + sum(_size(tensor) for tensor in given[1:])
        else:
            read = 0 if name in READS_NOTHING else sum(map(_size, {id(tensor): tensor for tensor in given}.values()))
        self.total += read + written
        return result


def _written(func: Any, args: Any) -> Iterable[torch.Tensor]:
    """Return the tensors that an in-place operator without a result changes."""
    changed = (argument.alias_info is not None and argument.alias_info.is_write for argument in func._schema.arguments)
    return tensors([value for value, is_changed in zip(args, changed, strict=False) if is_changed])


def _place(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()  # type: ignore[no-any-return]


def _size(tensor: torch.Tensor) -> int:
    """Return the bytes of a tensor's elements; repeated elements of an expanded tensor count once."""
    try:
        there = [size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride]
    except RuntimeError:  # a sparse one has no strides
        there = list(tensor.shape)
    return math.prod(there) * tensor.element_size()  # type: ignore[no-any-return]
