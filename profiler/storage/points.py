"""The measurements of a run as points: value, metric and attributes. OpenTelemetry's terms, without its classes.

`epoch_points` is the growth of one epoch in full detail, for the run log on this machine (written by `otlp_json`).
`summed_points` is the run so far without the user's own words, for an exporter (handed over by `sending.otel_data`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import profiler
from profiler.records.case import NUMBERS, rates, shares
from profiler.records.histogram import NS
from profiler.records.reading_record import READING_PREFIX
from profiler.records.run import FACT_NAMES
from profiler.records.timing import Timing
from profiler.records.vocabulary import Phase

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.case import CaseRecord
    from profiler.records.energy import Energies, Energy
    from profiler.records.reading_record import ReadingRecord
    from profiler.records.run import EpochRecord, Run, Sums
    from profiler.records.timing import Path, StageRecord


SCHEMA_URL = "https://opentelemetry.io/schemas/1.44.0"
SCOPE = "epochmeter"
CUSTOM_PHASE = "custom"
KNOWN_PHASES = frozenset(phase.value for phase in Phase)
SPECS = {  # name: (unit, help)
    "epochmeter.run.duration": ("s", "Time since the run began."),
    "epochmeter.run.overhead": ("s", "Time that the profiler itself took."),
    "epochmeter.run.notes": ("{note}", "Things that went wrong on the profiler's side."),
    "epochmeter.epoch.time": ("s", "Time spent in epochs."),
    "epochmeter.epoch.count": ("{epoch}", "Epochs."),
    "epochmeter.epoch.duration": ("s", "Duration of one epoch."),
    "epochmeter.stage.duration": ("s", "Duration of one stage in one epoch."),
    "epochmeter.stage.time": ("s", "Time spent in training, validation and inference."),
    "epochmeter.stage.steps": ("{step}", "Batches handed to the loop."),
    "epochmeter.stage.samples": ("{sample}", "Samples in those batches."),
    "epochmeter.stage.passes": ("{pass}", "Passes over a loader; a partial one did not reach the loader's end."),
    "epochmeter.step.duration": ("s", "Duration of one step, its wait for data included."),
    "epochmeter.inference.latency": ("s", "Duration of one inference step, without its wait for data."),
    "epochmeter.inference.batch_size": ("{sample}", "Samples in one inference step."),
    "epochmeter.rank.stage.time": ("s", "Time that one rank spent in a stage."),
    "epochmeter.rank.phase.time": ("s", "Time that one rank spent in a top-level phase."),
    "epochmeter.phase.duration": ("s", "Duration of one phase of a step, on the host's clock."),
    "epochmeter.phase.device_duration": ("s", "Duration of one phase of a step, on the GPU's clock."),
    "epochmeter.gpu.energy.used": ("J", "Energy that a GPU used in a stage, or in none."),
    "epochmeter.gpu.energy.uncertain": ("J", "How much of it may belong to what was before or after."),
    "epochmeter.gpu.energy.metered": ("s", "For how long its counter was read."),
    "epochmeter.gpu.energy.between_epochs": ("J", "Of that, what may be of another epoch."),
    "epochmeter.gpu.energy.between_stages": ("J", "Of that, what may be of another stage."),
    "epochmeter.bench.cases": ("{case}", "Cases of a benchmark, by how they ended."),
    "epochmeter.bench.sample_rate": ("{sample}/s", "Samples that a benchmark's case gets through."),
    "epochmeter.bench.operation_rate": ("{operation}/s", "Floating-point operations that it makes."),
    "epochmeter.bench.byte_rate": ("By/s", "Bytes that it moves."),
    "epochmeter.bench.limit_share": ("1", "What share that is of what the machine itself can do."),
    **{f"epochmeter.bench.{name}": told for name, told in NUMBERS.items()},
    "epochmeter.usage.features": ("{call}", "Uses of a feature of the package."),
    "epochmeter.usage.commands": ("{call}", "Calls of a command of the package."),
    "epochmeter.usage.options": ("{call}", "Calls of a command in which this option was given."),
}
Attributes = Mapping[str, Any]


@dataclass(frozen=True)
class Point:
    """One value: a `Histogram`, a `ReadingRecord` (for its statistics) or a number."""

    name: str
    unit: str
    help: str
    kind: str  # histogram, statistics, sum (that only grows), updowncounter, gauge
    value: Any
    attributes: Attributes


def epoch_points(run: Run, part: EpochRecord) -> list[Point]:
    """Return the growth of the run by one epoch (or outside of epochs), in full detail."""
    points = [_point("epochmeter.run.duration", "gauge", run.duration_ns / NS, {})]
    points += _overhead(run)
    points += [_point("epochmeter.run.notes", "updowncounter", times, {"what": what}) for what, times in run.notes.items()]
    if part.index is not None and part.duration_ns:
        inferred = {"epochmeter.epoch.inferred": part.inferred}
        points.append(_point("epochmeter.epoch.time", "sum", part.duration_ns / NS, inferred))
    points += _stage_points(part, _local_phases)
    points += _batch_points(part)
    points += _rank_points(part)
    points += _energy_points(part.energy, _local_energy)
    points += _case_points(part.cases)
    points += _reading_points(part.readings.values())
    points += [
        Point(
            READING_PREFIX + reading.spec.name, reading.spec.unit, reading.spec.help, "statistics", reading, reading.attributes
        )
        for reading in part.readings.values()
        if reading.spec.kind not in ("counter", "histogram")
    ]
    return points


def epoch_attributes(part: EpochRecord) -> dict[str, Any]:
    """Return the attributes that all points of an epoch share."""
    return {} if part.index is None else {"epochmeter.epoch.index": part.index}


def summed_points(run: Run, sums: Sums, whole: EpochRecord, yield_gil: Callable[[], None] = lambda: None) -> list[Point]:
    """Return the run so far for an exporter, without the run's name and without phase names other than those of `Phase`.

    Args:
        run: the run.
        sums: the sums of the run.
        whole: the result of ``sums.of(run)``.
        yield_gil: called between two pieces of work, so that other threads get their turn.
    """
    points = [_point("epochmeter.run.duration", "gauge", run.duration_ns / NS, {})]
    points += _overhead(run)
    points.append(_point("epochmeter.epoch.time", "sum", sums.epochs.sum_ns / NS, {}))
    points.append(_point("epochmeter.epoch.count", "sum", sums.epochs.count, {}))
    if sums.epochs.count:
        points.append(_point("epochmeter.epoch.duration", "histogram", sums.epochs, {}))
    for stage, durations in sums.stages.items():
        points.append(_point("epochmeter.stage.duration", "histogram", durations, {"epochmeter.stage": stage}))
    yield_gil()
    points += _stage_points(whole, _exported_phases)
    points += _energy_points(run.energy(), _exported_energy)
    points += _exported_cases(whole.cases)
    points += _reading_points(whole.readings.values())
    yield_gil()
    return points


def _overhead(run: Run) -> Iterable[Point]:
    for thread, spent in (("loop", run.overhead_ns), ("background", run.background_ns)):
        if spent is not None:
            yield _point("epochmeter.run.overhead", "gauge", spent / NS, {"epochmeter.thread": thread})


def _resource(run: Run) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "service.name": "epochmeter",
        "service.version": profiler.__version__,
        "service.instance.id": run.id,
        **{f"epochmeter.app.{key}": value for key, value in run.app.items()},
    }
    if run.rank is not None and run.world_size is not None:
        attributes["epochmeter.distributed.rank"] = run.rank
        attributes["epochmeter.distributed.world_size"] = run.world_size
    for section in ("cpu", "memory", "runtime"):
        for key, value in getattr(run.hardware, section).items():
            attributes[FACT_NAMES.get((section, key), f"epochmeter.{section}.{key}")] = value
    return attributes


def exported_resource(run: Run) -> dict[str, Any]:
    """Return the facts for an exporter, with the GPUs summed up. The list of the exporter decides which of them leave."""
    attributes = _resource(run)
    gpus = list(run.hardware.gpus.values())
    if gpus:
        attributes["epochmeter.gpu.count"] = len(gpus)
        for key, name in (("name", "epochmeter.gpu.model"), ("memory_class_gb", "epochmeter.gpu.memory_class")):
            values = {gpu[key] for gpu in gpus if key in gpu}
            if len(values) == 1:
                attributes[name] = values.pop()
    return attributes


def local_resource(run: Run) -> dict[str, Any]:
    """Return the facts for the run log, with the name of the run and each GPU."""
    local: dict[str, Any] = {
        "epochmeter.run.name": run.name,
        "epochmeter.run.state": run.state,
        "epochmeter.run.started": run.started_unix_ns,
    }
    for index, gpu in run.hardware.gpus.items():
        local.update({f"epochmeter.gpus.{index}.{key}": value for key, value in gpu.items()})
    if run.planned_epochs is not None:
        local["epochmeter.run.planned_epochs"] = run.planned_epochs
    return {**_resource(run), **local}


def _local_phases(phases: Mapping[Path, Timing]) -> Iterable[tuple[Attributes, Timing]]:
    for path, timing in phases.items():
        attributes: dict[str, Any] = {"epochmeter.phase": path[-1]}
        if len(path) > 1:
            attributes["epochmeter.phase.parents"] = list(path[:-1])
        yield attributes, timing


def _exported_phases(phases: Mapping[Path, Timing]) -> Iterable[tuple[Attributes, Timing]]:
    """Yield phases by known word and level. All of the user's own words become "custom"."""
    merged: dict[tuple[str, str], Timing] = {}
    for path, timing in phases.items():
        word = path[-1] if path[-1] in KNOWN_PHASES else CUSTOM_PHASE
        merged.setdefault((word, "top" if len(path) == 1 else "nested"), Timing()).merge(timing)
    for (word, level), timing in merged.items():
        yield {"epochmeter.phase": word, "epochmeter.phase.level": level}, timing


