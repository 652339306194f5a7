"""``epochmeter runs``: the recorded runs, newest first."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from textwrap import wrap
from typing import Annotated, Any

import typer

from profiler.cli.options import AsJson, moment
from profiler.cli.output import complain, say, say_json
from profiler.errors import ArgumentValueError, did_you_mean
from profiler.records.plain_text import printable_in

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.storage.list_cache import ListCache


Row = dict[str, Any]
LONGEST = 24  # letters of a name
WIDTH = 120  # where nobody says how wide
READING_S = 1.0  # for logs that are not known yet
OF_WHOLE_LOGS = ("samples_per_s", "energy_j", "memory_peak_bytes")  # keys of a row
STATES = ("finished", "interrupted", "crashed", "running", "stalled")
NO_CAUSE = ("balanced", "unknown", "compute-bound")  # verdicts without a rule of their own


class Order(str, Enum):
    started = "started"
    duration = "duration"
    speed = "speed"
    energy = "energy"
    memory = "memory"
    name = "name"


KEYS = {
    Order.started: "started",
    Order.duration: "duration_s",
    Order.speed: "samples_per_s",
    Order.energy: "energy_j",
    Order.memory: "memory_peak_bytes",
    Order.name: "name",
}


def runs(
    name: Annotated[str, typer.Option("--name", help="Only runs with this in their name or command.")] = "",
    state: Annotated[str, typer.Option("--state", help="Only finished, interrupted, crashed, running or stalled ones.")] = "",
    verdict: Annotated[str, typer.Option("--verdict", help="Only runs with this verdict, such as input-bound.")] = "",
    since: Annotated[str, typer.Option("--since", help="Only runs begun then or later: 2026-11-01, or 7d, 12h, 30m ago.")] = "",
    most: Annotated[int | None, typer.Option("-n", min=1, help="Show so many runs at most.")] = None,
    sort: Annotated[Order, typer.Option("--sort", help="By what, the highest first; a name from a to z.")] = Order.started,
    as_json: AsJson = False,
) -> None:
    """List recorded runs, newest first, and add them up.

    Example: epochmeter runs --since 7d --verdict input-bound --sort duration
    """
    begin = moment(since, "--since").isoformat() if since else ""
    _check_words(state, verdict)
    needs_all = as_json or bool(verdict) or KEYS[sort] in OF_WHOLE_LOGS
    rows = [row for row in _rows(needs_all) if _fits(row, name, state, verdict, begin)]
    if sort is not Order.started:
        rows = _sorted(rows, KEYS[sort])
    shown = rows[:most]
    if as_json:
        say_json(shown)
        return
    if not rows:
        found_none = "no run is like that; 'epochmeter runs' lists all"
        is_asked = name or state or verdict or since
        say(found_none if is_asked else "no run has been recorded on this machine yet; 'epochmeter demo' records one", err=True)
        return
    for line in _table(list(map(printable_in, shown)), len(rows)):
        say(line)
    unread = sum("verdict" not in row and row["state"] != "running" for row in shown)
    if unread:
        say(f"{unread:,} logs have not been read yet: ask again, or for all of them with --json", err=True)


# ---- rows ----------------------------------------------------------------------------------------------------------


def _rows(needs_all: bool) -> Iterator[Row]:
    """Yield a row for each recorded run, newest first.

    A log takes milliseconds to read, a long one more. Unless all are needed, only the newest are read, for `READING_S`; of the
    others the last line alone. Their rows follow the next time.
    """
    from profiler.config.folder import Folder
    from profiler.config.paths import runs_path
    from profiler.config.place import UntrustedError
    from profiler.storage.list_cache import ListCache
    from profiler.storage.run_log import run_id, run_paths

    folder = runs_path()
    try:
        Folder(folder).check()
    except UntrustedError as error:
        complain(f"{error.filename} {error.strerror}: its runs are not shown; {error.cure}")
    except OSError as error:
        complain(f"the runs cannot be read: {error.strerror}")
    cache, until = ListCache(folder), time.monotonic() + READING_S
    for path in run_paths(folder):
        row = cache.find(path)
        if not _is_row(row) or row["id"] != run_id(path):
            row = _read(path, cache, is_whole=needs_all or time.monotonic() < until)
        if row is not None:
            yield row
    cache.save()


def _is_row(row: Any) -> bool:
    """Return True for a row as we make it: the file may have been written by another hand."""
    texts = ("id", "name", "state", "started")
    if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in texts):
        return False
    others = {key: value for key, value in row.items() if key not in (*texts, "verdict", "command")}
    words = all(isinstance(row.get(key, ""), str) for key in ("verdict", "command"))
    return (
        words
        and "duration_s" in others
        and all(type(value) in (int, float) and 0 <= value < math.inf for value in others.values())
    )


def _read(path: Path, cache: ListCache, *, is_whole: bool) -> Row | None:
    """Return the row of a log that is not known yet, or has changed; None if it holds no run."""
    from profiler.errors import RunLogError
    from profiler.report.progress import stalled
    from profiler.report.run_row import outline_row, run_row
    from profiler.storage.run_reader import believed, load, outline

    stamp = cache.stamp_of(path)
    try:
        run = outline(path)
        if run.state == "running":
            hangs = stalled(run)
            return outline_row(run) | ({} if hangs is None else {"stalled": hangs})
        if not is_whole:
            return outline_row(run)
        whole = load(path)
        with believed(whole):
            row = run_row(whole)
    except RunLogError as error:
        complain(error)
        return None
    cache.keep(path, row, stamp)
    return row


def _check_words(state: str, verdict: str) -> None:
    """Check words of which there are only some.

    Raises:
        ArgumentValueError: there is no such state or verdict.
    """
    from profiler.report.rules import RULES

    for option, word, known in (
        ("--state", state, STATES),
        ("--verdict", verdict, sorted({*(rule.kind for rule in RULES), *NO_CAUSE})),
    ):
        if word and word not in known:
            raise ArgumentValueError(f"{option} is one of {', '.join(known)}, not {word!r}.{did_you_mean(word, known)}")


def _fits(row: Row, name: str, state: str, verdict: str, begin: str) -> bool:
    named = name.casefold() in f"{row['name']} {row.get('command', '')}".casefold()
    shown = "stalled" if "stalled" in row else row["state"]
    return (
        named and state in ("", row["state"], shown) and verdict in ("", row.get("verdict")) and row.get("started", "") >= begin
    )


def _sorted(rows: list[Row], key: str) -> list[Row]:
    """Return the rows that have a value by it, and then the others."""
    known = [row for row in rows if key in row]
    return [*sorted(known, key=lambda row: row[key], reverse=key != "name"), *(row for row in rows if key not in row)]


# ---- as text -------------------------------------------------------------------------------------------------------


def _table(rows: list[Row], number: int) -> Iterator[str]:
    """Yield the lines of the list and its sums; ``number`` runs fit in all. A table of rich takes seconds for thousands."""
    from profiler.report.layout import LEAST_WORDS, Column, counts, duration, lines, numbers, place_width, shortened, words
    from profiler.report.run_row import sums

    def column(head: str, cell: Callable[[Row], str], rank: int = 0) -> Column:
        return words(head, [cell(row) for row in rows], rank)

    def values(key: str, factor: float = 1.0) -> Iterable[float | None]:
        return (row[key] / factor if key in row else None for row in rows)

    this_year = datetime.now(timezone.utc).strftime("%Y-")
    shown: Sequence[Column] = (
        column("id", lambda row: row["id"]),
        column("name", lambda row: shortened(row["name"], LONGEST)),
        column("rank", lambda row: f"{row['rank']} of {row['world_size']}" if "rank" in row else "", 2),
        column("state", _state, 5 if all(row["state"] == "finished" for row in rows) else 1),
        column("started (UTC)", _started(this_year), 3),
        Column("duration", [duration(row["duration_s"]) for row in rows], rank=1),
        column("verdict", lambda row: row.get("verdict", ""), 1),
        numbers("samples/s", values("samples_per_s"), 4),
        numbers("kJ", values("energy_j", 1e3), 7),
        numbers("memory GiB", values("memory_peak_bytes", 2**30), 9),
        numbers("GPU GiB", values("gpu_memory_peak_bytes", 2**30), 8),
        counts("steps", (row.get("steps") for row in rows), 11),
        Column("command", [row.get("command", "") for row in rows], rank=2, is_words=True, room=LEAST_WORDS),
    )
    yield from lines(shown, place_width(WIDTH))
    yield ""
    yield from wrap(sums(rows) + ("" if len(rows) == number else f" (of {number:,})"), place_width(WIDTH))


def _started(this_year: str) -> Callable[[Row], str]:
    return lambda row: row["started"][:16].removeprefix(this_year).replace("T", " ")


def _state(row: Row) -> str:
    if "stalled" not in row:
        return str(row["state"])
    return f"stalled in {row['stalled'].get('phase', 'no phase')[:LONGEST]}"
