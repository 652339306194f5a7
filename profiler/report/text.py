"""A run as text for a terminal: the epochs, the phases, the hardware, and the verdict."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from profiler.records.plain_text import printable_in
from profiler.records.run import Run
from profiler.report.bench import tables
from profiler.report.cause_text import cause_table
from profiler.report.document import document
from profiler.report.layout import CPU, GPU, MEMORY, duration, new_table
from profiler.report.when_text import when_lines, when_table

MAX_EPOCH_ROWS = 24
WIDTH = 100


def text(run: Run, width: int = WIDTH, tariff: str | None = None) -> str:
    """Return the report without colours, at most ``width`` columns wide."""
    shown = io.StringIO()
    Console(file=shown, width=width, no_color=True, color_system=None, force_terminal=False, highlight=False).print(
        renderable(run, tariff)
    )
    return "\n".join(line.rstrip() for line in shown.getvalue().splitlines())


def renderable(run: Run, tariff: str | None = None) -> RenderableType:
    """Return the report for a rich console; ``tariff`` is the setting of that name."""
    data = printable_in(document(run, tariff=tariff))
    parts: list[RenderableType] = [_title(data), cause_table(data), Text("")]
    if any(epoch["stages"] for epoch in data["epochs"]):
        parts.append(_epochs(data))
    parts += when_table(run)
    parts += [_phases(name, stage) for name, stage in data["stages"].items()]
    parts += tables(data.get("bench", {}).get("cases", ()))
    parts += [*_batch_sizes(data), *_device(data), *_ranks(data), *_gpus(data), *when_lines(data), *_lines(data)]
    return Group(*parts)


def call_time(stage: dict[str, Any]) -> float:
    """Return the time that a stage's phases are shares of: calls that overlap have more of it than passes."""
    found: float = stage.get("call_time_s", stage["duration_s"])
    return found


def _title(data: dict[str, Any]) -> Text:
    run = data["run"]
    rank = f"  rank {run['rank']} of {run['world_size']}" if "rank" in run else ""
    return Text.assemble(
        (run["name"], "bold"),
        f"{rank}  run {run['id']}  {run['state']}  {duration(run['duration_s'])}  {run.get('started', '')}",
    )


