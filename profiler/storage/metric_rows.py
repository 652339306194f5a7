"""The metrics of the run log: one row each, with its name, unit and meaning, how it is written and how it is read back.

A row belongs to a scope, the part of a run whose values it holds: the run, an epoch, a stage, a phase, a rank's stage, a GPU's
energy, or a case of a benchmark. `points` writes by walking over these parts; `run_reader` finds the part and reads.

The rule it keeps: a metric's name stands here and nowhere else, so that both sides cannot differ.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from profiler.records.case import NUMBERS
from profiler.records.histogram import NS
from profiler.records.run import OpenStep
from profiler.records.timing import SlowStep
from profiler.storage.cause_values import (
    read_cost,
    read_growth,
    read_lines,
    read_loader,
    write_costs,
    write_growth,
    write_lines,
    write_loaders,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.case import CaseRecord
    from profiler.records.histogram import Histogram
    from profiler.records.run import EpochRecord, RankStage, Run
    from profiler.records.timing import StageRecord, Timing


Attributes = Mapping[str, Any]
Values = Iterable[tuple[Any, Attributes]]
Scope = Literal["run", "epoch", "stage", "phase", "rank", "energy", "case"]
BENCH = "epochmeter.bench."
MOST_MISSING = 64  # ranks that are named
CASE_ENDS = ("status", "remarks", "error")  # attributes of a case that are no part of its identity


@dataclass(frozen=True)
class MetricRow:
    """One metric of the run log.

    Attributes:
        name: its name.
        unit: its UCUM unit.
        help: its meaning.
        kind: gauge, sum (that only grows), updowncounter or histogram.
        scope: the part of a run whose value it is.
        write: yields the values of a part, each with its own attributes.
        read: adds a value with its attributes to a part.
    """

    name: str
    unit: str
    help: str
    kind: str
    scope: Scope
    write: Callable[[Any], Values]
    read: Callable[[Any, Attributes, Any], None]


# ---- reading -------------------------------------------------------------------------------------------------------


def _read_run_duration(run: Run, at: Attributes, value: float) -> None:
    run.duration_ns = max(run.duration_ns, round(value * NS))


def _read_overhead(run: Run, at: Attributes, value: float) -> None:
    if at["epochmeter.thread"] == "loop":
        run.overhead_ns = round(value * NS)
    else:
        run.background_ns = round(value * NS)


def _read_note(run: Run, at: Attributes, value: float) -> None:
    run.notes[at["what"]] = int(value)


def _read_open_step(run: Run, at: Attributes, value: float) -> None:
    run.open_step = OpenStep(
        stage=at["epochmeter.stage"],
        epoch=None if "epochmeter.epoch.index" not in at else int(at["epochmeter.epoch.index"]),
        step=int(at["epochmeter.step.index"]),
        phase=at["epochmeter.phase"],
        step_ns=round(value * NS),
        phase_ns=round(float(at["epochmeter.phase.open"]) * NS),
        slowest_ns=round(float(at["epochmeter.step.longest"]) * NS),
        length=None if "epochmeter.pass.length" not in at else int(at["epochmeter.pass.length"]),
    )


def _write_open_step(run: Run) -> Values:
    step = run.open_step
    if step is not None:
        length = {} if step.length is None else {"epochmeter.pass.length": step.length}
        at = {"epochmeter.stage": step.stage, "epochmeter.step.index": step.step, "epochmeter.phase": step.phase}
        times = {"epochmeter.phase.open": step.phase_ns / NS, "epochmeter.step.longest": step.slowest_ns / NS}
        yield step.step_ns / NS, {**at, **times, **length}


def _read_slow_step(stage: StageRecord, at: Attributes, value: float) -> None:
    names, times = at.get("epochmeter.step.phases", ()), at.get("epochmeter.step.phase_times", ())
    phases = {str(name): round(float(spent) * NS) for name, spent in zip(names, times, strict=True)}
    step, number, ended = (int(at[f"epochmeter.step.{key}"]) for key in ("index", "number", "ended"))
    collected = round(float(at["epochmeter.step.collected"]) * NS)
    stage.slowest.append(SlowStep(step, number, ended, round(value * NS), phases, collected, at["epochmeter.cold"] is True))


def _write_slow_steps(stage: StageRecord) -> Values:
    for step in stage.slowest:
        numbers = {"epochmeter.step.index": step.step, "epochmeter.step.number": step.number}
        times = {"epochmeter.step.ended": step.at_ns, "epochmeter.step.collected": step.collected_ns / NS}
        names, spent = list(step.phases), [ns / NS for ns in step.phases.values()]
        phases = {"epochmeter.step.phases": names, "epochmeter.step.phase_times": spent} if names else {}
        yield step.duration_ns / NS, {**numbers, **times, "epochmeter.cold": step.is_first, **phases}


def _read_epoch_time(part: EpochRecord, at: Attributes, value: float) -> None:
    part.duration_ns += round(value * NS)
    part.inferred = at["epochmeter.epoch.inferred"]


def _read_stage_time(stage: StageRecord, at: Attributes, value: float) -> None:
    stage.duration_ns += round(value * NS)


def _read_stage_beside(stage: StageRecord, at: Attributes, value: float) -> None:
    stage.beside_ns += round(value * NS)


def _write_stage_beside(stage: StageRecord) -> Values:
    if stage.beside_ns:
        yield stage.beside_ns / NS, {}


def _read_steps(stage: StageRecord, at: Attributes, value: float) -> None:
    stage.steps += int(value)


def _read_samples(stage: StageRecord, at: Attributes, value: float) -> None:
    stage.samples = (stage.samples or 0) + int(value)


def _read_operations(stage: StageRecord, at: Attributes, value: float) -> None:
    stage.operations = (stage.operations or 0) + int(value)


def _write_operations(stage: StageRecord) -> Values:
    if stage.operations is not None:
        yield stage.operations, {}


def _read_passes(stage: StageRecord, at: Attributes, value: float) -> None:
    stage.passes += int(value)
    if at["epochmeter.pass.partial"]:
        stage.partial_passes += int(value)


def _read_rank_epochs(part: EpochRecord, at: Attributes, value: float) -> None:
    part.rank_epochs, part.rank_missing = int(value), [int(rank) for rank in at.get("epochmeter.rank.missing", ())]


def _write_rank_epochs(part: EpochRecord) -> Values:
    if part.rank_epochs:
        yield part.rank_epochs, {"epochmeter.rank.missing": part.rank_missing[:MOST_MISSING]} if part.rank_missing else {}


def _read_rank_stage(stage: RankStage, at: Attributes, value: float) -> None:
    stage.duration_ns = round(value * NS)


def _read_rank_phase(stage: RankStage, at: Attributes, value: float) -> None:
    stage.phases[at["epochmeter.phase"]] = round(value * NS)


def _read_case(case: CaseRecord, at: Attributes, value: float) -> None:
    case.status, case.error = at[f"{BENCH}status"], at.get(f"{BENCH}error")
    case.remarks = at.get(f"{BENCH}remarks") or []


# ---- writing -------------------------------------------------------------------------------------------------------


def _write_overhead(run: Run) -> Values:
    for thread, spent in (("loop", run.overhead_ns), ("background", run.background_ns)):
        if spent is not None:
            yield spent / NS, {"epochmeter.thread": thread}


def _write_epoch_time(part: EpochRecord) -> Values:
    if part.index is not None and part.duration_ns:
        yield part.duration_ns / NS, {"epochmeter.epoch.inferred": part.inferred}


def _write_samples(stage: StageRecord) -> Values:
    if stage.samples is not None:
        yield stage.samples, {}


def _write_passes(stage: StageRecord) -> Values:
    yield stage.passes - stage.partial_passes, {"epochmeter.pass.partial": False}
    yield stage.partial_passes, {"epochmeter.pass.partial": True}


def _write_case(case: CaseRecord) -> Values:
    error = {} if case.error is None else {f"{BENCH}error": case.error}
    yield 1, {f"{BENCH}status": case.status, f"{BENCH}remarks": list(case.remarks), **error}


# ---- rows whose two sides use the same field -----------------------------------------------------------------------


def _timing_row(name: str, help_text: str, scope: Scope, timing_of: Callable[[Any], Timing]) -> MetricRow:
    """Return the row of durations on the host's clock, those of the first step apart."""

    def write(part: Any) -> Values:
        timing = timing_of(part)
        for is_cold, histogram in ((False, timing.steady), (True, timing.cold)):
            if histogram.count or histogram.sum_ns:
                yield histogram, {"epochmeter.cold": is_cold}

    def read(part: Any, at: Attributes, histogram: Histogram) -> None:
        timing = timing_of(part)
        (timing.cold if at.get("epochmeter.cold") else timing.steady).merge(histogram)

    return MetricRow(name, "s", help_text, "histogram", scope, write, read)


