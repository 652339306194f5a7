"""Remove entries from the outbox when the user switches off. The half that sends is not loaded for it."""

from __future__ import annotations

import contextlib
import json
import re

from profiler.config.folder import Folder
from profiler.config.paths import outbox_path, usage_path

WAITING_FOLDERS = ("open", "new", "waiting", "sending", "aside")  # of the outbox
ENTRY = re.compile(r"\d{20}-\w+-\w+\.entry")
OF_THE_OUTBOX = re.compile(r"\d{20}-\w+-\w+\.(entry|why)|\w+\.(json|part)")  # names of our own form; no other file is removed
COUNTS = re.compile(r"\d{20}-\w+\.json")
PACKAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}")
HEAD_BYTES = 2**20  # as in exporters.entry


def empty_outbox(what: str = "") -> None:
    """Remove the entries that wait for delivery, because the user has switched off. Each leaves a mark that is counted.

    Args:
        what: "usage", "crash", or "" for everything. Counts that were to be sent then stay on this machine.
    """
    if what != "crash":
        keep_counts()
    with contextlib.suppress(OSError, RuntimeError):
        box = Folder(outbox_path())
        for state in map(box.sub, WAITING_FOLDERS):
            for name in state.names(OF_THE_OUTBOX):
                with contextlib.suppress(OSError):
                    if what and _kind_of(state, name) != what:
                        continue
                    if ENTRY.fullmatch(name):
                        box.sub("dropped").mark(f"{name.removesuffix('.entry')}.withdrawn")
                    state.remove(name)


def _kind_of(state: Folder, name: str) -> str:
    """Return the kind of an entry ("run", "usage", "crash"), or "" for another file."""
    try:
        return str(json.loads(state.first_line(name, HEAD_BYTES)).get("what", "")) if ENTRY.fullmatch(name) else ""
    except (ValueError, AttributeError, RecursionError):
        return ""


def keep_counts() -> None:
    """Keep counts of packages on this machine that were to be sent."""
    with contextlib.suppress(OSError, RuntimeError):
        usage = Folder(usage_path())
        for package in map(usage.sub, usage.folders(PACKAGE)):
            for name in package.sub("pending").names(COUNTS):
                with contextlib.suppress(OSError):
                    package.sub("pending").move(name, package.sub("kept"))
