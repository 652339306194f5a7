"""The tables of a run's report in a terminal, made from its document."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from profiler.report.epoch_rows import epoch_rows
from profiler.report.layout import GPU, Column, Fitted, bars, count_of, counts, duration, numbers, shares, times, words
from profiler.report.stragglers import phase_in_words

DISTRIBUTION = (("mean", 2), ("p50", 5), ("p90", 8), ("p99", 4), ("max", 7))  # and how soon each is left out


def call_time(stage: dict[str, Any]) -> float:
    """Return the time that a stage's phases are shares of: calls that overlap have more of it than passes."""
    found: float = stage.get("call_time_s", stage["duration_s"])
    return found


def epochs_table(epochs: list[dict[str, Any]], *, shows_all: bool = False) -> Fitted:
    """Return the epochs, a row for each stage; of many, those that `epoch_rows` chooses, unless all are to be shown."""
    rows: list[tuple[str, dict[str, Any], str]] = []
    for row in epoch_rows(epochs, shows_all=shows_all):
        if row.epoch is None:
            rows.append((f"… {row.left_out:,} more", {}, ""))
            continue
        name = f"{row.epoch['index']}{' (inferred)' if row.epoch.get('inferred') else ''}"
        rows += [(name, stage, row.why if place == 0 else "") for place, stage in enumerate(row.epoch["stages"])]
    stages = [stage for _, stage, _ in rows]
    waits = [stage.get("phases", {}).get("data_wait", {}).get("total_s") for stage in stages]
    others = [stage["phases"]["other"]["total_s"] if stage else None for stage in stages]
    return Fitted(
        words("epoch", [name for name, _, _ in rows]),
        words("stage", [stage["stage"] + (" (partial)" if stage["partial"] else "") if stage else "" for stage in stages]),
        times("time", [stage.get("duration_s") for stage in stages]),
        counts("steps", [stage.get("steps") for stage in stages], rank=5),
        numbers("samples/s", [stage.get("samples_per_s") for stage in stages], rank=3),
        times("step p50", [stage.get("step", {}).get("p50_s") for stage in stages], rank=2),
        shares("data wait", [_part(wait, stage) for wait, stage in zip(waits, stages, strict=True)], rank=1),
        shares("other", [_part(other, stage) for other, stage in zip(others, stages, strict=True)], rank=6),
        words("note", [why for _, _, why in rows], rank=4),
    )


def _part(part: float | None, stage: dict[str, Any]) -> float | None:
    return part / call_time(stage) if part is not None and call_time(stage) else None


def phases_table(name: str, stage: dict[str, Any]) -> Fitted:
    """Return the phases of a stage, and below them its steps as a whole."""
    phases = list(flat(stage["phases"]))
    wholes = [(key, stage[key]) for key in ("latency", "step") if key in stage]
    entries = [entry for _, entry in (*phases, *wholes)]
    parts = [*(_part(entry["total_s"], stage) for _, entry in phases), *(None for _ in wholes)]
    return Fitted(
        words(name, [label for label, _ in (*phases, *wholes)]),
        shares("share", parts, rank=1),
        bars(parts, rank=3),
        times("total", [entry["total_s"] for entry in entries]),
        counts("count", [entry.get("count") for entry in entries], rank=6),
        *_distribution(entries),
        dim=range(len(phases), len(entries)),
    )


def _distribution(entries: list[dict[str, Any]]) -> Iterator[Column]:
    """Yield mean, percentiles, maximum and the first one, all in one unit."""
    columns = {(head, rank): [entry.get(f"{head}_s") for entry in entries] for head, rank in DISTRIBUTION}
    columns["first", 9] = [entry.get("cold", {}).get("total_s") for entry in entries]
    everything = [value for values in columns.values() for value in values]
    for (head, rank), values in columns.items():
        yield times(head, values, rank, beside=everything)


def ranks_table(name: str, stage: dict[str, Any], world_size: int) -> Fitted:
    """Return the slowest, the median and the fastest rank of each phase."""
    rows = [("whole", stage["duration"]), *stage["phases"].items()]
    spreads = [spread for _, spread in rows]
    return Fitted(
        words(f"{name}, {world_size} ranks", [label for label, _ in rows]),
        times("slowest", [spread["slowest"]["total_s"] for spread in spreads]),
        words("", [f"rank {spread['slowest']['rank']}" for spread in spreads]),
        times("median", [spread["median_s"] for spread in spreads], rank=1),
        times("fastest", [spread["fastest"]["total_s"] for spread in spreads], rank=2),
        words("", [f"rank {spread['fastest']['rank']}" for spread in spreads], rank=2),
    )


