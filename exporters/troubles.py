"""Destinations that fail: why, and how long they asked to be left alone. Every process respects it."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from exporters.outbox_folder import MAX_NOTE_BYTES, OutboxFolder


class Troubles:
    """The notes on failing destinations, one file each.

    Args:
        files: the outbox's folder.
        clock: seconds since 1970.
    """

    def __init__(self, files: OutboxFolder, clock: Any) -> None:
        self._files = files
        self._clock = clock

    def note(self, digest: str, why: str, wait_s: float | None) -> None:
        """Note why a destination fails, and how long it asked to be left alone. Every process respects it."""
        now = self._clock()
        trouble = {"from": now, "why": why, **({} if wait_s is None else {"until": now + wait_s})}
        with contextlib.suppress(OSError):
            self._files.write("trouble", f"{digest}.json", json.dumps(trouble).encode())

    def of(self, digest: str) -> tuple[str, float]:
        """Return why a destination failed the last time, or "", and for how many seconds it is still left alone.

        A clock that was set back since then ends the wait.
        """
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            trouble = json.loads(self._files.state("trouble").read(f"{digest}.json", MAX_NOTE_BYTES))
            now = self._clock()
            until = trouble.get("until", now)
            return str(trouble["why"]), float(until - now) if trouble["from"] <= now < until else 0.0
        return "", 0.0

    def end(self, digest: str) -> None:
        """Forget the failure of a destination."""
        with contextlib.suppress(OSError):
            self._files.state("trouble").remove(f"{digest}.json")
