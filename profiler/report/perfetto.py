"""A run, and the other ranks of its job, as a trace for Perfetto and for Chrome's own viewer.

The format is Chrome's trace event format: https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU.
The rule it keeps: nothing is drawn as if the log knew it. A slice knows how long its phases took, but not when: they stand
one after another, and the track's name says so.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from profiler.records.causes import COLLECTION, COMPILATION, LOADER_START
from profiler.records.histogram import NS
from profiler.records.plain_text import printable
from profiler.report.tracks import TRACKS, Track, spent_by_phase
from profiler.report.verdict import judge
from profiler.report.when import rfc3339

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.reading_record import ReadingKey
    from profiler.records.run import EpochRecord, Run
    from profiler.records.slices import Slice
    from profiler.records.timing import SlowStep


Event = dict[str, Any]
US = 1_000  # ns in the format's unit of time
EPOCHS, SLICES, SLOWEST = "epochs", "slices: phases one after another", "slowest steps"
EXACT = (COLLECTION, COMPILATION, LOADER_START)  # causes that are measured by event: a slice has what happened in it
LOST = 3  # slices in a row without a reading that others have: a short one may miss it by chance
MOST_TRACKS = 100  # of a process: a number of its own for each


class Span(NamedTuple):
    """Something that took time, in ns since the run's start, with the things inside it, one after another."""

    start: int
    length: int
    name: str
    args: dict[str, Any]
    inside: Sequence[tuple[str, int]] = ()


def trace(runs: Sequence[Run]) -> str:
    """Return these runs as one trace in JSON, on the clock of the machine that they ran on, each as a process of its own."""
    origin = min(run.started_unix_ns for run in runs)
    events = [event for number, run in enumerate(runs, 1) for event in _process(run, number, run.started_unix_ns - origin)]
    told = {"producer": "epochmeter", "start": rfc3339(origin), "runs": [run.id for run in runs]}
    return json.dumps({"traceEvents": events, "otherData": told}, separators=(",", ":")) + "\n"


def _process(run: Run, pid: int, shift: int) -> Iterator[Event]:
    rank = "" if run.rank is None else f"rank {run.rank} of {run.world_size}: "
    whole = run.whole()
    yield _named("process_name", pid, name=f"{rank}{printable(run.name)} (run {run.id})")
    found = "a benchmark, whose cases are in its report" if whole.cases else judge(run, whole).kind
    yield _named("process_labels", pid, labels=f"{run.state}, {found}")
    yield _named("process_sort_index", pid, sort_index=pid)
    # Of a log that was changed by hand, what began before the run is left out, as Perfetto does.
    slices = sorted((one for one in run.slices if one.duration_ns > 0 <= one.started_ns), key=lambda one: one.started_ns)
    tracks = [
        (EPOCHS, [_epoch(epoch) for epoch in run.epochs]),
        (SLICES, list(_slices(slices))),
        *((f"{SLOWEST}: {name}", list(map(_step, stage.slowest))) for name, stage in whole.stages.items()),
    ]
    lanes = [(name, lane) for name, spans in tracks for lane in _lanes(spans)]
    for tid, (name, lane) in enumerate(lanes, MOST_TRACKS * pid + 1):
        yield _named("thread_name", pid, tid, name=name)
        yield _named("thread_sort_index", pid, tid, sort_index=tid)
        for span in lane:
            yield from _drawn(span, pid, tid, shift)
    for key, track in _readings(slices):
        yield from _curve(slices, key, track, pid, shift)


def _named(what: str, pid: int, tid: int = 0, **args: Any) -> Event:
    return {"ph": "M", "name": what, "pid": pid, "tid": tid, "args": args}


def _drawn(span: Span, pid: int, tid: int, shift: int) -> Iterator[Event]:
    at = {"ph": "X", "pid": pid, "tid": tid}
    yield {**at, "name": span.name, "ts": (shift + span.start) / US, "dur": span.length / US, "args": span.args}
    start = span.start
    for name, length in span.inside:
        yield {**at, "name": printable(name), "ts": (shift + start) / US, "dur": length / US}
        start += length


