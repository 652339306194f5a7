"""When things happened, in words and in one table, for a terminal."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from profiler.records.slices import sum_of
from profiler.records.vocabulary import STAGES
from profiler.report.findings import ordinal
from profiler.report.layout import CPU, GPU, MEMORY, Column, Fitted, counts, duration, numbers, shortened, times, words
from profiler.report.when import timeline_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.run import Run
    from profiler.records.slices import Slice


ROWS = 12
LONGEST = 16  # letters of a phase
SHOWN_SLOW = 3
NOTABLE_TIMES = 3.0  # the usual step: a step below that is no news
NOTABLE_S, NOTABLE_SHARE = 0.05, 0.005  # how much longer: absolute, and of the stage's time
MEMORY_WORDS = {
    MEMORY: "the process's memory",
    "epochmeter.torch.memory.allocated": "the memory of torch's tensors",
    "hw.gpu.memory.usage": "the GPU's memory",
}


def when_table(run: Run) -> Iterator[RenderableType]:
    """Return the timeline of a run that has more slices than epochs, in at most twelve rows."""
    slices = [one for one in run.slices if one.stages]
    if len(slices) < max(len(run.epochs) + 2, 4):
        return
    rows = timeline_of(run, _in_rows(slices))
    shown = [name for name in (CPU, MEMORY, GPU) if any(_reading(row, name) for row in rows)]
    heads = {CPU: "CPU", MEMORY: "memory GiB", GPU: "GPU"}
    stages = [_first_stage(row) for row in rows]
    epochs = [[row["epoch"]] if "epoch" in row else row.get("epochs", []) for row in rows]
    yield Fitted(
        words("from (UTC)", [row["start"][11:19] for row in rows]),
        Column("epoch", ["-".join(map(str, dict.fromkeys(those))) for those in epochs], rank=1),
        counts("steps", [stage.get("steps") for stage in stages], rank=4),
        numbers("samples/s", map(_rate, stages), rank=2),
        times("step", [stage.get("step_mean_s") for stage in stages]),
        words("most of it", map(_most, stages)),
        *(Column(heads[name], [_reading(row, name) for row in rows], rank=3) for name in shown),
    )


def _first_stage(row: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next((row["stages"][name] for name in STAGES if row["stages"].get(name, {}).get("steps")), {})
    return found


def _rate(stage: dict[str, Any]) -> float | None:
    seconds = stage.get("duration_s", 0.0)
    return stage["samples"] / seconds if seconds and "samples" in stage else None


def _in_rows(slices: list[Slice]) -> list[Slice]:
    """Return the slices joined to rows of equal length."""
    begin, row = slices[0].started_ns, max((slices[-1].ended_ns - slices[0].started_ns) // ROWS, 1)
    middle = [(one.started_ns + one.ended_ns) // 2 for one in slices]
    groups = itertools.groupby(zip(middle, slices, strict=True), lambda pair: min((pair[0] - begin) // row, ROWS - 1))
    return [sum_of([one for _, one in group]) for _, group in groups]


def _most(stage: dict[str, Any]) -> str:
    phases, whole = stage.get("phases", {}), stage.get("call_time_s", stage.get("duration_s", 0.0))
    name = max(phases, key=lambda one: phases[one], default=None)
    if name is None or not whole:
        return ""
    return f"{shortened(name, LONGEST)} {phases[name] / whole:.0%}"


def _reading(row: dict[str, Any], name: str) -> str:
    found = [reading for key, reading in row["readings"].items() if key.split("{")[0] == name and "mean" in reading]
    if not found:
        return ""
    if name == MEMORY:
        return f"{found[0]['max'] / 2**30:.2f}"
    return "/".join(f"{reading['mean']:.0%}" for reading in found[:4])


def when_rows(data: dict[str, Any]) -> Iterator[tuple[str, Text]]:
    """Yield slow steps and trends, a label and a text each."""
    yield from _slow_steps(data)
    yield from trend_rows(data)


def _slow_steps(data: dict[str, Any]) -> Iterator[tuple[str, Text]]:
    for name, steps in data.get("slowest", {}).items():
        stage = data["stages"][name]
        usual = stage.get("step", {}).get("p50_s", 0.0)
        least = max(NOTABLE_TIMES * usual, usual + min(NOTABLE_S, NOTABLE_SHARE * stage["duration_s"]))
        for step in [one for one in steps if "first" not in one and one["duration_s"] > least][:SHOWN_SLOW]:
            took = f"{duration(step['duration_s'])}, usually {duration(usual)}"
            yield "slow", Text(f"{name} step {_place(step)}: {took}{_in(step)}")


def trend_rows(data: dict[str, Any]) -> Iterator[tuple[str, Text]]:
    """Yield rhythms, a slow epoch or hour, and growing memory, a label and a text each."""
    for name, rhythm in data.get("recurring", {}).items():
        where = f", most of it in {rhythm['phase']}" if "phase" in rhythm else ""
        yield (
            "recurs",
            Text(
                f"{name}: every {ordinal(rhythm['every'])} step is slow, by {duration(rhythm['excess_s'])}{where}"
                f" ({rhythm['steps']} of the slowest steps)"
            ),
        )
    if "slow_part" in data:
        part = data["slow_part"]
        which = f"epoch {part['epoch']}" if "epoch" in part else f"the hour from {part['start'][11:16]} UTC"
        where = f", most of it in {part['phase']}" if "phase" in part else ""
        yield "slow", Text(f"{which}: a train step took {part['times']:.1f} times as long as usual{where}")
    for growth in data.get("growing", ()):
        epoch = f" (epoch {growth['epoch']})" if "epoch" in growth else ""
        yield (
            "growing",
            Text(
                f"{MEMORY_WORDS[growth['metric']]} since {growth['since'][11:19]} UTC{epoch}:"
                f" {growth['by_per_hour'] / 2**30:.2f} GiB an hour, {growth['by'] / 2**30:.2f} GiB so far"
            ),
        )


def _place(step: dict[str, Any]) -> str:
    epoch = f" of epoch {step['epoch']}" if "epoch" in step else ""
    return f"{step['step']}{epoch} at {step['at'][11:23]} UTC"


def _in(step: dict[str, Any]) -> str:
    if step.get("collected_s", 0.0) > step["duration_s"] / 2:
        return ", garbage collection"
    name = max(step["phases"], key=lambda one: step["phases"][one], default=None)
    return f", {name} {duration(step['phases'][name])}" if name is not None else ""
