"""The log of what was sent: a verbatim copy of every payload, with where it went, when, and what was answered.

One file a day and process (appending to a shared file is not safe on NFS), one JSON object a line. A payload's line is on
disk before its first byte leaves; what was answered follows in a line of its own, so an entry without one was cut off in
between.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from exporters.config import Answered

SUFFIX = ".jsonl"


@dataclass
class Sent:
    """One payload that left, or was about to.

    Attributes:
        time: RFC 3339, when it was handed over.
        destination: the address, without user name and password.
        body: the request's body before compression.
        answer: what came back, or None where that is not known.
    """

    id: str
    time: str
    destination: str
    body: bytes
    answer: str | None = None

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.body).hexdigest()


def note(folder: Path, destination: str, body: bytes) -> Answered:
    """Writes down what is about to be sent.

    Returns:
        A function that writes down what was answered; it may be called again, the last time counts.

    Raises:
        OSError: it cannot be written; then nothing may be sent.
    """
    entry = secrets.token_hex(6)
    copy = base64.b64encode(gzip.compress(body, mtime=0)).decode("ascii")
    _append(folder, {"id": entry, "time": _now(), "destination": destination, "body": copy})

    def answered(answer: str) -> None:
        with contextlib.suppress(OSError):  # the entry stands, and says that the answer is not known
            _append(folder, {"id": entry, "time": _now(), "answer": answer}, sync=False)

    return answered


def read(folder: Path) -> list[Sent]:
    """Everything that was sent from this machine and is still kept, oldest first. Spoilt lines are passed over."""
    found: dict[str, Sent] = {}
    for line in _lines(folder):
        with contextlib.suppress(ValueError, KeyError, TypeError, OSError, EOFError):
            entry = json.loads(line)
            if "answer" in entry:
                found[entry["id"]].answer = entry["answer"]
            else:
                body = gzip.decompress(base64.b64decode(entry["body"], validate=True))
                found[entry["id"]] = Sent(entry["id"], entry["time"], entry["destination"], body)
    return sorted(found.values(), key=lambda sent: sent.time)


def prune(folder: Path, days: float, now: float | None = None) -> None:
    """Removes what is older than this."""
    limit = (time.time() if now is None else now) - days * 86_400
    for path in _paths(folder):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < limit:
                path.unlink()


_writers: dict[int, str] = {}


def _writer() -> str:
    """A random name for this process, which a forked one does not share."""
    return _writers.setdefault(os.getpid(), secrets.token_hex(4))


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _paths(folder: Path) -> list[Path]:
    try:
        return sorted(folder.glob(f"*{SUFFIX}"))
    except OSError:
        return []


def _lines(folder: Path) -> Iterator[bytes]:
    for path in _paths(folder):
        with contextlib.suppress(OSError):
            yield from path.read_bytes().split(b"\n")


def _append(folder: Path, entry: dict[str, Any], *, sync: bool = True) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{datetime.now(timezone.utc):%Y%m%d}-{_writer()}{SUFFIX}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    data = (json.dumps(entry, separators=(",", ":")) + "\n").encode("utf-8")
    descriptor = os.open(path, flags, 0o600)
    try:
        if os.write(descriptor, data) != len(data):
            os.write(descriptor, b"\n")  # the cut line ends here, and does not spoil the next one
            raise OSError(28, "No space left on device")
        if sync:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
