"""One run's way to a destination: from the run's start, over every export, to its final payload.

The rules it keeps: ``exporters`` is loaded only once there is consent. The loop never waits: payloads are made and kept by
the sampling thread. A thread of their own delivers them, because a collector that hangs must not hold up readings. The
final payload is on disk before the run ends. The end waits for its delivery for ``exit_timeout`` seconds.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from profiler.config.switch_off import empty_outbox
from profiler.records.faults import warn_once
from profiler.sending.consent import Consent, state_of
from profiler.sending.destination import destination, in_clear
from profiler.sending.dispatch import declared_of, forget_old, package_of, record
from profiler.sending.notices import announce, announcement_of_runs, may_send_for
from profiler.sending.outlet import ExporterOutlet, OutboxOutlet, PrometheusOutlet, RunExport

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.config.resolve import EmbeddingApp, Resolved
    from profiler.records.run import Run
    from profiler.sending.outlet import Outlet


class Sending:
    """The exports of one run.

    Args:
        run: the run.
        resolve: gives the settings in force.
        exporter: an OpenTelemetry ``MetricExporter`` of the program, or None.
        snapshot: gives the run so far as an ``exporters`` `Snapshot`; may be called from any thread. Its argument is a
            function to call between two pieces of work.
        note: counts a fault under a text.
    """

    def __init__(
        self,
        run: Run,
        resolve: Callable[[], Resolved],
        exporter: Any,
        snapshot: Callable[[Callable[[], None]], Any],
        note: Callable[[str], None],
    ) -> None:
        self._run = run
        self._resolve = resolve
        self._app: EmbeddingApp | None = None
        self._exporter = exporter
        self._run_export = RunExport(run, snapshot, self.consent, self._record, note)
        self._consent = Consent(resolve, lambda resolved: False)  # until `prepare` knows the choice
        self._outlet: Outlet | None = None
        self._lock = threading.Lock()
        self.is_withdrawn = False  # once there was no consent, or another choice, nothing of this run leaves any more

    def belongs_to(self, app: EmbeddingApp) -> None:
        """Note that the run belongs to a package, which may have chosen the destination."""
        self._app = app

    def prepare(self, resolved: Resolved) -> None:
        """Load the code that sending needs, before the run's clock starts. Load nothing without consent.

        Raises:
            SettingsError, ExporterError: nothing can be sent; the text says why.
        """
        self._consent = Consent(self._resolve, self._permits, state_of(resolved))
        if not self.consent():
            return
        if self._app is not None and not may_send_for(self._app, resolved, self._exporter):
            self.is_withdrawn = True
            return
        import exporters

        forget_old(resolved)
        apart = resolved.tells_apart(self._app, self._exporter)
        if self._exporter is not None:
            declared = package_of(declared_of(self._run))  # the program's own exporter gets no words of the user's
            gated = exporters.behind_gate(self._exporter, self.consent, self._record, declared)
            self._outlet = ExporterOutlet(self._run_export, gated, apart=apart)
            return
        found = destination(resolved)
        if warning := in_clear(found):
            warn_once(warning)
        config = exporters.Config(**found)
        gate = exporters.gate_for(config, self.consent)
        importlib.import_module(exporters.TARGETS[config.target].modules[config.protocol])
        if config.target == "prometheus":
            self._outlet = PrometheusOutlet(self._run_export, config, gate, resolved.settings.export_interval)
            return
        for module in ("exporters.courier", "exporters.outbox", "exporters.sentlog"):
            importlib.import_module(module)
        self._outlet = OutboxOutlet(self._run_export, config, gate, resolved, apart=apart)

    def begin(self, log: Path | None) -> bool:
        """Begin sending. Return False if this run is not sent at all.

        Args:
            log: the run log, from which the final payload can be made if the process is killed; None if there is none.
        """
        if self._outlet is None:
            return False
        self._outlet.begin(log)
        return True

    def consent(self) -> bool:
        """Return True if this run may be sent. Asked at every export, more than once, and between exports.

        A run is sent under the choice it began with. If that was "off", or becomes "off" or another choice, a part of the
        run was measured without consent. Sums cannot be taken apart, so the whole run stays on this machine.
        """
        resolved = self._resolve()
        if not self._consent.is_given(resolved):
            self._withdraw(resolved)
        return not self.is_withdrawn

    def export(self) -> None:
        """Hand the run so far to the outlet; called by the sampling thread.

        Raises:
            OSError: the payload cannot be kept.
        """
        if self._outlet is not None and self.consent():
            self._outlet.put(last=False)

    def finish(self) -> None:
        """Hand the final payload to the outlet, and wait for its delivery for ``exit_timeout`` seconds.

        Raises:
            OSError: the payload cannot be kept.
        """
        outlet = self._outlet
        if outlet is None:
            return
        try:
            if self.consent():  # without it, `_withdraw` has already stopped the outlet
                outlet.put(last=True)
        finally:
            outlet.finish(self._resolve().settings.exit_timeout)
            self._outlet = None

    def forget(self) -> None:
        """Reset in a forked child: the run is the parent's."""
        self._outlet = None
        self.is_withdrawn = True
        self._lock = threading.Lock()

    def _permits(self, resolved: Resolved) -> bool:
        return resolved.may_hand_over if self._exporter is not None else resolved.may_send

    def _withdraw(self, resolved: Resolved) -> None:
        with self._lock:
            first, self.is_withdrawn = not self.is_withdrawn, True
        if first and self._outlet is not None:
            self._outlet.withdraw()
        if resolved.off_in_file:
            empty_outbox()

    def _record(self, where: str, body: bytes) -> Callable[[str], None]:
        """Keep a copy before the first byte leaves, and announce a destination the first time."""
        answered = record(where, body)
        resolved = self._resolve()
        if self._exporter is None and not resolved.host_chose:  # a package's choice has been announced before
            said = {} if resolved.settings.exporter == "ga" else self._run.said
            is_scraped = isinstance(self._outlet, PrometheusOutlet)
            announce(where, announcement_of_runs(where, resolved.values["exporter"], said, is_scraped=is_scraped))
        return answered