def _histogram_row(name: str, unit: str, help_text: str, scope: Scope, histogram_of: Callable[[Any], Histogram]) -> MetricRow:
    """Return the row of one histogram."""

    def write(part: Any) -> Values:
        histogram = histogram_of(part)
        if histogram.count:
            yield histogram, {}

    def read(part: Any, at: Attributes, histogram: Histogram) -> None:
        histogram_of(part).merge(histogram)

    return MetricRow(name, unit, help_text, "histogram", scope, write, read)


def _energy_row(name: str, unit: str, help_text: str, field: str, *, kind: str = "sum", always: bool = True) -> MetricRow:
    """Return the row of one field of `Energy`; without ``always``, a zero is not written."""

    def write(energy: Any) -> Values:
        value = getattr(energy, field)
        if value or always:
            yield value, {}

    def read(energy: Any, at: Attributes, value: float) -> None:
        setattr(energy, field, getattr(energy, field) + value)

    return MetricRow(f"epochmeter.gpu.energy.{name}", unit, help_text, kind, "energy", write, read)


def _number_row(name: str, unit: str, help_text: str) -> MetricRow:
    """Return the row of one number of a benchmark's case."""

    def write(case: CaseRecord) -> Values:
        if name in case.numbers:
            yield case.numbers[name], {}

    def read(case: CaseRecord, at: Attributes, value: float) -> None:
        case.numbers[name] = value

    return MetricRow(BENCH + name, unit, help_text, "gauge", "case", write, read)


