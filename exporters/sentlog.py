"""The log of sent data: a verbatim copy of every payload, with its destination, time and answer.

One file a day and process (appending to a shared file is not safe on NFS), one JSON object a line. A payload's line is on
disk before its first byte leaves. The answer follows in a line of its own, so an entry without one was cut off in between.
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
        answer: the answer, or None if it is unknown.
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
    """Write down a payload that is about to be sent.

    Returns:
        a function that writes down the answer; it may be called again, and the last call counts.

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
    """Return every kept payload of this machine, oldest first, without spoilt lines."""
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
    """Remove old payloads."""
    limit = (time.time() if now is None else now) - days * 86_400
    for path in _paths(folder):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < limit:
                path.unlink()


_writers: dict[int, str] = {}


def _writer() -> str:
    """Return a random name for this process, which a forked one does not share."""
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
