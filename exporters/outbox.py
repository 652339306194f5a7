"""The outbox: what is to be sent, in files, until it has been delivered. Nothing leaves it without a mark that is counted.

One file an entry: a line of JSON that says what it is, then the compressed body. A file is written under another name,
put on disk, and renamed into its place, so that it is there whole or not at all, also on NFS and with many processes and
ranks at work in the same folder. The folders are the states an entry can be in:

    new/      being written; whoever wrote it may have been killed
    waiting/  to be delivered
    sending/  being delivered by the process that holds the destination's lock
    aside/    refused for good by the destination; ``<name>.why`` says why
    dropped/  empty files, one for each entry that was given up: its suffix says why
    done/     empty files: entries that must never be sent again (Google Analytics knows no duplicates)
    open/     one file for each run whose last word is still to come
    trouble/  one file for each destination that took nothing the last time: why, and how long to leave it alone

The rule it keeps: every step is one rename or one removal, and a process may be killed between any two of them. What is
found in sending/ with nobody at work was cut off there: it is sent again where that does no harm, and given up where it
might count twice.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from exporters.rules import Declared, declared_from

VERSION = 1
SUFFIX = ".entry"
OPEN_GRACE_S = 2.0  # a run's log may be a moment younger than its file in open/
LEFT_ALONE_S = 3600.0  # after which an unfinished file, or one in sending/ on a system without locks, is nobody's
AT_ONCE = 16  # entries that are looked at in one go
DONE_DAYS = 4.0  # Google Analytics takes nothing older than 72 hours
REASONS = {  # a mark's suffix: what happened, in words
    "expired": "waited too long for delivery",
    "full": "had no room in the outbox",
    "thinned": "had no room, and a later one of the same run holds all that it had",
    "withdrawn": "was removed because sending was switched off",
    "unknown": "may have been delivered when the process was killed, and is not sent twice",
    "unreadable": "could not be read any more",
    "fault": "held what is not on this version's list",
    "partly": "was taken only in part",
    "final": "got another answer than success, or none, from a destination that would count it twice",
    "nolog": "was a killed run's that kept no log",
}


@dataclass(frozen=True)
class Key:
    """Which destination an entry is for, and under which choice of the user's it was made.

    Attributes:
        address: without credentials and query.
        decided: the date of the choice in the settings file, or None.
    """

    target: str
    protocol: str
    address: str
    decided: str | None = None

    @property
    def digest(self) -> str:
        return hashlib.sha256(repr((self.target, self.protocol, self.address)).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Entry:
    """One entry, known by its file's name. Names sort by the run's start, then by the order within the run."""

    name: str
    path: Path
    size: int

    @property
    def run(self) -> str:
        return self.name.split("-")[1]

    @property
    def contains_earlier(self) -> bool:
        """Whether it holds all that earlier ones of its run hold: cumulative sums do, Google's events do not."""
        return not self.name.split("-")[2].startswith("ga")


@dataclass(frozen=True)
class Head:
    """What an entry is.

    Attributes:
        created: when it was put here, in seconds since 1970.
        until: when it is too old to be sent, or None.
        chosen_there: whether its destination was chosen outside the settings file: in code, or in the environment.
        declared: what the package has declared that it is of, where it is of one that embeds us.
        what: "run", or of a package "usage" or "crash".
    """

    key: Key
    run: str
    created: float
    until: float | None = None
    chosen_there: bool = False
    declared: Declared | None = None
    what: str = "run"
    sha256: str = ""


def name_of(started_ns: int, run: str, order: str) -> str:
    """An entry's name, by which it sorts."""
    return f"{started_ns:020d}-{run}-{order}"


class UnreadableError(ValueError):
    """A file of the outbox that is damaged."""


class NewerError(OSError):
    """A file of a version that this one does not know: left alone."""


