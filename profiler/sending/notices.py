"""Announce to the user each destination of data: one line on stderr, once, and a note on disk that it was shown."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import sys
import time
from collections.abc import Mapping
from typing import Any

from profiler.config.environment import not_for_hosts
from profiler.config.folder import Folder
from profiler.config.paths import data_path, told_path
from profiler.sending.destination import in_words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.config.resolve import EmbeddingApp, Resolved
    from profiler.config.schema import ResolvedValue


STOP = "To stop it: epochmeter settings sync=false"
ANNOUNCED = "announced.txt"
NOTICE = re.compile(r"[0-9a-f]{24}\.json")  # of the names of the notices
MAX_BYTES = 2**20
OWN_EXPORTER = "an exporter of its own"


def announce(what: str, text: str) -> None:
    """Write the one uninvited line, the first time that data is about to be sent to a destination.

    Args:
        what: the destination, by which the line is remembered.
        text: the line.
    """
    folder = Folder(data_path())
    known = b""
    with contextlib.suppress(OSError):
        known = folder.read(ANNOUNCED, MAX_BYTES)
    if what in known.decode("utf-8", "replace").splitlines():
        return
    if _written(text):
        with contextlib.suppress(OSError):  # if it cannot be noted, the line is shown again next time
            folder.append(ANNOUNCED, f"{what}\n".encode())


def _written(text: str) -> bool:
    """Write a line to stderr. Return True if it has arrived there."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):  # full, closed, or None: Python has none without a console
        return False
    return True


def can_be_seen() -> bool:
    """Return True if a line on stderr is seen by somebody: at a terminal, or in a notebook."""
    if "ipykernel" in sys.modules:
        return True
    try:
        return sys.stderr.isatty()
    except (OSError, ValueError, AttributeError):
        return False


def announcement_of_runs(where: str, chosen: ResolvedValue, said: Mapping[str, str], *, is_scraped: bool) -> str:
    """Return the line that announces the sending of runs, with where that was chosen, and the user's own words."""
    by = {"environment": f"by {chosen.detail}", "argument": "in its code"}.get(chosen.source, "in the settings")
    words = "no names or words of yours"
    if said:
        words = f"of your words only {', '.join(f'{name}={value}' for name, value in said.items())}"
    way = "can be fetched from" if is_scraped else "go to"
    return f"epochmeter: this run's timings, counts and hardware readings ({words}) {way} {where}, as chosen {by}. {STOP}\n"


# ---- a destination that a package has chosen, and not the user -----------------------------------------------------


def notices_shown() -> list[dict[str, Any]]:
    """Return the notices that users of this machine have seen: ``app``, ``where`` and ``time`` of each."""
    folder, found = Folder(told_path()), []
    for name in folder.names(NOTICE):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            shown = json.loads(folder.read(name, MAX_BYTES))
            found.append({"app": str(shown["app"]), "where": str(shown["where"]), "time": float(shown["time"])})
    return found


def notice_time(app: str, where: str) -> float | None:
    """Return when the user saw the notice of this package and destination (s since 1970), or None if never."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        return float(json.loads(Folder(told_path()).read(_notice_name(app, where), MAX_BYTES))["time"])
    return None


def show_notice(app: str, where: str, *, joint_facts: bool = False) -> None:
    """Show the user, once, the data and the destination of this package. Nothing is sent before that was shown and noted.

    ``joint_facts`` is True if it would send the facts of this machine together.

    It is noted only after it was written. Where nobody can see it, it is not shown: a later run in a terminal shows it, or the
    user chooses the destination.
    """
    facts = "together, which may tell your machine from others" if joint_facts else "each apart from the others"
    text = (
        f"{app} wishes to send counts of which of its features, commands and options are used, and how its runs end, timings,"
        f" and classes of hardware and versions, {facts} (no names, words or values of yours), to {where}. It does from the"
        f" next time on; this time, nothing of that is sent. What, exactly: epochmeter telemetry preview. {STOP}\n"
    )
    with contextlib.suppress(OSError):
        folder, name = Folder(told_path()), _notice_name(app, where)
        folder.make()  # one that cannot be noted is not shown at each start
        if not folder.has(name) and can_be_seen() and _written(text):
            folder.replace(name, json.dumps({"app": app, "where": where, "time": time.time()}).encode("utf-8"))


def _notice_name(app: str, where: str) -> str:
    return f"{hashlib.sha256(f'{app} {where}'.encode()).hexdigest()[:24]}.json"


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
        show_notice(app.name, where, joint_facts=app.joint_facts)
    return shown_at is not None and shown_at * 1e9 <= app.began_ns