# ---- the table -----------------------------------------------------------------------------------------------------

ROWS = (
    MetricRow(
        *("epochmeter.run.duration", "s", "Time since the run began.", "gauge", "run"),
        *(lambda run: [(run.duration_ns / NS, {})], _read_run_duration),
    ),
    MetricRow(
        *("epochmeter.run.overhead", "s", "Time that the profiler itself took.", "gauge", "run"),
        *(_write_overhead, _read_overhead),
    ),
    MetricRow(
        *("epochmeter.run.notes", "{note}", "Things that went wrong on the profiler's side.", "updowncounter", "run"),
        *(lambda run: [(times, {"what": what}) for what, times in run.notes.items()], _read_note),
    ),
    MetricRow(
        *("epochmeter.step.open", "s", "How long the step in progress has been going on.", "gauge", "run"),
        *(_write_open_step, _read_open_step),
    ),
    MetricRow(
        *("epochmeter.loader.workers", "{process}", "Workers of a stage's DataLoader, with its settings.", "gauge", "run"),
        *(write_loaders, read_loader),
    ),
    MetricRow(
        *("epochmeter.process.memory.growth", "By", "Growth of the peak of physical memory in the loop.", "gauge", "run"),
        *(write_growth, read_growth),
    ),
    MetricRow(
        *("epochmeter.epoch.time", "s", "Time spent in epochs.", "sum", "epoch"),
        *(_write_epoch_time, _read_epoch_time),
    ),
    MetricRow(
        *("epochmeter.cause.time", "s", "Time in a phase that a cause of its own took; on_cpu: on a CPU.", "sum", "epoch"),
        *(write_costs, read_cost),
    ),
    MetricRow(
        *("epochmeter.line.samples", "{sample}", "Samples that found the loop at a line; they stay here.", "sum", "epoch"),
        *(write_lines, read_lines),
    ),
    MetricRow(
        *("epochmeter.stage.time", "s", "Time spent in training, validation and inference.", "sum", "stage"),
        *(lambda stage: [(stage.duration_ns / NS, {})], _read_stage_time),
    ),
    MetricRow(
        *("epochmeter.stage.beside", "s", "Of that, what overlapping calls count more than once.", "sum", "stage"),
        *(_write_stage_beside, _read_stage_beside),
    ),
    MetricRow(
        *("epochmeter.stage.steps", "{step}", "Batches handed to the loop.", "sum", "stage"),
        *(lambda stage: [(stage.steps, {})], _read_steps),
    ),
    MetricRow(
        *("epochmeter.stage.samples", "{sample}", "Samples in those batches.", "sum", "stage"),
        *(_write_samples, _read_samples),
    ),
    MetricRow(
        *("epochmeter.stage.operations", "{operation}", "Operations that autograd recorded.", "sum", "stage"),
        *(_write_operations, _read_operations),
    ),
    MetricRow(
        *("epochmeter.stage.passes", "{pass}", "Passes over a loader; a partial one did not reach the loader's end."),
        *("sum", "stage"),
        *(_write_passes, _read_passes),
    ),
    _timing_row(
        *("epochmeter.step.duration", "Duration of one step, its wait for data included.", "stage", lambda stage: stage.step)
    ),
    MetricRow(
        *("epochmeter.step.slowest", "s", "Duration of one of the slowest steps.", "gauge", "stage"),
        *(_write_slow_steps, _read_slow_step),
    ),
    _timing_row(
        *("epochmeter.inference.latency", "Duration of one inference step, without its wait for data.", "stage"),
        lambda stage: stage.latency,
    ),
    _timing_row(
        *("epochmeter.phase.duration", "Duration of one phase of a step, on the host's clock.", "phase", lambda timing: timing)
    ),
    _histogram_row(
        *("epochmeter.phase.device_duration", "s", "Duration of one phase of a step, on the GPU's clock.", "phase"),
        lambda timing: timing.device,
    ),
    _histogram_row(
        *("epochmeter.inference.batch_size", "{sample}", "Samples in one inference step.", "stage"), lambda stage: stage.batch
    ),
    MetricRow(
        *("epochmeter.rank.epochs", "{epoch}", "Epochs that all ranks have told.", "gauge", "epoch"),
        *(_write_rank_epochs, _read_rank_epochs),
    ),
    MetricRow(
        *("epochmeter.rank.stage.time", "s", "Time that one rank spent in a stage.", "sum", "rank"),
        *(lambda stage: [(stage.duration_ns / NS, {})], _read_rank_stage),
    ),
    MetricRow(
        *("epochmeter.rank.phase.time", "s", "Time that one rank spent in a top-level phase.", "sum", "rank"),
        lambda stage: [(total_ns / NS, {"epochmeter.phase": phase}) for phase, total_ns in stage.phases.items()],
        _read_rank_phase,
    ),
    _energy_row("used", "J", "Energy that a GPU used in a stage, or in none.", "joules"),
    _energy_row("metered", "s", "For how long its counter was read.", "seconds"),
    _energy_row("uncertain", "J", "How much of it may belong to what was before or after.", "uncertain", kind="gauge"),
    _energy_row("between_epochs", "J", "Of that, what may be of another epoch.", "between_epochs", always=False),
    _energy_row("between_stages", "J", "Of that, what may be of another stage.", "between_stages", always=False),
    MetricRow(
        *(BENCH + "cases", "{case}", "Cases of a benchmark, by how they ended.", "gauge", "case"),
        *(_write_case, _read_case),
    ),
    *(_number_row(name, unit, help_text) for name, (unit, help_text) in NUMBERS.items()),
)
BY_NAME = {row.name: row for row in ROWS}
SUMS_ONLY = {  # metrics that only exporters get: name: (unit, help)
    "epochmeter.epoch.count": ("{epoch}", "Epochs."),
    "epochmeter.step.stalled": ("s", "How long no step has ended, where that is ten times the slowest one; else 0."),
    "epochmeter.epoch.duration": ("s", "Duration of one epoch."),
    "epochmeter.stage.duration": ("s", "Duration of one stage in one epoch."),
    "epochmeter.bench.sample_rate": ("{sample}/s", "Samples that a benchmark's case gets through."),
    "epochmeter.bench.operation_rate": ("{operation}/s", "Floating-point operations that it makes."),
    "epochmeter.bench.byte_rate": ("By/s", "Bytes that it moves."),
    "epochmeter.bench.energy": ("J", "Energy of one sample."),
    "epochmeter.bench.latency": ("s", "Latency, at a percentile."),
    "epochmeter.bench.limit_share": ("1", "What share that is of what the machine itself can do."),
    "epochmeter.usage.features": ("{call}", "Uses of a feature of the package."),
    "epochmeter.usage.commands": ("{call}", "Calls of a command of the package."),
    "epochmeter.usage.summaries": ("{summary}", "Summaries that tell one fact, apart from all others."),
    "epochmeter.usage.facts": ("{run}", "Runs of the package of which this fact is true, by how they ended."),
    "epochmeter.usage.options": ("{call}", "Calls of a command in which this option was given."),
}
SPECS = {**{row.name: (row.unit, row.help) for row in ROWS}, **SUMS_ONLY}


@functools.cache
def rows_of(scope: Scope, *names: str) -> tuple[MetricRow, ...]:
    """Return the rows of a scope, or those of these names."""
    return tuple(row for row in ROWS if row.scope == scope and (not names or row.name in names))
