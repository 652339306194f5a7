"""``epochmeter report``: one recorded run, as text or JSON."""

from __future__ import annotations

import gc
import json
import sys
from enum import Enum
from typing import Annotated

import typer
from rich.console import Console

from profiler.cli.options import AsJson, OneRun, Output, check_html, write_to
from profiler.cli.output import say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.run import Run


class Format(str, Enum):
    text = "text"
    json = "json"
    html = "html"


def report(
    run: OneRun = "last",
    form: Annotated[Format, typer.Option("--format", help="text, json or html.")] = Format.text,
    as_json: AsJson = False,
    output: Output = None,
) -> None:
    """Show one run: its epochs, stages, phases, readings, and its bottleneck.

    Example: epochmeter report last --format html -o report.html
    """
    from profiler.config.paths import runs_path
    from profiler.config.resolve import resolve
    from profiler.storage.run_reader import believed, find, load

    form = Format.json if as_json else form
    check_html(form, output)
    gc.disable()  # reading a long run makes millions of objects, and none of them is garbage
    recorded = load(find(runs_path(), run))
    tariff = resolve().settings.tariff
    with believed(recorded):
        if output is None and form is Format.text and sys.stdout.isatty():
            from profiler.report.text import renderable

            Console().print(renderable(recorded, tariff))
            return
        content = _content(form, recorded, tariff)
    if output is None:
        say(content, nl=False)
    else:
        write_to(output, content)


def _content(form: Format, recorded: Run, tariff: str | None) -> str:
    if form is Format.html:
        from profiler.report.web.run_page import run_page

        return run_page(recorded, tariff)
    if form is Format.json:
        from profiler.report.document import document

        return json.dumps(document(recorded, tariff=tariff), indent=2) + "\n"
    from profiler.report.text import text

    return text(recorded, tariff=tariff) + "\n"
