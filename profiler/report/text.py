"""A run as text for a terminal: the epochs, the phases, the hardware, and the verdict."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.text import Text

from profiler.records.plain_text import printable_in
from profiler.records.run import Run
from profiler.report.bench import tables
from profiler.report.cause_text import cause_rows
from profiler.report.document import document
from profiler.report.layout import CPU, MEMORY, duration, labelled, place_width
from profiler.report.tables import (
    device_table,
    epochs_table,
    gpus_table,
    outside_words,
    phases_table,
    rank_words,
    ranks_table,
    readings_by_gpu,
    value_of,
)
from profiler.report.when_text import when_rows, when_table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.report.baseline import Baseline


WIDTH = 100  # where nobody says how wide


def text(run: Run, width: int | None = None, tariff: str | None = None, baseline: Baseline | None = None) -> str:
    """Return the report without colours, at most ``width`` columns wide: by default ``COLUMNS`` of the environment, or 100."""
    return plain(renderable(run, tariff, baseline), width)


def plain(shown: RenderableType, width: int | None = None) -> str:
    """Return something for a rich console as text without colours."""
    into = io.StringIO()
    columns = place_width(WIDTH) if width is None else width
    plainly: dict[str, Any] = {"no_color": True, "color_system": None, "force_terminal": False, "force_jupyter": False}
    console = Console(file=into, width=columns, highlight=False, **plainly)
    console.print(shown)
    return "\n".join(line.rstrip() for line in into.getvalue().splitlines())


def renderable(run: Run, tariff: str | None = None, baseline: Baseline | None = None) -> RenderableType:
    """Return the report for a rich console; the arguments are those of `document`."""
    data = printable_in(document(run, tariff=tariff, baseline=baseline))
    blocks: list[RenderableType] = [Group(_title(data), labelled(cause_rows(data)))]
    if any(epoch["stages"] for epoch in data["epochs"]):
        blocks.append(epochs_table(data["epochs"]))
    blocks += when_table(run)
    blocks += [phases_table(name, stage) for name, stage in data["stages"].items()]
    blocks += tables(data.get("bench", {}).get("cases", ()))
    blocks += [*_device(data), *_ranks(data), *_gpus(data)]
    blocks.append(labelled([*when_rows(data), *fact_rows(data)]))
    return spaced(blocks)


def spaced(blocks: Iterable[RenderableType]) -> RenderableType:
    """Return blocks with an empty line between two of them, but for lines of text, which follow each other."""
    parts: list[RenderableType] = []
    for block in blocks:
        if parts and not (isinstance(block, Text) and isinstance(parts[-1], Text)):
            parts.append(Text(""))
        parts.append(block)
    return Group(*parts)


def state_of(run: dict[str, Any]) -> str:
    """Return how a run stands, with the exit code that its program asked for."""
    return f"{run['state']} (exit code {run['exit_code']})" if "exit_code" in run else str(run["state"])


def _title(data: dict[str, Any]) -> Text:
    run = data["run"]
    rank = f"  rank {run['rank']} of {run['world_size']}" if "rank" in run else ""
    return Text.assemble(
        (run["name"], "bold"),
        f"{rank}  run {run['id']}  {state_of(run)}  {duration(run['duration_s'])}  {run.get('started', '')}",
    )


def _ranks(data: dict[str, Any]) -> Iterator[RenderableType]:
    """Return each phase's slowest, median and fastest rank, and which rank waited for which."""
    gathered = data.get("ranks")
    if not gathered:
        return
    for name, stage in gathered["stages"].items():
        yield ranks_table(name, stage, gathered["world_size"])
    yield from map(Text, rank_words(gathered))


def _device(data: dict[str, Any]) -> Iterator[RenderableType]:
    """Return, for each stage, its phases' share on the GPU's clock beside that on the host's."""
    for name, stage in data["stages"].items():
        if "device_busy" not in stage:
            continue
        yield device_table(name, stage)
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


def _gpus(data: dict[str, Any]) -> Iterator[RenderableType]:
    """Return the table of the GPUs, and below it which were lost, and why clocks were low."""
    gpus = readings_by_gpu(data)
    table = gpus_table(gpus)
    if table is not None:
        yield table
    for gpu, readings in gpus.items():
        held = [reading for reading in readings if reading["metric"] == "epochmeter.gpu.throttled_time" and reading["last"] > 0]
        lost = value_of(readings, "hw.status", "failed", "max")
        if lost:
            yield Text(f"{gpu} was lost for a while, or still is: its readings have a gap")
        reasons = {reading["attributes"]["epochmeter.gpu.throttle_reason"]: reading["last"] for reading in held}
        if reasons:
            words = ", ".join(f"{reason.replace('_', ' ')} {duration(spent)}" for reason, spent in reasons.items())
            yield Text(f"clocks of {gpu} were held down: {words}")


def fact_rows(data: dict[str, Any]) -> Iterator[tuple[str, Text]]:
    """Yield the other facts of a run, a label and a text each."""
    for name, stage in data["stages"].items():
        if "batch_size" in stage:
            sizes = stage["batch_size"]
            yield "batches", Text(f"{name}: {sizes['min']} to {sizes['max']} samples, mean {sizes['mean']:.1f}")
    if data.get("phases"):
        yield "outside", Text(outside_words(data))
    for name, stage in data["stages"].items():
        if "energy" in stage:
            yield "energy", Text(f"{name}: {_energy(stage['energy'])}")
    if "energy" in data:
        yield "energy", Text(f"run: {_energy(data['energy'])}")
    readings = _readings(data)
    if readings:
        yield "meanwhile", Text(readings)
    hardware = hardware_words(data["hardware"])
    if hardware:
        yield "hardware", Text(hardware)
    yield from _ours(data)


MOST_OVERHEAD = 0.01
OVER = (
    "this is more than the 1% that the profiler should take. Steps or epochs of this run are short: compare shares, not times, "
    "and name fewer phases, or time a longer run"
)


def _ours(data: dict[str, Any]) -> Iterator[tuple[str, Text]]:
    if "overhead" in data:
        ratio = f", {data['overhead']['ratio']:.2%} of the run" if "ratio" in data["overhead"] else ""
        background = data["overhead"].get("background_cpu_s")
        beside = f"; {duration(background)} of CPU time beside it" if background is not None else ""
        yield "overhead", Text(f"{duration(data['overhead']['measured_s'])} on the loop{ratio}{beside}")
        if data["overhead"].get("ratio", 0.0) > MOST_OVERHEAD:
            yield "", Text(OVER)
    for what, times in data.get("notes", {}).items():
        yield "note", Text(what if times == 1 else f"{what} ({times}x)")


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


def hardware_words(hardware: dict[str, Any]) -> str:
    """Return the machine in one line."""
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