def _stage_points(part: EpochRecord, by_phase: Any) -> Iterable[Point]:
    for stage in part.stages.values():
        at = {"epochmeter.stage": stage.stage}
        yield from _totals(stage, at)
        yield from _timing("epochmeter.step.duration", stage.step, at)
        yield from _timing("epochmeter.inference.latency", stage.latency, at)
        for attributes, timing in by_phase(stage.phases):
            yield from _phase(timing, {**at, **attributes})
    for attributes, timing in by_phase(part.phases):
        yield from _phase(timing, attributes)


def _batch_points(part: EpochRecord) -> Iterable[Point]:
    for stage in part.stages.values():
        if stage.batch.count:
            yield _point("epochmeter.inference.batch_size", "histogram", stage.batch, {"epochmeter.stage": stage.stage})


def _rank_points(part: EpochRecord) -> Iterable[Point]:
    for rank, stages in part.ranks.items():
        for name, stage in stages.items():
            at = {"epochmeter.stage": name, "epochmeter.distributed.rank": rank}
            yield _point("epochmeter.rank.stage.time", "sum", stage.duration_ns / NS, at)
            for phase, total_ns in stage.phases.items():
                yield _point("epochmeter.rank.phase.time", "sum", total_ns / NS, {**at, "epochmeter.phase": phase})


