"""The sources of readings, one file each. A new one is a file and a row in `PROBES`.

A driver call that takes seconds, or hangs, must not keep the others from their first reading: `SLOW` ones come last.
"""

from __future__ import annotations

import importlib

from profiler.metrics import Probe

PROBES = {
    "process": "ProcessProbe",
    "host": "HostProbe",
    "runtime": "RuntimeProbe",
    "torch_memory": "TorchMemoryProbe",
    "nvml": "NvmlProbe",
}
SLOW = ("nvml",)


def load_probe(name: str) -> Probe:
    """A new probe, not yet started. Its module, and the library behind it, are imported only now."""
    probe: Probe = getattr(importlib.import_module(f"profiler.probes.{name}"), PROBES[name])()
    return probe
