"""What a package that embeds us has counted, and its crashes, on their way out: through the gate into the outbox.

The rules it keeps: beside `sending`, which it stands on, and the commands, this is the only module that knows
``exporters``, and it loads them once there is consent. What was counted before the user had been told, while anything said
"off", or under another choice than the one in force, stays here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from profiler.config.paths import usage_path
from profiler.config.resolve import resolve
from profiler.sending.dispatch import record
from profiler.sending.notices import announce
from profiler.storage.usage_ledger import Ledger
from profiler.storage.usage_points import runtime_facts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from exporters.rules import Declared
    from profiler.config.resolve import EmbeddingApp, Resolved
    from profiler.sending.dispatch import Dispatch


@dataclass(frozen=True)
class PackageInfo:
    """A package that embeds us.

    Attributes:
        facts: ``name``, ``version`` and how it is installed.
        host: the same with the settings that it would like.
        declared: its part of the list, as the fields of an ``exporters.Declared``.
        dsn: where its crash reports go, or None.
        exporter: an OpenTelemetry ``MetricExporter`` of its own, or None.
    """

    facts: Callable[[], Mapping[str, str]]
    app: EmbeddingApp
    declared: Mapping[str, Any]
    dsn: str | None = None
    exporter: Any = None

    @property
    def name(self) -> str:
        return self.app.name

    @property
    def ledger(self) -> Ledger:
        return Ledger(usage_path() / self.name)

    def resolve(self) -> Resolved:
        return resolve(app=self.app)

    def sent_facts(self) -> dict[str, Any]:
        """Facts of the package and of what it runs on, by the names that they go out with."""
        from profiler.hardware.runtime import RuntimeProbe

        known = {fact.key: fact.read() for fact in RuntimeProbe().facts()}
        runtime = runtime_facts({key: value for key, value in known.items() if value is not None})
        return {**{f"epochmeter.app.{key}": value for key, value in self.facts().items()}, **runtime}


def declared_from(data: Mapping[str, Any]) -> Declared:
    from exporters.rules import declared_from

    return declared_from(data)


class Delivery:
    """What is in the outbox for one destination, to be delivered beside the program.

    Args:
        what: a name for what goes there, by which it is noted that the user has been told.
        of: the same in words.
        stop: how to stop it, in words.
        announced: whether the user has been told before, because the package has chosen the destination.
    """

    def __init__(
        self,
        info: PackageInfo,
        dispatch: Dispatch,
        consent: Callable[[], bool],
        what: str,
        of: str,
        stop: str,
        *,
        announced: bool,
    ) -> None:
        self._info = info
        self._post = dispatch
        self._consent = consent
        self._what = what
        self._of = of
        self._stop = stop
        self._announced = announced

    def run(self, until: Callable[[], float]) -> list[str]:
        """Delivers until that moment of the monotonic clock; what went wrong, in words."""
        courier = self._post.courier(self._consent, self._record)
        try:
            return courier.deliver(until, patience_s=max(until() - time.monotonic(), 0.0)).notes
        finally:
            courier.close()

    def _record(self, where: str, body: bytes) -> Callable[[str], None]:
        answered = record(where, body)
        if not self._announced:
            announce(
                f"{self._what}: {where}",
                f"{self._info.name}: {self._of} (no names, words or values of yours), goes to {where}. {self._stop}\n",
            )
        return answered
