"""The run log: a run's measurements on this machine, one OTLP JSON document a line.

The format is that of the OpenTelemetry Collector's file exporter and ``otlpjsonfile`` receiver. The first line is written
when the run starts. One line follows each epoch before the next begins, and the last one holds the run's end. A line cut
off by a crash is skipped, so a process killed at any moment loses only its present epoch.

The rule it keeps: each line is written by a single append, and never changed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from datetime import datetime, timezone
from pathlib import Path

from profiler.config.folder import Folder, append_to
from profiler.config.locks import hold, is_held
from profiler.records.histogram import NS
from profiler.storage import otlp_json
from profiler.storage.points import epoch_attributes, epoch_points, local_resource

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.run import EpochRecord, Run


SUFFIX = ".otlp.jsonl"
LOG = re.compile(r".+\.otlp\.jsonl")  # a log may have been copied here under a name of the user's
OWN = re.compile(r"\d{8}T\d{6}\.\d{6}Z-[0-9a-f]+\.otlp\.jsonl")  # only these are removed


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

    def append(self, run: Run, part: EpochRecord) -> None:
        """Write one line: the present state of the run, and the measurements of this part.

        Raises:
            OSError: the folder or the disk refuses it.
        """
        descriptor = self._opened()
        began, now = run.started_unix_ns + part.started_ns, run.started_unix_ns + run.duration_ns
        content = otlp_json.request(local_resource(run), epoch_points(run, part), began, now, epoch_attributes(part))
        data = (json.dumps(content, separators=(",", ":")) + "\n").encode("utf-8")
        append_to(descriptor, data)  # not synced: the kernel keeps it when this process is killed

    def touch(self) -> None:
        """Note on the file that the run was alive now: an export said how long it has lasted, and no line of the log does."""
        descriptor = self._ours()
        with contextlib.suppress(OSError, NotImplementedError, TypeError):  # not every system can, for a descriptor
            if descriptor is not None:
                os.utime(descriptor)

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
            if kept.status(name).st_mtime < limit and not is_being_written(folder / name):
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
