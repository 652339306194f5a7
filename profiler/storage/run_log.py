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
from typing import Any

from profiler.config.folder import Folder, append_to
from profiler.records.histogram import NS
from profiler.storage import otlp_json
from profiler.storage.points import epoch_attributes, epoch_points, local_resource

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.run import EpochRecord, Run


SUFFIX = ".otlp.jsonl"
LOCK_SUFFIX = ".lock"
LOG = re.compile(r".+\.otlp\.jsonl")  # a log may have been copied here under a name of the user's
OWN = re.compile(r"\d{8}T\d{6}\.\d{6}Z-[0-9a-f]+\.otlp\.jsonl(\.lock)?")  # only these are removed


class RunLog:
    """One run's file, being written. It is opened at the first append, and the caller serialises the calls.

    A lock is held while the run lives. It distinguishes a living run from a killed one.

    Args:
        folder: the folder of the run logs; made if it is missing.
        run: the run.
    """

    def __init__(self, folder: Path, run: Run) -> None:
        stamp = datetime.fromtimestamp(run.started_unix_ns / NS, timezone.utc).strftime("%Y%m%dT%H%M%S.%fZ")
        self.path = folder / f"{stamp}-{run.id}{SUFFIX}"
        self._folder = Folder(folder)
        self._descriptor: int | None = None
        self._lock: Any = None

    def append(self, run: Run, part: EpochRecord) -> None:
        """Write one line: the present state of the run, and the measurements of this part.

        Raises:
            OSError: the folder or the disk refuses it.
        """
        if self._descriptor is None:
            self._open()
        began, now = run.started_unix_ns + part.started_ns, run.started_unix_ns + run.duration_ns
        content = otlp_json.request(local_resource(run), epoch_points(run, part), began, now, epoch_attributes(part))
        data = (json.dumps(content, separators=(",", ":")) + "\n").encode("utf-8")
        append_to(self._descriptor or 0, data)  # not synced: the kernel keeps it when this process is killed

    def close(self) -> None:
        """Close the file, and release the lock."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None
            with contextlib.suppress(OSError):
                self._folder.remove(f"{self.path.name}{LOCK_SUFFIX}")

    def _open(self) -> None:
        self._descriptor = self._folder.open_append(self.path.name)
        # A folder may know no locks; and a run as short as an import, ended by the interpreter, may find it too late to
        # import this (Python 3.10: "can't register atexit after shutdown"). Its end is on disk in a moment anyway.
        with contextlib.suppress(OSError, NotImplementedError, RuntimeError, ImportError):
            held = self._folder.lock(f"{self.path.name}{LOCK_SUFFIX}")
            held.acquire(timeout=0)
            self._lock = held


# ---- reading -------------------------------------------------------------------------------------------------------


def run_paths(folder: Path) -> list[Path]:
    """Return the run logs of a folder, newest first."""
    return [folder / name for name in reversed(Folder(folder).names(LOG))]


def run_id(path: Path) -> str:
    """Return the run's id from its log's name."""
    return path.name.removesuffix(SUFFIX).rpartition("-")[2]


def prune(folder: Path, days: float, now: float | None = None) -> int:
    """Remove old run logs, and locks left behind. Return the number of logs removed."""
    limit = (time.time() if now is None else now) - days * 86_400
    removed = 0
    kept = Folder(folder)
    for name in kept.names(OWN):
        with contextlib.suppress(OSError):
            if kept.status(name).st_mtime < limit:
                kept.remove(name)
                removed += name.endswith(SUFFIX)
    return removed


def is_being_written(path: Path) -> bool:
    """Return True if a living process holds the run's lock."""
    folder, name = Folder(path.parent), f"{path.name}{LOCK_SUFFIX}"
    if not folder.has(name):
        return False
    try:
        found = folder.lock(name)
        found.acquire(timeout=0)
    except (OSError, NotImplementedError):  # filelock.Timeout is an OSError
        return True
    found.release()
    return False
