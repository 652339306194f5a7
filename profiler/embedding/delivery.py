"""What a package that embeds us has counted, and its crashes, on their way out: through the gate into the outbox.

The rules it keeps: beside `sending`, which it stands on, and the commands, this is the only module that knows
``exporters``, and it loads them once there is consent. What was counted before the user had been told, while anything said
"off", or under another choice than the one in force, stays here.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from profiler.config.resolve import Host, crashes_path, not_for_hosts, resolve, usage_path
from profiler.embedding import crash
from profiler.errors import SettingsError
from profiler.sending.destination import destination, in_words
from profiler.sending.outlet import (
    LAST,
    OWN_EXPORTER,
    STOP,
    Post,
    announce,
    decision,
    forget_old,
    has_been_told,
    outbox_of,
    record,
)
from profiler.storage.points import runtime_facts
from profiler.storage.usage_ledger import Ledger, ledgers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from exporters.rules import Declared
    from profiler.config.resolve import Resolved
    from profiler.storage.usage_ledger import Counted


USAGE_TARGETS = ("otlp", "ga")  # a program that has ended cannot be scraped
LOGS_PATH, METRICS_PATH = "/v1/logs", "/v1/metrics"
PATIENCE_S = 1.0  # with another process that sums up the same package's counts
STOP_CRASHES = "To stop it: epochmeter settings crash_reports=false"


@dataclass(frozen=True)
class App:
    """A package that embeds us.

    Attributes:
        facts: ``name``, ``version`` and how it is installed.
        host: the same with the settings that it would like.
        declared: its part of the list, as the fields of an ``exporters.Declared``.
        dsn: where its crash reports go, or None.
        exporter: an OpenTelemetry ``MetricExporter`` of its own, or None.
    """

    facts: Callable[[], Mapping[str, str]]
    host: Host
    declared: Mapping[str, Any]
    dsn: str | None = None
    exporter: Any = None

    @property
    def name(self) -> str:
        return self.host.app

    @property
    def ledger(self) -> Ledger:
        return Ledger(usage_path() / self.name)

    def resolve(self) -> Resolved:
        return resolve(host=self.host)

    def told_facts(self) -> dict[str, Any]:
        """Facts of the package and of what it runs on, by the names that they go out with."""
        from profiler.hardware.runtime import RuntimeProbe

        known = {fact.key: fact.read() for fact in RuntimeProbe().facts()}
        runtime = runtime_facts({key: value for key, value in known.items() if value is not None})
        return {**{f"epochmeter.app.{key}": value for key, value in self.facts().items()}, **runtime}


def usage_goes_to(app: App, resolved: Resolved) -> str | None:
    """Where counts would go, in words, or None where they go nowhere.

    Raises:
        SettingsError: a setting or variable of the destination cannot be used.
    """
    if resolved.values["usage"].value is not True:
        return None
    if app.exporter is not None:
        return OWN_EXPORTER if resolved.may_hand_over and not not_for_hosts() else None
    if not resolved.may_send or resolved.settings.exporter not in USAGE_TARGETS:
        return None
    return in_words(resolved)


def may_leave(app: App, resolved: Resolved, began_ns: int) -> bool:
    """Whether what was counted since then may be sent; a user who was never told is told now.

    Raises:
        SettingsError: as `usage_goes_to`.
    """
    if usage_goes_to(app, resolved) is None or not has_been_told(app.host, resolved, app.exporter):
        return False
    return resolved.decided is None or _time_of(resolved.decided) * 1e9 <= began_ns


def _time_of(date: str) -> float:
    try:
        return datetime.fromisoformat(date).timestamp()
    except ValueError:
        return float("inf")  # a date that cannot be read lets nothing through


# ---- usage ---------------------------------------------------------------------------------------------------------


def export_usage(app: App, resolved: Resolved, consent: Callable[[], bool], note: Callable[[str], None]) -> Delivery | None:
    """Sums up what is to leave and puts it into the outbox; what is to be delivered then, or None.

    Args:
        note: told what does not get there, in words.

    Raises:
        OSError, ValueError: nothing can be put there; the text says why.
    """
    import exporters

    ledger = app.ledger
    choice = list(decision(resolved))
    with ledger.alone(PATIENCE_S) as alone:
        if not alone:
            return None
        ledger.note_export()
        if app.exporter is not None:
            _hand_over(app, ledger, choice, consent, note)
            return None
        config = exporters.Config(**destination(resolved))
        post = Post(resolved, outbox_of(resolved), config, exporters.gate_for(config, consent))
        for summary, counted in ledger.summaries(choice):
            declared = declared_from(counted.declared)
            put = post.put_data(summary, counted.began, usage_of(summary, counted), LAST, declared, what="usage")
            if post.gate.reason:
                note(post.gate.reason)
            if put or post.gate.reason:  # without consent, it stays where it is, and its choice is over
                ledger.sent(summary, keep=resolved.settings.local)
        ledger.tidy(resolved.settings.retention_days)
    kind = "which features, commands and options are used, in counts"
    return Delivery(app, post, consent, f"usage of {app.name}", kind, STOP, announced=resolved.host_chose)


def export_waiting() -> list[str]:
    """Puts what waits to be summed up into the outbox, of every package whose counts go where the user has chosen.

    Of one that chose the destination itself, its own next run does it.

    Returns:
        what does not get there, in words.

    Raises:
        OSError, ValueError: it cannot be put there.
    """
    notes: list[str] = []
    for ledger in ledgers(usage_path()):
        app = App(dict, Host(ledger.folder.name), {})
        resolved = app.resolve()
        if ledger.pending() and usage_goes_to(app, resolved) is not None:
            export_usage(app, resolved, lambda app=app: usage_goes_to(app, app.resolve()) is not None, notes.append)  # type: ignore[misc]
    return notes


def usage_of(summary: str, counted: Counted) -> Any:
    """What was counted, as OpenTelemetry's ``MetricsData``."""
    from profiler.sending.otel_data import usage_data

    return usage_data(summary, counted.facts, counted.counts, counted.began, counted.ended)


