"""``epochmeter fleet``: many runs as one table, in a folder of Parquet files or in ClickHouse."""

from __future__ import annotations

import gc
import sys
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from profiler.cli.fleet_ask import ask
from profiler.cli.fleet_export import baseline, export
from profiler.cli.options import AsJson
from profiler.cli.output import complain, say, say_json
from profiler.errors import ArgumentValueError, ProfilerError
from profiler.fleet import NEEDS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.fleet.loading import Fleet


class Engine(str, Enum):
    duckdb = "duckdb"
    clickhouse = "clickhouse"


fleet = typer.Typer(
    help="Many runs as one table: read run logs into Parquet files or ClickHouse, and ask.\n\n"
    "Example: epochmeter fleet load /shared/runs --into fleet",
    no_args_is_help=True,
)
Into = Annotated[Path | None, typer.Option("--into", help="The folder of Parquet files; without it, one beside the run logs.")]


@fleet.command()
def load(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[PATH]...", help="Run logs, or folders of them; else this machine's."),
    ] = None,
    into: Into = None,
    to: Annotated[str, typer.Option("--to", metavar="ADDRESS", help="A server: clickhouse://user:password@host/db.")] = "",
    workload: Annotated[str, typer.Option(metavar="LABEL", help="Your label for it: team, for labels=team:vision.")] = "",
    as_json: AsJson = False,
) -> None:
    """Read run logs into a fleet. A log that is known adds nothing; one that has grown is loaded again.

    Example: epochmeter fleet load /shared/runs --into fleet
    """
    from rich.console import Console
    from rich.progress import Progress

    from profiler.config.paths import runs_path
    from profiler.fleet.loading import load_logs, logs_in

    gc.disable()  # reading logs makes millions of objects, and none of them is garbage
    target = _target(into, to)
    bad: list[str] = []
    if not paths and not runs_path().is_dir():
        raise ProfilerError("no run has been recorded on this machine yet; 'epochmeter demo' records one")
    logs = logs_in(paths or [runs_path()], bad.append)
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as progress:
        task = progress.add_task("run logs", total=len(logs))
        told = load_logs(logs, target, workload, lambda: progress.advance(task))
    bad += told.bad
    for text in bad:
        complain(f"not loaded: {text}")
    for log in told.torn:
        complain(f"loaded in part: {log}: what its unreadable lines say is missing")
    if as_json:
        say_json({**asdict(told), "bad": bad})
    else:
        say(f"{told.rows:,} rows of {told.logs:,} logs loaded; {told.known:,} had nothing new, {len(bad):,} could not be read")
    if workload and told.logs and not told.labelled:
        complain(f"none of them has the label {workload!r}, so no workload is told; the setting 'labels' gives runs labels")
    if bad:
        raise typer.Exit(3)


@fleet.command()
def collector(
    to: Annotated[str, typer.Option("--to", metavar="ADDRESS", help="Its database: clickhouse://user:password@host/otel.")],
    tables: Annotated[str, typer.Option(help="The begin of the names of its tables for metrics.")] = "otel_metrics",
    workload: Annotated[str, typer.Option(metavar="LABEL", help="Your label for what was trained.")] = "workload",
    as_json: AsJson = False,
) -> None:
    """Show the tables of an OpenTelemetry Collector's ClickHouse exporter as a fleet, which can then be asked.

    Example: epochmeter fleet collector --to clickhouse://host/otel
    """
    try:
        from profiler.fleet.clickhouse import ClickHouseFleet
        from profiler.fleet.collector import make_views
    except ImportError:
        raise ProfilerError(NEEDS) from None
    make_views(ClickHouseFleet(to), tables, workload)
    if as_json:
        say_json({"views": ["fleet_epoch", "fleet_rank"]})
        return
    say("fleet_epoch and fleet_rank show the collector's tables; 'epochmeter fleet ask QUESTION --from ADDRESS' asks them")


@fleet.command()
def schema(
    engine: Annotated[Engine | None, typer.Option("--for", help="The statements for an engine instead of the columns.")] = None,
    into: Into = None,
    keep_days: Annotated[int | None, typer.Option(min=1, help="ClickHouse: drop rows that began longer ago.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the table's columns, or the SQL that makes it.

    Example: epochmeter fleet schema --for clickhouse --keep-days 400
    """
    from profiler.fleet.columns import clickhouse_schema, column_facts, duckdb_schema, markdown

    if engine is None and as_json:
        say_json({"columns": column_facts()})
        return
    if engine is None:
        for line in markdown():
            say(line)
        return
    folder = str((into or _default()).absolute())
    made = duckdb_schema(folder) if engine is Engine.duckdb else clickhouse_schema(keep_days=keep_days)
    if as_json:
        say_json({"statements": list(made)})
        return
    say(";\n\n".join(made) + ";")


fleet.command()(ask)
fleet.command()(export)
fleet.command()(baseline)


def _default() -> Path:
    from profiler.config.paths import runs_path

    return runs_path().with_name("fleet")


def _target(into: Path | None, to: str) -> Fleet:
    """Return where the rows go.

    Raises:
        ArgumentValueError: both are named, or the address is none.
        ProfilerError: packages are missing, the server does not answer, or nothing may leave this machine.
    """
    if to and into is not None:
        raise ArgumentValueError("--into is a folder and --to a server: name one of them")
    try:
        if not to:
            from profiler.fleet.parquet import ParquetFleet

            return ParquetFleet(into or _default())
        _check_may_leave()
        from profiler.fleet.clickhouse import ClickHouseFleet

        made = ClickHouseFleet(to)
        made.prepare()
        return made
    except ImportError:
        raise ProfilerError(NEEDS) from None


def _check_may_leave() -> None:
    from profiler.config.resolve import resolve

    if resolve().values["sync"].value is not True:
        raise ProfilerError("sync is off, so nothing leaves this machine; --into writes Parquet files on it")
