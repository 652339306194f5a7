"""``epochmeter runs``: the recorded runs, newest first."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import typer

from profiler.cli.options import AsJson
from profiler.cli.output import complain, say
from profiler.records.plain_text import printable_in

LONGEST = 24  # letters of a name


def runs(as_json: AsJson = False) -> None:
    """List recorded runs, newest first."""
    from profiler.config.folder import Folder
    from profiler.config.paths import runs_path
    from profiler.config.place import UntrustedError
    from profiler.storage.run_log import run_paths

    try:
        Folder(runs_path()).check()
    except UntrustedError as error:
        complain(f"{error.filename} {error.strerror}: its runs are not shown; {error.cure}")
    except OSError as error:
        complain(f"the runs cannot be read: {error.strerror}")
    rows = [row for row in map(_row, run_paths(runs_path())) if row is not None]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    if not rows:
        say("no run has been recorded on this machine yet; 'epochmeter demo' records one", err=True)
        return
    for line in _table(list(map(printable_in, rows))):
        say(line)


def _table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of the list. A table of rich takes seconds for thousands of runs."""
    from profiler.report.layout import duration, shortened

    is_ranked = any("rank" in row for row in rows)
    heads = ("id", "name", *(["rank"] if is_ranked else []), "state", "started", "duration")
    cells = [
        (
            row["id"],
            shortened(row["name"], LONGEST),
            *([f"{row['rank']} of {row['world_size']}" if "rank" in row else ""] if is_ranked else []),
            row["state"]
            if "stalled" not in row
            else f"stalled in {shortened(row['stalled'].get('phase', 'no phase'), LONGEST)}",
            row.get("started", "")[:19].replace("T", " "),
            duration(row["duration_s"]),
        )
        for row in rows
    ]
    widths = [max(_width(cell[column]) for cell in (heads, *cells)) for column in range(len(heads))]
    for cell in (heads, *cells):
        yield "  ".join(text + " " * (width - _width(text)) for text, width in zip(cell, widths, strict=True)).rstrip()


def _width(text: str) -> int:
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def _row(path: Any) -> dict[str, Any] | None:
    from profiler.errors import RunLogError
    from profiler.report.progress import stalled
    from profiler.report.when import rfc3339
    from profiler.storage.run_reader import outline

    try:
        run = outline(path)
    except RunLogError as error:
        complain(error)
        return None
    hangs = stalled(run)
    ranked = {} if run.rank is None else {"rank": run.rank, "world_size": run.world_size}
    return {
        "id": run.id,
        "name": run.name,
        "state": run.state,
        "started": rfc3339(run.started_unix_ns),
        "duration_s": run.duration_ns / 1e9,
        **ranked,
        **({} if hangs is None else {"stalled": hangs}),
    }
