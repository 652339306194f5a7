"""One entry of the outbox: its name, its first line, and the destination it is for."""

from __future__ import annotations

import errno
import hashlib
import json
import zlib
from dataclasses import asdict, dataclass
from typing import Any

from exporters.rules import Declared, declared_from

VERSION = 1
SUFFIX = ".entry"
MAX_HEAD_BYTES = 2**20  # a package may declare a thousand names
MAX_BODY_BYTES = 16 * 2**20  # no collector takes more; a run's largest is a hundredth of it
MAX_FILE_BYTES = MAX_HEAD_BYTES + MAX_BODY_BYTES


@dataclass(frozen=True)
class DestinationKey:
    """The destination of an entry, and the user's choice under which it was made.

    Attributes:
        target: a name in `TARGETS`.
        protocol: the target's protocol.
        address: as it may be shown; with ``#`` and a mark behind it, if a part of it may not.
        decided: the date of the choice in the settings file, or None.
    """

    target: str
    protocol: str
    address: str
    decided: str | None = None

    @property
    def shown(self) -> str:
        """The address as it may be shown."""
        return self.address.partition("#")[0]

    @property
    def digest(self) -> str:
        """A short name of the destination, the same in every process."""
        return hashlib.sha256(repr((self.target, self.protocol, self.address)).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Entry:
    """One entry, known by its file's name. Names sort by the run's start, then by the order within the run.

    Attributes:
        name: its name.
        state: the folder that it is in.
        size: in bytes, compressed.
    """

    name: str
    state: str
    size: int

    @property
    def file(self) -> str:
        """The name of its file."""
        return f"{self.name}{SUFFIX}"

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
        declared: the declarations of the embedding package that produced it, or None.
        what: "run", or for a package "usage" or "crash".
        sha256: of the body.
    """

    key: DestinationKey
    run: str
    created: float
    until: float | None = None
    declared: Declared | None = None
    what: str = "run"
    sha256: str = ""

    def line(self, body: bytes) -> bytes:
        """Return the first line of an entry with this body.

        Raises:
            OSError: it is longer than `head_from` reads.
        """
        described: dict[str, Any] = {
            "version": VERSION,
            "run": self.run,
            "created": self.created,
            "sha256": hashlib.sha256(body).hexdigest(),
            **vars(self.key),
            **({"until": self.until} if self.until is not None else {}),
            **({"declared": asdict(self.declared)} if self.declared is not None else {}),
            **({"what": self.what} if self.what != "run" else {}),
        }
        line = json.dumps(described).encode()
        if len(line) >= MAX_HEAD_BYTES:
            raise OSError(errno.EFBIG, f"the declared names take {len(line)} bytes, and at most {MAX_HEAD_BYTES} can be kept")
        return line


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
        head = Head(
            key, found["run"], found["created"], found.get("until"), declared, found.get("what", "run"), found["sha256"]
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UnreadableError("its first line is damaged") from error
    texts = (key.target, key.protocol, key.address, key.decided or "", head.run, head.what, head.sha256)
    times = (head.created, head.until or 0.0)
    if not all(isinstance(text, str) for text in texts) or not all(type(time) in (int, float) for time in times):
        raise UnreadableError("its first line is damaged")
    return head


def unpacked(packed: bytes, most: int = MAX_BODY_BYTES) -> bytes:
    """Return the content of a gzip file of one member.

    Raises:
        UnreadableError: it is damaged, or would hold more than ``most`` bytes.
    """
    unzip = zlib.decompressobj(wbits=31)
    try:
        body = unzip.decompress(packed, most + 1)
    except zlib.error as error:
        raise UnreadableError("its body is damaged") from error
    if len(body) > most:
        raise UnreadableError(f"its body is larger than {most} bytes")
    if not unzip.eof or unzip.unused_data:
        raise UnreadableError("its body is damaged")
    return body
