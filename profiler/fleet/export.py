"""Publish a fleet as cells that are large enough, rounded, by week, and each week once and for all.

The rules it keeps:
- A cell is published only if it has at least ``k`` units: jobs, or the values of a label such as a team. Never runs or ranks.
- There are cells of one division alone: no totals and no margins, from which a small cell could be found by subtraction.
- A week is published when it has been over for `SETTLED_DAYS`, and never changed then: two exports differ by whole weeks. All
  weeks from the first one with a cell on have a file, so that none shows whether there was a job in it.
- Numbers of units are rounded down to tens, other numbers to two digits, and each percentile has `BEHIND` jobs on both sides.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, NamedTuple

from profiler.errors import ArgumentValueError, ProfilerError
from profiler.fleet.columns import filled, text_of
from profiler.fleet.files import written_whole
from profiler.fleet.questions import grouped
from profiler.report.baseline import ODD, check_class

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.fleet.asking import Asked

FORM = "epochmeter fleet export 1"
INDEX = "index.json"
LEAST_K, STEP = 5, 10  # of units in a cell, and what their number is rounded down to
SETTLED_DAYS = 7
WEEK = timedelta(days=7)
LONGEST_SILENCE = timedelta(days=100)  # of a fleet; after that, the clock may be wrong, and a week is never published again
BEHIND = 5  # jobs on both sides of a percentile, itself among them, and between two of them where there are many
PERCENTILES = (tuple(range(1, 100)), tuple(range(5, 100, 5)), (10, 25, 50, 75, 90))  # the finest that its jobs allow
MEASURES = ("waiting", "s_per_sample", "j_per_sample")
DIGITS = 2


class Rules(NamedTuple):
    """How a fleet is divided, and how large a cell must be.

    Attributes:
        k: the units that a cell has at least.
        by: the columns, or labels, that make a cell.
        unit: the label that is counted; "" for jobs.
    """

    k: int
    by: tuple[str, ...]
    unit: str


@dataclass
class Exported:
    """The result of an export.

    Attributes:
        weeks: those that were written.
        frozen: how many were there.
        unsettled: how many are too young.
        cells: how many cells are in the weeks that were written.
        suppressed: how many were too small, and with how many units each, by week. For the author alone.
    """

    weeks: list[date] = field(default_factory=list)
    frozen: int = 0
    unsettled: int = 0
    cells: int = 0
    suppressed: dict[date, list[int]] = field(default_factory=dict)


def sql_of(rules: Rules) -> str:
    """Return the query for the jobs of each cell."""
    columns = [grouped(name) for name in rules.by]
    names = [f"d{place}" for place in range(len(columns))]
    made = ", ".join(f"{column} AS {name}" for column, name in zip(columns, names, strict=True))
    unit = f"{grouped(rules.unit)} AS unit" if rules.unit else ""
    return filled(text_of("export"), {"CELL": ", ".join(names), "COLUMNS": made, "UNIT": unit})


def export(fleet: Asked, folder: Path, rules: Rules, today: date | None = None) -> Exported:
    """Write the weeks that are settled and not yet published, and the list of all.

    Args:
        fleet: is read.
        folder: the published files: ``weeks/<Monday>.json`` and ``index.json``.
        rules: those of the folder, if it has some.
        today: the day; None for now.

    Raises:
        ArgumentValueError: ``k`` protects nobody or would appear exactly, or the folder has other rules.
        ProfilerError: the fleet cannot be read or has no such label, or the folder not written.
    """
    if rules.k < LEAST_K or rules.k % LEAST_K:
        raise ArgumentValueError(f"--k is a multiple of {LEAST_K}, and at least that, not {rules.k}")
    taken = {"week", "jobs", *MEASURES} & set(rules.by)
    if taken:
        raise ArgumentValueError(f"--by takes no {', '.join(sorted(taken))}: each cell has that of its own")
    if not (folder / INDEX).exists():  # its rules stay for good
        fleet.check_labels(*rules.by, rules.unit)
    before, published = _checked(folder, rules)
    told, day = Exported(), today or datetime.now(timezone.utc).date()
    weeks: dict[date, list[dict[str, Any]]] = {}
    for row in fleet.sql(sql_of(rules)).to_pylist():
        weeks.setdefault(row["week"], []).append(row)
    until = day - timedelta(days=day.weekday() + 7 + SETTLED_DAYS // 7 * 7)  # the last week that is settled
    if weeks and until - max(weeks) > LONGEST_SILENCE:
        raise ProfilerError(
            f"the newest training is of the week of {max(weeks)}, and this machine's clock says {day}: is it right?"
        )
    begin = min(weeks, default=until + WEEK)
    if before is not None:
        begin = before + WEEK if published else max(begin, before + WEEK)
    for week in _weeks(begin, until):
        cells, small = cells_of(weeks.get(week, ()), rules)
        if cells or published:
            _put(_path_of(folder, week), {"form": FORM, "week": week.isoformat(), "k": rules.k, "by": rules.by, "cells": cells})
            published.append(week)
            told.weeks.append(week)
            told.cells += len(cells)
        told.suppressed[week] = small
    told.frozen = len(published) - len(told.weeks)
    told.unsettled = sum(week > until for week in weeks)
    _put_index(folder, rules, until if before is None else max(before, until), published)
    return told


def _put_index(folder: Path, rules: Rules, until: date | None, weeks: list[date]) -> None:
    names = [week.isoformat() for week in weeks]
    made_by = {"k": rules.k, "by": rules.by, "unit": rules.unit or "job"}
    _put(folder / INDEX, {"form": FORM, **made_by, "until": None if until is None else until.isoformat(), "weeks": names})


def _weeks(first: date, last: date) -> Iterator[date]:
    while first <= last:
        yield first
        first += WEEK


def cells_of(rows: Iterable[dict[str, Any]], rules: Rules) -> tuple[list[dict[str, Any]], list[int]]:
    """Return the cells of a week that are large enough, and how many units each of the others has."""
    by_cell: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        by_cell.setdefault(tuple(row[f"d{place}"] for place in range(len(rules.by))), []).append(row)
    cells, small = [], []
    for names, jobs in sorted(by_cell.items()):
        units = min(len({job["unit"] for job in jobs if job["unit"]}), len({job["job_or_run"] for job in jobs}))
        if units < rules.k:
            small.append(units)
            continue
        measured = {name: found for name in MEASURES if (found := _percentiles(name, jobs, rules.k))}
        cells.append({**dict(zip(rules.by, names, strict=True)), "jobs": max(units // STEP * STEP, rules.k), **measured})
    return cells, sorted(small)


def weeks_in(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the published weeks, the oldest first.

    Raises:
        ProfilerError: the folder holds no export, or a file of it cannot be read.
    """
    for week in _index_of(folder)[2]:
        found = _read(_path_of(folder, week))
        try:
            for cell in found["cells"]:
                check_class(cell, found["by"])
        except ODD:
            raise ProfilerError(f"{_path_of(folder, week)} is no week of an export") from None
        yield found