def _hand_over(app: App, ledger: Ledger, choice: list[Any], consent: Callable[[], bool], note: Callable[[str], None]) -> None:
    import exporters

    for summary, counted in ledger.summaries(choice):
        declared = declared_from(counted.declared)
        gated = exporters.behind_gate(app.exporter, consent, record, declared)
        ledger.sent(summary, keep=True)  # first: what a package's exporter does with a second time is not known
        gated.export(usage_of(summary, counted))
        if gated.reason:
            note(gated.reason)


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
        self, app: App, post: Post, consent: Callable[[], bool], what: str, of: str, stop: str, *, announced: bool
    ) -> None:
        self._app = app
        self._post = post
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
                f"{self._app.name}: {self._of} (no names, words or values of yours), goes to {where}. {self._stop}\n",
            )
        return answered


# ---- crashes -------------------------------------------------------------------------------------------------------


def crash_target(app: App, resolved: Resolved) -> tuple[str, str] | None:
    """Where crash reports go: a target and an address; None where they stay here.

    Only where the user has switched them on. With a DSN and Sentry's library to Sentry, else to a collector, if one is
    chosen: a DSN is the package's choice, so it counts for nothing in CI and tests.

    Raises:
        SettingsError: a setting or variable of the collector cannot be used.
    """
    if resolved.values["crash_reports"].value is not True or not resolved.may_hand_over:
        return None
    if app.dsn is not None and crash.has_sentry():
        return None if not_for_hosts() else ("sentry", crash.address_of(app.dsn))
    if not resolved.may_send or resolved.settings.exporter != "otlp":
        return None
    if not has_been_told(app.host, resolved, now=False):
        return None
    found = destination(resolved)
    address = str(found["address"])
    if found["protocol"] == "grpc":
        return "otlp-logs", address
    # an address that is for metrics alone says nothing of where logs go
    return ("otlp-logs", address.removesuffix(METRICS_PATH) + LOGS_PATH) if address.endswith(METRICS_PATH) else None


def keep_crash(app: App, error: BaseException, resolved: Resolved, target: tuple[str, str] | None) -> dict[str, Any]:
    """Notes a crash, on this machine if the settings keep anything here. The note is scrubbed from the beginning.

    Args:
        target: where it is to be reported, as `crash_target` says.

    Raises:
        OSError: it cannot be kept.
    """
    noted = {
        **crash.scrubbed(error, tuple(app.declared["modules"])),
        "facts": app.told_facts(),
        "declared": dict(app.declared),
        **({} if app.dsn is None else {"dsn": crash.public(app.dsn)}),
        **({} if target is None else {"target": list(target)}),
    }
    if resolved.settings.local:
        folder = crashes_path()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = folder / f"{noted['time_unix_ns']:020d}-{noted['id'][:12]}.json"
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            json.dump(noted, file)
        crash.forget_crashes(folder, resolved.settings.retention_days)
    return noted


def crashes() -> list[dict[str, Any]]:
    """The crashes that are noted on this machine, oldest first. Spoilt notes are passed over."""
    found = []
    for path in crash.notes_in(crashes_path()):
        with contextlib.suppress(OSError, ValueError):
            found.append(json.loads(path.read_bytes()))
    return found


def crash_body(noted: Mapping[str, Any], target: str, *, previewed: bool = False) -> bytes:
    """A noted crash as the body of a request.

    Args:
        previewed: without Sentry's library, which opens a socket when it is loaded; the bytes are the same.
    """
    from exporters import crash_log, crash_payload

    told = crash_payload.rebuilt(noted, declared_from(noted["declared"]))
    if target != "sentry":
        return crash_log.encode(told)
    if previewed:
        return crash_payload.envelope(told, noted["dsn"])
    return crash.envelope(crash_payload.event(told), noted["dsn"])


def export_crash(
    app: App, noted: Mapping[str, Any], resolved: Resolved, consent: Callable[[], bool]
) -> tuple[Delivery | None, str]:
    """Puts a noted crash into the outbox; what is to be delivered then, and what went wrong, in words.

    Raises:
        OSError, ValueError: it cannot be put there; the text says why.
    """
    import exporters

    chosen = crash_target(app, resolved)
    if chosen is None:
        return None, ""
    target, address = chosen
    if target == "sentry":
        config = exporters.Config(target, "envelope", address)
    else:
        config = replace(exporters.Config(**destination(resolved)), target=target, address=address)
    if lacking := exporters.why_not(config.target, config.protocol):
        raise SettingsError(lacking)
    gate = exporters.gate_for(config, consent)
    body, declared = crash_body(noted, target), declared_from(noted["declared"])
    if not gate.passes(body, declared=declared):
        return None, gate.reason
    forget_old(resolved)
    post = Post(resolved, outbox_of(resolved), config, gate)
    post.put_body(noted["id"][:12], noted["time_unix_ns"], LAST, body, declared, "crash")
    kind = "where in its code an error came from, and of which class it is"
    return Delivery(app, post, consent, f"crashes of {app.name}", kind, STOP_CRASHES, announced=False), ""
