"""The files of the outbox. Each is written under another name and renamed, so that it is whole or absent.

That holds on NFS, too, and with many processes and ranks at work in the same folder.
"""

from __future__ import annotations

import contextlib
import re
import time
from typing import Any

from exporters.config import Files
from exporters.entry import SUFFIX, Entry

MAX_NOTE_BYTES = 65_536  # of a file beside the entries
ENTRY = r"\d{20}-\w+-\w+"
FORMS = {  # of the names in each state; no other file is looked at or removed
    "new": re.compile(r"[0-9a-f]{16}\.part"),
    "open": re.compile(r"\w+\.json"),
    "trouble": re.compile(r"[0-9a-f]{16}\.json"),
    "dropped": re.compile(rf"{ENTRY}\.[a-z]+"),
    "done": re.compile(ENTRY),
}
ENTRY_FILE = re.compile(ENTRY + re.escape(SUFFIX))


class OutboxFolder:
    """A folder with one sub-folder for each state of an entry; see `Outbox`.

    Args:
        folder: made at the first write.
        clock: seconds since 1970.
    """

    def __init__(self, folder: Files, clock: Any = time.time) -> None:
        self._folder = folder
        self._clock = clock

    def state(self, state: str) -> Files:
        """Return the folder of a state."""
        return self._folder.sub(state)

    def names(self, state: str) -> list[str]:
        """Return the files of a state that are no entries, sorted."""
        return self.state(state).names(FORMS[state])

    def entries(self, state: str) -> list[Entry]:
        """Return the entries of a state, oldest first."""
        return [Entry(name.removesuffix(SUFFIX), state, size) for name, size in self.state(state).sizes(ENTRY_FILE)]

    def known(self, state: str) -> list[Entry]:
        """Return the same without their sizes, which would take a look at each file."""
        return [Entry(name.removesuffix(SUFFIX), state, 0) for name in self.state(state).names(ENTRY_FILE)]

    def write(self, state: str, name: str, data: bytes, *, durable: bool = False) -> None:
        """Write a file as a whole; with ``durable``, so that it survives a power cut.

        Raises:
            OSError: the disk refuses it.
        """
        self.state(state).replace(name, data, durable=durable, by=self.state("new"))

    def move(self, entry: Entry, state: str) -> Entry:
        """Move an entry to another state.

        Raises:
            OSError: it is gone, or cannot be moved.
        """
        self.state(entry.state).move(entry.file, self.state(state))
        return Entry(entry.name, state, entry.size)

    def remove(self, entry: Entry) -> None:
        """Remove an entry, if it is still there.

        Raises:
            OSError: it cannot be removed.
        """
        with contextlib.suppress(FileNotFoundError):
            self.state(entry.state).remove(entry.file)

    def mark(self, state: str, name: str) -> None:
        """Make an empty file, which is counted."""
        self.state(state).mark(name)
        self.state(state).sync()

    def forget(self, state: str, seconds: float) -> None:
        """Remove files that are older than this."""
        folder = self.state(state)
        for name in self.names(state):
            with contextlib.suppress(OSError):
                if self._clock() - folder.status(name).st_mtime > seconds:
                    folder.remove(name)
