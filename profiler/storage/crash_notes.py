"""The notes of crashes on this machine."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

MAX_KEPT = 50


def notes_in(folder: Path) -> list[Path]:
    """Return the files of the notes, oldest first."""
    with contextlib.suppress(OSError):
        return sorted(path for path in folder.iterdir() if path.suffix == ".json")
    return []


def forget_crashes(folder: Path, days: float) -> None:
    """Remove old notes, and the oldest of too many."""
    paths = notes_in(folder)
    for number, path in enumerate(paths):
        with contextlib.suppress(OSError):
            if len(paths) - number > MAX_KEPT or time.time() - path.stat().st_mtime > days * 86_400:
                path.unlink()
