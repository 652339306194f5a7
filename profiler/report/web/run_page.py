"""The page of one run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from xml.etree.ElementTree import Element

from profiler.records.plain_text import printable_in
from profiler.report.cause_text import cause_rows, energy_words, ledger_parts
from profiler.report.document import document
from profiler.report.layout import Column, counts, duration, numbers, shares, times, words
from profiler.report.tables import (
    device_table,
    epochs_table,
    gpus_table,
    phases_table,
    rank_words,
    ranks_table,
    readings_by_gpu,
)
from profiler.report.text import fact_rows, state_of
from profiler.report.web.charts import axis, columns, drawing, figure, legend, nice, scale, share_line
from profiler.report.web.page import Content, el, facts, folded, fragment, page, section, table
from profiler.report.web.step_chart import step_chart
from profiler.report.web.timeline import timeline_section
from profiler.report.when_text import trend_rows

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.run import EpochRecord, Run
    from profiler.report.baseline import Baseline


MOST_EPOCHS = 1_000  # rows of the table of epochs; of more, the special ones
FEWEST_EPOCHS = 3  # of a chart
IN_VERDICT = ("ledger", "energy", "also")  # rows that have a place of their own


def run_page(run: Run, tariff: str | None = None, baseline: Baseline | None = None) -> str:
    """Return a run as one HTML file; the arguments are those of `document`."""
    whole = run.whole()
    data = printable_in(document(run, whole, tariff=tariff, baseline=baseline))
    name = data["run"]["name"]
    return page(f"{name}: {data['verdict']['kind']}", *_header(data), *content(run, whole, data))


def run_fragment(run: Run, tariff: str | None = None) -> str:
    """Return the first parts of a run's page for a notebook: verdict, ledger, timeline and steps."""
    whole = run.whole()
    data = printable_in(document(run, whole, with_epochs=False, tariff=tariff))
    parts = (*_ledger(data.get("ledger", {})), timeline_section(run, whole), *_steps(whole, data))
    return fragment(*_header(data), _verdict(data), *parts)


def content(run: Run, whole: EpochRecord, data: dict[str, Any]) -> Iterator[Content]:
    """Yield the parts of a run's page, from its verdict on."""
    yield _verdict(data)
    yield from _ledger(data.get("ledger", {}))
    yield timeline_section(run, whole)
    yield from _steps(whole, data)
    yield from _epochs(data)
    yield from _slowest(data)
    yield from _lines(data)
    yield from _ranks(data)
    yield from _machine(data)


def _header(data: dict[str, Any]) -> Iterator[Element]:
    run = data["run"]
    told = [f"run {run['id']}", state_of(run), duration(run["duration_s"]), run.get("started", "")]
    if "rank" in run:
        told.insert(1, f"rank {run['rank']} of {run['world_size']}")
    yield el("h1", run["name"])
    yield el("p", ", ".join(filter(None, told)))


def _verdict(data: dict[str, Any]) -> Element:
    verdict, findings = data["verdict"], data["verdict"]["findings"]
    rows = [(label, text.plain) for label, text in cause_rows(data) if label not in (*IN_VERDICT, "verdict", "next")]
    kind = el("p", el("span", verdict["kind"], class_="kind"), ": " + "; ".join(verdict["evidence"]))
    step = el("p", el("strong", f"Next: {verdict['next']}")) if "next" in verdict else None
    others = [el("li", _finding(finding)) for finding in findings[1:]]
    more = folded("other findings", el("ol", *others)) if others else None
    return el("section", el("h2", "What held the run back"), kind, step, facts(rows) if rows else None, more, class_="verdict")


def _finding(finding: dict[str, Any]) -> str:
    line = f", at {finding['line']}" if "line" in finding else ""
    return f"{'; '.join(finding['evidence'])}{line} ({duration(finding['cost_s'])}). Next: {finding['next']}"


def _ledger(ledger: dict[str, Any]) -> Iterator[Element]:
    spent = [(words, seconds) for words, seconds in ledger_parts(ledger) if seconds]
    whole = sum(seconds for _, seconds in spent)
    if not whole:
        return
    parts = [(name, seconds / whole) for name, seconds in spent]
    names = [name for name, _ in parts]
    listed = table(
        [
            words("cause", names),
            times("time", [seconds for _, seconds in spent]),
            shares("share", [share for _, share in parts]),
        ],
        "The run's time by cause; together, it is the run.",
    )
    energy = el("p", energy_words(ledger["energy"])) if ledger.get("energy") else None
    yield section("Where the time went", figure("The run's time by cause", share_line(parts), legend(names)), listed, energy)


