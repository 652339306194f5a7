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
import json
import os
import re
import time
from datetime import datetime, timezone
from pathlib import Path

from profiler.config.folder import Folder, append_to
from profiler.config.locks import hold, is_held
from profiler.config.place import POSIX
from profiler.records.histogram import NS
from profiler.storage import otlp_json
from profiler.storage.log_lines import lines_from
from profiler.storage.points import epoch_attributes, epoch_points, local_resource

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.run import EpochRecord, Run


SUFFIX = ".otlp.jsonl"
BESIDE = ".new"  # of a log that is being written anew
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
        self._descriptor: int | None = None
        self._identity: tuple[int, int] | None = None  # device and inode of the log
        self._is_locked = False
        self._is_synced = True

    def append(self, run: Run, part: EpochRecord) -> None:
        """Write one line: the present state of the run, and the measurements of this part.

        Raises:
            OSError: the folder or the disk refuses it.
        """
        descriptor = self._opened()
        append_to(descriptor, line_of(run, part))  # the kernel keeps it when this process is killed
        self._is_synced = False

    def sync(self) -> None:
        """Wait until the disk has what was written: that outlasts the machine's power. Never called by the loop."""
        descriptor = None if self._is_synced else self._ours()
        if descriptor is not None:
            self._is_synced = True
            with contextlib.suppress(OSError):  # the program has closed it meanwhile, or this kind of file has no disk
                os.fsync(descriptor)

    def touch(self) -> None:
        """Note on the file that the run was alive now: an export said how long it has lasted, and no line of the log does."""
        descriptor = self._ours()
        with contextlib.suppress(OSError, NotImplementedError, TypeError):  # not every system can, for a descriptor
            if descriptor is not None:
                os.utime(descriptor)

    def size(self) -> int:
        """Return the length of the log in bytes, 0 while there is none."""
        descriptor = self._ours()
        return 0 if descriptor is None else os.fstat(descriptor).st_size

    def open_beside(self) -> int:
        """Return the descriptor of an empty file beside the log, into which it is written anew.

        Raises:
            OSError: the folder or the disk refuses it.
        """
        descriptor = self._folder.open_append(self.path.name + BESIDE)
        os.ftruncate(descriptor, 0)
        return descriptor

    def drop_beside(self, descriptor: int) -> None:
        """Remove that file."""
        with contextlib.suppress(OSError):
            os.close(descriptor)
        with contextlib.suppress(OSError):
            self._folder.remove(self.path.name + BESIDE)

    def continue_in(self, descriptor: int, written: int) -> None:
        """Let that file take the log's place. Call it while nobody writes.

        Args:
            descriptor: of the file beside the log.
            written: how many bytes of the log are in it, in their new form. The rest is added as it is.

        Raises:
            OSError: it cannot be; the log stays as it is.
        """
        old = self._ours()
        if old is None or self.has_vanished():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.path))
        for line in lines_from(self.path, written):
            append_to(descriptor, line)
        identity, is_locked = _identity(os.fstat(descriptor)), hold(descriptor)  # before it has the name: it is never free
        if not POSIX:  # where an open file cannot be replaced, the next append opens it again
            os.close(descriptor)
            self.close()
        self._folder.move(self.path.name + BESIDE, self._folder, self.path.name)
        if POSIX:
            os.close(old)
            self._descriptor, self._identity, self._is_locked = descriptor, identity, is_locked

    def has_vanished(self) -> bool:
        """Return True if the log was removed, or another file stands in its place."""
        if self._identity is None:
            return False
        try:
            return _identity(os.stat(self.path, follow_symlinks=False)) != self._identity
        except OSError:
            return True

    def close(self) -> None:
        """Close the file, which releases its lock. The next append opens it again, or makes it anew."""
        descriptor = self._ours()
        if descriptor is not None:
            os.close(descriptor)
        self._descriptor, self._identity, self._is_locked = None, None, False
        with contextlib.suppress(OSError):
            self._folder.remove(self.path.name + BESIDE)  # it is no log, and would stay if the process ends now

    def _opened(self) -> int:
        descriptor = self._ours()
        if descriptor is None:
            descriptor = self._descriptor = self._folder.open_append(self.path.name)
            self._identity, self._is_locked = _identity(os.fstat(descriptor)), False
        if not self._is_locked:
            self._is_locked = hold(descriptor)
        return descriptor

    def _ours(self) -> int | None:
        """Return the descriptor, or None if it is not open, or another file's by now."""
        with contextlib.suppress(OSError):
            if self._descriptor is not None and _identity(os.fstat(self._descriptor)) == self._identity:
                return self._descriptor
        return None


def line_of(run: Run, part: EpochRecord) -> bytes:
    """Return the line of a part of a run."""
    began = run.started_unix_ns + part.started_ns
    has_times = part.duration_ns or part.slice is not None
    ended = began + part.duration_ns if has_times else run.started_unix_ns + run.duration_ns
    content = otlp_json.request(local_resource(run, part.slice), epoch_points(run, part), began, ended, epoch_attributes(part))
    return (json.dumps(content, separators=(",", ":")) + "\n").encode("utf-8")


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


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
    with contextlib.suppress(OSError), Folder(path.parent).opened(path.name) as (descriptor, _, _):
        return is_held(descriptor)
    return False


def alive_until(path: Path) -> int:
    """Return the last moment at which the run of this log is known to have lived (ns since 1970), 0 if none is.

    Raises:
        OSError: the log cannot be looked at.
    """
    known = Folder(path.parent).status(path.name).st_mtime_ns
    return known if known <= time.time_ns() else 0
