"""One entry of the outbox: its name, its first line, and the destination it is for."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from exporters.rules import Declared, declared_from

VERSION = 1
SUFFIX = ".entry"


@dataclass(frozen=True)
class DestinationKey:
    """The destination of an entry, and the user's choice under which it was made.

    Attributes:
        target: a name in `TARGETS`.
        protocol: the target's protocol.
        address: without credentials and query.
        decided: the date of the choice in the settings file, or None.
    """

    target: str
    protocol: str
    address: str
    decided: str | None = None

    @property
    def digest(self) -> str:
        """A short name of the destination, the same in every process."""
        return hashlib.sha256(repr((self.target, self.protocol, self.address)).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Entry:
    """One entry, known by its file's name. Names sort by the run's start, then by the order within the run."""

    name: str
    path: Path
    size: int

    @property
    def run(self) -> str:
        """The id of its run."""
        return self.name.split("-")[1]

    @property
    def contains_earlier(self) -> bool:
        """True if it holds everything that earlier entries of its run hold. Google's events do not."""
        return not self.name.split("-")[2].startswith("ga")


@dataclass(frozen=True)
class Head:
    """The first line of an entry.

    Attributes:
        key: its destination.
        run: the id of its run.
        created: when it was put into the outbox, in seconds since 1970.
        until: when it is too old to be sent, or None.
        chosen_there: True if its destination was chosen outside the settings file, in code or in the environment.
        declared: the declarations of the embedding package that produced it, or None.
        what: "run", or for a package "usage" or "crash".
        sha256: of the body.
    """

    key: DestinationKey
    run: str
    created: float
    until: float | None = None
    chosen_there: bool = False
    declared: Declared | None = None
    what: str = "run"
    sha256: str = ""

    def line(self, body: bytes) -> bytes:
        """Return the first line of an entry with this body."""
        described: dict[str, Any] = {
            "version": VERSION,
            "run": self.run,
            "created": self.created,
            "sha256": hashlib.sha256(body).hexdigest(),
            **vars(self.key),
            **({"until": self.until} if self.until is not None else {}),
            **({"chosen_there": True} if self.chosen_there else {}),
            **({"declared": asdict(self.declared)} if self.declared is not None else {}),
            **({"what": self.what} if self.what != "run" else {}),
        }
        return json.dumps(described).encode()


class UnreadableError(ValueError):
    """A file of the outbox is damaged."""


class NewerError(OSError):
    """A file of a later version, which is left alone."""


def name_of(started_ns: int, run: str, order: str) -> str:
    """Return an entry's name, by which it sorts."""
    return f"{started_ns:020d}-{run}-{order}"


def head_from(line: bytes) -> Head:
    """Return the head that a first line holds.

    Raises:
        UnreadableError: the line is damaged.
        NewerError: a later version wrote it.
    """
    try:
        found = json.loads(line)
        if found["version"] > VERSION:
            raise NewerError(22, f"it was written by a newer epochmeter (version {found['version']}, known is {VERSION})")
        key = DestinationKey(found["target"], found["protocol"], found["address"], found["decided"])
        declared = declared_from(found["declared"]) if "declared" in found else None
        chosen_there, what = found.get("chosen_there", False), found.get("what", "run")
        return Head(key, found["run"], found["created"], found.get("until"), chosen_there, declared, what, found["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise UnreadableError("its first line is damaged") from error
