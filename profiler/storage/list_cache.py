"""The rows of a list of runs, kept beside the logs, because a log takes milliseconds to read.

The rule it keeps: an entry counts for exactly the log that it was made of. Without the file, or with a spoilt one, a list is
made anew.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import profiler
from profiler.config.folder import Folder

NAME = "list.json"
Stamp = tuple[int, int]


class ListCache:
    """The entries of a folder of run logs.

    Args:
        folder: the folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = Folder(folder)
        self._known = self._read()
        self._used: dict[str, Any] = {}
        self._is_changed = False

    def find(self, path: Path) -> Any:
        """Return the row kept for a log, or None if there is nothing, or the log has changed."""
        entry = self._known.get(path.name)
        if not isinstance(entry, list) or len(entry) != 2 or entry[0] != list(self.stamp_of(path) or ()):
            return None
        self._used[path.name] = entry
        return entry[1]

    def keep(self, path: Path, told: Any, stamp: Stamp | None) -> None:
        """Keep a row for a log; ``stamp`` is the answer of `stamp_of` before the log was read."""
        if stamp is not None and stamp == self.stamp_of(path):
            self._used[path.name] = [list(stamp), told]
            self._is_changed = True

    def save(self) -> None:
        """Write the entries that were found or kept. A folder that cannot be written is left as it is."""
        if self._is_changed:
            content = json.dumps({"version": profiler.__version__, "runs": self._used}, separators=(",", ":"))
            with contextlib.suppress(OSError):
                self._folder.replace(NAME, content.encode())

    def stamp_of(self, path: Path) -> Stamp | None:
        """Return the size of a log and its last change, None if it cannot be looked at."""
        with contextlib.suppress(OSError):
            status = self._folder.status(path.name)
            return status.st_size, status.st_mtime_ns
        return None

    def _read(self) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError, RecursionError):
            content = json.loads(self._folder.read(NAME))
            if isinstance(content, dict) and content.get("version") == profiler.__version__:
                runs = content.get("runs")
                return runs if isinstance(runs, dict) else {}
        return {}
