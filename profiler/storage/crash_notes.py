"""The notes of crashes on this machine."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from profiler.config.folder import Folder

FORM = re.compile(r"\d{20}-[0-9a-f]{12}\.json")  # of the names of the notes
MAX_KEPT = 50
MAX_BYTES = 2**20


def note_crash(folder: Path, noted: Mapping[str, Any]) -> None:
    """Write a note.

    Raises:
        OSError: it cannot be kept.
    """
    name = f"{noted['time_unix_ns']:020d}-{noted['id'][:12]}.json"
    Folder(folder).create(name, json.dumps(noted).encode("utf-8"))


def crashes_in(folder: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the notes, oldest first, and the number of those that cannot be read."""
    found, unreadable = [], 0
    for name in Folder(folder).names(FORM):
        try:
            noted = json.loads(Folder(folder).read(name, MAX_BYTES))
            found.append(_checked(noted))
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            unreadable += 1
    return found, unreadable


def _checked(noted: Any) -> dict[str, Any]:
    """Return a note whose parts have the types that they were written with.

    Raises:
        ValueError, KeyError, TypeError: they have not.
    """
    types = {"id": str, "time_unix_ns": int, "types": list, "frames": list, "facts": dict, "declared": dict}
    if not isinstance(noted, dict) or not all(isinstance(noted[key], kind) for key, kind in types.items()):
        raise ValueError("it is no note of a crash")
    return noted


def forget_crashes(folder: Path, days: float) -> None:
    """Remove old notes, and the oldest of too many."""
    kept = Folder(folder)
    names = kept.names(FORM)
    for number, name in enumerate(names):
        with contextlib.suppress(OSError):
            if len(names) - number > MAX_KEPT or time.time() - kept.status(name).st_mtime > days * 86_400:
                kept.remove(name)
