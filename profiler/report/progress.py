"""A run that goes on: how far it is, where the last minute went beside the whole run, and whether it hangs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from profiler.records.histogram import NS
from profiler.records.slices import Slice, sum_of
from profiler.records.vocabulary import STAGES
from profiler.report.layout import duration
from profiler.report.when import moment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.run import OpenStep, Run


RECENT_NS = 60 * NS
LONG_STEP_NS = 2 * NS  # a step in progress for less is not worth a line
LEAST_SHARE = 0.005  # of a stage's time; less is not shown


@dataclass(frozen=True)
class Progress:
    """The progress of a run, as its log shows it now.

    Attributes:
        stage: the stage that goes on, "" for none.
        epoch: the epoch, or None.
        epochs: how many are planned, or None.
        step: the step in progress, from 0; None outside passes.
        steps: how many the pass has, or None.
        rate: steps a second over the last minute, or None.
        samples: samples a second over the last minute, or None.
        left_s: the time to the run's end, or to the pass's where epochs are not planned; None if unknown.
        recent: shares of the stage's time over the last minute, by top-level phase.
        whole: the same over the run.
        readings: the means of the last slice with readings, by metric, or by metric and GPU.
        open_s: how long the step in progress has been going on, now.
        phase: the phase in which it is, "" for none.
        phase_s: how long it has been in it, now.
        is_stalled: no step has ended for ten times the slowest one.
        age_s: how old the last line of the log is.
    """

    stage: str
    epoch: int | None
    epochs: int | None
    step: int | None
    steps: int | None
    rate: float | None
    samples: float | None
    left_s: float | None
    recent: Mapping[str, float]
    whole: Mapping[str, float]
    readings: Mapping[str, float]
    open_s: float
    phase: str
    phase_s: float
    is_stalled: bool
    age_s: float


def progress(run: Run, now_unix_ns: int | None = None) -> Progress:
    """Return the progress of a run whose log was just read."""
    now = time.time_ns() if now_unix_ns is None else now_unix_ns
    age_ns = max(now - run.started_unix_ns - run.duration_ns, 0) if run.state == "running" else 0
    step = run.open_step if run.state == "running" else None
    # A quick step has ended since the line was written; one that was long then is, as far as is known, still going on.
    late_ns = age_ns if step is not None and step.step_ns >= LONG_STEP_NS else 0
    recent = _recent(run)
    stage = step.stage if step is not None and step.stage else next((name for name in STAGES if name in recent.stages), "")
    mine = recent.stages.get(stage)
    seconds = mine.duration_ns / NS if mine is not None else 0.0
    rate = mine.steps / seconds if mine is not None and seconds and mine.steps else None
    latest = next((one for one in reversed(run.slices) if one.readings), None)
    return Progress(
        stage=stage,
        epoch=step.epoch if step is not None else recent.last_epoch,
        epochs=run.planned_epochs,
        step=None if step is None or not step.stage else step.step,
        steps=None if step is None else step.length,
        rate=rate,
        samples=mine.samples / seconds if mine is not None and mine.samples is not None and seconds else None,
        left_s=_left(run, step, rate),
        recent=_shares(recent, stage),
        whole=_shares(sum_of(run.slices), stage) if run.slices else {},
        readings={} if latest is None else _means(latest),
        open_s=0.0 if step is None else (step.step_ns + late_ns) / NS,
        phase="" if step is None else step.phase,
        phase_s=0.0 if step is None else (step.phase_ns + late_ns) / NS,
        is_stalled=step is not None and step.is_stalled,
        age_s=age_ns / NS,
    )


def _recent(run: Run) -> Slice:
    """Return the last minute of the run as one slice."""
    end = run.slices[-1].ended_ns if run.slices else 0
    slices = [one for one in run.slices if one.ended_ns > end - RECENT_NS]
    return sum_of(slices) if slices else Slice(None, None, 0, 0)


def _shares(one: Slice, stage: str) -> dict[str, float]:
    found = one.stages.get(stage)
    if found is None or not found.call_ns:
        return {}
    shares = {name: spent / found.call_ns for name, spent in found.phases.items()}
    return {**shares, "other": max(1 - sum(shares.values()), 0.0)}


def _means(one: Slice) -> dict[str, float]:
    found = {}
    for (name, attributes), reading in one.readings.items():
        if not reading.is_counter and reading.count:
            gpu = dict(attributes).get("hw.id", "")
            found[f"{name} {gpu}".strip()] = reading.total / reading.count
    return found


def _left(run: Run, step: OpenStep | None, rate: float | None) -> float | None:
    """Return the time left (s): the rest of the pass at the present rate, and the epochs to come as long as those before."""
    if step is None or step.length is None or not rate:
        return None
    left = max(step.length - step.step, 0) / rate
    if run.planned_epochs is None or step.epoch is None:
        return left
    done = [epoch.duration_ns / NS for epoch in run.epochs if epoch.index != step.epoch]
    usual = sum(done) / len(done) if done else step.length / rate
    return left + max(run.planned_epochs - len(done) - 1, 0) * usual


# ---- in words ------------------------------------------------------------------------------------------------------


def one_line(run: Run, now_unix_ns: int | None = None) -> str:
    """Return the progress in one line, for a pipe, a log or a dumb terminal."""
    seen = progress(run, now_unix_ns)
    words = [run.state, *where(seen)]
    if seen.rate is not None:
        words.append(pace(seen))
    largest = sorted(seen.recent.items(), key=lambda pair: -pair[1])[:3]
    words += [f"{name} {share:.0%}" for name, share in largest if share >= LEAST_SHARE]
    words += left(seen)
    words += hanging(run, seen)
    return ", ".join(words)


def where(seen: Progress) -> list[str]:
    """Return the epoch and the step, each in words."""
    found = []
    if seen.epoch is not None:
        found.append(f"epoch {seen.epoch}{'' if seen.epochs is None else f' (of {seen.epochs})'}")
    if seen.step is not None:
        found.append(f"{seen.stage} step {seen.step:,}{'' if seen.steps is None else f' (of {seen.steps:,})'}")
    return found


def left(seen: Progress) -> list[str]:
    """Return the time left, in words; nothing if it is not known, or if the run hangs."""
    if seen.left_s is None or seen.is_stalled:
        return []
    return [f"{duration(seen.left_s)} left{'' if seen.epochs is not None else ' of the pass'}"]


def pace(seen: Progress) -> str:
    """Return samples, or else steps, a second."""
    if seen.samples is not None:
        return f"{seen.samples:,.0f} samples/s"
    rate = seen.rate or 0.0
    return f"{rate:,.{0 if rate >= 10 else 2}f} steps/s"


def hanging(run: Run, seen: Progress) -> list[str]:
    """Return that the run hangs, or that its step takes long, in words; nothing if neither is so."""
    step = run.open_step
    if step is None or run.state != "running" or seen.open_s < LONG_STEP_NS / NS:
        return []
    place = f"in {seen.phase} for {duration(seen.phase_s)}" if seen.phase else f"in no phase, for {duration(seen.open_s)}"
    if not seen.is_stalled:
        what = "step in progress" if step.stage else "no pass"
        return [f"{place} ({what} for {duration(seen.open_s)})"]
    since = moment(run, round(run.duration_ns - step.phase_ns))[11:19]
    times = seen.open_s * NS / step.slowest_ns
    lasted = f"no step has ended for {duration(seen.open_s)}, {times:,.0f} times the slowest"
    return [f"STALLED: {lasted}; {place}, since {since} UTC"]


def stalled(run: Run) -> dict[str, Any] | None:
    """Return in which stage and phase a running run hangs, and since when; None if its log shows no hang."""
    step = run.open_step
    if run.state != "running" or step is None or not step.is_stalled:
        return None
    told: dict[str, Any] = {"since": moment(run, run.duration_ns - step.step_ns)}
    if step.stage:
        told.update(stage=step.stage, step=step.step)
    return {**told, **({"phase": step.phase} if step.phase else {})}
