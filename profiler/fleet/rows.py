"""Make one row for each stage of each epoch of a run: the table of a fleet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from math import frexp, ldexp
from typing import Any

from profiler.config.word_grammar import LABEL_PREFIX
from profiler.fleet.columns import COLUMNS, SCALE
from profiler.fleet.hours import Piece
from profiler.records.causes import LOADER_START, merge_costs, merge_lines
from profiler.records.energy import Energy, sum_of
from profiler.records.histogram import NS, Histogram
from profiler.records.run import EpochRecord
from profiler.records.timing import StageRecord, Timing
from profiler.records.vocabulary import Phase
from profiler.report.accounts import Accounts
from profiler.report.ledger import WORDS as CAUSES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.causes import Costs
    from profiler.records.run import Run
    from profiler.records.timing import Path


Row = dict[str, Any]
OWN = "own"  # stands for the names of phases that are the user's own, where these stay at home
WORDS = frozenset(word for one in (*(phase.value for phase in Phase), LOADER_START) for word in (one, f"after {one}"))
BITS = 12  # of the times of phases and causes: at most 0.025 % off
LONG_BITS = 24  # of the time of a stage: seven digits
MOST_WHOLE, MOST_IN_BUCKET = 2**63 - 1, 2**32 - 1
WHOLE = tuple(column.name for column in COLUMNS if column.kind in ("count", "whole"))


def rows_of(run: Run, log_bytes: int, workload: str, *, keeps_names: bool = True, pieces: Sequence[Piece] = ()) -> list[Row]:
    """Return the rows of a run.

    Args:
        run: the run.
        log_bytes: how many bytes of its log were read.
        workload: the name of the training, in the user's words.
        keeps_names: False to put "own" in the place of the names that the user has given to phases.
        pieces: the parts to make rows of; without any, the epochs and the time outside them.

    Raises:
        ValueError: a number is larger than any that was measured.
    """
    facts = {**_facts(run), "workload": workload, "log_bytes": log_bytes}
    pieces = pieces or [Piece(part) for part in run.parts()]
    by_piece = [list(_rows_of_piece(run, piece, facts, keeps_names)) for piece in pieces]
    _add_ledger(run, [piece.part for piece in pieces], by_piece)
    found = [row for rows in by_piece for row in rows]
    for row in found:
        row["log_rows"] = len(found)
        _check(row)
    return found


def _facts(run: Run) -> Row:
    runtime, cpu = run.hardware.runtime, run.hardware.cpu
    first = run.hardware.gpus[min(run.hardware.gpus)] if run.hardware.gpus else {}
    return {
        "run": run.id,
        "job": run.job,
        "rank": run.rank,
        "world_size": run.world_size,
        "node": run.node,
        "labels": {name.removeprefix(LABEL_PREFIX): value for name, value in run.said.items()},
        "state": run.state,
        "as_of": (run.started_unix_ns + run.duration_ns) // 1000,
        "package": run.app.get("name", ""),
        "package_version": run.app.get("version", ""),
        **{name: str(runtime.get(name, "")) for name in ("torch", "cuda", "python", "os")},
        "cpu": str(cpu.get("family", "")),
        "cores": _whole(cpu.get("available_cores")),
        "memory_gib": _whole(run.hardware.memory.get("total_class_gib")),
        "gpu": str(first.get("name", "")),
        "gpus": len(run.hardware.gpus),
        "gpu_memory_gib": _whole(first.get("memory_class_gib")),
    }


def _rows_of_piece(run: Run, piece: Piece, facts: Row, keeps_names: bool) -> Iterator[Row]:
    part = piece.part
    start = datetime.fromtimestamp((run.started_unix_ns + part.started_ns) // (NS // 1_000) / 1_000, timezone.utc)
    place = {**facts, "epoch": part.index, "slice": piece.hour, "start": start}
    for name, stage in part.stages.items():
        yield {
            **place,
            "stage": name,
            "duration_s": rounded(stage.elapsed_ns / NS, LONG_BITS),
            "steps": stage.steps,
            "samples": stage.samples,
            "passes": stage.passes,
            "partial_passes": stage.partial_passes,
            **_energy(part.energy.get(name, {})),
            **_steps(stage),
            **_phases(stage.phases, keeps_names),
        }
    if part.phases:
        spent = sum(timing.total_ns for path, timing in part.phases.items() if len(path) == 1)
        yield {
            **place,
            "stage": "",
            "duration_s": rounded(spent / NS, LONG_BITS),
            "steps": 0,
            "samples": None,
            "passes": 0,
            "partial_passes": 0,
            **_energy(part.energy.get("", {})),
            "step_zeros": 0,
            "step_offset": 0,
            "step_counts": [],
            **_phases(part.phases, keeps_names),
        }


def _add_ledger(run: Run, parts: Sequence[EpochRecord], by_part: Sequence[list[Row]]) -> None:
    """Add to each row its time by cause, so that all of it has one."""
    accounts = Accounts(run, _outline(parts))
    for part, rows, costs in zip(parts, by_part, _costs_by_part(parts), strict=True):
        ledgers: dict[str, dict[str, float]] = {row["stage"]: {} for row in rows}
        for one in accounts.of_part(part, costs):
            ledger, cause = ledgers[one.stage], CAUSES[one.cause]
            ledger[cause] = ledger.get(cause, 0.0) + one.ns / NS
        for row in rows:
            row["ledger_s"] = {cause: rounded(spent) for cause, spent in ledgers[row["stage"]].items()}


def _outline(parts: Iterable[EpochRecord]) -> EpochRecord:
    """Return the sums of a run that its causes depend on, without the durations of phases: those take longest to add up."""
    whole = EpochRecord(None)
    for part in parts:
        merge_costs(whole.costs, part.costs)
        merge_lines(whole.lines, part.lines)
        for name, stage in part.stages.items():
            mine = whole.stages.setdefault(name, StageRecord(name))
            mine.step.merge(stage.step)
            mine.phases.update(dict.fromkeys(stage.phases, Timing()))
        whole.phases.update(dict.fromkeys(part.phases, Timing()))
    return whole


def _costs_by_part(parts: Sequence[EpochRecord]) -> list[Costs]:
    """Return the costs of each part. One that came late, in a part without its stage, is the last one's."""
    last = {name: index for index, part in enumerate(parts) for name in part.stages}
    found: list[Costs] = [{} for _ in parts]
    for index, part in enumerate(parts):
        for place, cost in part.costs.items():
            home = index if place.stage in part.stages else last.get(place.stage, index)
            merge_costs(found[home], {place: cost})
    return found


