"""The answer to a question, for people: a table in a terminal, and a page with its chart."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from datetime import date, datetime
from typing import Any
from xml.etree.ElementTree import Element

import pyarrow as pa

from profiler.records.plain_text import printable
from profiler.report.layout import Column, counts, number, numbers, shares, times, words
from profiler.report.web.charts import axis, change_line, colour, columns, drawing, figure, legend, nice, share_line
from profiler.report.web.page import el, page, section, table

RATIOS = ("ratio", "slower", "low", "high")
SHOWN = (  # however narrow the place is: what is asked about, and the answer
    *("workload", "version", "which", "cause", "node", "job", "rank", "gpu", "name", "outcome", "share_from"),
    *("verdict", "ratio", "slower", "behind_share", "s_per_sample", "share", "j_per_sample", "runs", "p50_s", "times"),
)
MOST_DRAWN = 40  # rows of a chart
LEAST_REACH, MOST_REACH = 0.05, 1.0  # of a chart of ratios
HEIGHTS = {  # what the columns of a question's chart show, and what names each
    "trend": ("s_per_sample", ("workload", "hardware", "version", "week")),
    "stragglers": ("behind_share", ("job", "rank")),
    "energy": ("j_per_sample", ("gpu", "workload", "stage")),
    "waiting": ("runs", ("share_from",)),
    "steps": ("p50_s", ("workload", "hardware", "stage")),
}


def columns_of(answer: pa.Table) -> list[Column]:
    """Return the columns of an answer, as text. Later ones are left out first where there is no room."""
    listed = [(name, answer[name].to_pylist()) for name in answer.column_names]
    return [_column(name, values, 0 if name in SHOWN else rank) for rank, (name, values) in enumerate(listed, start=1)]


def _column(name: str, values: Sequence[Any], rank: int) -> Column:
    values = [finite(value) for value in values]
    known = [value for value in values if value is not None]
    if any(isinstance(value, bool) or not isinstance(value, (int, float)) for value in known):
        return words(name, [_text(value) for value in values], rank)
    if name in RATIOS:
        return Column(name, ["" if value is None else f"{value - 1:+.1%}" for value in values], rank)
    if "share" in name:
        return shares(name, values, rank)
    if name.endswith("_s") or name == "s_per_sample":
        return times(name.removesuffix("_s").removeprefix("s_"), values, rank)
    if all(isinstance(value, int) for value in known):
        return counts(name, values, rank)
    return numbers(name, values, rank)


def finite(value: Any) -> Any:
    """Return a value, or None for infinity and NaN, which neither JSON nor a table of numbers has."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _text(value: Any) -> str:
    if value is None:
        return ""
    return printable(value.isoformat(timespec="seconds") if isinstance(value, datetime) else value)


def answer_page(name: str, asks: str, answer: pa.Table, none: str) -> str:
    """Return the answer to a question as one HTML file.

    Args:
        name: the question.
        asks: the question in words.
        answer: its rows.
        none: the text without any row.
    """
    rows = answer.to_pylist()
    told = list(_chart(name, rows[:MOST_DRAWN])) if rows else [el("p", none)]
    more = [el("p", f"The chart has the first {MOST_DRAWN} of {len(rows):,} rows.")] if told and len(rows) > MOST_DRAWN else []
    listed = [table(columns_of(answer), f"{name}: {len(rows):,} rows")] if rows else []
    return page(f"Fleet: {name}", el("h1", f"Fleet: {name}"), el("p", asks), section("Answer", *told, *more, *listed))


def _chart(name: str, rows: list[dict[str, Any]]) -> Iterator[Element]:
    if name == "waste":
        yield _shares(rows)
    elif name in ("regression", "slow-nodes"):
        yield _changes(rows, "ratio" if name == "regression" else "slower")
    elif name in HEIGHTS:
        value, label = HEIGHTS[name]
        yield _heights(value, rows, label)


def _shares(rows: list[dict[str, Any]]) -> Element:
    causes = list(dict.fromkeys(row["cause"] for row in rows))
    groups = list(dict.fromkeys(row["which"] for row in rows))
    drawn = [legend(causes)]
    for group in groups:
        parts = {row["cause"]: row["share"] for row in rows if row["which"] == group}
        drawn += [el("p", printable(group) or "(none)"), share_line([(cause, parts.get(cause, 0.0)) for cause in causes])]
    return figure("The share of each cause in the hours", *drawn)


def _changes(rows: list[dict[str, Any]], key: str) -> Element:
    ends = [abs(row[one] - 1) for row in rows for one in (key, "low", "high") if row[one] is not None]
    reach = min(max(*ends, LEAST_REACH), MOST_REACH)
    drawn = []
    for row in rows:
        low, high = (None if row[end] is None else row[end] - 1 for end in ("low", "high"))
        tone = colour({"slower": 5, "faster": 2}.get(row.get("verdict", "slower"), 7))
        drawn.append(el("p", f"{_name(row)} {row[key] - 1:+.1%}"))
        drawn.append(change_line(f"{_name(row)} {row[key] - 1:+.1%}", row[key] - 1, low, high, reach, tone))
    return figure("How much slower, with its interval", *drawn, axis(f"-{reach:.0%}", "0", f"+{reach:.0%}"), class_="changes")


def _name(row: dict[str, Any]) -> str:
    return " ".join(printable(value) for key, value in row.items() if isinstance(value, str) and value and key != "verdict")


def _heights(value: str, rows: list[dict[str, Any]], label: Iterable[str]) -> Element:
    heights = [float(row[value] or 0) for row in rows]
    top = nice(max(heights, default=1.0))
    names = [" ".join(_of_name(row[key]) for key in label) for row in rows]
    ends = axis(names[0], names[-1]) if len(names) > 1 else axis(names[0])
    drawn = drawing(f"{value} of {len(rows)} rows, up to {number(top)}", columns([height / top for height in heights]))
    return figure(f"{value}, up to {number(top)}", drawn, ends)


def _of_name(value: Any) -> str:
    return f"{value:.0%}" if isinstance(value, float) else printable(value.isoformat() if isinstance(value, date) else value)