def _epochs(data: dict[str, Any]) -> Table:
    table = new_table("epoch", "stage", "time", "steps", "samples/s", "step p50", "data wait", "other")
    rows = [(epoch, stage) for epoch in data["epochs"] for stage in epoch["stages"]]
    shown = rows if len(rows) <= MAX_EPOCH_ROWS else [*rows[: MAX_EPOCH_ROWS // 2], None, *rows[-MAX_EPOCH_ROWS // 2 :]]
    for row in shown:
        if row is None:
            table.add_row("...", *[""] * 7)
            continue
        epoch, stage = row
        wait = stage["phases"].get("data_wait", {}).get("total_s")
        table.add_row(
            f"{epoch['index']}{' (inferred)' if epoch.get('inferred') else ''}",
            stage["stage"] + (" (partial)" if stage["partial"] else ""),
            duration(stage["duration_s"]),
            str(stage["steps"]),
            f"{stage['samples_per_s']:,.0f}" if "samples_per_s" in stage else "",
            duration(stage["step"]["p50_s"]) if "p50_s" in stage.get("step", {}) else "",
            _share(wait, call_time(stage)),
            _share(stage["phases"]["other"]["total_s"], call_time(stage)),
        )
    return table


def _share(part: float | None, whole: float) -> str:
    return f"{part / whole:.1%}" if part is not None and whole else ""


def _phases(name: str, stage: dict[str, Any]) -> Table:
    table = new_table(f"{name}", "share", "total", "count", "mean", "p50", "p90", "p99", "max", "first")
    for label, entry in _flat(stage["phases"]):
        times = [duration(entry[key]) if key in entry else "" for key in ("mean_s", "p50_s", "p90_s", "p99_s", "max_s")]
        cold = duration(entry["cold"]["total_s"]) if "cold" in entry else ""
        share = _share(entry["total_s"], call_time(stage))
        table.add_row(label, share, duration(entry["total_s"]), str(entry.get("count", "")), *times, cold)
    for key, label in (("latency", "latency"), ("step", "step")):
        if key in stage:
            entry = stage[key]
            times = [duration(entry[k]) if k in entry else "" for k in ("mean_s", "p50_s", "p90_s", "p99_s", "max_s")]
            cold = duration(entry["cold"]["total_s"]) if "cold" in entry else ""
            table.add_row(label, "", duration(entry["total_s"]), str(entry["count"]), *times, cold, style="dim")
    return table


def _ranks(data: dict[str, Any]) -> Iterator[RenderableType]:
    """Return each phase's slowest, median and fastest rank, and which rank waited for which."""
    gathered = data.get("ranks")
    if not gathered:
        return
    for name, stage in gathered["stages"].items():
        table = new_table(f"{name}, {gathered['world_size']} ranks", "slowest", "", "median", "fastest", "")
        for label, spread in [("whole", stage["duration"]), *stage["phases"].items()]:
            cells = [
                cell
                for which in ("slowest", "fastest")
                for cell in (duration(spread[which]["total_s"]), f"rank {spread[which]['rank']}")
            ]
            table.add_row(escape(label), *cells[:2], duration(spread["median_s"]), *cells[2:])
        yield table
    for wait in gathered["waits"]:
        yield Text(
            f"rank {wait['rank']} was behind in {wait['stage']}: {duration(wait['behind_s'])} more in {wait['phase']}"
            f" than the others, who waited for it {duration(wait['waited_s'])} in {wait['waited_in']}"
        )
    if "missing" in gathered:
        yield Text(f"no word in the end from rank {', '.join(map(str, gathered['missing']))}")


def _device(data: dict[str, Any]) -> Iterator[RenderableType]:
    """Return, for each stage, its phases' share on the GPU's clock beside that on the host's."""
    for name, stage in data["stages"].items():
        if "device_busy" not in stage:
            continue
        table = new_table(f"{name} on the GPU", "mean", "here", "p50", "p99", "total")
        for label, entry in _flat(stage["phases"]):
            if "device" in entry:
                device = entry["device"]
                mean = device["total_s"] / device["count"]
                values = [mean, entry["mean_s"], device.get("p50_s", mean), device.get("p99_s", mean), device["total_s"]]
                table.add_row(label, *map(duration, values))
        yield table
        yield Text(f"the GPU was inside a phase for {stage['device_busy']:.0%} of a {name} step")


def _energy(used: dict[str, Any]) -> str:
    if "total_j" not in used:
        return "energy below the counter's resolution"
    words = [f"{used['total_j']:,.0f} J (± {used['uncertainty_j']:,.0f})"]
    if "mean_w" in used:
        words.append(f"{used['mean_w']:.0f} W")
    if "samples_per_j" in used:
        words.append(f"{used['samples_per_j']:.3g} samples/J")
    if len(used.get("gpus", ())) == 1:
        words.append(f"of {next(iter(used['gpus']))} alone")
    if "metered_s" in used:
        words.append(f"metered for {duration(used['metered_s'])} of it")
    if used.get("shared"):
        words.append("of the whole card, MIG instances of others with it")
    return ", ".join(words)


GPU_COLUMNS = (  # heading, metric, the distinguishing value of an attribute, and the statistic
    ("busy", GPU, "", "mean", "share"),
    ("SM", "epochmeter.gpu.sm.utilization", "", "mean", "share"),
    ("tensor", "epochmeter.gpu.tensor.utilization", "", "mean", "share"),
    ("DRAM", "epochmeter.gpu.dram.utilization", "", "mean", "share"),
    ("memory", "hw.gpu.memory.usage", "", "max", "bytes"),
    ("power", "hw.power", "", "mean", "W"),
    ("p99", "epochmeter.gpu.power.samples", "", "p99", "W"),
    ("max", "hw.temperature", "gpu_die", "max", "°C"),
    ("clock", "epochmeter.gpu.clock.frequency", "sm", "mean", "MHz"),
)
FORMS: dict[str, Callable[[float], str]] = {
    "share": lambda value: f"{value:.0%}",
    "bytes": lambda value: f"{value / 2**30:.1f} GiB",
    "MHz": lambda value: f"{value / 1e6:.0f} MHz",
    **{unit: (lambda value, unit=unit: f"{value:,.0f} {unit}") for unit in ("W", "°C")},  # type: ignore[misc]
}


def _gpus(data: dict[str, Any]) -> Iterator[RenderableType]:
    """Return one row for each GPU, a column for each value that at least one has, and the reasons for low clocks."""
    gpus: dict[str, list[dict[str, Any]]] = {}
    for reading in data["readings"]:
        at = reading["attributes"]
        place = str(at.get("hw.parent", at.get("hw.id", ""))).split("/")[0]
        if place.startswith("gpu-"):
            gpus.setdefault(place, []).append(reading)
    rows = {gpu: [_cell(readings, *column[1:]) for column in GPU_COLUMNS] for gpu, readings in gpus.items()}
    shown = [index for index, _ in enumerate(GPU_COLUMNS) if any(cells[index] for cells in rows.values())]
    if shown:
        table = new_table("GPU", *(GPU_COLUMNS[index][0] for index in shown))
        for gpu, cells in rows.items():
            table.add_row(gpu, *(cells[index] for index in shown))
        yield table
    for gpu, readings in gpus.items():
        held = [reading for reading in readings if reading["metric"] == "epochmeter.gpu.throttled_time" and reading["last"] > 0]
        lost = _cell(readings, "hw.status", "failed", "max", "share")
        if lost and lost != "0%":
            yield Text(f"{gpu} was lost for a while, or still is: its readings have a gap")
        reasons = {reading["attributes"]["epochmeter.gpu.throttle_reason"]: reading["last"] for reading in held}
        if reasons:
            words = ", ".join(f"{reason.replace('_', ' ')} {duration(spent)}" for reason, spent in reasons.items())
            yield Text(f"clocks of {gpu} were held down: {words}")


def _cell(readings: list[dict[str, Any]], metric: str, which: str, key: str, form: str) -> str:
    for reading in readings:
        if reading["metric"] == metric and key in reading and (not which or which in reading["attributes"].values()):
            return FORMS[form](reading[key])
    return ""


def _batch_sizes(data: dict[str, Any]) -> Iterator[Text]:
    for name, stage in data["stages"].items():
        if "batch_size" in stage:
            sizes = stage["batch_size"]
            yield Text(f"{name} batches of {sizes['min']} to {sizes['max']} samples, mean {sizes['mean']:.1f}")


def _flat(phases: dict[str, Any], indent: int = 0) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, entry in phases.items():
        yield "  " * indent + escape(name), entry
        yield from _flat(entry.get("phases", {}), indent + 1)


def _outside(name: str, entry: dict[str, Any]) -> str:
    how_often = "open" if "open" in entry else f"{entry['count']}x"
    return f"{name} {duration(entry['total_s'])} ({how_often})"


def _lines(data: dict[str, Any]) -> Iterator[Text]:
    if data.get("phases"):
        outside = ", ".join(_outside(name.strip(), entry) for name, entry in _flat(data["phases"]))
        yield Text(f"outside    {outside}")
    for name, stage in data["stages"].items():
        if "energy" in stage:
            yield Text(f"energy     {name}: {_energy(stage['energy'])}")
    if "energy" in data:
        yield Text(f"energy     run: {_energy(data['energy'])}")
    readings = _readings(data)
    if readings:
        yield Text(f"meanwhile  {readings}")
    hardware = _hardware(data["hardware"])
    if hardware:
        yield Text(f"hardware   {hardware}")
    if "overhead" in data:
        ratio = f", {data['overhead']['ratio']:.2%} of the run" if "ratio" in data["overhead"] else ""
        background = data["overhead"].get("background_cpu_s")
        beside = f"; {duration(background)} of CPU time beside it" if background is not None else ""
        yield Text(f"overhead   {duration(data['overhead']['measured_s'])} on the loop{ratio}{beside}")
    for what, times in data.get("notes", {}).items():
        yield Text(f"note       {what} ({times}x)")


READING_WORDS = {
    CPU: ("CPU", "share"),
    MEMORY: ("process memory", "bytes"),
}


def _readings(data: dict[str, Any]) -> str:
    words = []
    for reading in data["readings"]:
        label, form = READING_WORDS.get(reading["metric"], ("", ""))
        if form == "share" and "mean" in reading:
            words.append(f"{label} {reading['mean']:.0%} (max {reading['max']:.0%})")
        elif form == "bytes" and "max" in reading:
            words.append(f"{label} up to {reading['max'] / 2**30:.2f} GiB")
    return ", ".join(words)


def _hardware(hardware: dict[str, Any]) -> str:
    cpu, memory, runtime = hardware["cpu"], hardware["memory"], hardware["runtime"]
    words = [cpu["family"]] if "family" in cpu else []
    if "available_cores" in cpu and "logical_cores" in cpu:
        words.append(f"{cpu['available_cores']:g} of {cpu['logical_cores']} cores")
    if "total_class_gib" in memory:
        words.append(f"{memory['total_class_gib']} GiB class")
    cards = Counter(gpu.get("name", "GPU without a name") for gpu in hardware["gpus"])
    words += [f"{times} x {name}" if times > 1 else name for name, times in cards.items()]
    words += [
        f"{label} {runtime[key]}"
        for key, label in (("python", "Python"), ("torch", "torch"), ("cuda", "CUDA"))
        if key in runtime
    ]
    return ", ".join(str(word) for word in words)
