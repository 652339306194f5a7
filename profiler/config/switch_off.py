"""Remove entries from the outbox when the user switches off. The half that sends is not loaded for it."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from profiler.config.paths import outbox_path, usage_path

WAITING_FOLDERS = ("open", "new", "waiting", "sending", "aside")  # of the outbox


def empty_outbox(what: str = "") -> None:
    """Remove the entries that wait for delivery, because the user has switched off. Each leaves a mark that is counted.

    Args:
        what: "usage", "crash", or "" for everything. Counts that were to be sent then stay on this machine.
    """
    if what != "crash":
        keep_counts()
    with contextlib.suppress(OSError, RuntimeError):
        box = outbox_path()
        for path in [path for folder in WAITING_FOLDERS for path in (box / folder).glob("*")]:
            with contextlib.suppress(OSError):
                if what and _kind_of(path) != what:
                    continue
                if path.suffix == ".entry":
                    (box / "dropped").mkdir(exist_ok=True)
                    (box / "dropped" / f"{path.stem}.withdrawn").touch(mode=0o600)
                path.unlink()


def _kind_of(path: Path) -> str:
    """Return the kind of an entry ("run", "usage", "crash"), or "" for another file."""
    try:
        with path.open("rb") as file:
            return str(json.loads(file.readline(65_536)).get("what", "")) if path.suffix == ".entry" else ""
    except (ValueError, AttributeError):
        return ""


def keep_counts() -> None:
    """Keep counts of packages on this machine that were to be sent."""
    with contextlib.suppress(OSError, RuntimeError):
        for path in usage_path().glob("*/pending/*.json"):
            with contextlib.suppress(OSError):
                (path.parents[1] / "kept").mkdir(exist_ok=True)
                os.replace(path, path.parents[1] / "kept" / path.name)
