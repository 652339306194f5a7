"""Part of `profiler.hardware.nvidia.probe`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from profiler.config.environment import variable


def _in_order(indices: Iterable[int]) -> dict[int, tuple[int, Any]]:
    return {order: (index, None) for order, index in enumerate(indices)}


def _is_rank() -> bool:
    """Whether this process is one of several on this machine that share its GPUs."""
    return (variable("LOCAL_WORLD_SIZE") or "1") != "1"


def _cuda_in_use() -> Any:
    """``torch.cuda`` if this process uses it already, else None: nothing is asked that would initialise CUDA."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    return cuda if cuda is not None and hasattr(cuda, "is_initialized") and cuda.is_initialized() else None