def rank_words(gathered: dict[str, Any]) -> Iterator[str]:
    """Yield who waited for which rank, and which ranks were silent in the end."""
    for wait in gathered["waits"]:
        where = phase_in_words(wait["phase"])
        yield (
            f"rank {wait['rank']} was behind in {wait['stage']}: {duration(wait['behind_s'])} more in {where}"
            f" than the others, who waited for it {duration(wait['waited_s'])} in {wait['waited_in']}"
        )
    if "missing" in gathered:
        yield f"no word in the end from rank {', '.join(map(str, gathered['missing']))}"


def device_table(name: str, stage: dict[str, Any]) -> Fitted:
    """Return a stage's phases on the GPU's clock beside those on the host's."""
    rows = [(label, entry, entry["device"]) for label, entry in flat(stage["phases"]) if "device" in entry]
    means = [device["total_s"] / device["count"] for _, _, device in rows]
    return Fitted(
        words(f"{name} on the GPU", [label for label, _, _ in rows]),
        times("mean", means),
        times("here", [entry["mean_s"] for _, entry, _ in rows], rank=1),
        times("p50", [device.get("p50_s", mean) for (_, _, device), mean in zip(rows, means, strict=True)], rank=3),
        times("p99", [device.get("p99_s", mean) for (_, _, device), mean in zip(rows, means, strict=True)], rank=2),
        times("total", [device["total_s"] for _, _, device in rows], rank=4),
    )


GPU_COLUMNS = (  # heading, metric, the distinguishing value of an attribute, statistic, unit, how soon it is left out
    ("busy", GPU, "", "mean", "share", 0),
    ("SM", "epochmeter.gpu.sm.utilization", "", "mean", "share", 3),
    ("tensor", "epochmeter.gpu.tensor.utilization", "", "mean", "share", 4),
    ("DRAM", "epochmeter.gpu.dram.utilization", "", "mean", "share", 5),
    ("memory GiB", "hw.gpu.memory.usage", "", "max", 2**30, 1),
    ("power W", "hw.power", "", "mean", 1, 2),
    ("p99 W", "epochmeter.gpu.power.samples", "", "p99", 1, 8),
    ("max °C", "hw.temperature", "gpu_die", "max", 1, 6),
    ("clock MHz", "epochmeter.gpu.clock.frequency", "sm", "mean", 1e6, 7),
)
Readings = list[dict[str, Any]]


def readings_by_gpu(data: dict[str, Any]) -> dict[str, Readings]:
    """Return the readings of each GPU of a document."""
    gpus: dict[str, Readings] = {}
    for reading in data["readings"]:
        at = reading["attributes"]
        place = str(at.get("hw.parent", at.get("hw.id", ""))).split("/")[0]
        if place.startswith("gpu-"):
            gpus.setdefault(place, []).append(reading)
    return gpus


def gpus_table(gpus: dict[str, Readings]) -> Fitted | None:
    """Return one row for each GPU, a column for each value that at least one has; None without any value."""
    columns: list[Column] = []
    for head, metric, which, key, unit, rank in GPU_COLUMNS:
        values = [value_of(readings, metric, which, key) for readings in gpus.values()]
        if all(value is None for value in values):
            continue
        if unit == "share":
            columns.append(Column(head, ["" if value is None else f"{value:.0%}" for value in values], rank))
        else:
            columns.append(numbers(head, [None if value is None else value / float(unit) for value in values], rank))
    return Fitted(words("GPU", gpus), *columns) if columns else None


def value_of(readings: Readings, metric: str, which: str, key: str) -> float | None:
    """Return a statistic of a metric's first reading that has it, with ``which`` among its attributes' values."""
    for reading in readings:
        if reading["metric"] == metric and key in reading and (not which or which in reading["attributes"].values()):
            found: float = reading[key]
            return found
    return None


def flat(phases: dict[str, Any], indent: int = 0) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each phase with its name, the nested ones indented below their own."""
    for name, entry in phases.items():
        yield "  " * indent + name, entry
        yield from flat(entry.get("phases", {}), indent + 1)


def outside_words(data: dict[str, Any]) -> str:
    """Return the phases outside stages in words."""
    found = []
    for name, entry in flat(data["phases"]):
        how_often = "open" if "open" in entry else count_of(entry["count"], "time")
        found.append(f"{name.strip()} {duration(entry['total_s'])} ({how_often})")
    return ", ".join(found)
