"""A package that embeds us.

The rule it keeps: a program that only counts, and keeps its counts here, loads nothing of the code that sends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from profiler.config.paths import usage_path
from profiler.config.resolve import resolve
from profiler.storage.usage_ledger import UsageLedger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from profiler.config.resolve import EmbeddingApp, Resolved


@dataclass(frozen=True)
class PackageInfo:
    """A package that embeds us.

    Attributes:
        facts: returns ``name``, ``version`` and how it is installed.
        app: the package with the settings it would like.
        declared: its declarations, as the fields of an ``exporters.Declared``.
        dsn: the DSN for its crash reports, or None.
        exporter: an OpenTelemetry ``MetricExporter`` of its own, or None.
    """

    facts: Callable[[], Mapping[str, str]]
    app: EmbeddingApp
    declared: Mapping[str, Any]
    dsn: str | None = None
    exporter: Any = None

    @property
    def name(self) -> str:
        """The package's name."""
        return self.app.name

    @property
    def ledger(self) -> UsageLedger:
        """The package's counts on this machine."""
        return UsageLedger(usage_path() / self.name)

    def resolve(self) -> Resolved:
        """Return the settings in force for the package."""
        return resolve(app=self.app)

    def sent_facts(self) -> dict[str, Any]:
        """Return facts of the package and its environment, by the names that they are sent under."""
        from profiler.hardware.runtime import RuntimeProbe
        from profiler.storage.usage_points import runtime_facts

        known = {fact.key: fact.read() for fact in RuntimeProbe().facts()}
        runtime = runtime_facts({key: value for key, value in known.items() if value is not None})
        return {**{f"epochmeter.app.{key}": value for key, value in self.facts().items()}, **runtime}