def _energy_points(energies: Energies, parts: Callable[[Energy], Mapping[str, float]]) -> Iterable[Point]:
    for stage, gpus in energies.items():
        for gpu, energy in gpus.items():
            at = {"hw.id": gpu, **({"epochmeter.stage": stage} if stage else {})}
            for name, value in parts(energy).items():
                kind = "gauge" if name == "uncertain" else "sum"
                yield _point(f"epochmeter.gpu.energy.{name}", kind, value, at)


def _local_energy(energy: Energy) -> Mapping[str, float]:
    return {
        "used": energy.joules,
        "metered": energy.seconds,
        "uncertain": energy.uncertain,
        **{name: value for name in ("between_epochs", "between_stages") if (value := getattr(energy, name))},
    }


def _exported_energy(energy: Energy) -> Mapping[str, float]:
    return {"used": energy.joules, "metered": energy.seconds, "uncertain": energy.uncertain}


def _case_points(cases: Iterable[CaseRecord]) -> Iterable[Point]:
    """Yield each case whole: a point for its identity and status, and one for each number."""
    for case in cases:
        at = _case_attributes(case)
        ended = {"epochmeter.bench.status": case.status, "epochmeter.bench.remarks": list(case.remarks)}
        if case.error is not None:
            ended["epochmeter.bench.error"] = case.error
        yield _point("epochmeter.bench.cases", "gauge", 1, {**at, **ended})
        for name, value in case.numbers.items():
            yield _point(f"epochmeter.bench.{name}", "gauge", value, at)