def _lanes(spans: Iterable[Span]) -> list[list[Span]]:
    """Return spans in lanes in which none overlaps another: a viewer would take them for parts of each other."""
    lanes: list[list[Span]] = []
    for span in sorted(spans, key=lambda one: (one.start, -one.length)):
        lane = next((lane for lane in lanes if lane[-1].start + lane[-1].length <= span.start), None)
        if lane is None:
            lanes.append([span])
        else:
            lane.append(span)
    return lanes


def _epoch(epoch: EpochRecord) -> Span:
    told: dict[str, Any] = {}
    for name, stage in epoch.stages.items():
        told[name] = {"steps": stage.steps, "duration_s": stage.elapsed_ns / NS}
        if stage.samples is not None:
            told[name]["samples"] = stage.samples
    return Span(epoch.started_ns, epoch.duration_ns, f"epoch {epoch.index}", told)


def _slices(slices: Sequence[Slice]) -> Iterator[Span]:
    """Yield the slices. One that ends a moment after the next one's begin, as read from two clocks' calls, ends with it."""
    for one, after in itertools.zip_longest(slices, slices[1:]):
        length = one.duration_ns if after is None else min(one.duration_ns, after.started_ns - one.started_ns)
        if length > 0:
            yield _slice(one, length)


def _slice(one: Slice, length: int) -> Span:
    steps = {name: stage.steps for name, stage in one.stages.items()}
    spent = {name: ns for name, ns in spent_by_phase(one).items() if ns > 0}
    told: dict[str, Any] = {"steps": steps, "phases_s": {printable(name): ns / NS for name, ns in spent.items()}}
    causes = {f"{cause} in {stage}" if stage else cause: ns / NS for (cause, stage), ns in one.costs.items() if cause in EXACT}
    if causes:
        told["causes_s"] = causes
    over = max(sum(spent.values()), one.duration_ns)  # calls that overlap have more time than passes
    inside = [(name, ns * length // over) for name, ns in spent.items()]
    return Span(one.started_ns, length, _epochs_of(one), told, inside)


def _epochs_of(one: Slice) -> str:
    if one.epoch is None:
        return "outside epochs"
    return f"in epoch {one.epoch}" if one.last_epoch in (None, one.epoch) else f"in epochs {one.epoch} to {one.last_epoch}"


def _step(step: SlowStep) -> Span:
    told: dict[str, Any] = {} if step.epoch is None else {"epoch": step.epoch}
    told |= {"step": step.step, "phases_s": {printable(name): ns / NS for name, ns in step.phases.items()}}
    if step.collected_ns:
        told["garbage_collection_s"] = step.collected_ns / NS
    name = f"step {step.step}{' (the first)' if step.is_first else ''}"
    start = max(step.at_ns - step.duration_ns, 0)
    return Span(start, step.at_ns - start, name, told)


def _readings(slices: Sequence[Slice]) -> Iterator[tuple[ReadingKey, Track]]:
    """Yield the readings that have a curve, each with how it is shown."""
    keys = {key for one in slices for key, reading in one.readings.items() if not reading.is_counter}
    for track in TRACKS:
        for key in sorted(key for key in keys if key[0] == track.metric):
            yield key, track


def _curve(slices: Sequence[Slice], key: ReadingKey, track: Track, pid: int, shift: int) -> Iterator[Event]:
    """Yield a reading's mean in each slice. Where others were read and it was not, a mark says so: a curve cannot."""
    name = f"{dict(key[1]).get('hw.id', '')} {track.name}".lstrip()
    was_read = False
    missing: list[int] = []  # the begins of the slices since the last reading
    for one in [one for one in slices if one.readings]:
        reading = one.readings.get(key)
        at = {"pid": pid, "tid": 0, "ts": (shift + one.started_ns) / US}
        if reading is not None and reading.count:
            value = reading.total / reading.count / (track.length or 0.01)
            yield {"ph": "C", "name": name, **at, "args": {track.unit: round(value, 4)}}
            missing, was_read = [], True
            continue
        missing.append(one.started_ns)
        if was_read and len(missing) == LOST:
            yield {"ph": "i", "s": "p", "name": f"{name}: no reading from here on", **at, "ts": (shift + missing[0]) / US}
