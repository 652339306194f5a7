"""``epochmeter report``: one recorded run, as text or JSON."""

from __future__ import annotations

import gc
import json
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from profiler.cli.output import say
from profiler.errors import ProfilerError


class Format(str, Enum):
    text = "text"
    json = "json"


def report(
    run: Annotated[str, typer.Argument(help="A run's id, the beginning of one, or 'last'.")] = "last",
    form: Annotated[Format, typer.Option("--format", help="text or json.")] = Format.text,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write to this file instead.")] = None,
) -> None:
    """Show one run: its epochs, stages, phases, readings, and its bottleneck."""
    from profiler.config.paths import runs_path
    from profiler.config.resolve import resolve
    from profiler.report.document import document
    from profiler.report.text import renderable, text
    from profiler.storage.run_reader import believed, find, load

    gc.disable()  # reading a long run makes millions of objects, and none of them is garbage
    recorded = load(find(runs_path(), run))
    tariff = resolve().settings.tariff
    with believed(recorded):
        made = json.dumps(document(recorded, tariff=tariff), indent=2) if form is Format.json else text(recorded, tariff=tariff)
        content = made + "\n"
    if output is not None:
        _write(output, content)
    elif form is Format.text and sys.stdout.isatty():
        Console().print(renderable(recorded, tariff))
    else:
        say(content, nl=False)


def _write(output: Path, content: str) -> None:
    try:
        output.write_text(content, encoding="utf-8")
    except OSError as error:
        raise ProfilerError(f"the report cannot be written to {output}: {error.strerror}") from None
