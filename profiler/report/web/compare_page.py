"""The page of runs beside the first one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from xml.etree.ElementTree import Element

from profiler.records.plain_text import printable
from profiler.report.blocks import EPOCH, WHOLE
from profiler.report.compare_text import in_words, interval, percent, run_in_words, stage_table, stages_of
from profiler.report.web.charts import axis, change_line, colour, figure
from profiler.report.web.page import el, facts, fragment, page, section, table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.report.compare import Change, Comparison


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
        tone = colour({"slower": 5, "faster": 2}.get(row.verdict, 7))
        plot = change_line(_said(row), row.change or 0.0, row.low, row.high, reach, tone)
        drawn += [el("p", _said(row) + (", beyond the chart's end" if max(map(abs, _ends(row))) > reach else "")), plot]
    yield figure("How much each phase changed", *drawn, axis(f"-{reach:.0%}", "0", f"+{reach:.0%}"), class_="changes")


def _ends(row: Change) -> list[float]:
    return [value for value in (row.change, row.low, row.high) if value is not None]


def _said(row: Change) -> str:
    whole = "the epoch as a whole" if row.stage == EPOCH else "the step as a whole"
    name = whole if row.phase == WHOLE else printable(row.phase)
    span = interval(row)
    return f"{name} {percent(row.change)}" + (f" ({span})" if span else "")


def compare_fragment(made: Comparison) -> str:
    """Return one comparison for a notebook."""
    return fragment(*content(made))
