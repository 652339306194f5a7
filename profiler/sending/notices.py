"""Announce to the user what is sent where: one line on stderr, once, and a note on disk that it was shown."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from profiler.config.environment import not_for_hosts
from profiler.config.paths import data_path, told_path
from profiler.sending.destination import in_words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.config.resolve import EmbeddingApp, Resolved


STOP = "To stop it: epochmeter settings sync=false"
OWN_EXPORTER = "an exporter of its own"


def announce(what: str, text: str) -> None:
    """Write the one uninvited line, the first time that data is about to be sent to a destination.

    Args:
        what: the destination, by which the line is remembered.
        text: the line.
    """
    known = data_path() / "announced.txt"
    if known.exists() and what in known.read_text("utf-8").splitlines():
        return
    sys.stderr.write(text)
    with contextlib.suppress(OSError):  # if it cannot be noted, the line is shown again next time
        known.parent.mkdir(parents=True, exist_ok=True)
        with known.open("a", encoding="utf-8") as file:
            file.write(f"{what}\n")


def announcement_of_runs(where: str, *, is_scraped: bool) -> str:
    """Return the line that announces the sending of runs."""
    way = "can be fetched from" if is_scraped else "go to"
    return (
        f"epochmeter: this run's timings, counts and hardware readings (no names or words of yours) {way} {where}, "
        f"as chosen in the settings. {STOP}\n"
    )


# ---- a destination that a package has chosen, and not the user -----------------------------------------------------


def notices_shown() -> list[dict[str, Any]]:
    """Return the notices that users of this machine have seen: ``app``, ``where`` and ``time`` of each."""
    found = []
    with contextlib.suppress(OSError):
        for path in sorted(told_path().iterdir()):
            with contextlib.suppress(OSError, ValueError):
                found.append(json.loads(path.read_bytes()))
    return found


def notice_time(app: str, where: str) -> float | None:
    """Return when the user saw the notice of this package and destination (s since 1970), or None if never."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return float(json.loads(_notice_path(app, where).read_bytes())["time"])
    return None


def show_notice(app: str, where: str) -> None:
    """Show the user, once, what this package would send where. If that cannot be noted, nothing is ever sent."""
    path = _notice_path(app, where)
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            json.dump({"app": app, "where": where, "time": time.time()}, file)
        sys.stderr.write(
            f"{app} wishes to send counts of which of its features, commands and options are used, timings, and classes of "
            f"hardware and versions (no names, words or values of yours), to {where}. It does from the next time on; this "
            f"time, nothing of that is sent. What, exactly: epochmeter telemetry preview. {STOP}\n"
        )


def _notice_path(app: str, where: str) -> Path:
    return told_path() / f"{hashlib.sha256(f'{app} {where}'.encode()).hexdigest()[:24]}.json"


def may_send_for(app: EmbeddingApp, resolved: Resolved, exporter: Any = None, *, shows_notice: bool = True) -> bool:
    """Return True if the user chose the destination, or saw the package's notice before this program started.

    Always False in CI and tests for a destination that a package chose.

    Args:
        exporter: the package's own exporter, or None.
        shows_notice: show the notice now to a user who has never seen it.

    Raises:
        SettingsError: a setting or variable of the destination cannot be used.
    """
    if exporter is None and not resolved.host_chose:
        return True
    if exporter is not None and not_for_hosts():
        return False
    where = OWN_EXPORTER if exporter is not None else in_words(resolved)
    shown_at = notice_time(app.name, where)
    if shown_at is None and shows_notice:
        show_notice(app.name, where)
    return shown_at is not None and shown_at * 1e9 <= app.began_ns
