"""``epochmeter compare``: runs beside the first one, phase by phase."""

from __future__ import annotations

import gc
import json
import sys
from enum import Enum
from typing import Annotated

import typer
from rich.console import Console

from profiler.cli.options import AsJson, Output, check_form, percentage, run_ids, write_to
from profiler.cli.output import say
from profiler.errors import ArgumentValueError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from profiler.report.compare import Comparison


REGRESSION = 1


class Format(str, Enum):
    text = "text"
    json = "json"
    markdown = "markdown"
    html = "html"


def compare(
    runs: Annotated[
        list[str], typer.Argument(metavar="A B [C]...", help="Run A, and the runs to show beside it.", autocompletion=run_ids)
    ],
    fail_on: Annotated[str | None, typer.Option(metavar="PERCENT", help="Exit with 1 if a step is slower by more.")] = None,
    form: Annotated[Format, typer.Option("--format", help="text, json, markdown or html.")] = Format.text,
    as_json: AsJson = False,
    output: Output = None,
) -> None:
    """Compare runs: their differences, how much longer each phase takes, and the reasons.

    Example: epochmeter compare 3f2a last --fail-on 5%
    """
    limit = None if fail_on is None else percentage(fail_on)
    check_form(form.value, as_json, output)
    form = Format.json if as_json else form
    gc.disable()  # reading a long run makes millions of objects, and none of them is garbage
    made = _compared(runs)
    if output is not None:
        write_to(output, _content(made, form))
    elif form is Format.text and sys.stdout.isatty():
        Console().print(_shown(made))
    else:
        say(_content(made, form), nl=False)
    if limit is not None and _fails(made, limit):
        raise typer.Exit(REGRESSION)


def _compared(runs: list[str]) -> list[Comparison]:
    from profiler.config.paths import runs_path
    from profiler.report.compare import compared
    from profiler.storage.run_reader import believed, find, load

    paths = [find(runs_path(), run) for run in runs]
    if len(paths) < 2:
        raise ArgumentValueError("compare takes two runs or more, such as: epochmeter compare 3f2a last")
    if len(set(paths)) < len(paths):
        raise ArgumentValueError(f"a run cannot be compared with itself: {' '.join(runs)}")
    first, *others = map(load, paths)
    made = []
    for other in others:
        with believed(first), believed(other):
            made.append(compared(first, other))
    return made


def _content(made: Sequence[Comparison], form: Format) -> str:
    from profiler.report.compare_text import markdown
    from profiler.report.text import plain

    if form is Format.json:
        return json.dumps({"schema": 1, "comparisons": [one.to_dict() for one in made]}, indent=2) + "\n"
    if form is Format.html:
        from profiler.report.web.compare_page import compare_page

        return compare_page(made)
    if form is Format.markdown:
        return markdown(made)
    return plain(_shown(made)) + "\n"


def _shown(made: Sequence[Comparison]) -> RenderableType:
    from profiler.report.compare_text import renderable
    from profiler.report.text import spaced

    return spaced([block for one in made for block in renderable(one)])


def _fails(made: Sequence[Comparison], limit: float) -> bool:
    """Return True if a step of a stage is slower by more than the limit, and say so.

    Raises:
        ArgumentValueError: a run is too short for an answer. A gate must not be open by mistake.
    """
    from profiler.report.compare_text import interval, percent

    regressed = [(one, row) for one in made for row in one.regressions(limit)]
    for one, row in regressed:
        say(f"slower by more than {limit:.1%}: {row.stage} of {one.after.id}, by {row.low:.1%} at least", err=True)
    undecided = [(one, row) for one in made for row in one.undecided()]
    passed = [(one, row) for one in made for row in one.wholes() if row.low is not None and not (regressed or undecided)]
    for one, row in passed:
        told = f"{row.stage} of {one.after.id}: {percent(row.change)} ({interval(row)})"
        say(f"not slower by more than {limit:.1%} beyond chance: {told}", err=True)
    if undecided and not regressed:
        one, row = undecided[0]
        raise ArgumentValueError(
            f"{row.stage} of {one.before.id} and {one.after.id} has too few slices for --fail-on, or they differ too much:"
            " record more epochs, or set EPOCHMETER_SLICE_S=1"
        )
    return bool(regressed)
