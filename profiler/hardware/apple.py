"""Apple's GPUs through torch's MPS backend: the memory that torch has taken, and its limit.

Only the superuser can read utilization, power and temperature (``powermetrics``), so they are absent. The rule it keeps:
torch is looked up among the imported modules.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from profiler.errors import ProbeUnavailableError
from profiler.hardware.gpu import MEMORY_LIMIT, MEMORY_USAGE, check_device
from profiler.records.readings import Reading, Sample

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.readings import Fact


SPECS = (MEMORY_USAGE, MEMORY_LIMIT)
GPU = {"hw.id": "gpu-0"}


class AppleProbe:
    """The one GPU of an Apple machine. Its memory is the machine's.

    Args:
        device: the run's; "cpu" reads nothing.
    """

    name = "apple"
    specs = SPECS

    def __init__(self, device: str | None = None) -> None:
        self._device = device

    def start(self) -> None:
        if sys.platform != "darwin":
            raise ProbeUnavailableError("Apple's GPUs are in Apple's machines")
        check_device(self._device, "mps")

    def close(self) -> None:
        """Do nothing: the probe holds nothing."""

    def facts(self) -> Sequence[Fact]:
        return ()

    def readings(self) -> Sequence[Reading]:
        return (Reading(SPECS, _memory),)


def mps_in_use() -> Any:
    """Return ``torch.mps`` if the program has imported torch and the machine has the backend, else None."""
    torch = sys.modules.get("torch")
    backend = getattr(getattr(torch, "backends", None), "mps", None)
    return getattr(torch, "mps", None) if backend is not None and backend.is_available() else None


def _memory() -> Iterable[Sample]:
    mps = mps_in_use()
    if mps is not None:
        yield Sample(MEMORY_USAGE, mps.driver_allocated_memory(), GPU)
        if hasattr(mps, "recommended_max_memory"):  # torch 2.5 and newer
            yield Sample(MEMORY_LIMIT, mps.recommended_max_memory(), GPU)
