"""The run log: a run's measurements on this machine, one OTLP JSON document a line.

The format is that of the OpenTelemetry Collector's file exporter and ``otlpjsonfile`` receiver. The first line is written
when the run starts. One line follows each epoch before the next begins, and each slice of a long one. The last one holds
the run's end. A line cut off by a crash is skipped, so a process killed at any moment loses only its present slice.

The rule it keeps: each line is written by a single append. Only the slices of a long run are joined later (`compaction`),
in a file that then takes the log's place as a whole.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from pathlib import Path

from profiler.config.folder import Folder
from profiler.config.locks import is_held
from profiler.config.place import POSIX
from profiler.records.histogram import NS
from profiler.storage import otlp_json
from profiler.storage.log_lines import lines_from
from profiler.storage.own_file import OwnFile, identity_of
from profiler.storage.points import epoch_attributes, epoch_points, local_resource

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.run import EpochRecord, Run


SUFFIX = ".otlp.jsonl"
BESIDE = ".new"  # of a log that is being written anew
LOOKS = 3  # at a log that is replaced meanwhile
LOG = re.compile(r".+\.otlp\.jsonl")  # a log may have been copied here under a name of the user's
OWN = re.compile(r"\d{8}T\d{6}\.\d{6}Z-[0-9a-f]+\.otlp\.jsonl(\.new)?")  # only these are removed


class RunLog:
    """One run's file, being written. It is opened at the first append, and the caller serialises the calls.

    The file is locked while the run lives, which distinguishes a living run from a killed one. The program may close our
    descriptor, and get its number for a file of its own: nothing is written to, and nothing closed, that is not the log.

    Args:
        folder: the folder of the run logs; made if it is missing.
        run: the run.
    """

    def __init__(self, folder: Path, run: Run) -> None:
        stamp = datetime.fromtimestamp(run.started_unix_ns / NS, timezone.utc).strftime("%Y%m%dT%H%M%S.%fZ")
        self.path = folder / f"{stamp}-{run.id}{SUFFIX}"
        self._folder = Folder(folder)
        self._file: OwnFile | None = None
        self._is_synced = True

    def append(self, run: Run, part: EpochRecord) -> None:
        """Write one line: the present state of the run, and the measurements of this part.

        Raises:
            OSError: the folder or the disk refuses it.
        """
        file = self._opened()
        file.append(line_of(run, part))  # the kernel keeps it when this process is killed
        self._is_synced = False

    def sync(self) -> None:
        """Wait until the disk has all written data, which then outlasts the machine's power. Never called by the loop."""
        if self._file is not None and not self._is_synced:
            self._is_synced = True
            with contextlib.suppress(OSError):  # the program has closed it meanwhile, or this kind of file has no disk
                self._file.sync()

    def touch(self) -> None:
        """Note on the file that the run was alive now: an export said how long it has lasted, and no line of the log does."""
        descriptor = None if self._file is None else self._file.descriptor
        with contextlib.suppress(OSError, NotImplementedError, TypeError):  # not every system can, for a descriptor
            if descriptor is not None:
                os.utime(descriptor)

    def size(self) -> int:
        """Return the length of the log in bytes, 0 while there is none."""
        descriptor = None if self._file is None else self._file.descriptor
        return 0 if descriptor is None else os.fstat(descriptor).st_size

    def write_anew(self, content: Iterable[bytes], upto: int, swap: Callable[[Callable[[], None]], None]) -> None:
        """Write the log anew in a file beside it, and let that file take its place.

        Args:
            content: the log's first ``upto`` bytes in their new form. The rest is added as it is.
            upto: see there.
            swap: calls a function while nobody writes to the log.

        Raises:
            OSError: the disk refuses it; the log stays as it is.
        """
        beside = OwnFile(self._folder.open_append(self.path.name + BESIDE))
        try:
            beside.empty()
            for line in content:
                beside.append(line)
            beside.sync()
            swap(lambda: self._continue_in(beside, upto))
        finally:
            if self._file is not beside:
                beside.close()
                self._remove_beside()

    def _continue_in(self, beside: OwnFile, upto: int) -> None:
        old = self._file
        if old is None or old.descriptor is None or self.has_vanished():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.path))
        for line in lines_from(self.path, upto):
            beside.append(line)
        beside.lock()  # before it has the name: the log is never free
        if not POSIX:  # where an open file cannot be replaced, the log is free for a moment
            beside.close()
            old.close()
        try:
            self._folder.move(self.path.name + BESIDE, self._folder, self.path.name)
            old.close()
            self._file = beside
        finally:
            self._opened()

    def has_vanished(self) -> bool:
        """Return True if the log was removed, or another file stands in its place."""
        if self._file is None:
            return False
        try:
            return identity_of(os.stat(self.path, follow_symlinks=False)) != self._file.identity
        except OSError:
            return True

    def close(self) -> None:
        """Close the file, which releases its lock. The next append opens it again, or makes it anew."""
        if self._file is not None:
            self._file.close()
        self._file = None
        self._remove_beside()  # it is no log, and would stay if the process ends now

    def _opened(self) -> OwnFile:
        if self._file is None or self._file.descriptor is None:
            self._file = OwnFile(self._folder.open_append(self.path.name))
        self._file.lock()
        return self._file

    def _remove_beside(self) -> None:
        with contextlib.suppress(OSError):
            self._folder.remove(self.path.name + BESIDE)


def line_of(run: Run, part: EpochRecord) -> bytes:
    """Return the line of a part of a run."""
    began = run.started_unix_ns + part.started_ns
    has_times = part.duration_ns or part.slice is not None
    ended = began + part.duration_ns if has_times else run.started_unix_ns + run.duration_ns
    text = otlp_json.line(local_resource(run, part.slice), epoch_points(run, part), began, ended, epoch_attributes(part))
    return f"{text}\n".encode("ascii")


# ---- reading -------------------------------------------------------------------------------------------------------


def run_paths(folder: Path) -> list[Path]:
    """Return the run logs of a folder, newest first."""
    return [folder / name for name in reversed(Folder(folder).names(LOG))]


def run_id(path: Path) -> str:
    """Return the run's id from its log's name."""
    return path.name.removesuffix(SUFFIX).rpartition("-")[2]


def prune(folder: Path, days: float, now: float | None = None) -> int:
    """Remove old run logs, but for those of living runs. Return the number of logs removed."""
    limit = (time.time() if now is None else now) - days * 86_400
    removed = 0
    kept = Folder(folder)
    for name in kept.names(OWN):
        with contextlib.suppress(OSError):
            is_old = name.endswith(BESIDE) or kept.status(name).st_mtime < limit
            if is_old and not is_being_written(folder / name.removesuffix(BESIDE)):
                kept.remove(name)
                removed += 1
    return removed


def is_being_written(path: Path) -> bool:
    """Return True if a living process writes this log."""
    for _ in range(LOOKS):  # a log that is made shorter gets another file, and the one that we have opened is let go then
        with contextlib.suppress(OSError), Folder(path.parent).opened(path.name) as (descriptor, _, _):
            if is_held(descriptor):
                return True
            if identity_of(os.fstat(descriptor)) == identity_of(os.stat(path, follow_symlinks=False)):
                return False
    return False


def alive_until(path: Path) -> int:
    """Return the last moment at which the run of this log is known to have lived (ns since 1970), 0 if none is.

    Raises:
        OSError: the log cannot be looked at.
    """
    known = Folder(path.parent).status(path.name).st_mtime_ns
    return known if known <= time.time_ns() else 0