def _percentiles(measure: str, jobs: Sequence[dict[str, Any]], k: int) -> dict[str, float]:
    """Return the percentiles of one value of each unit: the median of its jobs. Empty if too few units have one."""
    by_unit: dict[str, list[float]] = {}
    for job in jobs:
        if job[measure] is not None and job["unit"]:
            by_unit.setdefault(job["unit"], []).append(job[measure])
    values = sorted(sorted(own)[len(own) // 2] for own in by_unit.values())
    if len(values) < k:
        return {}
    many = len(values) // STEP * STEP  # which percentiles there are tells no more than the rounded number
    shares = next((those for those in PERCENTILES if (those[1] - those[0]) * many >= 100 * BEHIND), PERCENTILES[-1])
    return {
        f"p{share}": rounded(values[math.ceil(share / 100 * len(values)) - 1])
        for share in shares
        if min(share, 100 - share) * many >= 100 * BEHIND
    }


def rounded(value: float) -> float:
    """Return a number with `DIGITS` significant digits."""
    return float(f"{value:.{DIGITS}g}")


def _path_of(folder: Path, week: date) -> Path:
    return folder / "weeks" / f"{week.isoformat()}.json"


def _checked(folder: Path, rules: Rules) -> tuple[date | None, list[date]]:
    """Return the last week that was settled when the folder was written, None for a new folder; and the published weeks.

    Raises:
        ArgumentValueError: its rules are others.
        ProfilerError: it cannot be read.
    """
    if not (folder / INDEX).exists():
        if any((folder / "weeks").glob("*.json")):
            raise ProfilerError(f"{folder} has weeks and no {INDEX}: it is not known by which rules they were made")
        _put_index(folder, rules, None, [])  # first, so that an export that is ended can go on
        return None, []
    before, until, weeks = _index_of(folder)
    if before != rules:
        counted = f", counting {before.unit}" if before.unit else ""
        raise ArgumentValueError(
            f"{folder} is divided by {', '.join(before.by)} with k {before.k}{counted}: others would give small cells away"
        )
    there = [week for week in _on_disk(folder) if week not in weeks]  # an export was ended before it wrote its list
    return max([*there, *([until] if until else [])], default=None), sorted([*weeks, *there])


def _on_disk(folder: Path) -> Iterator[date]:
    for path in (folder / "weeks").glob("*.json"):
        with contextlib.suppress(ValueError):
            yield date.fromisoformat(path.stem)


def _index_of(folder: Path) -> tuple[Rules, date | None, list[date]]:
    """Return the rules of an export, its last settled week, and its weeks.

    Raises:
        ProfilerError: the folder holds none.
    """
    index = _read(folder / INDEX)
    try:
        if index["form"] != FORM:
            raise ValueError
        unit = "" if index["unit"] == "job" else str(index["unit"])
        rules = Rules(int(index["k"]), tuple(str(name) for name in index["by"]), unit)
        until = None if index["until"] is None else date.fromisoformat(index["until"])
        return rules, until, [date.fromisoformat(name) for name in index["weeks"]]
    except (ValueError, KeyError, TypeError, OverflowError):
        raise ProfilerError(f"{folder / INDEX} is no list of an export; 'epochmeter fleet export' writes one") from None


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ProfilerError(f"{path} is not there: 'epochmeter fleet export' makes an export, and never a week again") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ProfilerError(f"{path} cannot be read: {error}") from None


def _put(path: Path, content: dict[str, Any]) -> None:
    put_text(path, json.dumps(content, indent=1, sort_keys=False) + "\n")


def put_text(path: Path, text: str) -> None:
    """Write a file whole, or not at all.

    Raises:
        ProfilerError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as part:
            part.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ProfilerError(f"{path} cannot be written: {error.strerror or error}") from None