class Outbox:
    """The queue in a folder.

    Args:
        folder: made when something is put into it.
        max_bytes: what may wait, set-aside entries included.
        max_age_s: how long it may wait.
        clock: seconds since 1970.
    """

    def __init__(self, folder: Path, max_bytes: float = 64e6, max_age_s: float = 30 * 86_400, clock: Any = time.time) -> None:
        self.folder = folder
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._clock = clock
        self._began = clock(), time.monotonic()

    def now(self) -> float:
        """Seconds since 1970, by a clock that does not jump while this process runs."""
        wall, monotonic = self._began
        return float(wall) + time.monotonic() - monotonic

    # ---- putting ---------------------------------------------------------------------------------------------------

    def put(self, head: Head, started_ns: int, order: str, body: bytes) -> None:
        """Adds an entry; it is on disk when this returns. One with the same name is replaced.

        Args:
            started_ns: when the run began.
            order: its place within the run: sorts behind those put before it.

        Raises:
            OSError: it cannot be kept.
        """
        name = name_of(started_ns, head.run, order)
        described = {
            "version": VERSION,
            "run": head.run,
            "created": head.created,
            "sha256": hashlib.sha256(body).hexdigest(),
            **vars(head.key),
            **({"until": head.until} if head.until is not None else {}),
            **({"chosen_there": True} if head.chosen_there else {}),
            **({"declared": asdict(head.declared)} if head.declared is not None else {}),
            **({"what": head.what} if head.what != "run" else {}),
        }
        packed = gzip.compress(body, compresslevel=6, mtime=0)
        self._make_room(len(packed) + 512)
        self._write("waiting", f"{name}{SUFFIX}", json.dumps(described).encode() + b"\n" + packed, durable=True)

    def _write(self, folder: str, name: str, data: bytes, *, durable: bool = False) -> None:
        """Whole or not at all; with ``durable``, also after a power cut."""
        for made in ("new", folder):
            self._path(made).mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = self._path("new", f"{secrets.token_hex(8)}.part")
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
            os.replace(temporary, self._path(folder, name))
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        if durable:
            self._sync(folder)

    def _sync(self, folder: str) -> None:
        """The renamed name itself, on systems where a folder can be put on disk."""
        if os.name != "posix":
            return
        with contextlib.suppress(OSError):  # some file systems refuse it for folders
            descriptor = os.open(self._path(folder), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _make_room(self, size: int) -> None:
        """Gives up, until so many bytes fit: what was refused, then what a later entry contains, then the oldest."""
        aside, waiting = self._list("aside"), self._list("waiting")
        held = sum(entry.size for entry in (*aside, *waiting, *self._list("sending")))
        if held + size <= self._max_bytes:
            return
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
        """What waits, oldest first."""
        return self._list("waiting")

    def under_way(self) -> list[Entry]:
        """What a process is delivering, or was when it was killed."""
        return self._list("sending")

    def aside(self) -> list[tuple[Entry, str]]:
        """What was refused for good, and why."""
        found = []
        for entry in self._list("aside"):
            why = "not known"
            with contextlib.suppress(OSError):
                why = self._path("aside", f"{entry.name}.why").read_text("utf-8")
            found.append((entry, why))
        return found

    def dropped(self) -> dict[str, int]:
        """How many entries were given up, by reason."""
        return dict(Counter(path.suffix[1:] for path in self._paths("dropped") if path.suffix[1:] in REASONS))

    def head(self, entry: Entry) -> Head:
        """What an entry is, without its body.

        Raises:
            OSError: it is not there any more, or cannot be read.
            UnreadableError: it is damaged.
        """
        with entry.path.open("rb") as file:
            return _head(file.readline(65_536))

    def body(self, entry: Entry) -> bytes:
        """An entry's body, as it was put.

        Raises:
            OSError, UnreadableError: as `head`.
        """
        return self.whole(entry)[1]

    def whole(self, entry: Entry) -> tuple[Head, bytes]:
        """What an entry is, and its body.

        Raises:
            OSError, UnreadableError: as `head`.
        """
        line, _, packed = entry.path.read_bytes().partition(b"\n")
        try:
            body = gzip.decompress(packed)
        except (OSError, EOFError, ValueError) as error:
            raise UnreadableError("its body is damaged") from error
        head = _head(line)
        if hashlib.sha256(body).hexdigest() != head.sha256:
            raise UnreadableError("its body is not the one that was put here")
        return head, body

    def knows(self, started_ns: int, run: str, order: str) -> bool:
        """Whether there is, or was, an entry of this name."""
        name = name_of(started_ns, run, order)
        places = [self._path(folder, f"{name}{SUFFIX}") for folder in ("waiting", "sending", "aside")]
        return any(path.exists() for path in (*places, self._path("done", name))) or any(
            self._path("dropped", f"{name}.{why}").exists() for why in REASONS
        )

    # ---- an entry's life -------------------------------------------------------------------------------------------

    def claim(self, entry: Entry) -> Entry | None:
        """Takes an entry for delivery, or None where another process was quicker."""
        self._path("sending").mkdir(mode=0o700, exist_ok=True)
        moved = Entry(entry.name, self._path("sending", entry.path.name), entry.size)
        try:
            os.replace(entry.path, moved.path)
        except FileNotFoundError:
            return None
        if not entry.contains_earlier:  # an event is counted once: also after a power cut it must not seem unsent
            self._sync("sending")
        return moved

    def put_back(self, entry: Entry) -> None:
        """It is to be delivered later."""
        with contextlib.suppress(FileNotFoundError):  # switched off meanwhile: it has been removed
            os.replace(entry.path, self._path("waiting", entry.path.name))

    def delivered(self, entry: Entry, *, once: bool = False) -> None:
        """It has arrived. With ``once``, a mark stays that keeps it from being sent again."""
        if once:
            self._mark("done", entry.name)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(entry.path)

    def set_aside(self, entry: Entry, why: str) -> None:
        """The destination will never take it as it is."""
        self._write("aside", f"{entry.name}.why", why.encode("utf-8", "replace"))
        with contextlib.suppress(FileNotFoundError):
            os.replace(entry.path, self._path("aside", entry.path.name))

    def take_up_again(self) -> int:
        """What was set aside waits again; says how much it is."""
        entries = self._list("aside")
        for entry in entries:
            self.put_back(entry)
            with contextlib.suppress(OSError):
                os.unlink(self._path("aside", f"{entry.name}.why"))
        return len(entries)

    def drop(self, entry: Entry, why: str) -> None:
        """Gives it up: counted first, then removed."""
        self.count(entry.name, why)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(entry.path)
        with contextlib.suppress(OSError):
            os.unlink(self._path("aside", f"{entry.name}.why"))

    def count(self, name: str, why: str) -> None:
        """A mark alone."""
        self._mark("dropped", f"{name}.{why}")

    def recover(self, digest: str, *, locked: bool) -> None:
        """What a killed process left in the middle of a delivery to this destination.

        Args:
            locked: whether the caller holds the destination's lock; without it, only what is old is nobody's.
        """
        for entry in self._list("sending"):
            with contextlib.suppress(OSError):
                if not locked and self._clock() - entry.path.stat().st_ctime < LEFT_ALONE_S:
                    continue
                try:
                    key = self.head(entry).key
                except UnreadableError:
                    self.drop(entry, "unreadable")
                    continue
                if key.digest != digest:
                    continue
                if self._path("done", entry.name).exists():
                    os.unlink(entry.path)
                elif key.target == "ga":
                    self.drop(entry, "unknown")
                else:
                    self.put_back(entry)

    def expire(self, rest: Callable[[], None] = lambda: None) -> None:
        """Gives up what waited too long, and removes what is nobody's.

        Args:
            rest: called between two pieces of work.
        """
        now = self.now()
        for number, entry in enumerate([*self._list("waiting"), *self._list("aside")]):
            if number % AT_ONCE == 0:
                rest()
            try:
                head = self.head(entry)
            except UnreadableError:
                self.drop(entry, "unreadable")
                continue
            except OSError:
                continue
            if now - head.created > self._max_age_s or now > (head.until or now):
                self.drop(entry, "expired")
        for path in self._paths("new"):
            with contextlib.suppress(OSError):
                if self._clock() - path.stat().st_mtime > LEFT_ALONE_S:
                    path.unlink()
        self._forget("done", DONE_DAYS * 86_400)

    def forget_marks(self, days: float) -> None:
        """Removes counts, and what is known of troubles, that are older than this."""
        self._forget("dropped", days * 86_400)
        self._forget("trouble", days * 86_400)

    # ---- runs whose last word is to come ---------------------------------------------------------------------------

    def open_run(self, run: str, about: Mapping[str, Any]) -> None:
        """Notes that a run's last entry is to come. It stays until `close_run`, also when the process is killed.

        Raises:
            OSError: it cannot be kept.
        """
        self._write("open", f"{run}.json", json.dumps({"version": VERSION, "since": self._clock(), **about}).encode())

    def close_run(self, run: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self._path("open", f"{run}.json"))

    def open_runs(self) -> Iterator[tuple[str, dict[str, Any], float]]:
        """The runs noted so: id, what was noted, and for how many seconds it has stood there."""
        for path in self._paths("open"):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                about = json.loads(path.read_bytes())
                yield path.stem, about, abs(self._clock() - about["since"])

    # ---- a destination that does not take anything -----------------------------------------------------------------

    def note_trouble(self, digest: str, why: str, wait_s: float | None) -> None:
        """Why a destination takes nothing now; every process leaves it alone for as long as it asks."""
        now = self._clock()
        told = {"from": now, "why": why, **({} if wait_s is None else {"until": now + wait_s})}
        with contextlib.suppress(OSError):
            self._write("trouble", f"{digest}.json", json.dumps(told).encode())

    def trouble(self, digest: str) -> tuple[str, float]:
        """Why a destination took nothing the last time, or "", and for how many seconds it is to be left alone still.

        A clock that was set back since then ends the wait: nobody waits for years.
        """
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            told = json.loads(self._path("trouble", f"{digest}.json").read_bytes())
            now = self._clock()
            until = told.get("until", now)
            return str(told["why"]), float(until - now) if told["from"] <= now < until else 0.0
        return "", 0.0

    def end_trouble(self, digest: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self._path("trouble", f"{digest}.json"))

    # ---- files -----------------------------------------------------------------------------------------------------

    def _path(self, folder: str, name: str = "") -> Path:
        return self.folder / folder / name

    def _paths(self, folder: str) -> list[Path]:
        try:
            return sorted(self._path(folder).iterdir(), key=lambda path: path.name)
        except OSError:
            return []

    def _list(self, folder: str) -> list[Entry]:
        found = []
        with contextlib.suppress(OSError), os.scandir(self._path(folder)) as listed:
            for file in listed:
                if file.name.endswith(SUFFIX) and file.name.count("-") == 2:
                    with contextlib.suppress(OSError):  # another process has just taken it
                        found.append(Entry(file.name.removesuffix(SUFFIX), Path(file.path), file.stat().st_size))
        return sorted(found, key=lambda entry: entry.name)

    def _mark(self, folder: str, name: str) -> None:
        self._path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(self._path(folder, name), os.O_WRONLY | os.O_CREAT, 0o600))
        self._sync(folder)

    def _forget(self, folder: str, seconds: float) -> None:
        for path in self._paths(folder):
            with contextlib.suppress(OSError):
                if self._clock() - path.stat().st_mtime > seconds:
                    path.unlink()


def _head(line: bytes) -> Head:
    try:
        found = json.loads(line)
        if found["version"] > VERSION:
            raise NewerError(22, f"it was written by a newer epochmeter (version {found['version']}, known is {VERSION})")
        key = Key(found["target"], found["protocol"], found["address"], found["decided"])
        declared = declared_from(found["declared"]) if "declared" in found else None
        chosen_there, what = found.get("chosen_there", False), found.get("what", "run")
        return Head(key, found["run"], found["created"], found.get("until"), chosen_there, declared, what, found["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise UnreadableError("its first line is damaged") from error
