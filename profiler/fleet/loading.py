"""Load run logs into a fleet: those of this machine, or of a folder that many machines write to."""

from __future__ import annotations

import contextlib
import gzip
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from profiler.errors import ProfilerError, RunLogError
from profiler.fleet.rows import Row, rows_of
from profiler.records.plain_text import printable
from profiler.storage.run_log import SUFFIX, is_being_written, run_id
from profiler.storage.run_reader import believed, load

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.run import Run

AT_ONCE = 20_000  # rows that are written together
PACKED = ".gz"


class Fleet(Protocol):
    """Where rows go."""

    keeps_names: bool

    def loaded(self) -> dict[str, int]:
        """Return how many bytes of each run's log are loaded."""

    def write(self, rows: Iterable[Row]) -> None:
        """Add rows."""


@dataclass
class Loaded:
    """What a load did.

    Attributes:
        logs: how many logs gave rows.
        rows: how many rows.
        known: how many logs had nothing new.
        bad: what is wrong with each log that could not be read.
    """

    logs: int = 0
    rows: int = 0
    known: int = 0
    bad: list[str] = field(default_factory=list)


def logs_in(paths: Iterable[Path]) -> list[Path]:
    """Return the run logs that these paths are, or hold at any depth, each once.

    Raises:
        ProfilerError: there is no such file or folder.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            found.update(dict.fromkeys(sorted(one for one in path.rglob("*") if _is_log(one) and one.is_file())))
        elif path.is_file():
            found[path] = None
        else:
            raise ProfilerError(f"{path} is neither a run log nor a folder of them")
    return list(found)


def load_logs(logs: Sequence[Path], fleet: Fleet, label: str = "", on_log: Callable[[], None] = lambda: None) -> Loaded:
    """Load logs into a fleet. A log of which nothing is new adds nothing.

    Args:
        logs: the logs.
        fleet: takes the rows.
        label: which of the user's own labels tells the workload; "" for the run's name, where names are kept.
        on_log: called after each log.

    Raises:
        ProfilerError: the fleet cannot be read or written.
    """
    told, known, waiting = Loaded(), fleet.loaded(), []
    with tempfile.TemporaryDirectory(prefix="epochmeter-fleet-") as folder:
        for log in logs:
            try:
                rows = _rows(log, Path(folder), known, label, keeps_names=fleet.keeps_names)
            except (ProfilerError, OSError) as error:
                told.bad.append(printable(f"{log.name}: {error}"))
                rows = []
            else:
                told.known += not rows
            if rows:
                told.logs, told.rows = told.logs + 1, told.rows + len(rows)
                known[rows[0]["run"]] = rows[0]["load"]
                waiting += rows
            if len(waiting) >= AT_ONCE:
                fleet.write(waiting)
                waiting = []
            on_log()
    fleet.write(waiting)
    return told


def _is_log(path: Path) -> bool:
    return path.name.endswith((SUFFIX, SUFFIX + PACKED))


def _rows(log: Path, folder: Path, known: dict[str, int], label: str, *, keeps_names: bool) -> list[Row] | None:
    """Return the rows of a log, or None if nothing of it is new.

    Raises:
        RunLogError: it holds no run.
        OSError: it cannot be read.
    """
    name = run_id(Path(log.name.removesuffix(PACKED)))
    if not log.name.endswith(PACKED) and log.stat().st_size <= known.get(name, -1):
        return None
    with _copied(log, folder) as copy:
        size = copy.stat().st_size
        if size <= known.get(name, -1):
            return None
        run = load(copy)
        if run.state == "interrupted" and is_being_written(log):
            run.state = "running"
        with believed(run):
            return rows_of(run, size, _workload(run, label, keeps_names=keeps_names))


def _workload(run: Run, label: str, *, keeps_names: bool) -> str:
    return run.said.get(label, "") if label else run.name if keeps_names else ""


@contextlib.contextmanager
def _copied(log: Path, folder: Path) -> Iterator[Path]:
    """Copy a log into a folder of our own, where nobody changes it while it is read; unpack one that is packed."""
    copy = folder / log.name.removesuffix(PACKED)
    try:
        _copy(log, copy)
        yield copy
    finally:
        copy.unlink(missing_ok=True)


def _copy(log: Path, copy: Path) -> None:
    try:
        with gzip.open(log) if log.name.endswith(PACKED) else log.open("rb") as source, copy.open("wb") as file:
            shutil.copyfileobj(source, file, 2**20)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise RunLogError(f"it cannot be unpacked: {error}") from None
