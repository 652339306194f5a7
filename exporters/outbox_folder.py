"""The files of the outbox. Each is written under another name and renamed, so that it is whole or absent.

That holds on NFS, too, and with many processes and ranks at work in the same folder.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from pathlib import Path
from typing import Any

from exporters.entry import SUFFIX, Entry


class OutboxFolder:
    """A folder with one sub-folder for each state of an entry; see `Outbox`.

    Args:
        folder: made at the first write.
        clock: seconds since 1970.
    """

    def __init__(self, folder: Path, clock: Any = time.time) -> None:
        self.folder = folder
        self._clock = clock

    def path(self, state: str, name: str = "") -> Path:
        """Return the path of a file, or of a state's sub-folder."""
        return self.folder / state / name

    def paths(self, state: str) -> list[Path]:
        """Return the files of a state, sorted by name."""
        try:
            return sorted(self.path(state).iterdir(), key=lambda path: path.name)
        except OSError:
            return []

    def entries(self, state: str) -> list[Entry]:
        """Return the entries of a state, oldest first."""
        found = []
        with contextlib.suppress(OSError), os.scandir(self.path(state)) as listed:
            for file in listed:
                if file.name.endswith(SUFFIX) and file.name.count("-") == 2:
                    with contextlib.suppress(OSError):  # another process has just taken it
                        found.append(Entry(file.name.removesuffix(SUFFIX), Path(file.path), file.stat().st_size))
        return sorted(found, key=lambda entry: entry.name)

    def write(self, state: str, name: str, data: bytes, *, durable: bool = False) -> None:
        """Write a file as a whole; with ``durable``, so that it survives a power cut.

        Raises:
            OSError: the disk refuses it.
        """
        for made in ("new", state):
            self.path(made).mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = self.path("new", f"{secrets.token_hex(8)}.part")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        descriptor = os.open(temporary, flags, 0o600)
        try:
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(descriptor, view) :]
                if durable:
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(temporary, self.path(state, name))
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        if durable:
            self.sync(state)

    def sync(self, state: str) -> None:
        """Put the names of a sub-folder on disk, on systems that can."""
        if os.name != "posix":
            return
        with contextlib.suppress(OSError):  # some file systems refuse it for folders
            descriptor = os.open(self.path(state), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def mark(self, state: str, name: str) -> None:
        """Make an empty file, which is counted."""
        self.path(state).mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(self.path(state, name), os.O_WRONLY | os.O_CREAT, 0o600))
        self.sync(state)

    def forget(self, state: str, seconds: float) -> None:
        """Remove files that are older than this."""
        for path in self.paths(state):
            with contextlib.suppress(OSError):
                if self._clock() - path.stat().st_mtime > seconds:
                    path.unlink()