def _steps(whole: EpochRecord, data: dict[str, Any]) -> Iterator[Element]:
    for name, stage in data["stages"].items():
        device = [table(device_table(name, stage).columns, f"{name} on the GPU's clock")] if "device_busy" in stage else []
        yield section(
            f"Steps of {name}",
            step_chart(name, whole.stages[name]),
            table(phases_table(name, stage).columns, f"Phases of {name}; within it, they and other add up to its time."),
            *device,
        )


def _epochs(data: dict[str, Any]) -> Iterator[Element]:
    epochs = [epoch for epoch in data["epochs"] if epoch["stages"]]
    if not epochs:
        return
    chart = []
    if len(epochs) >= FEWEST_EPOCHS:
        spent = [epoch["duration_s"] for epoch in epochs]
        top = nice(max(spent))
        title = f"The time of {len(spent):,} epochs: {duration(min(spent))} to {duration(max(spent))}"
        plot = drawing(title, columns([value / top for value in spent]))
        labels = axis(f"epoch {epochs[0]['index']}", f"epoch {epochs[-1]['index']}")
        chart.append(figure(title, el("div", plot, scale("0", duration(top)), class_="held"), labels))
    everything = epochs_table(epochs, shows_all=len(epochs) <= MOST_EPOCHS).columns
    yield section("Epochs", *chart, folded("the epochs as a table", table(everything, "Epochs, a row for each stage")))


def _slowest(data: dict[str, Any]) -> Iterator[Element]:
    steps = [(name, step) for name, found in data.get("slowest", {}).items() for step in found]
    said = [el("p", text.plain) for _, text in trend_rows(data)]
    if not steps and not said:
        return
    phases = [max(step["phases"], key=lambda one: step["phases"][one], default="") for _, step in steps]
    listed = [
        words("stage", [name for name, _ in steps]),
        counts("step", [step["step"] for _, step in steps]),
        words("epoch", [str(step.get("epoch", "")) for _, step in steps]),
        words("at (UTC)", [step["at"][11:23] for _, step in steps]),
        times("time", [step["duration_s"] for _, step in steps]),
        words("most of it in", phases),
        times("of it", [step["phases"].get(phase) for (_, step), phase in zip(steps, phases, strict=True)]),
        words("", ["the first step" if "first" in step else "" for _, step in steps]),
    ]
    yield section("Slowest steps", *said, table(listed, "The slowest steps of each stage") if steps else None)


def _lines(data: dict[str, Any]) -> Iterator[Element]:
    lines = data.get("lines", [])
    if not lines:
        return
    whole = sum(line["samples"] for line in lines)
    listed = [
        words("line", [f"{line['file']}:{line['line']}" for line in lines]),
        words("function", [line["function"] for line in lines]),
        words("calls", [line.get("called", "") for line in lines]),
        words("stage", [line.get("stage", "") for line in lines]),
        words("phase", [line.get("phase", "") for line in lines]),
        shares("share", [line["samples"] / whole for line in lines]),
        counts("samples", [line["samples"] for line in lines]),
    ]
    yield section("Lines of the code", table(listed, "Where samples, some twenty a second, found the loop's thread"))


def _ranks(data: dict[str, Any]) -> Iterator[Element]:
    gathered = data.get("ranks")
    if not gathered:
        return
    tables = [
        table(ranks_table(name, stage, gathered["world_size"]).columns, f"{name}: the slowest, median and fastest rank")
        for name, stage in gathered["stages"].items()
    ]
    waits = [el("p", said) for said in rank_words(gathered)]
    yield section("Ranks", *waits, *tables)


def _machine(data: dict[str, Any]) -> Iterator[Element]:
    gpus = gpus_table(readings_by_gpu(data))
    readings = table(_readings(data["readings"]), "Readings over the whole run") if data["readings"] else None
    yield section(
        "Machine",
        facts((label, text.plain) for label, text in fact_rows(data)),
        None if gpus is None else table(gpus.columns, "GPUs over the whole run"),
        folded("hardware and versions", facts(_hardware(data["hardware"]))),
        None if readings is None else folded("all readings", readings),
    )


def _hardware(hardware: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for part in ("cpu", "memory"):
        yield from ((f"{part} {key.replace('_', ' ')}", str(value)) for key, value in hardware[part].items())
    for gpu in hardware["gpus"]:
        yield f"gpu {gpu['index']}", ", ".join(f"{key} {value}" for key, value in gpu.items() if key != "index")
    yield from ((key, str(value)) for key, value in hardware["runtime"].items())


def _readings(readings: list[dict[str, Any]]) -> Iterator[Column]:
    yield words("metric", [reading["metric"] for reading in readings])
    yield words("unit", [reading["unit"] for reading in readings])
    yield words("of", [", ".join(map(str, reading["attributes"].values())) for reading in readings])
    for key in ("min", "mean", "max", "last"):
        yield numbers(key, [reading.get(key) for reading in readings])
