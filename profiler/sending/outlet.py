"""The three outlets of a run: the outbox with its courier, the program's own exporter, and a page for Prometheus."""

from __future__ import annotations

import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from profiler.records.faults import Faults, is_of_a_signal
from profiler.sending.dispatch import LAST, SO_FAR, Dispatch, declared_of, entries_for, outbox_of, package_of
from profiler.sending.yielding import no_pause, pause

TYPE_CHECKING = False
if TYPE_CHECKING:
    from exporters.config import Config
    from profiler.config.resolve import Resolved
    from profiler.records.run import Run


LOOK_AGAIN_S = 5.0  # if another process is delivering, or something failed


class RunExport(NamedTuple):
    """A run on its way out; the fields are described at `Sending`.

    ``record`` keeps a copy of a body before it is sent.
    """

    run: Run
    snapshot: Callable[[Callable[[], None]], Any]
    consent: Callable[[], bool]
    record: Callable[[str, bytes], Callable[[str], None]]
    note: Callable[[str], None]


class Outlet(ABC):
    """A way out for measurements. All methods may be called from the sampling thread, except `put` with ``last``."""

    @abstractmethod
    def begin(self, log: Path | None) -> None:
        """Start; ``log`` is the run log, if there is one."""

    @abstractmethod
    def put(self, *, last: bool) -> None:
        """Hand over the run so far; ``last`` marks the final payload."""

    def withdraw(self) -> None:  # noqa: B027  # an outlet that keeps nothing has nothing to do
        """Stop, because there is no consent any more."""

    @abstractmethod
    def finish(self, timeout: float) -> None:
        """End, after waiting for a delivery for at most ``timeout`` seconds."""


class OutboxOutlet(Outlet):
    """The outbox, and a courier in a thread of its own."""

    def __init__(self, run_export: RunExport, config: Config, gate: Any, resolved: Resolved, *, apart: bool) -> None:
        self._run_export = run_export
        self._faults = Faults(run_export.note)
        self._dispatch = Dispatch(resolved, outbox_of(resolved), config, gate, apart=apart)
        takes = entries_for(self._dispatch.key, {None, package_of(declared_of(run_export.run))})
        self._courier = self._dispatch.courier(run_export.consent, run_export.record, takes, self._yield_gil)
        self._thread = threading.Thread(target=self._main, name="epochmeter-courier", daemon=True)
        self._wake, self._ending = threading.Event(), threading.Event()
        self._deadline = math.inf
        self._look_again_s: float | None = None

    def begin(self, log: Path | None) -> None:
        """Announce the final payload in the outbox, and start the courier."""
        if log is not None:
            try:
                self._dispatch.open_run(self._run_export.run, log.name)
            except OSError as error:
                self._faults.count("the outbox cannot be written", error)
        _start(self._thread, self._run_export.note)

    def put(self, *, last: bool) -> None:
        """Put a payload into the outbox, and wake the courier."""
        if self._dispatch.config.target == "ga" and not last:
            return  # Google counts events, so only the final payload is sent
        order, yield_gil = (LAST, no_pause) if last else (SO_FAR, pause)
        yield_gil()
        data = self._run_export.snapshot(yield_gil)
        yield_gil()
        is_kept = self._dispatch.put(self._run_export.run, data, order, yield_gil)
        if self._dispatch.gate.reason:
            self._run_export.note(self._dispatch.gate.reason)
        if is_kept and last:
            self._dispatch.close_run(self._run_export.run)
        if not last:  # after the last one, `finish` wakes the courier
            self._wake.set()

    def withdraw(self) -> None:
        """Withdraw the announcement of the final payload."""
        self._dispatch.close_run(self._run_export.run)

    def finish(self, timeout: float) -> None:
        """Wait for the courier's last round."""
        self._deadline = time.monotonic() + timeout
        self._ending.set()
        self._wake.set()
        _has_ended(self._thread, timeout)

    def _main(self) -> None:
        try:
            self._is_last(self._recover)
            while not self._is_last(self._deliver):
                backoff_s = self._courier.backoff_s
                if backoff_s > 0:
                    self._ending.wait(backoff_s)  # new entries wait with the others
                else:
                    self._wake.wait(self._look_again_s)
        finally:
            self._courier.close()

    def _is_last(self, work: Callable[[], bool]) -> bool:
        """Do the work and return its answer: True if it was the last round. After a failure, entries wait in the outbox."""
        answer = self._faults.swallow("a delivery failed", work)
        if answer is None:
            self._look_again_s = LOOK_AGAIN_S
            return self._ending.is_set()
        return answer

    def _recover(self) -> bool:
        self._dispatch.recover(self._run_export.consent, self._run_export.run.id, yield_gil=self._yield_gil)
        return False

    def _yield_gil(self) -> None:
        """Let the loop go first while it runs; at its end nobody is waiting."""
        if not self._ending.is_set():
            pause()

    def _deliver(self) -> bool:
        """Deliver the entries. Return True if this was the last round."""
        self._wake.clear()
        is_ending = self._ending.is_set()
        patience_s = max(self._deadline - time.monotonic(), 0.0) if is_ending else 0.0
        done = self._courier.deliver(lambda: self._deadline, patience_s)
        for text in done.notes:
            self._run_export.note(text)
        self._look_again_s = LOOK_AGAIN_S if done.left else None
        has_just_failed = self._ending.is_set() and bool(done.reason) and bool(done.notes)
        return is_ending or has_just_failed


