"""The gate before every exporter: ask for consent, build the outgoing data from the list, and check it.

The rules it keeps: rebuild, never filter. The outgoing data is made by walking the list and copying its entries, so an
unlisted metric, attribute or fact has no way out. Consent is asked before the data is read, again before it is handed on,
and again (by the courier) with the bytes in hand before each attempt to send. Data of which no copy can be kept is not
sent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from exporters.config import Record
from exporters.measurements import Outgoing, Snapshot
from exporters.payload import encode
from exporters.rebuild import rebuild
from exporters.rules import Declared

OWN = "an exporter of the program's own"
TIMEOUT_MS = 10_000


class Gate:
    """The gate before one destination.

    Args:
        consent: returns True if data may leave now.
        target: a name in `TARGETS`; the list holds the data of that destination.
        form: the module that makes and checks its bodies.
        usage: True if usage counters may be part of the data.

    Attributes:
        refused: how often there was no consent.
        dropped: bodies with parts that are not on the list.
        reason: why the last data, or a part of it, was not let through; "" if it was, or if there was no consent.
        fault: the first fault of the last body that was checked, or None.
    """

    def __init__(self, consent: Callable[[], bool], target: str, form: Any, usage: bool = True) -> None:
        self._consent = consent
        self._target = target
        self._form = form
        self._usage = usage
        self.refused = 0
        self.dropped = 0
        self.reason = ""
        self.fault: str | None = None

    def outgoing(
        self, data: Snapshot, yield_gil: Callable[[], None] = lambda: None, declared: Declared | None = None
    ) -> Outgoing | None:
        """Return the sendable part of this data, rebuilt from the list, or None without consent.

        Args:
            data: the data.
            yield_gil: called between two pieces of work, so that the loop's thread gets its turn.
            declared: the declarations of the embedding package that produced the data, or None.
        """
        self.reason = ""
        if not self._consent():
            self.refused += 1
            return None
        yield_gil()
        outgoing = rebuild(data, self._target, declared)
        if outgoing.left_out:
            self.reason = f"{outgoing.left_out} points were left out of an export: their numbers are out of bounds"
        yield_gil()
        return outgoing

    def bodies(
        self, data: Snapshot, yield_gil: Callable[[], None] = lambda: None, declared: Declared | None = None
    ) -> list[bytes]:
        """Return the checked bodies; none without consent, and none if one of them has a fault."""
        outgoing = self.outgoing(data, yield_gil, declared)
        if outgoing is None:
            return []
        bodies: list[bytes] = self._form.bodies(outgoing, self._usage)
        yield_gil()
        for body in bodies:
            if not self.passes(body, yield_gil, declared):
                return []
            yield_gil()
        if not self._consent():
            self.refused += 1
            return []
        return bodies

    def passes(self, body: bytes, yield_gil: Callable[[], None] = lambda: None, declared: Declared | None = None) -> bool:
        """Return True if these bytes hold only listed data for this destination. Asked again before they are sent.

        Args:
            body: the bytes.
            yield_gil: called between two pieces of work.
            declared: the declarations of the embedding package that produced them, or None.
        """
        self.fault = self._form.first_fault(body, self._target, yield_gil, declared)
        if self.fault is None:
            return True
        self.dropped += 1
        self.reason = f"an export was dropped: {self.fault}"[:300]
        return False


class GatedExporter:
    """An exporter of the program behind the gate: it gets the data of a collector, with a copy kept.

    Args:
        exporter: the program's own.
        gate: the gate.
        consent: asked once more with the bytes in hand.
        record: keeps a copy before they are handed on; an OSError from it stops them.
        declared: the declarations of the embedding package that produced the data, or None.

    Attributes:
        reason: why the last export failed; "" if it did not, or if there was no consent.
    """

    def __init__(
        self,
        exporter: Any,
        gate: Gate,
        consent: Callable[[], bool],
        record: Record,
        declared: Declared | None = None,
    ) -> None:
        self._exporter = exporter
        self.gate = gate
        self._consent = consent
        self._record = record
        self._declared = declared
        self.reason = ""

    def export(self, data: Snapshot) -> bool:
        """Hand on the sendable part of this data. Return True if the exporter accepted it; False without consent."""
        outgoing = self.gate.outgoing(data, declared=self._declared)
        self.reason = self.gate.reason
        if outgoing is None:
            return False
        body = encode(outgoing)
        passes = self.gate.passes(body, declared=self._declared)
        self.reason = self.gate.reason
        if not passes:
            return False
        if not self._consent():
            self.gate.refused += 1
            return False
        try:
            answered = self._record(OWN, body)
        except OSError as error:
            self.reason = f"nothing was sent, because no copy of it can be kept: {error.strerror}"
            return False
        return self._hand_over(outgoing, answered)

    def _hand_over(self, outgoing: Outgoing, answered: Callable[[str], None]) -> bool:
        from opentelemetry.sdk.metrics.export import MetricExportResult

        from exporters.sdk_data import metrics_data

        result = self._exporter.export(metrics_data(outgoing), TIMEOUT_MS)
        answered(getattr(result, "name", "no answer"))
        if result is not MetricExportResult.SUCCESS:
            self.reason = "an export was not taken"
        return result is MetricExportResult.SUCCESS
