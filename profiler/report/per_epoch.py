"""Each epoch as flat numbers, for experiment trackers that take a mapping: W&B, MLflow, TensorBoard, Trackio and others.

Names are ``stage/number``, in the units of the document; a value that was not measured is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

OF_STAGE = ("duration_s", "steps", "samples", "samples_per_s")
OF_STEP = ("p50_s", "p99_s", "max_s")
READINGS = {
    "epochmeter.process.cpu.utilization": "cpu_utilization",
    "process.memory.usage": "memory_bytes",
    "hw.gpu.utilization": "gpu_utilization",
    "hw.gpu.memory.usage": "gpu_memory_bytes",
    "hw.power": "power_w",
}
UNUSUAL = re.compile(r"[^A-Za-z0-9_. -]")  # trackers refuse other characters in names


def per_epoch(epochs: list[dict[str, Any]]) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield each epoch of a document: its index and its numbers.

    ``train/duration_s``, ``train/step_p50_s``, ``train/forward_s`` (the sum of a top-level phase), ``val/...``; ``duration_s``
    and ``energy_j`` of the epoch; ``cpu_utilization``, and of each GPU ``gpu-0/gpu_utilization``: means over the epoch.
    """
    for epoch in epochs:
        numbers: dict[str, float] = {"duration_s": epoch["duration_s"]}
        if "total_j" in epoch.get("energy", {}):
            numbers["energy_j"] = epoch["energy"]["total_j"]
        for stage in epoch["stages"]:
            numbers.update({f"{stage['stage']}/{name}": value for name, value in _of_stage(stage)})
        for reading in epoch.get("readings", ()):
            if reading["metric"] in READINGS and "mean" in reading:
                place = reading["attributes"].get("hw.id", "")
                numbers["/".join(filter(None, (place, READINGS[reading["metric"]])))] = reading["mean"]
        yield epoch["index"], numbers


def _of_stage(stage: dict[str, Any]) -> Iterator[tuple[str, float]]:
    yield from ((key, stage[key]) for key in OF_STAGE if key in stage)
    step = stage.get("step", {})
    yield from ((f"step_{key}", step[key]) for key in OF_STEP if key in step)
    for name, phase in stage["phases"].items():
        yield f"{UNUSUAL.sub('_', name)}_s", phase["total_s"]
    if "total_j" in stage.get("energy", {}):
        yield "energy_j", stage["energy"]["total_j"]