class ExporterOutlet(Outlet):
    """The program's own exporter. Payloads are handed over once, and neither kept nor tried again."""

    def __init__(self, run_export: RunExport, gated: Any, *, apart: bool) -> None:
        self._run_export = run_export
        self._faults = Faults(run_export.note)
        self._gated = gated
        self._apart = apart
        self._thread = threading.Thread(target=self._main, name="epochmeter-courier", daemon=True)
        self._wake = threading.Event()
        self._data: list[Any] = []
        self._is_ending = False

    def begin(self, log: Path | None) -> None:
        """Start the thread that calls the exporter."""
        _start(self._thread, self._run_export.note)

    def put(self, *, last: bool) -> None:
        """Hand a snapshot to that thread."""
        data = self._run_export.snapshot(no_pause if last else pause)
        single: list[Any] = []
        if self._apart:
            from profiler.sending.apart import facts_apart

            data, single = facts_apart(data)
        self._data = [data, *(single if last else ())]
        self._wake.set()

    def finish(self, timeout: float) -> None:
        """Wait for the exporter's last call."""
        self._is_ending = True
        self._wake.set()
        if not _has_ended(self._thread, timeout):
            self._run_export.note(f"the program's own exporter took longer than {timeout:g} s, and was not waited for")

    def _main(self) -> None:
        is_ending = False
        while not is_ending:
            self._wake.wait()
            self._wake.clear()
            is_ending = self._is_ending
            waiting, self._data = self._data, []
            for data in waiting:
                self._export(data)

    def _export(self, data: Any) -> None:
        try:
            self._gated.export(data)
        except Exception as error:  # the program's exporter may raise anything; its text is not kept
            if is_of_a_signal(error):
                raise
            self._run_export.note(f"an export failed: {type(error).__name__}")
        if self._gated.reason:
            self._run_export.note(self._gated.reason)


class PrometheusOutlet(Outlet):
    """A page that a Prometheus server scrapes."""

    def __init__(self, run_export: RunExport, config: Config, gate: Any, every: float) -> None:
        self._run_export = run_export
        self._config = config
        self._gate = gate
        self._every = every
        self._page: Any = None

    def begin(self, log: Path | None) -> None:
        """Open the page."""
        from exporters.config import ExporterError
        from exporters.prometheus import Page

        try:
            self._page = Page(self._config, self._render, self._every, self._run_export.consent, self._run_export.record)
        except ExporterError as error:
            self._run_export.note(str(error))

    def _render(self) -> Any:
        """Return the checked data and its bytes, or None if the gate lets nothing through."""
        from exporters.payload import encode

        declared = declared_of(self._run_export.run)
        outgoing = self._gate.outgoing(self._run_export.snapshot(pause), pause, declared)
        if outgoing is None:
            return None
        body = encode(outgoing)
        if not self._gate.passes(body, pause, declared):
            self._run_export.note(self._gate.reason)
            return None
        return outgoing, body

    def put(self, *, last: bool) -> None:
        """Do nothing: the server fetches the page."""

    def withdraw(self) -> None:
        """Close the page."""
        page, self._page = self._page, None
        if page is not None:
            page.close()

    def finish(self, timeout: float) -> None:
        """Close the page."""
        self.withdraw()


def _start(thread: threading.Thread, note: Callable[[str], None]) -> None:
    try:
        thread.start()
    except RuntimeError:
        note("the courier's thread could not be started")


def _has_ended(thread: threading.Thread, timeout: float) -> bool:
    """Return True if the thread ends within ``timeout`` seconds, or never ran."""
    if thread.ident is not None:
        thread.join(timeout)
    return not thread.is_alive()
