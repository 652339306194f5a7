"""Read runs from their logs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from profiler.config.folder import Folder
from profiler.errors import RunLogError, RunNotFoundError, did_you_mean
from profiler.records.case import CaseRecord, add_cases, case_identity
from profiler.records.energy import Energy
from profiler.records.histogram import NS, Histogram
from profiler.records.reading_record import READING_PREFIX, ReadingRecord
from profiler.records.readings import MetricSpec
from profiler.records.run import FACT_NAMES, EpochRecord, Hardware, RankStage, Run
from profiler.records.timing import Timing
from profiler.storage.metric_rows import BY_NAME, CASE_ENDS
from profiler.storage.run_log import is_being_written, run_id, run_paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.readings import Kind


APP_PREFIX = "epochmeter.app."
OWN_PREFIXES = ("epochmeter.run.", "epochmeter.stage.", "epochmeter.rank.", "epochmeter.gpu.energy.", "epochmeter.bench.")
FACTS = {name: fact for fact, name in FACT_NAMES.items()}


def find(folder: Path, wanted: str = "last") -> Path:
    """Return the log of the run with this id, of the only one whose id begins so, or of the last run.

    Raises:
        RunNotFoundError: there is none, or more than one.
    """
    paths = run_paths(folder)
    if not paths:
        raise RunNotFoundError("no run has been recorded on this machine yet; 'epochmeter demo' records one.")
    if wanted == "last":
        return _first_rank(paths)
    found = [path for path in paths if wanted and run_id(path).startswith(wanted.lower())]
    if not found:
        hint = did_you_mean(wanted, [run_id(path) for path in paths])
        raise RunNotFoundError(f"there is no run {wanted!r}.{hint} 'epochmeter runs' lists the recorded runs.")
    if len(found) > 1:
        ids = ", ".join(run_id(path) for path in found[:5])
        raise RunNotFoundError(f"{wanted!r} fits {len(found)} runs ({ids}, ...); give more of the id.")
    return found[0]


def _first_rank(paths: list[Path]) -> Path:
    """Return the newest run; for a distributed one the first rank's, which has the other ranks' times."""
    try:
        newest = outline(paths[0])
        for path in paths[: 2 * (newest.world_size or 0)]:
            run = outline(path)
            if newest.rank and (run.rank, run.name, run.world_size) == (0, newest.name, newest.world_size):
                return path
    except RunLogError:
        pass  # `load` will raise the error
    return paths[0]


def load(path: Path, yield_gil: Callable[[], None] = lambda: None) -> Run:
    """Return a run from its log. Lines that cannot be read are skipped and counted in the run's notes.

    Args:
        path: the log.
        yield_gil: called before each line, so that other threads get their turn.

    Raises:
        RunLogError: the file cannot be read, or no line of it belongs to a run.
    """
    lines = _lines(path)
    run = Run(id=run_id(path), name="", started_unix_ns=0)
    known = []
    for line in lines:
        yield_gil()
        known.append(_read_run_line(run, line))
    if not any(known):
        raise _no_run(path)
    spoilt = known[:-1].count(None)  # the last one may have been cut off by a crash, or is being written now
    if spoilt:
        run.note("unreadable line in the run log", spoilt)
    run.epochs.sort(key=lambda epoch: epoch.started_ns)
    return _with_true_state(run, path)


def outline(path: Path) -> Run:
    """Return a run's name, state and times alone, from its last whole line.

    Raises:
        RunLogError: as in `load`.
    """
    for line in reversed(_lines(path)):
        run = Run(id=run_id(path), name="", started_unix_ns=0)
        if _read_run_line(run, line):
            return _with_true_state(run, path)
    raise _no_run(path)


def _lines(path: Path) -> list[bytes]:
    try:
        return [line for line in Folder(path.parent).read(path.name).split(b"\n") if line]
    except OSError as error:
        raise RunLogError(f"the run log {path.name} cannot be read: {error.strerror}.") from None


def _no_run(path: Path) -> RunLogError:
    return RunLogError(f"{path.name} holds no run: none of its lines is OTLP JSON with an epochmeter run in it.")


def _with_true_state(run: Run, path: Path) -> Run:
    """Return the run, as interrupted if it says "running" and no process writes its log."""
    if run.state == "running" and not is_being_written(path):
        run.state = "interrupted"
    return run


def _read_run_line(run: Run, line: bytes) -> bool | None:
    """Add a line to the run. Return True for a line of ours, False for one of another program, None for a spoilt one."""
    try:
        return _read_line(run, json.loads(line))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _read_line(run: Run, document: Mapping[str, Any]) -> bool:
    known = False
    for resource_metrics in document["resourceMetrics"]:
        resource = _attributes(resource_metrics["resource"])
        if resource.get("service.name") != "epochmeter" or "epochmeter.run.name" not in resource:
            continue
        known = True
        run.id = resource["service.instance.id"]
        run.name = resource["epochmeter.run.name"]
        run.state = resource["epochmeter.run.state"]
        run.started_unix_ns = resource["epochmeter.run.started"]
        run.planned_epochs = resource.get("epochmeter.run.planned_epochs")
        run.rank = resource.get("epochmeter.distributed.rank")
        run.world_size = resource.get("epochmeter.distributed.world_size")
        run.app = {name.removeprefix(APP_PREFIX): value for name, value in resource.items() if name.startswith(APP_PREFIX)}
        run.hardware = _hardware(resource)
        for scope in resource_metrics["scopeMetrics"]:
            for metric in scope["metrics"]:
                for kind, point in _points(metric):
                    _read_point(run, metric, kind, point)
    return known


def _points(metric: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for kind in ("gauge", "sum", "histogram", "exponentialHistogram"):
        if kind in metric:
            growing = kind == "sum" and metric["sum"].get("isMonotonic", False)
            for point in metric[kind].get("dataPoints", ()):
                yield ("counter" if growing else kind), point


def _read_point(run: Run, metric: Mapping[str, Any], kind: str, point: Mapping[str, Any]) -> None:
    name: str = metric["name"]
    at = _attributes(point)
    row = BY_NAME.get(name)
    if row is None and name.startswith(OWN_PREFIXES):
        return  # a later version's metric
    if row is not None and row.scope == "run":
        row.read(run, at, _point_value(point))
        return
    part = _part(run, at.pop("epochmeter.epoch.index", None), int(point.get("startTimeUnixNano", run.started_unix_ns)))
    if row is None:
        _read_reading(part, metric, kind, at, point)
        return
    target = PARTS[row.scope](part, at)
    if target is not None:
        row.read(target, at, _histogram(point) if row.kind == "histogram" else _point_value(point))


def _part(run: Run, index: int | None, began: int) -> EpochRecord:
    if index is None:
        return run.outside
    for epoch in reversed(run.epochs):
        if epoch.index == index:
            return epoch
    epoch = EpochRecord(index, started_ns=began - run.started_unix_ns)
    run.epochs.append(epoch)
    return epoch


def _phase(part: EpochRecord, at: Mapping[str, Any]) -> Timing:
    phases = part.stage(at["epochmeter.stage"]).phases if "epochmeter.stage" in at else part.phases
    return phases.setdefault((*at.get("epochmeter.phase.parents", ()), at["epochmeter.phase"]), Timing())


def _rank_stage(part: EpochRecord, at: Mapping[str, Any]) -> RankStage:
    stages = part.ranks.setdefault(at["epochmeter.distributed.rank"], {})
    return stages.setdefault(at["epochmeter.stage"], RankStage())


def _energy(part: EpochRecord, at: Mapping[str, Any]) -> Energy:
    return part.energy.setdefault(at.get("epochmeter.stage", ""), {}).setdefault(at["hw.id"], Energy())


def _case(part: EpochRecord, at: Mapping[str, Any]) -> CaseRecord | None:
    """Return the case with these attributes. Its status comes first; numbers of an unknown case are dropped."""
    identity = {key.rpartition(".")[2]: value for key, value in at.items()}
    is_new = "status" in identity
    found = CaseRecord(**{key: value for key, value in identity.items() if key not in CASE_ENDS})
    if is_new:
        add_cases(part.cases, [found])
    same = (case for case in reversed(part.cases) if case_identity(case) == case_identity(found))
    return next(same, None)


PARTS: dict[str, Callable[[EpochRecord, Mapping[str, Any]], Any]] = {  # scope: finds the part of an epoch
    "epoch": lambda part, at: part,
    "stage": lambda part, at: part.stage(at["epochmeter.stage"]),
    "phase": _phase,
    "rank": _rank_stage,
    "energy": _energy,
    "case": _case,
}


def _histogram(point: Mapping[str, Any]) -> Histogram:
    positive = point.get("positive", {})
    offset = int(positive.get("offset", 0))
    counts = {offset + step: int(count) for step, count in enumerate(positive.get("bucketCounts", ()))}
    empty = int(point.get("count", 0)) == 0
    return Histogram.of(
        scale=int(point.get("scale", 0)),
        counts=counts,
        zero_count=int(point.get("zeroCount", 0)),
        sum_ns=round(point.get("sum", 0.0) * NS),
        min_ns=None if empty else round(point.get("min", 0.0) * NS),
        max_ns=None if empty else round(point.get("max", 0.0) * NS),
    )


def _read_reading(
    part: EpochRecord, metric: Mapping[str, Any], kind: str, at: dict[str, str], point: Mapping[str, Any]
) -> None:
    name = metric["name"].removeprefix(READING_PREFIX)
    kinds: dict[str, Kind] = {
        "gauge": "gauge",
        "counter": "counter",
        "sum": "updowncounter",
        "histogram": "gauge",
        "exponentialHistogram": "histogram",
    }
    key = (name, tuple(sorted(at.items())))
    record = part.readings.get(key)
    if record is None:
        spec = MetricSpec(name, metric.get("unit", ""), kinds[kind], metric.get("description", ""))
        record = part.readings[key] = ReadingRecord(spec, at)
    if kind == "histogram":
        later = ReadingRecord(record.spec, at, int(point["count"]), point["min"], point["max"], point["sum"], record.last)
        record.merge(later)
    elif kind == "exponentialHistogram":
        record.histogram.merge(_histogram(point))
        record.count = record.histogram.count
    elif kind == "counter":
        record.last += _point_value(point)
        record.count += 1
    else:
        record.last = _point_value(point)


def _attributes(holder: Mapping[str, Any]) -> dict[str, Any]:
    return {entry["key"]: _value(entry["value"]) for entry in holder.get("attributes", ())}


def _value(value: Mapping[str, Any]) -> Any:
    kind, content = next(iter(value.items()))
    if kind == "intValue":
        return int(content)
    if kind == "arrayValue":
        return [_value(entry) for entry in content.get("values", ())]
    return content


def _point_value(point: Mapping[str, Any]) -> float | int:
    return int(point["asInt"]) if "asInt" in point else float(point["asDouble"])


def _hardware(resource: Mapping[str, Any]) -> Hardware:
    hardware = Hardware()
    for name, value in resource.items():
        section, key = FACTS.get(name) or tuple(name.removeprefix("epochmeter.").split(".", 1))[:2]
        if section == "gpus":
            index, _, field = key.partition(".")
            hardware.gpus.setdefault(int(index), {})[field] = value
        elif section in ("cpu", "memory", "runtime"):
            getattr(hardware, section)[key] = value
    return hardware
