"""When things happened: the timeline of a run, its slowest steps, rhythms, growth, and slow epochs or hours.

Everything here is reported only if the run shows it: a rhythm needs several slow steps that keep it, a growth must stand out
from the noise.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timezone
from statistics import StatisticsError, correlation, linear_regression, median
from typing import Any, NamedTuple

from profiler.records.histogram import NS
from profiler.records.slices import Slice, joined, sum_of
from profiler.records.vocabulary import STAGES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.run import EpochRecord, Run
    from profiler.records.timing import SlowStep, StageRecord


MOST_SLICES = 240  # in a document
SHOWN_SLOWEST = 10
SLOW_TIMES = 1.5  # the median step: a step below that is no slow one
MEMBERS = 4  # slow steps that must keep a rhythm, at least
MEMBER_SHARE = 0.7  # and of all slow ones
AS_SLOW = 0.8  # of the fastest of them
HEAVY_SHARE = 0.8  # of the time that slow steps take too long
KEPT_SHARE = 0.5  # of the steps that a rhythm says are slow, so many must be
HOUR_NS = 3600 * NS
SLOW_PART_TIMES = 1.25  # the median epoch or hour
FEWEST_PARTS = 4
GROWING = ("process.memory.usage", "epochmeter.torch.memory.allocated", "hw.gpu.memory.usage")
FEWEST_POINTS = 8
SHORTEST_GROWTH_NS = 60 * NS
LEAST_GROWTH_SHARE, LEAST_GROWTH_BYTES = 0.05, 32 * 2**20
LEAST_FIT = 0.8  # of the line through the growth: the share of the variance that it explains


def moment(run: Run, at_ns: int) -> str:
    """Return a moment of a run as wall-clock time in UTC, to the millisecond."""
    return rfc3339(run.started_unix_ns + at_ns)


def rfc3339(unix_ns: int) -> str:
    """Return wall-clock time in UTC, to the millisecond."""
    return datetime.fromtimestamp(unix_ns / NS, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# ---- the timeline --------------------------------------------------------------------------------------------------


def timeline(run: Run) -> list[dict[str, Any]]:
    """Return the slices of a run, each with its times, steps, stages, and the readings' min, mean and max."""
    return timeline_of(run, shown_slices(run))


def shown_slices(run: Run) -> list[Slice]:
    """Return the slices of a run that have anything in them, joined where there are more than a document has."""
    slices = [one for one in run.slices if one.duration_ns or one.stages]
    return joined(slices, MOST_SLICES) if len(slices) > MOST_SLICES else slices


def timeline_of(run: Run, slices: list[Slice]) -> list[dict[str, Any]]:
    """Return these slices as they stand in a document."""
    return [_slice(run, one) for one in slices]


def _slice(run: Run, one: Slice) -> dict[str, Any]:
    result: dict[str, Any] = {"start": moment(run, one.started_ns), "duration_s": one.duration_ns / NS}
    if one.epoch is not None and one.epoch == one.last_epoch:
        result["epoch"] = one.epoch
        leading = next((stage for name in STAGES if (stage := one.stages.get(name)) and stage.steps), None)
        if leading is not None:
            result["steps"] = [leading.first_step, leading.first_step + leading.steps - 1]
    elif one.epoch is not None:
        result["epochs"] = [one.epoch, one.last_epoch]
    result["stages"] = {}
    for name, stage in one.stages.items():
        told: dict[str, Any] = {"duration_s": stage.duration_ns / NS, "steps": stage.steps}
        if stage.call_ns != stage.duration_ns:
            told["call_time_s"] = stage.call_ns / NS
        if stage.samples is not None:
            told["samples"] = stage.samples
        if stage.steps:
            told["first_step"] = stage.first_step
            told["step_mean_s"] = stage.step_ns / NS / stage.steps
        told["phases"] = {phase: spent / NS for phase, spent in stage.phases.items()}
        result["stages"][name] = told
    if one.phases:
        result["phases"] = {phase: spent / NS for phase, spent in one.phases.items()}
    result["readings"] = {_reading_name(key): _reading(reading) for key, reading in sorted(one.readings.items())}
    return result


