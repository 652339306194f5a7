"""The page of runs beside the first one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from xml.etree.ElementTree import Element

from profiler.records.plain_text import printable
from profiler.report.blocks import EPOCH, WHOLE
from profiler.report.compare_text import in_words, interval, percent, run_in_words, stage_table, stages_of
from profiler.report.web.charts import WIDTH, axis, colour, drawing, figure
from profiler.report.web.page import el, facts, fragment, page, section, table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.report.compare import Change, Comparison


ROW = 16  # the height of a phase in the chart
LEAST_REACH, MOST_REACH = 0.05, 1.0  # of a change: how far the chart goes to both sides


def compare_page(comparisons: Sequence[Comparison]) -> str:
    """Return comparisons as one HTML file."""
    runs = [comparisons[0].before, *(made.after for made in comparisons)]
    names = [f"{printable(run.name)} {run.id}" for run in runs]
    title = f"{', '.join(names[1:])} beside {names[0]}"
    return page(title, el("h1", title), *(part for made in comparisons for part in content(made)))


def content(made: Comparison) -> Iterator[Element]:
    """Yield the parts of one comparison."""
    rows = [("before", run_in_words(made.before)), ("now", run_in_words(made.after))]
    rows += [("unlike", printable(text)) for text in made.unlike]
    told = [el("p", el("span", whole.stage, class_="kind"), f": {in_words(made, whole)}") for whole in made.wholes()]
    reasons = [el("p", printable(reason)) for reason in made.reasons]
    heading = el("h2", f"{printable(made.after.name)} {made.after.id}")
    yield el("section", heading, facts(rows), *told, *reasons, class_="verdict")
    for stage in stages_of(made):
        listed = [row for row in made.changes if row.stage == stage]
        caption = f"{stage}: the change of each phase, with its interval at 95 % for all rows together"
        columns = stage_table(made, stage).columns
        yield section("Epochs" if stage == EPOCH else f"Steps of {stage}", *_chart(listed), table(columns, caption))


def _chart(rows: Sequence[Change]) -> Iterator[Element]:
    """Yield the changes, each as a point with its interval below its name, if there are any."""
    known = [row for row in rows if row.change is not None]
    if not known:
        return
    ends = [abs(value) for row in known for value in _ends(row)]
    reach = min(max(*ends, LEAST_REACH), MOST_REACH)
    drawn = []
    for row in known:
        plot = drawing(_said(row), *_mark(row, reach), height=ROW)
        plot.set("viewBox", f"0 0 {WIDTH} {ROW}")
        drawn += [el("p", _said(row) + (", beyond the chart's end" if max(map(abs, _ends(row))) > reach else "")), plot]
    yield figure("How much each phase changed", *drawn, axis(f"-{reach:.0%}", "0", f"+{reach:.0%}"), class_="changes")


def _ends(row: Change) -> list[float]:
    return [value for value in (row.change, row.low, row.high) if value is not None]


def _mark(row: Change, reach: float) -> Iterator[Element]:
    tone = colour({"slower": 5, "faster": 2}.get(row.verdict, 7))
    yield el("path", d=f"M{WIDTH / 2} 0V{ROW}", stroke="currentColor", vector_effect="non-scaling-stroke")
    if row.low is not None and row.high is not None:
        line = f"M{_x(row.low, reach)} {ROW / 2}H{_x(row.high, reach)}"
        yield el("path", d=line, stroke=tone, stroke_width=6, stroke_opacity="0.5", vector_effect="non-scaling-stroke")
    at = _x(row.change or 0.0, reach)
    yield el("path", d=f"M{at} 2V{ROW - 2}", stroke=tone, stroke_width=4, vector_effect="non-scaling-stroke")


def _x(change: float, reach: float) -> str:
    return f"{WIDTH * (min(max(change / reach, -1.0), 1.0) + 1) / 2:.1f}"


def _said(row: Change) -> str:
    whole = "the epoch as a whole" if row.stage == EPOCH else "the step as a whole"
    name = whole if row.phase == WHOLE else printable(row.phase)
    span = interval(row)
    return f"{name} {percent(row.change)}" + (f" ({span})" if span else "")


def compare_fragment(made: Comparison) -> str:
    """Return one comparison for a notebook."""
    return fragment(*content(made))
