"""How many floating-point operations a call makes, by torch's own counter, and how many bytes its operators move."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from profiler.bench.work import Call

WRITES_NOTHING = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")


def flops(call: Call) -> int | None:
    """The operations of matrix products, convolutions and attention; None where none of them is known to the counter.

    Attention is made of matrix products for this one call: fused, the counter does not see it on a CPU.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() or None


def moved(call: Call) -> int | None:
    """Bytes that the operators read and write, if each tensor goes to memory and back each time; views move nothing."""
    with Moved() as counter:
        call()
    return counter.total or None


class Moved(TorchDispatchMode):
    """Adds up the sizes of what each operator is given and gives."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = list(_tensors((*args, *(kwargs or {}).values())))
        made = list(_tensors((result,)))
        places = {_place(tensor) for tensor in given}
        is_view = bool(made) and not func._schema.is_mutable and all(_place(tensor) in places for tensor in made)
        if not is_view and func.overloadpacket.__name__ not in WRITES_NOTHING:
            self.total += sum(map(_size, {id(tensor): tensor for tensor in given}.values())) + sum(map(_size, made))
        return result


def _tensors(values: Iterable[Any]) -> Iterable[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)
        elif isinstance(value, Mapping):
            yield from _tensors(value.values())


def _place(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()  # type: ignore[no-any-return]


def _size(tensor: torch.Tensor) -> int:
    """Of an expanded tensor, what is there of it."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())  # type: ignore[no-any-return]
