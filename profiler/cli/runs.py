"""``epochmeter runs``: the recorded runs, newest first."""

from __future__ import annotations

import json
from typing import Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from profiler.cli.options import AsJson
from profiler.cli.output import complain, say
from profiler.records.plain_text import printable_in


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
    table = Table("id", "name", "rank", "state", "started", "duration", box=box.SIMPLE_HEAD, show_edge=False)
    from profiler.report.layout import duration

    for row in map(printable_in, rows):
        rank = f"{row['rank']} of {row['world_size']}" if "rank" in row else ""
        table.add_row(
            row["id"], escape(row["name"]), rank, escape(row["state"]), row.get("started", ""), duration(row["duration_s"])
        )
    Console().print(table)


def _row(path: Any) -> dict[str, Any] | None:
    from profiler.errors import RunLogError
    from profiler.report.when import rfc3339
    from profiler.storage.run_reader import outline

    try:
        run = outline(path)
    except RunLogError as error:
        complain(error)
        return None
    ranked = {} if run.rank is None else {"rank": run.rank, "world_size": run.world_size}
    return {
        "id": run.id,
        "name": run.name,
        "state": run.state,
        "started": rfc3339(run.started_unix_ns),
        "duration_s": run.duration_ns / 1e9,
        **ranked,
    }
