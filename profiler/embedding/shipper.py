"""Keep the counts and crashes of one package, and send them beside the program.

The rules it keeps: nothing is loaded and no thread is started before there is something to keep or send. Nothing here
raises into the program. The end waits for a delivery for ``exit_timeout`` seconds.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial

from profiler.records.faults import Faults

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from profiler.config.resolve import Resolved
    from profiler.embedding.counters import Counters, Taken
    from profiler.embedding.delivery import Delivery
    from profiler.embedding.package_info import PackageInfo
    from profiler.storage.usage_ledger import UsageLedger


MAX_CRASHES = 10  # of a process
LOOK_EVERY_S = 60.0
ENDS_WITH_THREADS = not (3, 12) <= sys.version_info < (3, 12, 2)
"""False for Pythons that start no thread once the program is ending (python/cpython#113964)."""
now = time.monotonic


class Shipper:
    """The counts and crashes of one package in this process.

    Args:
        counters: the counters that are kept and sent.
        version: the package's version.
        info: gives the package with the settings it would like.
        began_ns: the moment the program began to use the package (ns since 1970).
        take: takes the counts since the last call, with names that may be kept.
    """

    def __init__(
        self,
        counters: Counters,
        version: str,
        info: Callable[[], PackageInfo],
        began_ns: int,
        take: Callable[[], Taken],
    ) -> None:
        self._counters = counters
        self._take = take
        self._version = version
        self._info = info
        self._since_ns = began_ns  # the begin of the counts that are not kept yet
        self._lock = threading.Lock()
        self._deadline = math.inf
        self._crashes = 0
        self.notes: dict[str, int] = {}
        self.faults = Faults(self.note)
        self.threads: list[threading.Thread] = []
        self._standby: Standby | None = None
        self.is_over = False  # the program is ending, and has waited for its deliveries

    @property
    def has_work(self) -> bool:
        """True if there is anything to keep, to report or to wait for."""
        return self._counters.any or bool(self.notes) or bool(self.threads)

    def note(self, what: str) -> None:
        """Count a fault under a text."""
        self.notes[what] = self.notes.get(what, 0) + 1

    def forget(self) -> None:
        """Reset in a forked process: counts, faults and threads are the parent's."""
        self._lock = threading.Lock()
        self._counters.forget()
        self.threads, self._standby, self._deadline = [], None, math.inf
        self.notes.clear()
        self._since_ns = time.time_ns()

    # ---- counts ----------------------------------------------------------------------------------------------------

    def send_some(self) -> float:
        """Send the counts so far in a thread, if they may be sent. Return the seconds until the next time."""
        if self._standby is None and not ENDS_WITH_THREADS:
            self._standby = Standby()
            return LOOK_EVERY_S
        info = self._info()
        resolved = info.resolve()
        if resolved.may_send or info.exporter is not None:
            self._start(lambda: self._save_and_export(resolved))
        return resolved.settings.export_interval

    def send_last(self, *, closing: bool) -> None:
        """Keep the last counts, send a summary if one is due, and wait for it.

        Args:
            closing: also send counts that were kept before: the program asked for it.
        """
        from profiler.config.paths import crashes_path
        from profiler.storage.crash_notes import forget_crashes

        info = self._info()
        resolved, ledger = info.resolve(), info.ledger
        saved = self._save(resolved)
        forget_crashes(crashes_path(), resolved.settings.retention_days)
        since_s = time.time() - ledger.exported_at()  # below 0 if the clock was set back
        is_due = saved and not 0 <= since_s < resolved.settings.export_interval
        if is_due or (closing and ledger.pending() and self._may_leave(info, resolved, self._since_ns)):
            self._start(lambda: self._export(info, resolved))
        self._deadline = now() + resolved.settings.exit_timeout
        for thread in self.threads:
            thread.join(max(self._deadline - now(), 0.0))
        self._deadline = math.inf
        if self.notes:  # faults of the last moment
            self._save(resolved)

    def _save_and_export(self, resolved: Resolved) -> None:
        if self._save(resolved):
            self._export(self._info(), resolved)

    def _save(self, resolved: Resolved) -> bool:
        """Write the counts since the last call to the ledger. Return True if any of them may leave."""
        from profiler.storage.usage_ledger import Counted, Counts

        info = self._info()
        with self._lock:
            began, self._since_ns = self._since_ns, time.time_ns()
            taken = self._take()
            notes = dict(self.notes)
            self.notes.clear()
        counts = Counts(taken.features, taken.commands, taken.options, taken.told)
        if taken.undeclared:
            notes["names that are not declared"] = taken.undeclared
        if resolved.values["usage"].value is not True or (counts.is_empty and not notes):
            return False
        leaves = not counts.is_empty and self._may_leave(info, resolved, began)
        if leaves or resolved.settings.local:
            counted = Counted(began, self._since_ns, self._version, dict(info.declared), counts, notes=notes)
            if leaves:
                from profiler.sending.consent import state_of

                counted.facts, counted.choice = info.sent_facts(), state_of(resolved).as_list()
                counted.apart = resolved.tells_apart(info.app, info.exporter)
            try:
                _add_to_ledger(info.ledger, counted, resolved.settings.retention_days)
            except OSError:
                for text, times in notes.items():  # so that a later line can report them
                    self.notes[text] = self.notes.get(text, 0) + times
                raise
        return leaves

    def _may_leave(self, info: PackageInfo, resolved: Resolved, began_ns: int) -> bool:
        """Return True if counts since that moment may be sent. If nothing may, the code that sends is not loaded."""
        if info.exporter is None and not resolved.may_send:
            return False
        from profiler.embedding.usage_delivery import may_leave

        return may_leave(info, resolved, began_ns)

    def _export(self, info: PackageInfo, resolved: Resolved) -> None:
        from profiler.embedding.usage_delivery import export_usage, usage_goes_to
        from profiler.sending.consent import Consent, state_of

        consent = Consent(info.resolve, lambda found: usage_goes_to(info, found) is not None, state_of(resolved))
        self._deliver(export_usage(info, resolved, consent, self.note))

    def _deliver(self, delivery: Delivery | None) -> None:
        if delivery is not None:
            for text in delivery.run(lambda: self._deadline):
                self.note(text)

    # ---- crashes ---------------------------------------------------------------------------------------------------

    def keep_crash(self, error: BaseException) -> None:
        """Note a crash on this machine, and report it if the user has switched crash reports on."""
        from profiler.embedding.crash_delivery import crash_target, keep_crash

        self._crashes += 1
        if self._crashes > MAX_CRASHES:
            self.note("more crashes than are noted")
            return
        info = self._info()
        resolved = info.resolve()
        target = crash_target(info, resolved)
        if target is None and not resolved.settings.local:
            return
        noted = keep_crash(info, error, resolved, target)
        if target is None:
            return
        is_started = not self.is_over and self._start(lambda: self._export_crash(info, noted, resolved, target))
        if not is_started:  # the program is ending: the report waits in the outbox for the next run
            self._export_crash(info, noted, resolved, target, deliver=False)

    def _export_crash(
        self, info: PackageInfo, noted: Mapping[str, Any], resolved: Resolved, target: tuple[str, str], *, deliver: bool = True
    ) -> None:
        from profiler.embedding.crash_delivery import crash_target, export_crash
        from profiler.sending.consent import Consent

        consent = Consent(info.resolve, lambda found: crash_target(info, found) == target)
        delivery, fault = export_crash(info, noted, resolved, consent)
        if fault:
            self.note(fault)
        elif deliver:
            self._deliver(delivery)

    def _start(self, work: Callable[[], None]) -> bool:
        """Start a thread for the work. Return False if the interpreter is ending and starts none, and none stands by."""
        self.threads = [thread for thread in self.threads if thread.is_alive()]
        guarded = partial(self.faults.swallow, "something could not be sent", work)
        thread = threading.Thread(target=guarded, name="epochmeter-telemetry", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            if self._standby is None or not self._standby.is_free:
                self.note("a thread could not be started")
                return False
            thread = self._standby.take(guarded)
        self.threads.append(thread)
        return True


class Standby:
    """A thread that was started in time and waits for the work of the program's end."""

    def __init__(self) -> None:
        self.is_free = True
        self._work: Callable[[], object] | None = None
        self._begin = threading.Event()
        self._thread = threading.Thread(target=self._main, name="epochmeter-standby", daemon=True)
        self._thread.start()

    def take(self, work: Callable[[], object]) -> threading.Thread:
        """Do the work, and end. Return the thread."""
        self.is_free, self._work = False, work
        self._begin.set()
        return self._thread

    def _main(self) -> None:
        self._begin.wait()
        if self._work is not None:
            self._work()


def _add_to_ledger(ledger: UsageLedger, counted: Any, days: int) -> None:
    ledger.add(counted)
    if ledger.is_untidy(days):
        with ledger.alone(0.0) as alone:
            if alone:
                ledger.tidy(days)
