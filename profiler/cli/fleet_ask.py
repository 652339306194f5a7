"""``epochmeter fleet ask``: the questions to a fleet, and queries of one's own."""

from __future__ import annotations

import csv
import io
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from profiler.cli.options import AsJson, moment, write_to
from profiler.cli.output import say, say_json
from profiler.errors import ArgumentValueError, ProfilerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import pyarrow as pa

    from profiler.fleet.asking import Asked

WIDTH = 120  # where nobody says how wide
MOST_SHOWN = 40  # rows, in a terminal's table
From = Annotated[
    str, typer.Option("--from", metavar="PLACE", help="The folder, or clickhouse://user:password@host/db; else this machine's.")
]


def ask(
    name: Annotated[str, typer.Argument(metavar="[QUESTION]", help="One of the questions; without it, all are listed.")] = "",
    old: Annotated[str, typer.Argument(metavar="[OLD]", help="For regression: the old version.")] = "",
    new: Annotated[str, typer.Argument(metavar="[NEW]", help="For regression: the new version.")] = "",
    place: From = "",
    by: Annotated[str, typer.Option(help="Group by a column of words, or by your own label, such as team.")] = "",
    since: Annotated[str, typer.Option(help="Only what began then or later: 2026-11-01, or 30d ago.")] = "",
    sql: Annotated[Path | None, typer.Option("--sql", metavar="FILE", help="Ask with a query of your own instead.")] = None,
    shows_sql: Annotated[bool, typer.Option("--show-sql", help="Show the query instead of asking.")] = False,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="As CSV, on stdout alone.")] = False,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a page with a chart to this file.")] = None,
) -> None:
    """Ask a fleet: which versions, machines and ranks are slow, and where the hours went.

    Example: epochmeter fleet ask regression 1.4.0 1.5.0 --from fleet
    """
    from profiler.fleet.questions import QUESTIONS, question, sql_of

    if not name and sql is None:
        if as_json:
            say_json([{"name": one.name, "help": one.help} for one in QUESTIONS.values()])
            return
        for one in QUESTIONS.values():
            say(f"{one.name:<12} {one.help}")
        return
    if name and sql is not None:
        raise ArgumentValueError(f"--sql asks with a query of your own: leave out {name!r}")
    if sql is not None and (by or since):
        raise ArgumentValueError("--by and --since are for the questions: a query of your own says it itself")
    if sum((as_json, as_csv, html is not None)) > 1:
        raise ArgumentValueError("--json, --csv and --html are three forms: name one of them")
    begin = moment(since, "--since").date() if since else None
    text = _read(sql) if sql is not None else sql_of(name, by=by, old=old, new=new, since=begin)
    if shows_sql:
        say(text)
        return
    asks, none = (question(name).help, question(name).none) if name else ("A query of one's own.", "the answer has no rows")
    found = fleet_at(place)
    answer = found.ask(name, by=by, old=old, new=new, since=begin) if name else found.sql(text)
    _show(name or "query", asks, none, answer, as_json=as_json, as_csv=as_csv, html=html)


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise ProfilerError(f"{path} cannot be read: {error}") from None


def fleet_at(place: str) -> Asked:
    """Return the fleet in a folder or on a server; "" for this machine's."""
    from profiler.config.paths import runs_path
    from profiler.fleet import open as open_fleet

    return open_fleet(place or runs_path().with_name("fleet"))


def _show(name: str, asks: str, none: str, answer: pa.Table, *, as_json: bool, as_csv: bool, html: Path | None) -> None:
    from profiler.fleet.answers import answer_page, columns_of, finite
    from profiler.records.plain_text import printable
    from profiler.report.layout import lines, place_width

    if as_json:
        rows = [{name: finite(value) for name, value in row.items()} for row in answer.to_pylist()]
        say_json(rows, _plain)
    elif as_csv:
        typer.echo(_csv(answer), nl=False)
    elif html is not None:
        write_to(html, answer_page(name, asks, answer, none))
        say(f"{printable(html)}: {answer.num_rows:,} rows")
    elif not answer.num_rows:
        say(none, err=True)
    else:
        for line in lines(columns_of(answer.slice(0, MOST_SHOWN)), place_width(WIDTH)):
            say(line)
        if answer.num_rows > MOST_SHOWN:
            say(f"… {answer.num_rows - MOST_SHOWN:,} more rows: --csv and --json have all of them", err=True)


def _csv(answer: pa.Table) -> str:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(answer.column_names)
    rows.writerows([_in_csv(value) for value in row.values()] for row in answer.to_pylist())
    return text.getvalue()


def _in_csv(value: Any) -> Any:
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return f"'{value}"  # a spreadsheet would take it for a formula
    return _plain(value) if isinstance(value, date) else value


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, (date, datetime)) else str(value)