def _reading_name(key: tuple[str, tuple[tuple[str, str], ...]]) -> str:
    name, attributes = key
    return f"{name}{{{','.join(f'{label}={value}' for label, value in attributes)}}}" if attributes else name


def _reading(reading: Any) -> dict[str, float]:
    if reading.is_counter:
        return {"growth": reading.total}
    return {"min": reading.minimum, "mean": reading.total / reading.count, "max": reading.maximum}


# ---- slow steps ----------------------------------------------------------------------------------------------------


def slowest(run: Run, stage: StageRecord) -> list[dict[str, Any]]:
    """Return the slowest steps of a stage, the slowest first."""
    ordered = sorted(stage.slowest, key=lambda step: (-step.duration_ns, step.number))
    return [_slow_step(run, step) for step in ordered[:SHOWN_SLOWEST]]


def _slow_step(run: Run, step: SlowStep) -> dict[str, Any]:
    result: dict[str, Any] = {"step": step.step}
    if step.epoch is not None:
        result["epoch"] = step.epoch
    result.update(at=moment(run, step.at_ns), duration_s=step.duration_ns / NS)
    result["phases"] = {name: spent / NS for name, spent in step.phases.items()}
    if step.collected_ns:
        result["collected_s"] = step.collected_ns / NS
    if step.is_first:
        result["first"] = True
    return result


def recurring(stage: StageRecord) -> dict[str, Any] | None:
    """Return the rhythm of a stage's slow steps, such as every 50th, and the phase they spend their time in; None without any.

    ``every`` is the distance in steps, and ``steps`` how many of the slowest keep it. ``excess_s`` is how much longer than a
    usual step they are. ``phase`` is where most of that lies: a top-level phase, or "garbage collection".
    """
    usual = stage.step.steady.percentile(0.5)
    rhythm = None if usual is None else rhythm_of(stage, usual)
    if usual is None or rhythm is None:
        return None
    excess = sum(step.duration_ns for step in rhythm.steps) / len(rhythm.steps) / NS - usual
    found = {"every": rhythm.every, "first": rhythm.first, "steps": len(rhythm.steps), "excess_s": excess}
    where = _where(rhythm.steps, stage, excess)
    return found if where is None else {**found, "phase": where}


class Rhythm(NamedTuple):
    """Slow steps at equal distances: every so many steps, from the first one on."""

    every: int
    first: int
    steps: list[SlowStep]


def rhythm_of(stage: StageRecord, usual: float) -> Rhythm | None:
    """Return the rhythm of a stage's slow steps, or None; ``usual`` is its median step (s).

    It is looked for among all slow steps, and then among the few that hold most of their time: small ones that are slow by
    chance would hide it.
    """
    slow = [step for step in stage.slowest if not step.is_first and step.duration_ns > SLOW_TIMES * usual * NS]
    for steps in (slow, _heaviest(slow, usual)):
        for numbers in ([step.number for step in steps], [step.step for step in steps]):
            every, first = _rhythm(numbers)
            kept = [step for step, number in zip(steps, numbers, strict=True) if every and number % every == first]
            if kept and _is_kept(kept, every, stage):
                return Rhythm(every, first, kept)
    return None


def _heaviest(slow: list[SlowStep], usual: float) -> list[SlowStep]:
    """Return the slowest of these steps that together hold most of the excess time of all."""
    ordered = sorted(slow, key=lambda step: -step.duration_ns)
    whole = sum(step.duration_ns - usual * NS for step in ordered)
    kept, sum_ns = [], 0.0
    for step in ordered:
        if sum_ns >= HEAVY_SHARE * whole:
            break
        kept.append(step)
        sum_ns += step.duration_ns - usual * NS
    return sorted(kept, key=lambda step: step.number)


