"""Read runs from their logs. A run's id is that of its log's name; a spoilt line is left out as a whole, and counted."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from profiler.errors import ProfilerError, RunLogError, RunNotFoundError, did_you_mean
from profiler.records.case import CaseRecord, add_cases, case_identity
from profiler.records.energy import Energy, merge_energy
from profiler.records.histogram import MAX_SCALE
from profiler.records.reading_record import READING_PREFIX, ReadingRecord
from profiler.records.readings import MetricSpec
from profiler.records.run import FACT_NAMES, EpochRecord, Hardware, RankStage, Run, State
from profiler.records.slices import add_slice, slice_of
from profiler.records.timing import Timing
from profiler.storage.checked_values import (
    MAX_WHOLE,
    attributes_of,
    finite,
    number_of,
    of_type,
    one_of,
    whole_64,
    whole_upto,
)
from profiler.storage.log_lines import last_lines, lines
from profiler.storage.metric_rows import BY_NAME, CASE_ENDS, ROWS, rows_of
from profiler.storage.run_log import is_being_written, run_id, run_paths
from profiler.storage.stored_histogram import histogram_in

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.readings import Kind


T = TypeVar("T")
APP_PREFIX = "epochmeter.app."
OWN_PREFIXES = (
    "epochmeter.cause.",
    "epochmeter.line.",
    "epochmeter.run.",
    "epochmeter.stage.",
    "epochmeter.rank.",
    "epochmeter.gpu.energy.",
    "epochmeter.bench.",
    "epochmeter.loader.workers",
)
MAX_TIME = 2**62  # ns since 1970, and of a run
MAX_RANKS = 2**24
TEXTS = ("epochmeter.stage", "epochmeter.phase", "hw.id", "what")  # attributes of points
UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, StopIteration)
BEGINNING, METRICS, END = '{"resourceMetrics":[{"resource":', '"metrics":[', '"}]}'
SPOILT = "unreadable line in the run log"  # a run's note
OUTLINED = ("service.name", "epochmeter.run.", "epochmeter.distributed.")
LATEST = (
    *("name", "state", "exit_code", "started_unix_ns", "planned_epochs", "rank", "world_size", "node", "job"),
    *("said", "app", "way", "command", "hardware", "open_step"),
    *("loaders", "growth"),
)
RUN_METRICS = {row.name for row in rows_of("run")}
SUMMED = {row.name for row in ROWS if row.scope not in ("rank", "case") and row.name != "epochmeter.step.slowest"}
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
            if newest.rank and (run.rank, run.name, run.world_size, run.job) == (0, newest.name, newest.world_size, newest.job):
                return path
    except RunLogError:
        pass  # `load` will raise the error
    return paths[0]


def load(path: Path, yield_gil: Callable[[], None] = lambda: None, *, sums_at: int | None = None) -> Run:
    """Return a run from its log. Lines that cannot be read are skipped and counted in the run's notes.

    Args:
        path: the log.
        yield_gil: called before each line, so that other threads get their turn.
        sums_at: leave out readings, the slowest steps, ranks and slices, and give histograms no finer scale than this one: a
            fleet has no column for more, and reads a log quicker so.

    Raises:
        RunLogError: the file cannot be read, or no line of it belongs to a run.
    """
    run, known = Run(id=run_id(path), name="", started_unix_ns=0), []
    for line in lines(path):
        yield_gil()
        known.append(read_run_line(run, line, sums_at=sums_at))
    if not any(known):
        raise no_run(path)
    spoilt = known[:-1].count(None)  # the last one may have been cut off by a crash, or is being written now
    if spoilt:
        run.note(SPOILT, spoilt)
    run.epochs.sort(key=lambda epoch: epoch.started_ns)
    return with_true_state(run, path)


@contextlib.contextmanager
def believed(run: Run) -> Iterator[None]:
    """Raise a clear error if the work on a log fails: its lines are whole, but do not fit together.

    Raises:
        RunLogError: it failed.
    """
    try:
        yield
    except (ProfilerError, OSError):  # such as output that cannot be written
        raise
    except Exception as error:
        what = f"the log of run {run.id} holds numbers that do not fit together ({type(error).__name__})"
        raise RunLogError(f"{what}; it cannot be shown or sent.") from None


def outline(path: Path) -> Run:
    """Return a run's name, state and times alone, from its last whole line.

    Raises:
        RunLogError: as in `load`.
    """
    for line in last_lines(path):
        run = _read_beginning(path, line)
        if run is None:
            run = Run(id=run_id(path), name="", started_unix_ns=0)
            if not read_run_line(run, line):
                continue
        return with_true_state(run, path)
    raise no_run(path)


def _read_beginning(path: Path, line: bytes) -> Run | None:
    """Return a run from the resource and the run's own metrics, with which a line of ours begins: a list needs no more.

    Return None if the line is not written as we write it.
    """
    run = Run(id=run_id(path), name="", started_unix_ns=0)
    try:
        text = line.decode().rstrip("\n")
        if not text.startswith(BEGINNING) or not text.endswith(END):
            return None
        resource, _ = DECODER.raw_decode(text, len(BEGINNING))
        resource["attributes"] = [one for one in resource["attributes"] if one["key"].startswith(OUTLINED)]
        if not _read_resource(run, attributes_of(resource)):
            return None
        place = text.index(METRICS) + len(METRICS)
        while text[place] == "{":
            metric, place = DECODER.raw_decode(text, place)
            if metric["name"] not in RUN_METRICS:
                break
            _read_metric(run, metric)
            place += 1
    except UNREADABLE:
        return None
    return run if 0 <= run.duration_ns <= MAX_TIME else None


def no_run(path: Path) -> RunLogError:
    """Return the error of a log that holds no run."""
    return RunLogError(f"{path.name} holds no run: none of its lines is OTLP JSON with an epochmeter run in it.")


def with_true_state(run: Run, path: Path) -> Run:
    """Return the run, as interrupted if it says "running" and no process writes its log."""
    if run.state == "running" and not is_being_written(path):
        run.state = "interrupted"
    return run


def read_run_line(run: Run, line: bytes, *, sums_at: int | None = None) -> bool | None:
    """Add a line to the run. Return True for a line of ours, False for one of another program, None for a spoilt one.

    A spoilt line adds nothing, also no value that stands before the fault. For ``sums_at`` see `load`.
    """
    alone = Run(id=run.id, name="", started_unix_ns=0)
    try:
        if not _read_line(alone, DECODER.decode(line.decode()), sums_at):
            return False
    except UNREADABLE:
        return None
    _add(run, alone, is_whole=sums_at is None)
    return True


def _add(run: Run, line: Run, *, is_whole: bool) -> None:
    """Add the values of one line to the run. The last line knows the run's state and facts best."""
    for name in LATEST:
        setattr(run, name, getattr(line, name))
    run.duration_ns = max(run.duration_ns, line.duration_ns)
    run.overhead_ns = run.overhead_ns if line.overhead_ns is None else line.overhead_ns
    run.background_ns = run.background_ns if line.background_ns is None else line.background_ns
    run.notes.update(line.notes)
    for part in line.parts():
        if not is_whole:
            _add_part(run, part)
            continue
        for stage in part.stages.values():
            for slow in stage.slowest:
                slow.epoch = part.index
        is_whole_epoch = part.index is not None and part.slice is None and bool(part.duration_ns or part.readings)
        if is_whole_epoch or (part.slice is not None and not part.is_empty):
            add_slice(run.slices, slice_of(part))
        _add_part(run, part)


