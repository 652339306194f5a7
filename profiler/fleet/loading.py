"""Load run logs into a fleet: those of this machine, or of a folder that many machines write to."""

from __future__ import annotations

import contextlib
import gzip
import os
import shutil
import stat
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from profiler.config.word_grammar import LABEL_PREFIX
from profiler.errors import ProfilerError, RunLogError
from profiler.fleet.columns import SCALE
from profiler.fleet.hours import pieces_of
from profiler.fleet.rows import Row, rows_of
from profiler.records.plain_text import printable
from profiler.storage.run_log import SUFFIX, is_being_written, run_id
from profiler.storage.run_reader import SPOILT, believed, load

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.run import Run

AT_ONCE = 20_000  # rows that are written together
PACKED, BLOCK = ".gz", 2**16
OURS, LONGEST_LOAD_S = "epochmeter-fleet-", 86_400.0  # temporary folders, each changed with every log


class Known(NamedTuple):
    """The state of a run in a fleet: the bytes of its log, when it was last heard of (us since 1970), and its state."""

    log_bytes: int
    as_of: int
    state: str

    @property
    def is_over(self) -> bool:
        """True if the run goes on no more, as far as is known."""
        return self.state != "running"

    def is_newer(self, other: Known) -> bool:
        """Return True if this was known later, or from more of the log.

        A run that was killed ends without a new line in its log.
        """
        return (self.as_of, self.is_over, self.log_bytes) > (other.as_of, other.is_over, other.log_bytes)


class Fleet(Protocol):
    """Where rows go."""

    keeps_names: bool

    def loaded(self) -> dict[str, Known]:
        """Return the loads of runs, by the run's id; without runs of which a part is missing."""

    def write(self, rows: Iterable[Row]) -> None:
        """Add rows."""


@dataclass
class Loaded:
    """The result of a load.

    Attributes:
        logs: how many logs gave rows.
        rows: how many rows.
        known: how many logs had nothing new.
        labelled: how many of the logs with rows have the label of the workload.
        bad: the fault of each log or folder that could not be read.
        torn: each log of which a part could not be read, and is missing.
    """

    logs: int = 0
    rows: int = 0
    known: int = 0
    labelled: int = 0
    bad: list[str] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)


def logs_in(paths: Iterable[Path], on_bad: Callable[[str], None] = lambda _: None) -> list[Path]:
    """Return the run logs that these paths are, or hold at any depth, each once. Links to folders are not followed.

    Args:
        paths: logs, and folders of logs.
        on_bad: called with the fault of a folder that cannot be read.

    Raises:
        ProfilerError: there is no such file or folder.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            walk = os.walk(path, onerror=lambda error: on_bad(f"{error.filename}: {error.strerror}"))
            inside = (Path(folder, name) for folder, _, names in walk for name in names)
            found.update(dict.fromkeys(sorted(one for one in inside if _is_log(one) and one.is_file())))
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
        label: the user's own label that names the workload; "" for the run's name, where names are kept.
        on_log: called after each log.

    Raises:
        ProfilerError: the fleet cannot be read or written.
    """
    _forget_killed()
    told, known, waiting = Loaded(), fleet.loaded(), []
    with tempfile.TemporaryDirectory(prefix=OURS) as folder:
        for log in logs:
            try:
                rows, is_torn = _new_rows(log, Path(folder), known, label, keeps_names=fleet.keeps_names)
            except (ProfilerError, OSError) as error:
                told.bad.append(printable(f"{log}: {error}"))
            else:
                told.known += not rows
                told.torn += [printable(log)] if is_torn else []
                if rows:
                    told.logs, told.rows = told.logs + 1, told.rows + len(rows)
                    told.labelled += bool(rows[0]["workload"])
                    known[rows[0]["run"]] = known_of(rows)
                    waiting += rows
            if len(waiting) >= AT_ONCE:
                fleet.write(waiting)
                waiting = []
            on_log()
    fleet.write(waiting)
    return told


def _forget_killed() -> None:
    """Remove the copy of a log that a load has left behind which was killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{OURS}*"):
        with contextlib.suppress(OSError):
            found = folder.lstat()
            is_own = not hasattr(os, "getuid") or found.st_uid == os.getuid()
            if is_own and stat.S_ISDIR(found.st_mode) and time.time() - found.st_mtime > LONGEST_LOAD_S:
                shutil.rmtree(folder)


def first_line(error: Exception) -> str:
    """Return the first line of an engine's error: some are pages long."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def _is_log(path: Path) -> bool:
    return path.name.endswith((SUFFIX, SUFFIX + PACKED))


def _new_rows(log: Path, folder: Path, known: dict[str, Known], label: str, *, keeps_names: bool) -> tuple[list[Row], bool]:
    """Return the rows of a log, or none if nothing of it is new; and whether a part of it could not be read.

    Raises:
        RunLogError: it holds no run.
        OSError: it cannot be read.
    """
    before = known.get(run_id(Path(log.name.removesuffix(PACKED))))
    settled = before.log_bytes if before is not None and before.is_over else None
    if not log.name.endswith(PACKED) and log.stat().st_size == settled:
        return [], False
    with _copied(log, folder) as (copy, is_whole):
        size = copy.stat().st_size
        if size == settled:
            return [], not is_whole
        run = load(copy, sums_at=SCALE)
        if run.state == "interrupted" and is_being_written(log):
            run.state = "running"
        with believed(run):
            named = _workload(run, label, keeps_names=keeps_names)
            rows = rows_of(run, size, named, keeps_names=keeps_names, pieces=pieces_of(run, copy))
    if rows and before is not None and not known_of(rows).is_newer(before):
        return [], not is_whole  # an older copy, or a log that was only written anew in fewer lines
    return rows, not is_whole or SPOILT in run.notes


def known_of(rows: Sequence[Row]) -> Known:
    """Return the state of the run that these rows are of."""
    return Known(*(rows[0][name] for name in Known._fields))


def _workload(run: Run, label: str, *, keeps_names: bool) -> str:
    if label:
        return run.said.get(label) or run.said.get(LABEL_PREFIX + label, "")
    return run.name if keeps_names else ""


@contextlib.contextmanager
def _copied(log: Path, folder: Path) -> Iterator[tuple[Path, bool]]:
    """Copy a log into a folder of our own, where nobody changes it while it is read; unpack one that is packed.

    Yields:
        the copy, and False if it is only the begin of the packed file.
    """
    copy = folder / log.name.removesuffix(PACKED)
    try:
        yield copy, _copy(log, copy)
    finally:
        copy.unlink(missing_ok=True)


def _copy(log: Path, copy: Path) -> bool:
    try:
        with gzip.open(log) if log.name.endswith(PACKED) else log.open("rb") as source, copy.open("wb") as file:
            while block := source.read1(BLOCK):  # as much as is unpacked: of a file that was cut off, all of its begin
                file.write(block)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        if copy.stat().st_size == 0:
            raise RunLogError(f"it cannot be unpacked: {error}") from None
        return False
    return True
