"""One destination and the outbox: entries are made, recovered and handed to a courier here."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from profiler.config.address import known_by
from profiler.config.folder import Folder
from profiler.config.paths import outbox_path, runs_path, sent_path
from profiler.config.resolve import resolve
from profiler.errors import RunLogError
from profiler.sending.yielding import no_pause

TYPE_CHECKING = False
if TYPE_CHECKING:
    from exporters.config import Config
    from exporters.courier import Courier
    from exporters.entry import DestinationKey, Head
    from exporters.outbox import Outbox
    from exporters.rules import Declared
    from profiler.config.resolve import Resolved
    from profiler.records.run import Run


SO_FAR, LAST = "00000000", "final"  # the orders of a run's data so far, and of its last word, which sorts behind
GA_HOURS = 46.0  # Google accepts events of the last 72 hours, and our times are up to 25 hours early


class Dispatch:
    """The entries of one destination.

    Args:
        resolved: the settings in force.
        outbox: the machine's outbox.
        config: how the destination is reached.
        gate: makes and checks the bodies.
        apart: True if the facts of runs go each apart from the others.
    """

    def __init__(self, resolved: Resolved, outbox: Outbox, config: Config, gate: Any, *, apart: bool = False) -> None:
        from exporters.entry import DestinationKey

        self.config = config
        self.gate = gate
        self._outbox = outbox
        self._apart = apart
        self.key = DestinationKey(config.target, config.protocol, known_by(config.address), resolved.decided)

    def courier(
        self,
        consent: Callable[[], bool],
        record: Any,
        takes: Callable[[Head], bool],
        yield_gil: Callable[[], None] = no_pause,
    ) -> Courier:
        """Return a courier for the entries of this destination; the arguments are those of `Courier`."""
        import exporters
        from exporters.courier import Courier

        def make() -> Any:
            return exporters.transport_to(self.config)

        return Courier(self._outbox, self.key, self.gate, make, consent, record, lock_named, takes, yield_gil)

    def open_run(self, run: Run, log: str) -> None:
        """Announce the run's final entry, so that it can be recovered from the log if the process is killed.

        Raises:
            OSError: the outbox cannot be written.
        """
        self._outbox.open_run(run.id, {**vars(self.key), "started_ns": run.started_unix_ns, "log": log})

    def close_run(self, run: Run) -> None:
        """Withdraw the announcement: the final entry exists, or must not."""
        self._outbox.close_run(run.id)

    def put(self, run: Run, data: Any, order: str, yield_gil: Callable[[], None] = no_pause) -> bool:
        """Put a run's data into the outbox. Return True if the gate let anything through.

        Raises:
            OSError: the outbox cannot be written.
        """
        return self.put_data(run.id, run.started_unix_ns, data, order, declared_of(run), yield_gil, apart=self._apart)

    def put_data(
        self,
        name: str,
        began_ns: int,
        data: Any,
        order: str,
        declared: Declared | None,
        yield_gil: Callable[[], None] = no_pause,
        what: str = "run",
        *,
        apart: bool = False,
    ) -> bool:
        """Put data with a name of its own, twelve hexadecimal digits, into the outbox; otherwise like `put`.

        With ``apart``, the facts go each in a payload of its own, at the end.

        Raises:
            OSError: the outbox cannot be written.
        """
        from exporters.entry import name_of

        if self.config.target == "ga" and self._outbox.now() > data.now / 1e9 + GA_HOURS * 3600:
            self._outbox.count(name_of(began_ns, name, order), "expired")
            return True
        single: list[Any] = []
        if apart and self.config.target == "otlp":
            from profiler.sending.apart import facts_apart

            data, single = facts_apart(data)
        bodies = self.gate.bodies(data, yield_gil, declared)
        until = data.now / 1e9 + GA_HOURS * 3600 if self.config.target == "ga" else None
        for number, body in enumerate(bodies):
            place = order if self.config.target != "ga" else f"ga{number:03d}"
            self.put_body(name, began_ns, place, body, declared, what, until)
        for one in single if bodies and order == LAST else ():
            for body in self.gate.bodies(one, yield_gil, declared):
                self.put_body(one.facts["service.instance.id"], began_ns, LAST, body, declared, what)
        return bool(bodies)

    def put_body(
        self,
        name: str,
        began_ns: int,
        order: str,
        body: bytes,
        declared: Declared | None,
        what: str,
        until: float | None = None,
    ) -> None:
        """Put a body that has passed the gate into the outbox, to be sent until a moment (s since 1970) at the latest.

        Raises:
            OSError: the outbox cannot be written.
        """
        from exporters.entry import Head

        if self.config.target == "ga" and self._outbox.knows(began_ns, name, order):
            return  # it waits there, or was sent: Google would count it twice
        head = Head(self.key, name, self._outbox.now(), until, declared, what)
        self._outbox.put(head, began_ns, order, body, replaces=SO_FAR if order == LAST else None)

    def recover(self, consent: Callable[[], bool], own: str = "", yield_gil: Callable[[], None] = no_pause) -> None:
        """Put the final entries of killed runs into the outbox, from their logs.

        Args:
            own: the id of this process's run, which is alive.
        """
        from exporters.entry import name_of
        from exporters.outbox import OPEN_GRACE_S

        for run, about, age_s in list(self._outbox.open_runs()):
            if run != own and age_s > OPEN_GRACE_S and key_of(about) == self.key and consent():
                try:
                    self._recover(run, about, age_s, yield_gil)
                except OSError:
                    continue  # the disk refuses it: it stays announced, and the others go on
                except Exception:  # its log makes no sense: it is given up alone, and counted
                    self._outbox.count(name_of(about["started_ns"], run, LAST), "unreadable")
                    self._outbox.close_run(run)

    def _recover(self, run: str, about: Mapping[str, Any], age_s: float, yield_gil: Callable[[], None]) -> None:
        from exporters.entry import name_of
        from exporters.outbox import LEFT_ALONE_S
        from profiler.sending.snapshot import run_snapshot
        from profiler.storage.run_log import alive_until, is_being_written
        from profiler.storage.run_reader import load

        path = runs_path() / Path(str(about["log"])).name
        if path.exists() and is_being_written(path):
            return
        try:
            recorded = load(path, yield_gil)
            ended = max(recorded.started_unix_ns + recorded.duration_ns, alive_until(path))  # not before what it sent itself
            self.put(recorded, run_snapshot(recorded, ended), LAST, yield_gil)
        except RunLogError:
            if age_s < LEFT_ALONE_S:
                return  # the run may be writing its first line now
            self._outbox.count(name_of(about["started_ns"], run, LAST), "nolog")
        self._outbox.close_run(run)


def entries_for(key: DestinationKey, declared: Collection[Declared | None] | None) -> Callable[[Head], bool]:
    """Return a filter for the entries of a destination, without the kinds that the user has switched off.

    Args:
        key: the destination.
        declared: the packages' declarations that are in force now: an entry cannot vouch for its own. None for any.
    """

    def takes(head: Head) -> bool:
        is_declared = declared is None or package_of(head.declared) in declared
        return head.key == key and is_declared and (head.what == "run" or not resolve().unwanted(head.what))

    return takes


def key_of(about: Mapping[str, Any]) -> DestinationKey | None:
    """Return the destination of an announced run, or None if the announcement is spoilt."""
    from exporters.entry import DestinationKey

    with contextlib.suppress(KeyError):
        found = (about["target"], about["protocol"], about["address"], about["decided"])
        if all(isinstance(text, str) or text is None for text in found):
            return DestinationKey(*found)
    return None


def outbox_of(resolved: Resolved) -> Outbox:
    """Return this machine's outbox, with the limits of the settings."""
    from exporters.outbox import Outbox

    settings = resolved.settings
    return Outbox(Folder(outbox_path()), settings.outbox_mb * 1e6, settings.outbox_days * 86_400)


