"""Comparisons of runs as text for a terminal, and as Markdown for a pull request."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from profiler.records.plain_text import printable
from profiler.report.blocks import EPOCH, WHOLE, leaves_first_out
from profiler.report.layout import Column, Fitted, duration, labelled, number, times, unit_of, words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.run import Run
    from profiler.report.compare import Change, Comparison


LARGE = 2.0  # a change that is told as a factor
VERDICTS = {
    "noise": "no difference",
    "unclear": "cannot tell",
    "new": "only now",
    "gone": "only before",
    "unknown": "too few slices",
}
SPECIAL = re.compile(r"([\\`*_\[\]<>|&~#])")  # of Markdown


def renderable(made: Comparison) -> list[RenderableType]:
    """Return the blocks of a comparison for rich: both runs, their differences, each stage, and the reasons."""
    rows = [("before", run_in_words(made.before)), ("now", run_in_words(made.after))]
    rows += [("unlike", printable(text)) for text in made.unlike]
    rows += [(whole.stage, in_words(made, whole)) for whole in made.wholes()]
    rows += [("why", printable(reason)) for reason in made.reasons]
    blocks: list[RenderableType] = [Group(labelled((label, Text(text)) for label, text in rows))]
    return [*blocks, *(stage_table(made, stage) for stage in stages_of(made))]


def stages_of(made: Comparison) -> list[str]:
    """Return the stages of a comparison."""
    return [row.stage for row in made.wholes()]


def run_in_words(run: Run) -> str:
    """Return a run in one line."""
    command = f"  {run.command}" if run.command else ""
    return printable(f"{run.name}  {run.id}  {run.state}  {duration(run.duration_ns / 1e9)}{command}")


def in_words(made: Comparison, whole: Change) -> str:
    """Return the difference of a stage's step in one sentence."""
    if whole.change is None or whole.before_s is None or whole.after_s is None:
        return "it has no step in one of both"
    per = _an_epoch(made) if whole.stage == EPOCH else f"a {made.per}"
    spent = f"{duration(whole.after_s)} {per} instead of {duration(whole.before_s)}"
    if whole.low is None:
        return f"{spent} ({percent(whole.change)}); too few slices to say whether that is chance"
    how = {"noise": "no difference beyond chance", "unclear": "cannot tell, as the slices differ too much"}
    return f"{how.get(whole.verdict, whole.verdict)}: {spent}, {percent(whole.change)} ({interval(whole)})"


def heading(made: Comparison, stage: str) -> str:
    """Return the head of a stage's rows."""
    return _an_epoch(made) if stage == EPOCH else f"{stage}, a {made.per}"


def _an_epoch(made: Comparison) -> str:
    return "an epoch after the first" if all(map(leaves_first_out, (made.before, made.after))) else "an epoch"


def interval(row: Change) -> str:
    """Return a row's interval in words, or ""."""
    return "" if row.low is None or row.high is None else f"{percent(row.low)} to {percent(row.high)}"


def percent(change: float | None) -> str:
    """Return a change in per cent, and a large one as a factor."""
    if change is None:
        return ""
    return f"{change:+.1%}" if change < LARGE else f"x {1 + change:,.1f}"


def stage_table(made: Comparison, stage: str) -> Fitted:
    """Return the rows of a stage, its whole step first."""
    rows = [row for row in made.changes if row.stage == stage]
    before, after = [row.before_s for row in rows], [row.after_s for row in rows]
    return Fitted(
        words(heading(made, stage), [printable(row.phase) or "as a whole" for row in rows]),
        times("before", before, rank=2, beside=after),
        times("now", after, rank=1, beside=before),
        Column("change", [percent(row.change) for row in rows]),
        Column("interval", list(map(interval, rows)), rank=3),
        words("", [VERDICTS.get(row.verdict, row.verdict) for row in rows]),
    )


# ---- Markdown ------------------------------------------------------------------------------------------------------


def markdown(comparisons: Sequence[Comparison]) -> str:
    """Return comparisons as Markdown for a pull request."""
    return "\n\n".join("\n".join(_markdown(made)) for made in comparisons) + "\n"


def _markdown(made: Comparison) -> Iterator[str]:
    yield f"### {_plain(made.after.name)} `{made.after.id}` beside {_plain(made.before.name)} `{made.before.id}`"
    yield ""
    yield from (f"- **unlike**: {_plain(text)}" for text in made.unlike)
    yield from (f"- **{whole.stage}**: {_plain(in_words(made, whole))}" for whole in made.wholes())
    yield from (f"- {_plain(reason)}" for reason in made.reasons)
    for stage in stages_of(made):
        rows = [row for row in made.changes if row.stage == stage]
        unit, length = unit_of([value for row in rows for value in (row.before_s, row.after_s) if value is not None])
        yield ""
        yield f"| {heading(made, stage)} | before {unit} | now {unit} | change | interval | |"
        yield "| --- | ---: | ---: | ---: | ---: | --- |"
        for row in rows:
            spent = ["" if value is None else number(value / length) for value in (row.before_s, row.after_s)]
            change = percent(row.change)
            name = "as a whole" if row.phase == WHOLE else _plain(row.phase)
            yield f"| {' | '.join([name, *spent, change, interval(row), VERDICTS.get(row.verdict, row.verdict)])} |"


def _plain(text: str) -> str:
    """Return a text that Markdown shows as it is."""
    return SPECIAL.sub(r"\\\1", printable(text))
