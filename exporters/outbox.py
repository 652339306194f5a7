"""The outbox: payloads in files until they have been delivered. No entry disappears without a mark that is counted.

Each entry is one file: a line of JSON (its `Head`), then the compressed body. The folders are the states of an entry:

    new/      being written, perhaps by a process that was killed
    waiting/  to be delivered
    sending/  being delivered by the process that holds the destination's lock
    aside/    refused for good by the destination; ``<name>.why`` says why
    dropped/  empty files, one for each entry that was given up: its suffix says why
    done/     empty files: entries that must never be sent again (Google Analytics knows no duplicates)
    open/     one file for each run whose final entry is still to come
    trouble/  one file for each destination that failed the last time: why, and how long to leave it alone

The rule it keeps: every step is one rename or one removal, and a process may be killed between any two of them. An entry
left in sending/ by a killed process is sent again if that does no harm, and given up if it might count twice.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from exporters.config import Files
from exporters.entry import (
    MAX_BODY_BYTES,
    MAX_FILE_BYTES,
    MAX_HEAD_BYTES,
    SUFFIX,
    VERSION,
    Entry,
    Head,
    UnreadableError,
    head_from,
    name_of,
    unpacked,
)
from exporters.outbox_folder import MAX_NOTE_BYTES, OutboxFolder
from exporters.troubles import Troubles

OPEN_GRACE_S = 2.0  # a run's log may be a moment younger than its file in open/
LEFT_ALONE_S = 3600.0  # after that, an unfinished file, or one in sending/ on a system without locks, belongs to no process
LOOK_AGAIN_S = 600.0  # how long what is known of all entries stays true enough
AT_ONCE = 16  # entries read between two pauses
DONE_DAYS = 4.0  # Google Analytics accepts nothing older than 72 hours
REASONS = {  # the suffix of a mark, and its meaning in words
    "expired": "waited too long for delivery",
    "full": "had no room in the outbox",
    "thinned": "had no room, and a later one of the same run holds all that it had",
    "withdrawn": "was removed because sending was switched off",
    "unknown": "may have been delivered when the process was killed, and is not sent twice",
    "unreadable": "could not be read any more",
    "fault": "held data that is not on this version's list",
    "partly": "was taken only in part",
    "final": "got another answer than success, or none, from a destination that would count it twice",
    "nolog": "was a killed run's that kept no log",
}


class Outbox:
    """The queue in a folder.

    Args:
        folder: made with the first entry.
        max_bytes: the size of all entries together, set-aside ones included.
        max_age_s: how long an entry may wait.
        clock: seconds since 1970.
    """

    def __init__(self, folder: Files, max_bytes: float = 64e6, max_age_s: float = 30 * 86_400, clock: Any = time.time) -> None:
        self._files = OutboxFolder(folder, clock)
        self.troubles = Troubles(self._files, clock)
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._clock = clock
        self._room = 0.0  # bytes that still fit, by the last look at all entries
        self._looked_at = -math.inf  # when that was
        self._expired_at = -math.inf  # the same for entries that waited too long
        self._heads: dict[str, Head] = {}  # of waiting entries, by name
        self._began = clock(), time.monotonic()

    def now(self) -> float:
        """Return seconds since 1970, by a clock that does not jump while this process runs."""
        wall, monotonic = self._began
        return float(wall) + time.monotonic() - monotonic

    # ---- putting ---------------------------------------------------------------------------------------------------

    def put(self, head: Head, started_ns: int, order: str, body: bytes, *, replaces: str | None = None) -> None:
        """Add an entry, which is on disk when this returns. An entry with the same name is replaced.

        Args:
            head: its description.
            started_ns: when the run began.
            order: its place within the run: sorts behind earlier entries.
            body: the bytes to send.
            replaces: the order of an entry of the same run whose data this one contains.

        Raises:
            OSError: it cannot be kept.
        """
        if len(body) > MAX_BODY_BYTES:
            raise OSError(errno.EFBIG, f"it has {len(body)} bytes, and at most {MAX_BODY_BYTES} can be kept")
        name, line = name_of(started_ns, head.run, order), head.line(body)
        packed = gzip.compress(body, compresslevel=6, mtime=0)
        self._make_room(len(packed) + 512)
        self._heads.pop(name, None)
        self._files.write("waiting", f"{name}{SUFFIX}", line + b"\n" + packed, durable=True)
        if replaces is not None:
            self._files.remove(Entry(name_of(started_ns, head.run, replaces), "waiting", 0))

    def _make_room(self, size: int) -> None:
        """Drop entries until so many bytes fit: refused ones, then those that a later one contains, then the oldest."""
        self._room -= size
        if self._room >= 0 and abs(self.now() - self._looked_at) < LOOK_AGAIN_S:
            return  # other processes may have added something since: that is found at the next look
        self._look_for_room(size)

    def _look_for_room(self, size: int) -> None:
        self._looked_at = self.now()
        aside, waiting = self._files.entries("aside"), self._files.entries("waiting")
        held = sum(entry.size for entry in (*aside, *waiting, *self._files.entries("sending")))
        self._room = self._max_bytes - held - size
        if self._room >= 0:
            return
        # Payloads of a run are cumulative: the latest one holds the data of all before it. Dropping an earlier one only loses
        # resolution in time, so these go before the only payload of any run.
        newest = {entry.run: entry.name for entry in waiting}  # names are sorted: the last of each run stays
        contained = [entry for entry in waiting if newest[entry.run] != entry.name and entry.contains_earlier]
        known = set(contained)
        rest = [entry for entry in waiting if entry not in known]
        for entry, why in [(e, "full") for e in aside] + [(e, "thinned") for e in contained] + [(e, "full") for e in rest]:
            if held + size <= self._max_bytes:
                return
            self.drop(entry, why)
            held -= entry.size

    # ---- looking ---------------------------------------------------------------------------------------------------

    def waiting(self) -> list[Entry]:
        """Return the waiting entries, oldest first, without their sizes."""
        return self._files.known("waiting")

    def under_way(self) -> list[Entry]:
        """Return the entries that a process is delivering, or was when it was killed."""
        return self._files.entries("sending")

    def aside(self) -> list[tuple[Entry, str]]:
        """Return the entries that were refused for good, each with the reason."""
        found = []
        for entry in self._files.entries("aside"):
            why = "not known"
            with contextlib.suppress(OSError):
                why = self._files.state("aside").read(f"{entry.name}.why", MAX_NOTE_BYTES).decode("utf-8", "replace")
            found.append((entry, why))
        return found

    def dropped(self) -> dict[str, int]:
        """Return the number of dropped entries, by reason."""
        reasons = (name.rpartition(".")[2] for name in self._files.names("dropped"))
        return dict(Counter(reason for reason in reasons if reason in REASONS))

    def head(self, entry: Entry) -> Head:
        """Return an entry's head. That of a waiting one is read once, because no other process changes it.

        Raises:
            OSError: it is gone, or cannot be read.
            UnreadableError: it is damaged.
        """
        head = self._heads.get(entry.name) if entry.state == "waiting" else None
        if head is None:
            head = head_from(self._files.state(entry.state).first_line(entry.file, MAX_HEAD_BYTES))
            if entry.state == "waiting":
                self._heads[entry.name] = head
        return head

    def body(self, entry: Entry) -> bytes:
        """Return an entry's body.

        Raises:
            OSError, UnreadableError: as in `head`.
        """
        return self.whole(entry)[1]

    def whole(self, entry: Entry) -> tuple[Head, bytes]:
        """Return an entry's head and body.

        Raises:
            OSError, UnreadableError: as in `head`.
        """
        line, _, packed = self._files.state(entry.state).read(entry.file, MAX_FILE_BYTES).partition(b"\n")
        body = unpacked(packed)
        head = head_from(line)
        if hashlib.sha256(body).hexdigest() != head.sha256:
            raise UnreadableError("its body is not the one that was put here")
        return head, body

    def knows(self, started_ns: int, run: str, order: str) -> bool:
        """Return True if an entry of this name exists, or existed."""
        name = name_of(started_ns, run, order)
        return (
            any(self._files.state(state).has(f"{name}{SUFFIX}") for state in ("waiting", "sending", "aside"))
            or self._files.state("done").has(name)
            or any(self._files.state("dropped").has(f"{name}.{why}") for why in REASONS)
        )

    # ---- an entry's life -------------------------------------------------------------------------------------------

    def claim(self, entry: Entry) -> Entry | None:
        """Take an entry for delivery. Return None if another process was quicker."""
        try:
            moved = self._files.move(entry, "sending")
        except FileNotFoundError:
            return None
        if not entry.contains_earlier:  # events are counted once: not even a power cut may make it seem unsent
            self._files.state("sending").sync()
        return moved

    def put_back(self, entry: Entry) -> None:
        """Let an entry wait again, unless its run has put one with more data in its place."""
        if entry.contains_earlier and self._files.state("waiting").has(entry.file):
            self._files.remove(entry)
            return
        with contextlib.suppress(FileNotFoundError):  # removed, because the user has switched off
            self._files.move(entry, "waiting")

    def delivered(self, entry: Entry, *, once: bool = False) -> None:
        """Remove an entry that has arrived. With ``once``, a mark stays, so that it is never sent again."""
        if once:
            self._files.mark("done", entry.name)
        self._files.remove(entry)

    def set_aside(self, entry: Entry, why: str) -> None:
        """Set aside an entry that the destination refused for good."""
        self._files.write("aside", f"{entry.name}.why", why.encode("utf-8", "replace"))
        with contextlib.suppress(FileNotFoundError):
            self._files.move(entry, "aside")

    def take_up_again(self) -> int:
        """Let all set-aside entries wait again, and return their number."""
        entries = self._files.entries("aside")
        for entry in entries:
            self.put_back(entry)
            with contextlib.suppress(OSError):
                self._files.state("aside").remove(f"{entry.name}.why")
        return len(entries)

    def drop(self, entry: Entry, why: str) -> None:
        """Give up an entry: count it first, then remove it."""
        self.count(entry.name, why)
        self._files.remove(entry)
        with contextlib.suppress(OSError):
            self._files.state("aside").remove(f"{entry.name}.why")

    def count(self, name: str, why: str) -> None:
        """Count an entry as dropped, without a file."""
        self._files.mark("dropped", f"{name}.{why}")

    def recover(self, digest: str, *, locked: bool) -> None:
        """Settle entries that a killed process was delivering to this destination.

        Args:
            digest: the destination.
            locked: True if the caller holds the destination's lock. Without it, only old entries are touched.
        """
        # A killed process leaves its entry in sending/, and nobody knows whether it arrived. OTLP's sums are cumulative, so a
        # second copy does no harm, and the entry waits again. Google counts every event, so there it is given up. A mark in
        # done/ shows that it did arrive, and that only its removal is missing.
        for entry in self._files.entries("sending"):
            with contextlib.suppress(OSError):
                if not locked and self._age(entry) < LEFT_ALONE_S:
                    continue
                try:
                    key = self.head(entry).key
                except UnreadableError:
                    self.drop(entry, "unreadable")
                    continue
                if key.digest != digest:
                    continue
                if self._files.state("done").has(entry.name):
                    self._files.remove(entry)
                elif key.target == "ga":
                    self.drop(entry, "unknown")
                else:
                    self.put_back(entry)

    def _age(self, entry: Entry) -> float:
        """Return the seconds since an entry came into its folder."""
        return float(self._clock()) - self._files.state(entry.state).status(entry.file).st_ctime

    def expire(self, yield_gil: Callable[[], None] = lambda: None) -> None:
        """Drop entries that waited too long, and remove unfinished files of killed processes.

        Args:
            yield_gil: called between two pieces of work.
        """
        if abs(self._clock() - self._expired_at) < LOOK_AGAIN_S:
            return
        now, self._expired_at = self.now(), self._clock()
        for number, entry in enumerate([*self._files.known("waiting"), *self._files.known("aside")]):
            if number % AT_ONCE == 0:
                yield_gil()
            try:
                head = self.head(entry)
            except UnreadableError:
                self.drop(entry, "unreadable")
                continue
            except OSError:
                continue
            if now - head.created > self._max_age_s or now > (head.until or now):
                self.drop(entry, "expired")
        self._files.forget("new", LEFT_ALONE_S)
        self._files.forget("done", DONE_DAYS * 86_400)

    def forget_marks(self, days: float) -> None:
        """Remove counts and notes on failing destinations that are older than this."""
        self._files.forget("dropped", days * 86_400)
        self._files.forget("trouble", days * 86_400)

    # ---- runs whose final entry is still to come -------------------------------------------------------------------

    def open_run(self, run: str, about: Mapping[str, Any]) -> None:
        """Announce a run's final entry. The note stays until `close_run`, even if the process is killed.

        Raises:
            OSError: the note cannot be kept.
        """
        self._files.write("open", f"{run}.json", json.dumps({"version": VERSION, "since": self._clock(), **about}).encode())

    def close_run(self, run: str) -> None:
        """Remove the announcement of a run's final entry."""
        with contextlib.suppress(OSError):
            self._files.state("open").remove(f"{run}.json")

    def open_runs(self) -> Iterator[tuple[str, dict[str, Any], float]]:
        """Yield the announced runs: id, note, and the note's age in seconds."""
        for name in self._files.names("open"):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
                about = json.loads(self._files.state("open").read(name, MAX_NOTE_BYTES))
                age_s = abs(self._clock() - about["since"])
                if isinstance(about["log"], str) and type(about["started_ns"]) is int:
                    yield name.removesuffix(".json"), about, age_s