def _add_part(run: Run, part: EpochRecord) -> None:
    known = run.outside if part.index is None else run.by_index.setdefault(part.index, part)
    if known is part:
        run.epochs.append(part)
        return
    known.merge(part)
    known.inferred = known.inferred or part.inferred
    merge_energy(known.energy, part.energy)
    if part.rank_epochs:
        known.ranks, known.rank_epochs, known.rank_missing = part.ranks, part.rank_epochs, part.rank_missing


def _no_constant(word: str) -> float:
    """Refuse NaN and Infinity, which a log of ours never holds.

    Raises:
        ValueError: always.
    """
    raise ValueError(f"{word} is no number")


DECODER = json.JSONDecoder(parse_constant=_no_constant)


def _read_line(run: Run, document: Mapping[str, Any], sums_at: int | None) -> bool:
    known = False
    for resource_metrics in document["resourceMetrics"]:
        resource = attributes_of(resource_metrics["resource"])
        if not _read_resource(run, resource):
            continue
        known = True
        number = whole_upto(resource.get("epochmeter.run.slice"), MAX_WHOLE)
        for scope in resource_metrics["scopeMetrics"]:
            for metric in scope["metrics"]:
                if sums_at is None or metric["name"] in SUMMED:
                    _read_metric(run, metric, MAX_SCALE if sums_at is None else sums_at)
        for part in run.parts():
            part.slice = number
    if not 0 <= run.duration_ns <= MAX_TIME:
        raise ValueError("a run cannot have lasted so long")
    return known


