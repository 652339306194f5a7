"""Make the tracks of a run over time: the loop's time by phase, and the readings beside it."""

from __future__ import annotations

from typing import NamedTuple

from profiler.report.layout import CPU, GPU, MEMORY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.slices import Slice


class Track(NamedTuple):
    """A reading over time: its metric, its name, its unit, and how much of the metric's unit that is; None: a share."""

    metric: str
    name: str
    unit: str
    length: float | None


TRACKS = (
    Track(CPU, "CPU of the process", "%", None),
    Track(GPU, "GPU", "%", None),
    Track(MEMORY, "memory of the process", "GiB", 2**30),
    Track("hw.gpu.memory.usage", "GPU memory", "GiB", 2**30),
    Track("hw.power", "power", "W", 1.0),
)


def spent_by_phase(one: Slice) -> dict[str, int]:
    """Return the time (ns) of training's phases in a slice, of the other stages as a whole, and of phases outside stages."""
    spent: dict[str, int] = {}
    for name, stage in one.stages.items():
        if name == "train":
            inside = {**stage.phases, "other": max(stage.call_ns - sum(stage.phases.values()), 0)}
        else:
            inside = {name: stage.duration_ns}
        for phase, ns in inside.items():
            spent[phase] = spent.get(phase, 0) + ns
    for phase, ns in one.phases.items():
        spent[phase] = spent.get(phase, 0) + ns
    return spent
