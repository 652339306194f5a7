"""The page of an export: how each cell went on from week to week."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from xml.etree.ElementTree import Element

from profiler.fleet.export import MEASURES
from profiler.records.plain_text import printable
from profiler.report.layout import Column, counts, number, shares, words
from profiler.report.web.charts import axis, columns, drawing, figure, nice
from profiler.report.web.page import el, page, section, table

MOST_DRAWN = 30  # cells; the table and the files have all
WORDS = {"waiting": "share of training that waits for data", "s_per_sample": "s per sample", "j_per_sample": "J per sample"}


def trends_page(weeks: Sequence[dict[str, Any]]) -> str:
    """Return the weeks of an export as one HTML file."""
    k, by = (weeks[0]["k"], weeks[0]["by"]) if weeks else (0, [])
    told = (
        f"Each cell has at least {k} jobs. Smaller ones are left out, numbers are rounded, and a week that was published"
        " is not changed. There are no totals: smaller cells cannot be found by subtraction."
    )
    by_cell: dict[tuple[str, ...], list[tuple[str, dict[str, Any]]]] = {}
    for week in weeks:
        for cell in week["cells"]:
            by_cell.setdefault(tuple(cell[name] for name in by), []).append((week["week"], cell))
    parts = [section(_title(names), *_cell(found)) for names, found in list(by_cell.items())[:MOST_DRAWN]]
    return page("Trends", el("h1", "Trends"), el("p", told), *(parts or [el("p", "No cell is large enough yet.")]))


def _title(names: Sequence[str]) -> str:
    return ", ".join(printable(name) or "(none)" for name in names)


def _cell(found: Sequence[tuple[str, dict[str, Any]]]) -> Iterator[Element]:
    names = [week for week, _ in found]
    yield _chart("jobs, rounded down", names, [float(cell["jobs"]) for _, cell in found])
    for measure in MEASURES:
        medians = [cell.get(measure, {}).get("p50") for _, cell in found]
        if any(value is not None for value in medians):
            yield _chart(f"{WORDS[measure]}, median", names, [value or 0.0 for value in medians])
    yield table(_columns(names, [cell for _, cell in found]), "by week")


def _chart(title: str, names: Sequence[str], values: Sequence[float]) -> Element:
    top = nice(max(values))
    drawn = drawing(f"{title} of {len(values)} weeks, up to {number(top)}", columns([value / top for value in values]))
    return figure(f"{title}, up to {number(top)}", drawn, axis(*dict.fromkeys((names[0], names[-1]))))


def _columns(names: Sequence[str], cells: Sequence[dict[str, Any]]) -> Iterator[Column]:
    yield words("week", names)
    yield counts("jobs", [cell["jobs"] for cell in cells])
    for measure in MEASURES:
        for share in ("p25", "p50", "p75"):
            values = [cell.get(measure, {}).get(share) for cell in cells]
            if measure == "waiting":
                yield shares(f"waiting {share}", values)
            else:
                yield Column(f"{measure} {share}", ["" if value is None else f"{value:g}" for value in values])
