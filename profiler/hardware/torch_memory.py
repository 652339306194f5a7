"""The CUDA allocator of torch: allocated memory, reserved memory, and the peak.

The rule it keeps: torch is looked up among the imported modules, and CUDA is not asked before the user's own code has
initialised it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from profiler.records.readings import MetricSpec, Reading, Sample

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.readings import Fact


ALLOCATED = MetricSpec("epochmeter.torch.memory.allocated", "By", "updowncounter", "Memory in use by tensors.")
RESERVED = MetricSpec("epochmeter.torch.memory.reserved", "By", "updowncounter", "Memory held by torch's allocator.")
PEAK = MetricSpec("epochmeter.torch.memory.peak", "By", "updowncounter", "The most memory in use by tensors so far.")
SPECS = (ALLOCATED, RESERVED, PEAK)


def initialised_cuda() -> Any:
    """Return ``torch.cuda`` if this process uses it already, else None."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    return cuda if cuda is not None and hasattr(cuda, "is_initialized") and cuda.is_initialized() else None


class TorchMemoryProbe:
    """The allocator's three totals for each CUDA device that torch sees."""

    name = "torch_memory"
    specs = SPECS

    def start(self) -> None:
        """Do nothing: torch may be imported, and CUDA initialised, at any later moment."""

    def facts(self) -> Sequence[Fact]:
        return ()

    def close(self) -> None:
        """Do nothing: the probe holds nothing."""

    def readings(self) -> Sequence[Reading]:
        return (Reading(SPECS, _memory),)


def _memory() -> Iterable[Sample]:
    cuda = initialised_cuda()
    for index in range(cuda.device_count()) if cuda is not None else ():
        attributes = {"epochmeter.torch.device": f"cuda:{index}"}
        yield Sample(ALLOCATED, cuda.memory_allocated(index), attributes)
        yield Sample(RESERVED, cuda.memory_reserved(index), attributes)
        yield Sample(PEAK, cuda.max_memory_allocated(index), attributes)