def record(where: str, body: bytes) -> Callable[[str], None]:
    """Keep a copy of a body that is about to be sent, and return a function that notes the answer.

    Raises:
        OSError: no copy can be kept; then nothing may be sent.
    """
    from exporters.sentlog import note

    return note(Folder(sent_path()), where, body)


def forget_old(resolved: Resolved) -> None:
    """Remove copies of sent bodies, and counts of lost entries, that are older than ``retention_days``."""
    from exporters.sentlog import prune

    prune(Folder(sent_path()), resolved.settings.retention_days)
    outbox_of(resolved).forget_marks(resolved.settings.retention_days)


def package_of(declared: Declared | None) -> Declared | None:
    """Return the declarations of the package alone, without the user's own words; None if there is no package."""
    return None if declared is None else declared.of_package


def declared_of(run: Run) -> Declared | None:
    """Return a run's declarations: the name of the package it belongs to, and the user's own words; None without any."""
    if "name" not in run.app and not run.said:
        return None
    from exporters.rules import Declared, may_be_said

    said = tuple(sorted((name, value) for name, value in run.said.items() if may_be_said(name, value)))
    return Declared(run.app.get("name", ""), said=said)


def lock_named(name: str) -> Any:
    """Return the lock of a destination, by its digest: who holds it delivers."""
    return Folder(outbox_path()).sub("lock").lock(f"{name}.lock")
