"""One row for each stage of each epoch of a run: what a fleet is asked about."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import copy
from datetime import datetime, timezone
from typing import Any

from profiler.fleet.columns import SCALE
from profiler.records.causes import ON_CPU
from profiler.records.energy import Energy, sum_of
from profiler.records.histogram import NS, Histogram

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.run import EpochRecord, Run
    from profiler.records.timing import StageRecord, Timing


Row = dict[str, Any]


def rows_of(run: Run, load: int, workload: str) -> list[Row]:
    """Return the rows of a run.

    Args:
        run: the run.
        load: how many bytes of its log were read.
        workload: what was trained, in the user's words.
    """
    facts = {**_facts(run), "workload": workload, "load": load}
    found = [row for part in run.parts() for row in _rows_of_part(run, part, facts)]
    for row in found:
        row["log_rows"] = len(found)
    return found


def _facts(run: Run) -> Row:
    runtime, cpu = run.hardware.runtime, run.hardware.cpu
    first = run.hardware.gpus[min(run.hardware.gpus)] if run.hardware.gpus else {}
    return {
        "run": run.id,
        "job": run.job,
        "rank": run.rank,
        "world_size": run.world_size,
        "node": run.node,
        "labels": dict(run.said),
        "state": run.state,
        "package": run.app.get("name", ""),
        "package_version": run.app.get("version", ""),
        **{name: str(runtime.get(name, "")) for name in ("torch", "cuda", "python", "os")},
        "cpu": str(cpu.get("family", "")),
        "cores": _whole(cpu.get("available_cores")),
        "memory_gib": _whole(run.hardware.memory.get("total_class_gib")),
        "gpu": str(first.get("name", "")),
        "gpus": len(run.hardware.gpus),
        "gpu_memory_gib": _whole(first.get("memory_class_gib")),
    }


def _rows_of_part(run: Run, part: EpochRecord, facts: Row) -> Iterator[Row]:
    start = datetime.fromtimestamp((run.started_unix_ns + part.started_ns) / NS, timezone.utc)
    for name, stage in part.stages.items():
        yield {
            **facts,
            "stage": name,
            "epoch": part.index,
            "start": start,
            "duration_s": stage.elapsed_ns / NS,
            "steps": stage.steps,
            "samples": stage.samples,
            "passes": stage.passes,
            "partial_passes": stage.partial_passes,
            "causes_s": _causes(part, name),
            **_energy(part.energy.get(name, {})),
            **_times(stage),
        }


def _causes(part: EpochRecord, stage: str) -> dict[str, float]:
    spent: dict[str, float] = {}
    for place, cost in part.costs.items():
        if place.stage == stage and place.cause != ON_CPU:
            spent[place.cause] = spent.get(place.cause, 0.0) + cost.ns / NS
    return spent


def _energy(gpus: Mapping[str, Energy]) -> Row:
    used = sum_of(gpus.values())
    return {"energy_j": used.joules if gpus else None, "energy_uncertain_j": used.uncertain if gpus else None}


def _times(stage: StageRecord) -> Row:
    zeros, offset, counts = _at_scale(stage.step)
    phases = {path[0]: timing for path, timing in stage.phases.items() if len(path) == 1}
    found = {name: _at_scale(timing) for name, timing in phases.items()}
    return {
        "step_zeros": zeros,
        "step_offset": offset,
        "step_counts": counts,
        "phases_s": {name: timing.total_ns / NS for name, timing in phases.items()},
        "phase_names": list(found),
        "phase_zeros": [zeros for zeros, _, _ in found.values()],
        "phase_offsets": [offset for _, offset, _ in found.values()],
        "phase_counts": [counts for _, _, counts in found.values()],
    }


def _at_scale(timing: Timing) -> tuple[int, int, list[int]]:
    """Return the values of no time, the first bucket, and the buckets of all durations but the first step's."""
    steady: Histogram = copy(timing.steady)
    steady.coarsen(SCALE)
    offset, counts = steady.dense()
    return steady.zero_count, offset, counts


def _whole(value: Any) -> int | None:
    return round(value) if isinstance(value, (int, float)) else None
