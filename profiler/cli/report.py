"""``epochmeter report``: one recorded run, as text or JSON."""

from __future__ import annotations

import gc
import json
import sys
from enum import Enum
from typing import Annotated

import typer
from rich.console import Console

from profiler.cli.options import AsJson, OneRun, Output, write_to
from profiler.cli.output import say


class Format(str, Enum):
    text = "text"
    json = "json"


def report(
    run: OneRun = "last",
    form: Annotated[Format, typer.Option("--format", help="text or json.")] = Format.text,
    as_json: AsJson = False,
    output: Output = None,
) -> None:
    """Show one run: its epochs, stages, phases, readings, and its bottleneck.

    Example: epochmeter report last --json
    """
    from profiler.config.paths import runs_path
    from profiler.config.resolve import resolve
    from profiler.report.document import document
    from profiler.report.text import renderable, text
    from profiler.storage.run_reader import believed, find, load

    form = Format.json if as_json else form
    gc.disable()  # reading a long run makes millions of objects, and none of them is garbage
    recorded = load(find(runs_path(), run))
    tariff = resolve().settings.tariff
    with believed(recorded):
        made = json.dumps(document(recorded, tariff=tariff), indent=2) if form is Format.json else text(recorded, tariff=tariff)
        content = made + "\n"
    if output is not None:
        write_to(output, content)
    elif form is Format.text and sys.stdout.isatty():
        Console().print(renderable(recorded, tariff))
    else:
        say(content, nl=False)