def _is_kept(kept: list[SlowStep], every: int, stage: StageRecord) -> bool:
    """Return True if about as many steps are slow as the rhythm says: by chance, a few keep some rhythm often."""
    as_slow = round(AS_SLOW * min(step.duration_ns for step in kept))
    return stage.step.steady.count_above(as_slow) >= KEPT_SHARE * (stage.steps // every)


def _rhythm(numbers: list[int]) -> tuple[int, int]:
    """Return the distance and the remainder that most of these step numbers share, or (0, 0)."""
    distinct = sorted(set(numbers))
    distances = {b - a for a, b in itertools.combinations(distinct, 2)}
    candidates = {d for d in distances if d > 2} | {
        math.gcd(a, b) for a, b in itertools.combinations(sorted(distances)[:40], 2)
    }
    best = (0, 0, 0)
    for every in candidates:
        if every > 2:
            remainder, members = Counter(number % every for number in distinct).most_common(1)[0]
            best = max(best, (members, every, remainder))
    members, every, remainder = best
    if members < MEMBERS or members < MEMBER_SHARE * len(distinct):
        return 0, 0
    return every, remainder


def _where(kept: list[SlowStep], stage: StageRecord, excess: float) -> str | None:
    collected = sum(step.collected_ns for step in kept) / len(kept) / NS
    if collected > excess / 2:
        return "garbage collection"
    usual = {path[0]: timing.total_ns / max(stage.steps, 1) for path, timing in stage.phases.items() if len(path) == 1}
    times: Counter[str] = Counter()
    for step in kept:
        times.update(step.phases)
    more = {name: (spent / len(kept) - usual.get(name, 0.0)) / NS for name, spent in times.items()}
    return _most_of(excess, more)


def _most_of(excess: float, more: Mapping[str, float]) -> str | None:
    """Return the phase in which more than half of an excess (s) lies, or None."""
    name = max(more, key=lambda one: more[one], default=None)
    return name if name is not None and more[name] > excess / 2 else None


# ---- slow epochs and hours -----------------------------------------------------------------------------------------


def slow_part(run: Run) -> dict[str, Any] | None:
    """Return the epoch, or in a run of hours the hour, whose steps took much longer than the others'; None without one.

    ``times`` is its mean step over the median of all parts, ``phase`` where most of the difference lies.
    """
    by_epoch = {epoch.index: _pace(epoch) for epoch in run.epochs if "train" in epoch.stages}
    found = _outlier({index: pace for index, pace in by_epoch.items() if pace is not None})
    if found is not None:
        return {"epoch": found[0], **found[1]}
    hours: dict[int, list[Slice]] = {}
    for one in run.slices:
        if "train" in one.stages and one.stages["train"].steps:
            hours.setdefault(one.started_ns // HOUR_NS, []).append(one)
    paces = {}
    for hour, slices in hours.items():
        stage = sum_of(slices).stages["train"]
        paces[hour] = _per_step(stage.step_ns, stage.phases, stage.steps)
    found = _outlier(paces)
    return None if found is None else {"hour": found[0], "start": moment(run, found[0] * HOUR_NS), **found[1]}


Pace = tuple[float, dict[str, float]]  # the mean step (s), and the mean of each phase in it


def _pace(epoch: EpochRecord) -> Pace | None:
    stage = epoch.stages["train"]
    steps = stage.step.steady.count
    if not steps:
        return None
    phases = {path[0]: timing.steady.sum_ns for path, timing in stage.phases.items() if len(path) == 1}
    return _per_step(stage.step.steady.sum_ns, phases, steps)


def _per_step(step_ns: int, phases: Mapping[str, int], steps: int) -> Pace:
    return step_ns / steps / NS, {name: spent / steps / NS for name, spent in phases.items()}


def _outlier(paces: Mapping[Any, Pace]) -> tuple[Any, dict[str, Any]] | None:
    if len(paces) < FEWEST_PARTS:
        return None
    usual = median(step for step, _ in paces.values())
    slow = max(paces, key=lambda part: paces[part][0])
    step, phases = paces[slow]
    if not usual or step < SLOW_PART_TIMES * usual:
        return None
    result: dict[str, Any] = {"times": step / usual, "step_mean_s": step, "usual_s": usual}
    more = {name: spent - median(other.get(name, 0.0) for _, other in paces.values()) for name, spent in phases.items()}
    phase = _most_of(step - usual, more)
    return slow, result if phase is None else {**result, "phase": phase}


# ---- growth --------------------------------------------------------------------------------------------------------


def growing(run: Run) -> list[dict[str, Any]]:
    """Return the kinds of memory that grow to the end of the run: since when, and by how many bytes an hour.

    The readings of the slices are cut in two where a level line and then a rising one fit best (least squares).
    """
    keys = sorted({key for one in run.slices for key in one.readings if key[0] in GROWING})
    found = []
    for key in keys:
        points = [
            (one.started_ns + one.duration_ns / 2, reading.total / reading.count)
            for one in run.slices
            if (reading := one.readings.get(key)) is not None and reading.count
        ]
        growth = _growth(points)
        if growth is not None:
            since, slope, total = growth
            told = {"metric": key[0], "attributes": dict(key[1]), "since": moment(run, round(since))}
            epoch = next((one.epoch for one in run.slices if one.ended_ns >= since and one.epoch is not None), None)
            found.append({**told, **({} if epoch is None else {"epoch": epoch}), "by_per_hour": slope * HOUR_NS, "by": total})
    return found


def _growth(points: list[tuple[float, float]]) -> tuple[float, float, float] | None:
    """Return when a growth began (ns), its slope (By/ns) and its sum (By), or None if there is none."""
    if len(points) < FEWEST_POINTS:
        return None
    best = min(_cuts(points), default=None)
    if best is None:
        return None
    _, begin = best
    rest = points[begin:]
    slope, fit = _line(rest)
    lasted, total = rest[-1][0] - rest[0][0], slope * (rest[-1][0] - rest[0][0])
    enough = max(LEAST_GROWTH_SHARE * rest[0][1], LEAST_GROWTH_BYTES)
    if lasted < SHORTEST_GROWTH_NS or fit < LEAST_FIT or total < enough:
        return None
    return rest[0][0], slope, total


def _cuts(points: list[tuple[float, float]]) -> Iterator[tuple[float, int]]:
    """Yield each place for the cut, with the squares that are left when both parts are fitted."""
    before, after = _Squares(()), _Squares(points)
    for place in range(len(points) - FEWEST_POINTS // 2 + 1):
        yield before.around_mean + after.around_line, place
        before.move(points[place], 1)
        after.move(points[place], -1)


class _Squares:
    """The sums of a set of points, from which the squares around their mean and their line follow."""

    def __init__(self, points: Iterable[tuple[float, float]]) -> None:
        self._n, self._t, self._y, self._tt, self._ty, self._yy = 0, 0.0, 0.0, 0.0, 0.0, 0.0
        for point in points:
            self.move(point, 1)

    def move(self, point: tuple[float, float], sign: int) -> None:
        """Add a point (1), or take one away (-1)."""
        t, y = point[0] / HOUR_NS, point[1] / 2**20  # numbers of about the same size lose fewer digits
        self._n += sign
        self._t += sign * t
        self._y += sign * y
        self._tt += sign * t * t
        self._ty += sign * t * y
        self._yy += sign * y * y

    @property
    def around_mean(self) -> float:
        """The sum of the squares around the mean."""
        return max(self._yy - self._y**2 / self._n, 0.0) if self._n else 0.0

    @property
    def around_line(self) -> float:
        """The sum of the squares around the line that fits best."""
        if self._n < 2:
            return 0.0
        spread = self._tt - self._t**2 / self._n
        together = self._ty - self._t * self._y / self._n
        return max(self.around_mean - (together**2 / spread if spread > 0 else 0.0), 0.0)


def _line(points: list[tuple[float, float]]) -> tuple[float, float]:
    """Return the slope of the line that fits best, and the share of the variance that it explains."""
    times, values = [t for t, _ in points], [y for _, y in points]
    try:
        return linear_regression(times, values).slope, correlation(times, values) ** 2
    except StatisticsError:  # all at one moment, or all equal
        return 0.0, 0.0