def _read_resource(run: Run, resource: Mapping[str, Any]) -> bool:
    """Read the facts of a run. Return False if they are of another program."""
    if resource.get("service.name") != "epochmeter" or "epochmeter.run.name" not in resource:
        return False
    run.name = of_type(str, resource["epochmeter.run.name"])
    run.state = one_of(get_args(State), resource["epochmeter.run.state"])
    run.started_unix_ns = whole_upto(resource["epochmeter.run.started"], MAX_TIME)
    run.exit_code = whole_upto(resource.get("epochmeter.run.exit_code"), MAX_WHOLE)
    run.planned_epochs = whole_upto(resource.get("epochmeter.run.planned_epochs"), MAX_WHOLE)
    run.rank = whole_upto(resource.get("epochmeter.distributed.rank"), MAX_RANKS)
    run.world_size = whole_upto(resource.get("epochmeter.distributed.world_size"), MAX_RANKS)
    run.node = whole_upto(resource.get("epochmeter.distributed.node"), MAX_RANKS)
    run.job = of_type(str, resource.get("epochmeter.distributed.job", ""))
    run.app = {name.removeprefix(APP_PREFIX): value for name, value in resource.items() if name.startswith(APP_PREFIX)}
    run.said = _said(resource.get("epochmeter.run.said", []))
    run.way = of_type(str, resource.get("epochmeter.run.way", run.way))
    run.command = of_type(str, resource.get("epochmeter.run.command", ""))
    run.hardware = _hardware(resource)
    return True


def _said(pairs: Any) -> dict[str, str]:
    """Return the user's own words. The gate looks at them again before they leave."""
    return {name: value for name, _, value in (of_type(str, pair).partition("=") for pair in of_type(list, pairs))}


def _read_metric(run: Run, metric: Mapping[str, Any], finest: int = MAX_SCALE) -> None:
    name: str = metric["name"]
    row = BY_NAME.get(name)
    if row is None and name.startswith(OWN_PREFIXES):
        return  # a later version's metric
    for kind, point in _points(metric):
        at = _checked(attributes_of(point))
        if row is None:
            _read_reading(_part(run, at, point), metric, kind, at, point)
        elif row.scope == "run":
            row.read(run, at, number_of(point))
        elif (target := PARTS[row.scope](_part(run, at, point), at)) is not None:
            row.read(target, at, histogram_in(point, finest) if row.kind == "histogram" else number_of(point))


def _points(metric: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for kind in ("gauge", "sum", "histogram", "exponentialHistogram"):
        if kind in metric:
            growing = kind == "sum" and metric["sum"].get("isMonotonic", False)
            for point in metric[kind].get("dataPoints", ()):
                yield ("counter" if growing else kind), point


def _checked(at: dict[str, Any]) -> dict[str, Any]:
    """Return a point's attributes, each with the type that ours have.

    Raises:
        TypeError: one has another.
    """
    for parent in of_type(list, at.get("epochmeter.phase.parents", [])):
        of_type(str, parent)
    for key in TEXTS:
        if key in at:
            of_type(str, at[key])
    return at


def _part(run: Run, at: dict[str, Any], point: Mapping[str, Any]) -> EpochRecord:
    """Return the epoch of a point, or the part outside epochs. Its number is taken out of the attributes."""
    began = whole_64(point.get("startTimeUnixNano", run.started_unix_ns))
    index = whole_upto(at.pop("epochmeter.epoch.index", None), MAX_WHOLE)
    if index is not None:
        epoch = run.by_index.get(index)
        if epoch is None:
            epoch = run.by_index[index] = EpochRecord(index, started_ns=began - run.started_unix_ns)
            run.epochs.append(epoch)
        return epoch
    if "startTimeUnixNano" in point:
        run.outside.started_ns = began - run.started_unix_ns
        run.outside.duration_ns = max(whole_64(point.get("timeUnixNano", began)) - began, 0)
        if run.outside.duration_ns > MAX_TIME:
            raise ValueError("a slice cannot have lasted so long")
    return run.outside


def _phase(part: EpochRecord, at: Mapping[str, Any]) -> Timing:
    phases = part.stage(at["epochmeter.stage"]).phases if "epochmeter.stage" in at else part.phases
    path = (*at.get("epochmeter.phase.parents", ()), at["epochmeter.phase"])
    if path not in phases:
        phases[path] = Timing()
    return phases[path]


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


def _read_reading(
    part: EpochRecord, metric: Mapping[str, Any], kind: str, at: dict[str, str], point: Mapping[str, Any]
) -> None:
    name = of_type(str, metric["name"]).removeprefix(READING_PREFIX)
    for value in at.values():
        of_type(str, value)
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
        unit, description = of_type(str, metric.get("unit", "")), of_type(str, metric.get("description", ""))
        spec = MetricSpec(name, unit, kinds[kind], description)
        record = part.readings[key] = ReadingRecord(spec, at)
    if kind == "histogram":
        count, (low, high, total) = whole_64(point["count"]), (finite(point[key]) for key in ("min", "max", "sum"))
        later = ReadingRecord(record.spec, at, count, low, high, total, record.last)
        record.merge(later)
    elif kind == "exponentialHistogram":
        record.histogram.merge(histogram_in(point))
        record.count = record.histogram.count
    elif kind == "counter":
        record.last += number_of(point)
        record.count += 1
    else:
        record.last = number_of(point)


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