def _energy(gpus: Mapping[str, Energy]) -> Row:
    used = sum_of(gpus.values())
    if not gpus:
        return {"energy_j": None, "energy_uncertain_j": None}
    return {"energy_j": rounded(used.joules, LONG_BITS), "energy_uncertain_j": rounded(used.uncertain, LONG_BITS)}


def _steps(stage: StageRecord) -> Row:
    zeros, offset, counts = buckets_of([stage.step.steady])
    return {"step_zeros": zeros, "step_offset": offset, "step_counts": counts}


def _phases(timings: Mapping[Path, Timing], keeps_names: bool) -> Row:
    named: dict[str, list[Timing]] = {}
    for path, timing in timings.items():
        if len(path) == 1:
            named.setdefault(path[0] if keeps_names or path[0] in WORDS else OWN, []).append(timing)
    found = {name: buckets_of(timing.steady for timing in those) for name, those in named.items()}
    return {
        "phases_s": {name: rounded(sum(timing.total_ns for timing in those) / NS) for name, those in named.items()},
        "phase_names": list(found),
        "phase_zeros": [zeros for zeros, _, _ in found.values()],
        "phase_offsets": [offset for _, offset, _ in found.values()],
        "phase_counts": [counts for _, _, counts in found.values()],
    }


def buckets_of(histograms: Iterable[Histogram]) -> tuple[int, int, list[int]]:
    """Return the values of no time, the first bucket, and the buckets at the fleet's scale, of histograms together."""
    zeros, found = 0, dict[int, int]()
    for one in histograms:
        zeros += one.zero_count
        shift = one.scale - SCALE
        if shift < 0:  # of durations from microseconds to hours
            _spread(one, -shift, found)
            continue
        for index, count in one.counts.items():
            found[index >> shift] = found.get(index >> shift, 0) + count
    if not found:
        return zeros, 0, []
    low, high = min(found), max(found)
    return zeros, low, [found.get(index, 0) for index in range(low, high + 1)]


def _spread(coarse: Histogram, steps: int, found: dict[int, int]) -> None:
    """Add the buckets of a coarser histogram: half of a bucket goes to each of its two at the next finer scale."""
    counts = dict(coarse.counts)
    for _ in range(steps):
        halves = ((2 * index + side, half) for index, n in counts.items() for side, half in enumerate((n - n // 2, n // 2)))
        counts = {index: half for index, half in halves if half}
    for index, count in counts.items():
        found[index] = found.get(index, 0) + count


def rounded(value: float, bits: int = BITS) -> float:
    """Return a number with so many binary digits: the rest is noise that no file can pack."""
    digits, power = frexp(value)
    return ldexp(round(ldexp(digits, bits)), power - bits)


def _check(row: Row) -> None:
    buckets = (row["step_counts"], row["phase_zeros"], *row["phase_counts"])
    if any(max(counts, default=0) > MOST_IN_BUCKET for counts in buckets):
        raise ValueError("a histogram counts more than anybody measured")
    if any(not -MOST_WHOLE <= row[name] <= MOST_WHOLE for name in WHOLE if row[name] is not None):
        raise ValueError("a number is larger than any that was measured")


def _whole(value: Any) -> int | None:
    return round(value) if isinstance(value, (int, float)) else None
