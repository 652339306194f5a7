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
import re
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from exporters.config import Answered, Files
from exporters.entry import unpacked

FORM = re.compile(r"\d{8}-[0-9a-f]{8}\.jsonl")  # of the names of its files


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


def note(folder: Files, destination: str, body: bytes) -> Answered:
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


def read(folder: Files) -> list[Sent]:
    """Return every kept payload of this machine, oldest first, without spoilt lines."""
    found: dict[str, Sent] = {}
    for line in _lines(folder):
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            entry = json.loads(line)
            if "answer" in entry:
                found[entry["id"]].answer = str(entry["answer"])
            else:
                body = unpacked(base64.b64decode(entry["body"], validate=True))
                found[str(entry["id"])] = Sent(str(entry["id"]), str(entry["time"]), str(entry["destination"]), body)
    return sorted(found.values(), key=lambda sent: sent.time)


def prune(folder: Files, days: float, now: float | None = None) -> None:
    """Remove old payloads."""
    limit = (time.time() if now is None else now) - days * 86_400
    for name in folder.names(FORM):
        with contextlib.suppress(OSError):
            if folder.status(name).st_mtime < limit:
                folder.remove(name)


_writers: dict[int, str] = {}


def _writer() -> str:
    """Return a random name for this process, which a forked one does not share."""
    return _writers.setdefault(os.getpid(), secrets.token_hex(4))


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _lines(folder: Files) -> Iterator[bytes]:
    for name in folder.names(FORM):
        with contextlib.suppress(OSError):
            yield from folder.read(name).split(b"\n")


def _append(folder: Files, entry: dict[str, Any], *, sync: bool = True) -> None:
    name = f"{datetime.now(timezone.utc):%Y%m%d}-{_writer()}.jsonl"
    folder.append(name, (json.dumps(entry, separators=(",", ":")) + "\n").encode("utf-8"), durable=sync)
