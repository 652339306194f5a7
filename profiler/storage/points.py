"""The measurements of a run as points: value, metric and attributes. OpenTelemetry's terms, without its classes.

`epoch_points` is the growth of one epoch in full detail, for the run log on this machine (written by `otlp_json`).
`summed_points` is the run so far without the user's own words, for an exporter (handed over by `sending.snapshot`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import profiler
from profiler.records.case import rates, shares
from profiler.records.histogram import NS
from profiler.records.reading_record import READING_PREFIX
from profiler.records.run import FACT_NAMES
from profiler.records.timing import Timing
from profiler.records.vocabulary import Phase
from profiler.storage.metric_rows import SPECS, rows_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.case import CaseRecord
    from profiler.records.energy import Energies
    from profiler.records.reading_record import ReadingRecord
    from profiler.records.run import EpochRecord, OpenStep, Run, Sums
    from profiler.records.timing import Path
    from profiler.storage.metric_rows import Attributes, MetricRow


SCHEMA_URL = "https://opentelemetry.io/schemas/1.44.0"
SCOPE = "epochmeter"
CUSTOM_PHASE = "custom"
KNOWN_PHASES = frozenset(phase.value for phase in Phase)
LOCAL_ROWS = rows_of("stage", "epochmeter.inference.batch_size", "epochmeter.step.slowest", "epochmeter.stage.operations")
STAGE_ROWS = tuple(row for row in rows_of("stage") if row not in LOCAL_ROWS)
SENT_ENERGY = ("epochmeter.gpu.energy.used", "epochmeter.gpu.energy.uncertain", "epochmeter.gpu.energy.metered")


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
    points = [*_written(rows_of("run"), run, {}), *_written(rows_of("epoch"), part, {})]
    points += _stage_points(part, _local_phases)
    for stage in part.stages.values():
        points += _written(LOCAL_ROWS, stage, {"epochmeter.stage": stage.stage})
    for rank, stages in part.ranks.items():
        for name, of_rank in stages.items():
            at = {"epochmeter.stage": name, "epochmeter.distributed.rank": rank}
            points += _written(rows_of("rank"), of_rank, at)
    points += _energy_points(part.energy, rows_of("energy"))
    for case in part.cases:
        points += _written(rows_of("case"), case, _case_attributes(case))
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
    points = list(_written(rows_of("run", "epochmeter.run.duration", "epochmeter.run.overhead"), run, {}))
    points.append(point_of("epochmeter.epoch.time", "sum", (sums.epochs.sum_ns + sums.open_ns) / NS, {}))
    points.append(point_of("epochmeter.epoch.count", "sum", sums.epochs.count, {}))
    if sums.epochs.count:
        points.append(point_of("epochmeter.epoch.duration", "histogram", sums.epochs, {}))
    for stage, durations in sums.stages.items():
        points.append(point_of("epochmeter.stage.duration", "histogram", durations, {"epochmeter.stage": stage}))
    points += _open_step_points(run.open_step)
    yield_gil()
    points += _stage_points(whole, _exported_phases)
    points += _energy_points(run.energy(sums.open_energy), rows_of("energy", *SENT_ENERGY))
    points += _exported_cases(whole.cases)
    points += _reading_points(whole.readings.values())
    yield_gil()
    return points


def _open_step_points(step: OpenStep | None) -> Iterable[Point]:
    """Yield for how long no step has ended, if that is longer than it should be, and 0 while steps end."""
    if step is None:
        return
    at = {"epochmeter.stage": step.stage} if step.stage else {}
    if not step.is_stalled:
        yield point_of("epochmeter.step.stalled", "gauge", 0.0, at)
        return
    phase = {"epochmeter.phase": step.phase if step.phase in KNOWN_PHASES else CUSTOM_PHASE} if step.phase else {}
    yield point_of("epochmeter.step.stalled", "gauge", step.step_ns / NS, {**at, **phase})


def _written(rows: Iterable[MetricRow], part: Any, attributes: Attributes) -> Iterable[Point]:
    """Yield the values of a part as points, with the attributes of the part before each value's own."""
    for row in rows:
        for value, own in row.write(part):
            yield Point(row.name, row.unit, row.help, row.kind, value, {**attributes, **own})


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
        if run.node is not None:
            attributes["epochmeter.distributed.node"] = run.node
        if run.job:
            attributes["epochmeter.distributed.job"] = run.job
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


def local_resource(run: Run, number: int | None = None) -> dict[str, Any]:
    """Return the facts for the run log, with the name of the run and each GPU, and the number of a line's slice."""
    local: dict[str, Any] = {
        "epochmeter.run.name": run.name,
        "epochmeter.run.state": run.state,
        "epochmeter.run.way": run.way,
        "epochmeter.run.started": run.started_unix_ns,
    }
    if run.exit_code is not None:
        local["epochmeter.run.exit_code"] = run.exit_code
    if run.said:
        local["epochmeter.run.said"] = [f"{name}={value}" for name, value in run.said.items()]
    if run.command:
        local["epochmeter.run.command"] = run.command
    if number is not None:
        local["epochmeter.run.slice"] = number
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
    phase_rows = rows_of("phase")
    for stage in part.stages.values():
        at = {"epochmeter.stage": stage.stage}
        yield from _written(STAGE_ROWS, stage, at)
        for attributes, timing in by_phase(stage.phases):
            yield from _written(phase_rows, timing, {**at, **attributes})
    for attributes, timing in by_phase(part.phases):
        yield from _written(phase_rows, timing, attributes)


def _energy_points(energies: Energies, rows: Iterable[MetricRow]) -> Iterable[Point]:
    for stage, gpus in energies.items():
        for gpu, energy in gpus.items():
            yield from _written(rows, energy, {"hw.id": gpu, **({"epochmeter.stage": stage} if stage else {})})


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
        yield point_of("epochmeter.bench.cases", "gauge", 1, {**at, "epochmeter.bench.status": case.status})
        for name, value in rates(case).items():
            yield point_of(f"epochmeter.bench.{name}", "gauge", value, at)
        for limit, share in shares(case).items():
            yield point_of("epochmeter.bench.limit_share", "gauge", share, {**at, "epochmeter.bench.limit": limit})
        for name, number in (("time", "time"), ("memory", "memory"), ("energy", "joules")):
            if number in case.numbers:
                yield point_of(f"epochmeter.bench.{name}", "gauge", case.numbers[number], at)
        for percentile in (50, 99):
            if f"p{percentile}" in case.numbers:
                latency = case.numbers[f"p{percentile}"]
                yield point_of("epochmeter.bench.latency", "gauge", latency, {**at, "epochmeter.bench.percentile": percentile})


def _reading_points(readings: Iterable[ReadingRecord]) -> Iterable[Point]:
    for reading in readings:
        spec = reading.spec
        kind = "sum" if spec.kind == "counter" else spec.kind
        value = reading.histogram if kind == "histogram" else reading.last
        yield Point(spec.name, spec.unit, spec.help, kind, value, reading.attributes)


def point_of(name: str, kind: str, value: Any, attributes: Attributes) -> Point:
    """Return a value of a known metric as a point."""
    unit, help_text = SPECS[name]
    return Point(name, unit, help_text, kind, value, attributes)
