"""``epochmeter report``: one recorded run, as text, JSON, a page, or a trace for Perfetto."""

from __future__ import annotations

import gc
import json
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from profiler.cli.options import AsJson, OneRun, Output, check_form, write_to
from profiler.cli.output import complain, say
from profiler.errors import ArgumentValueError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.run import Run
    from profiler.report.baseline import Baseline


class Format(str, Enum):
    text = "text"
    json = "json"
    html = "html"
    perfetto = "perfetto"


def report(
    run: OneRun = "last",
    form: Annotated[Format, typer.Option("--format", help="text, json, html or perfetto.")] = Format.text,
    as_json: AsJson = False,
    output: Output = None,
    baseline: Annotated[
        Path | None, typer.Option("--baseline", metavar="FILE", help="Say where the run stands among others.")
    ] = None,
    signed_by: Annotated[str, typer.Option("--signed-by", metavar="KEY", help="The public key the baseline must have.")] = "",
) -> None:
    """Show one run: its epochs, stages, phases, readings, and its bottleneck.

    Example: epochmeter report last --format html -o report.html
    """
    from profiler.config.paths import runs_path
    from profiler.config.resolve import resolve
    from profiler.storage.run_reader import believed, find, load

    check_form(form.value, as_json, output)
    form = Format.json if as_json else form
    others = _baseline(baseline, signed_by, form)
    gc.disable()  # reading a long run makes millions of objects, and none of them is garbage
    log = find(runs_path(), run)
    recorded = load(log)
    tariff = resolve().settings.tariff
    with believed(recorded):
        if output is None and form is Format.text and sys.stdout.isatty():
            from profiler.report.text import renderable

            Console().print(renderable(recorded, tariff, others))
            return
        content = _trace(log, recorded) if form is Format.perfetto else _content(form, recorded, tariff, others)
    if output is None:
        say(content, nl=False)
    else:
        write_to(output, content)


def _trace(log: Path, recorded: Run) -> str:
    """Return the run, and the other ranks of its job that ran on this machine, as one trace."""
    from profiler.report.perfetto import trace
    from profiler.storage.jobs import logs_of_job
    from profiler.storage.run_reader import load

    ranks = [recorded if path == log else load(path) for path in logs_of_job(log)] or [recorded]
    missing = (recorded.world_size or 1) - len(ranks)
    if missing > 0:
        complain(f"of the run's {recorded.world_size} ranks, {missing} have no log here that tells an epoch: they are left out")
    return trace(ranks)


def _baseline(path: Path | None, key: str, form: Format) -> Baseline | None:
    if path is None and not key:
        return None
    if path is None or form is Format.perfetto:
        raise ArgumentValueError("--signed-by is about a --baseline, and a trace takes none")
    from profiler.report.baseline import read

    return read(path, key)


def _content(form: Format, recorded: Run, tariff: str | None, baseline: Baseline | None) -> str:
    if form is Format.html:
        from profiler.report.web.run_page import run_page

        return run_page(recorded, tariff, baseline)
    if form is Format.json:
        from profiler.report.document import document

        return json.dumps(document(recorded, tariff=tariff, baseline=baseline), indent=2) + "\n"
    from profiler.report.text import text

    return text(recorded, tariff=tariff, baseline=baseline) + "\n"
