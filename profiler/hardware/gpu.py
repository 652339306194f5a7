"""The readings that the probes of every vendor have, each under one name. A vendor's own readings are in its probe.

Names: OpenTelemetry semantic conventions 1.44, https://opentelemetry.io/docs/specs/semconv/hardware/gpu/
"""

from __future__ import annotations

from profiler.errors import ProbeUnavailableError
from profiler.records.readings import MetricSpec

UTILIZATION = MetricSpec("hw.gpu.utilization", "1", "gauge", "Share of time in which at least one kernel ran.")
MEMORY_USAGE = MetricSpec(
    "hw.gpu.memory.usage", "By", "updowncounter", "GPU memory in use; the driver's own is in it where it cannot be told apart."
)
MEMORY_LIMIT = MetricSpec("hw.gpu.memory.limit", "By", "updowncounter", "GPU memory there is.")
POWER = MetricSpec("hw.power", "W", "gauge", "Power draw; on NVIDIA's Ampere (not GA100) and newer a 1 s average.")
TEMPERATURE = MetricSpec("hw.temperature", "Cel", "gauge", "Temperature of the GPU die, and of its memory.")
ENERGY = MetricSpec("hw.energy", "J", "counter", "Energy used.")
FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 1.0, 30.0  # the wait before a failed driver or card is asked again
MEMORY_CLASSES_GB = (4, 6, 8, 10, 11, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 141, 192, 256, 288)


def check_device(device: str | None, kind: str) -> None:
    """Check that the run is, or may be, on a device of that kind.

    Raises:
        ProbeUnavailableError: it is on another one.
    """
    if device is not None and device.partition(":")[0] != kind:
        raise ProbeUnavailableError(f"the run's device is {device}")


def memory_class_gb(size: int) -> int:
    """Return the class of a card's memory: the nearest of the sizes that cards are sold with, in GB."""
    return min(MEMORY_CLASSES_GB, key=lambda known: abs(known * 2**30 - size))
