"""The sources of readings, one file each. A new one is a file and a row in `PROBES`.

A driver call may take seconds, or hang, so `DRIVERS` are asked in a thread of their own. Only the first one that answers
is used: a machine's GPUs are of one vendor, as far as its torch is concerned.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.readings import Probe


PROBES = {
    "process": "ProcessProbe",
    "host": "HostProbe",
    "runtime": "RuntimeProbe",
    "torch_memory": "TorchMemoryProbe",
    "nvml": "NvmlProbe",
    "amd": "AmdProbe",
    "apple": "AppleProbe",
}
MODULES = {"nvml": "profiler.hardware.nvidia.probe"}
DRIVERS = ("nvml", "amd", "apple")


def module_of(name: str) -> str:
    """Return the name of the module that holds a probe."""
    return MODULES.get(name, f"profiler.hardware.{name}")


def load_probe(name: str, device: str | None = None) -> Probe:
    """Return a new probe, not yet started. Its module, and the library behind it, are imported only now.

    Args:
        name: a key of `PROBES`.
        device: the run's, such as "cuda:1", for the probes that ask devices.
    """
    kind = getattr(importlib.import_module(module_of(name)), PROBES[name])
    probe: Probe = kind(device=device) if name in DRIVERS else kind()
    return probe
