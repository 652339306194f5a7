"""Follow the log of a run that goes on: each look reads only the lines written since the last one."""

from __future__ import annotations

import os
from pathlib import Path

from profiler.errors import RunLogError
from profiler.records.run import Run
from profiler.storage.log_lines import lines_from
from profiler.storage.run_log import run_id
from profiler.storage.run_reader import no_run, read_run_line, with_true_state


class LogFollower:
    """A run, as its log shows it at each look. The run itself notices nothing.

    Args:
        path: the log.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._begin()

    def _begin(self) -> None:
        self._run = Run(id=run_id(self._path), name="", started_unix_ns=0)
        self._read = 0
        self._file: tuple[int, int] | None = None

    def look(self) -> Run:
        """Return the run as of now; its state is "interrupted" if it says "running" and no process writes its log.

        Raises:
            RunLogError: the log is gone, or holds no run.
        """
        try:
            status = os.stat(self._path)
        except OSError as error:
            raise RunLogError(f"the run log {self._path.name} cannot be read: {error.strerror}.") from None
        if self._file != (status.st_dev, status.st_ino) or status.st_size < self._read:  # it was written anew, and is shorter
            self._begin()
            self._file = status.st_dev, status.st_ino
        for line in lines_from(self._path, self._read):
            if not line.endswith(b"\n"):  # the rest of it is being written
                break
            self._read += len(line)
            read_run_line(self._run, line)
        if not self._run.name:
            raise no_run(self._path)
        return with_true_state(self._run, self._path)
