"""Options that several commands have."""

from __future__ import annotations

import re
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

import typer

from profiler.errors import ArgumentValueError, ProfilerError
from profiler.records.plain_text import printable

MOST_OFFERED = 20  # runs, by a shell's completion
FOR_A_FILE = {"html": "report.html", "perfetto": "trace.json"}  # forms of a report that a terminal cannot show
SECONDS = {"m": 60, "h": 3_600, "d": 86_400, "w": 604_800}  # of a time ago
AsJson = Annotated[bool, typer.Option("--json", help="As JSON, on stdout alone.")]


def run_ids(incomplete: str) -> list[tuple[str, str]]:
    """Return the recorded runs whose id begins so, newest first, with their names: for a shell's completion."""
    from profiler.config.paths import runs_path
    from profiler.storage.run_log import run_id, run_paths
    from profiler.storage.run_reader import outline

    found = []
    try:
        for path in run_paths(runs_path()):
            if run_id(path).startswith(incomplete):
                found.append((run_id(path), printable(outline(path).name)))
            if len(found) == MOST_OFFERED:
                break
    except (OSError, ProfilerError):
        pass  # a shell shows what there is
    return found


OneRun = Annotated[str, typer.Argument(help="A run's id, the beginning of one, or 'last'.", autocompletion=run_ids)]


def _file(path: Path | None) -> Path | None:
    return None if path == Path("-") else path


Output = Annotated[Path | None, typer.Option("--output", "-o", help="Write to this file instead; - is stdout.", callback=_file)]


def percentage(text: str) -> float:
    """Return the share that ``--fail-on`` names: 0.05 for "5%".

    Raises:
        ArgumentValueError: it is no percentage.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?%?", text)
    if not found:
        raise ArgumentValueError(f"--fail-on takes a percentage such as 5%, not {text!r}")
    return float(found[1]) / 100


def moment(text: str, option: str) -> datetime:
    """Return the moment that an option names.

    Raises:
        ArgumentValueError: it is none.
    """
    ago = re.fullmatch(r"(\d{1,6})([mhdw])", text)
    try:
        if ago:
            return datetime.fromtimestamp(time.time() - int(ago[1]) * SECONDS[ago[2]], timezone.utc)
        named = datetime.fromisoformat(text)
    except (OverflowError, OSError):
        raise ArgumentValueError(f"{option} {text} is before all runs there can be") from None
    except ValueError:
        if ago:
            raise ArgumentValueError(f"{option} {text} is before all runs there can be") from None
        raise ArgumentValueError(f"{option} is a day such as 2026-11-01, or a time such as 7d or 12h, not {text!r}") from None
    return named.replace(tzinfo=named.tzinfo or timezone.utc).astimezone(timezone.utc)


def check_form(form: str, as_json: bool, output: Path | None) -> None:
    """Check that the options of a form agree, and that a page, a trace or JSON does not go to a terminal.

    Raises:
        ArgumentValueError: they do not, or it would.
    """
    if as_json and form not in ("text", "json"):
        raise ArgumentValueError(f"--json is short for --format json; leave it out, or --format {form}")
    name = FOR_A_FILE.get(form)
    if name is not None and output is None and sys.stdout.isatty():
        raise ArgumentValueError(f"{form} is for a file; add -o {name}")


def write_to(output: Path, content: str) -> None:
    """Write a command's output into a file.

    Raises:
        ProfilerError: it cannot be written.
    """
    try:
        output.write_text(content, encoding="utf-8")
    except OSError as error:
        raise ProfilerError(f"{output} cannot be written: {error.strerror}") from None