def _case_attributes(case: CaseRecord) -> dict[str, Any]:
    at = {
        "epochmeter.bench.suite": case.suite,
        "epochmeter.bench.name": case.name,
        "epochmeter.bench.device": case.device,
        "epochmeter.stage": case.stage,
        "epochmeter.bench.dtype": case.dtype,
        "epochmeter.bench.batch": case.batch,
        "epochmeter.bench.workers": case.workers,
        "epochmeter.bench.shape": case.shape or None,
        "epochmeter.bench.compiled": case.compiled,
    }
    return {name: value for name, value in at.items() if value is not None}


def _exported_cases(cases: Iterable[CaseRecord]) -> Iterable[Point]:
    """Yield rates and shares. A user's own model has neither name nor shape, and only the first one is sent."""
    seen = []
    for case in cases:
        at = _case_attributes(case)
        at.pop("epochmeter.bench.shape", None)
        if case.suite == "yours":
            at["epochmeter.bench.name"] = CUSTOM_PHASE
        if at in seen:
            continue
        seen.append(at)
        yield _point("epochmeter.bench.cases", "gauge", 1, {**at, "epochmeter.bench.status": case.status})
        for name, value in rates(case).items():
            yield _point(f"epochmeter.bench.{name}", "gauge", value, at)
        for limit, share in shares(case).items():
            yield _point("epochmeter.bench.limit_share", "gauge", share, {**at, "epochmeter.bench.limit": limit})
        for name in ("time", "memory", "joules", "p50", "p99"):
            if name in case.numbers:
                yield _point(f"epochmeter.bench.{name}", "gauge", case.numbers[name], at)


def _totals(stage: StageRecord, at: Attributes) -> Iterable[Point]:
    yield _point("epochmeter.stage.time", "sum", stage.duration_ns / NS, at)
    yield _point("epochmeter.stage.steps", "sum", stage.steps, at)
    if stage.samples is not None:
        yield _point("epochmeter.stage.samples", "sum", stage.samples, at)
    whole = stage.passes - stage.partial_passes
    for partial, passes in ((False, whole), (True, stage.partial_passes)):
        yield _point("epochmeter.stage.passes", "sum", passes, {**at, "epochmeter.pass.partial": partial})


def _phase(timing: Timing, attributes: Attributes) -> Iterable[Point]:
    yield from _timing("epochmeter.phase.duration", timing, attributes)
    if timing.device.count:
        yield _point("epochmeter.phase.device_duration", "histogram", timing.device, attributes)


def _timing(name: str, timing: Timing, attributes: Attributes) -> Iterable[Point]:
    for cold, histogram in ((False, timing.steady), (True, timing.cold)):
        if histogram.count or histogram.sum_ns:
            yield _point(name, "histogram", histogram, {**attributes, "epochmeter.cold": cold})


def _reading_points(readings: Iterable[ReadingRecord]) -> Iterable[Point]:
    for reading in readings:
        spec = reading.spec
        kind = "sum" if spec.kind == "counter" else spec.kind
        value = reading.histogram if kind == "histogram" else reading.last
        yield Point(spec.name, spec.unit, spec.help, kind, value, reading.attributes)


def _point(name: str, kind: str, value: Any, attributes: Attributes) -> Point:
    unit, help_text = SPECS[name]
    return Point(name, unit, help_text, kind, value, attributes)
