"""``epochmeter telemetry preview``: the exact bytes of runs, counts and crash reports, with nothing sent."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from profiler.cli.options import AsJson
from profiler.cli.output import complain, say, say_json
from profiler.records.plain_text import printable

INVALID = 1


USAGE, CRASHES = "usage", "crashes"


def preview(
    run: Annotated[
        str | None, typer.Argument(help="A run's id, the beginning of one, 'last', 'usage' or 'crashes'; else all three.")
    ] = None,
    as_json: AsJson = False,
    raw: Annotated[bool, typer.Option("--bytes", help="The bytes themselves, on stdout, not compressed.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Google Analytics: asks its validation server, which keeps nothing, about them.")
    ] = False,
) -> None:
    """Show the exact bytes of a run's final payload, of usage counters and of crash reports.

    Nothing is sent, except with --check.

    Example: epochmeter telemetry preview last --bytes
    """
    from profiler.config.paths import runs_path
    from profiler.config.resolve import resolve
    from profiler.storage.run_log import run_paths
    from profiler.storage.run_reader import believed, find, load

    resolved = resolve()
    beside = [] if check or raw or run not in (None, USAGE, CRASHES) else _beside(run)
    if run in (USAGE, CRASHES) or (run is None and beside and not run_paths(runs_path())):
        _show_beside(beside, as_json)
        return
    recorded = load(find(runs_path(), run or "last"))
    target = resolved.settings.exporter if resolved.may_send else "otlp"
    with believed(recorded):
        bodies = payload(recorded, target, resolved.settings.usage)
    if check:
        _check(resolved, bodies)
        return
    if raw:
        typer.get_binary_stream("stdout").write(b"\n".join(bodies))
        return
    where, why_off = _where(resolved)
    if as_json:
        more = {"beside": [one.as_data() for one in beside]} if beside else {}
        say_json({**_as_data(recorded.id, target, bodies, where, why_off), **more})
        return
    if not bodies:
        say(f"run {recorded.id} measured nothing that is sent to {target}", err=True)
    for body in bodies:
        say(f"run {recorded.id}: {len(body):,} bytes, SHA-256 {hashlib.sha256(body).hexdigest()}")
        say(f"nothing leaves this machine: {why_off}; these are the bytes" if why_off else f"to {where}")
        say(shown(target, body))
    _show_beside(beside, as_json=False)


def payload(recorded: Any, target: str, usage: bool) -> list[bytes]:
    """Return the bodies of a run's final requests. Google's have random ids, different each time."""
    from exporters import form_of
    from exporters.rebuild import rebuild
    from profiler.sending.dispatch import declared_of
    from profiler.sending.snapshot import run_snapshot

    declared = declared_of(recorded)
    data = rebuild(run_snapshot(recorded, recorded.started_unix_ns + recorded.duration_ns), target, declared)
    found: list[bytes] = form_of(target).bodies(data, usage)
    return found


def shown(target: str, body: bytes) -> str:
    """Return a body as text for people, with nothing left out."""
    from exporters import form_of
    from profiler.report.payload import rendered

    content = form_of(target).readable(body)
    return rendered(content) if target == "otlp" else json.dumps(content, indent=2)


@dataclass
class Beside:
    """The data that a package sends beside its runs, or would send.

    Attributes:
        what: "usage" or "crashes".
        why_off: the reason why it does not leave this machine, or "".
        where: its destination, as far as it is known.
    """

    app: str
    what: str
    target: str
    body: bytes
    why_off: str
    where: str = ""

    def as_data(self) -> dict[str, Any]:
        data = {"app": self.app, "what": self.what, "may_leave": not self.why_off}
        if self.why_off:
            data["why_not"] = self.why_off
        return {**data, **({"destination": self.where} if self.where else {}), **_of_body(self.target, self.body)}


def show_own(app: str, as_json: bool) -> None:
    """Show the data that one package sends beside its runs, or would send."""
    _show_beside([one for one in _beside() if one.app == app], as_json)


def _show_beside(beside: list[Beside], as_json: bool) -> None:
    if as_json:
        say_json([one.as_data() for one in beside])
        return
    for one in beside:
        size = f"{len(one.body):,} bytes, SHA-256 {hashlib.sha256(one.body).hexdigest()}"
        say(f"\n{printable(one.app)}, {one.what}: {size}")
        stays = f"nothing of it leaves this machine: {one.why_off}; these are the bytes"
        say(stays if one.why_off else f"to {printable(one.where)}")
        say(shown(one.target, one.body))


def _beside(what: str | None = None) -> list[Beside]:
    found = [] if what == CRASHES else list(_usage())
    return found if what == USAGE else [*found, *_crashes()]


def _alone(what: str, made: Iterable[Beside]) -> list[Beside]:
    """Return the answer for one file. If it is spoilt, say so, and go on without it."""
    try:
        return list(made)
    except Exception as error:
        complain(f"{what} cannot be shown: {type(error).__name__}")
        return []


def _usage() -> Iterator[Beside]:
    """Return the next summary of each package. If nothing is to leave, the latest counts as they would be sent."""
    from profiler.config.paths import usage_path
    from profiler.storage.usage_ledger import ledgers

    for ledger in ledgers(usage_path()):
        yield from _alone(f"what {ledger.name} has counted", _usage_of(ledger))


def _usage_of(ledger: Any) -> Iterator[Beside]:
    from exporters import form_of
    from exporters.rebuild import rebuild
    from profiler.config.resolve import resolve
    from profiler.embedding.delivery import declared_from
    from profiler.embedding.usage_delivery import parts_of, usage_of

    resolved = resolve()
    waiting = ledger.pending()
    known = [counted for counted in ledger.kept() if not counted.counts.is_empty]
    for name, counted in waiting or [("0" * 12, counted) for counted in known[-1:]]:
        choice = counted.choice or [None, "otlp", None]
        target, declared = ("ga" if choice[1] == "ga" else "otlp"), declared_from(counted.declared)
        kept = "it was counted when it could not be sent, or it has been sent"
        why = "" if waiting else kept if resolved.may_hand_over else resolved.why_off
        for data in parts_of(usage_of(name, counted), counted.apart and target == "otlp"):
            for body in form_of(target).bodies(rebuild(data, target, declared), True):
                yield Beside(ledger.name, USAGE, target, body, why, choice[2] or "")


def _crashes() -> Iterator[Beside]:
    """Return every noted crash as its report."""
    from profiler.config.paths import crashes_path
    from profiler.storage.crash_notes import crashes_in

    for noted in crashes_in(crashes_path())[0]:
        yield from _alone("a noted crash", _crash_of(noted))


def _crash_of(noted: dict[str, Any]) -> Iterator[Beside]:
    from profiler.config.resolve import resolve
    from profiler.embedding.crash import has_sentry
    from profiler.embedding.crash_delivery import crash_body

    resolved = resolve()
    reports = resolved.values["crash_reports"].value is True and resolved.may_hand_over
    off = "it was noted while nothing was to be reported" if reports else "crash_reports is off"
    if not resolved.may_hand_over:
        off = resolved.why_off
    target, where = noted.get("target") or ["sentry" if "dsn" in noted and has_sentry() else "otlp-logs", ""]
    body = crash_body(noted, target, previewed=True)
    yield Beside(str(noted["declared"]["app"]), CRASHES, target, body, "" if where else off, str(where))


def _of_body(target: str, body: bytes) -> dict[str, Any]:
    from exporters import form_of

    return {
        "bytes": len(body),
        "sha256": hashlib.sha256(body).hexdigest(),
        "body": base64.b64encode(body).decode("ascii"),
        "content": form_of(target).readable(body),
    }


def _where(resolved: Any) -> tuple[str, str]:
    """Return the destination, and the reason why nothing goes there, both in words."""
    from exporters import why_not
    from profiler.errors import SettingsError
    from profiler.sending.destination import destination, in_words

    try:
        where = in_words(resolved)
        if resolved.why_off:
            return where, resolved.why_off
        chosen = destination(resolved)
        return where, why_not(chosen["target"], chosen["protocol"])
    except SettingsError as error:
        return "", str(error).rstrip(".")


def _as_data(run: str, target: str, bodies: list[bytes], where: str, why_off: str) -> dict[str, Any]:
    from exporters.schema import request_headers

    rows = [_of_body(target, body) for body in bodies]
    return {
        "run": run,
        "may_leave": not why_off,
        **({"why_not": why_off} if why_off else {}),
        "destination": where,
        "headers": request_headers(target),
        **(rows[0] if rows else {}),
        **({"more": rows[1:]} if rows[1:] else {}),
    }


def _check(resolved: Any, bodies: list[bytes]) -> None:
    """Send a body to the validation server, on the user's explicit request. The log of sent bodies notes it."""
    from profiler.errors import SettingsError

    if resolved.settings.exporter != "ga" or not resolved.may_send:
        reason = resolved.why_off or f"exporter is {resolved.settings.exporter}"
        raise SettingsError(f"--check is for exporter=ga, and asks Google's validation server; here, {reason}.")
    from exporters import Config, ExporterError
    from exporters.ga import check, checked_body, validation_of  # it binds a socket: only once there is consent
    from profiler.sending.destination import destination
    from profiler.sending.dispatch import record

    try:
        config = validation_of(Config(**destination(resolved)))
    except ExporterError as error:
        raise SettingsError(str(error)) from error
    failed = False
    for body in map(checked_body, bodies):
        noted = record(f"{config.where} (validation)", body)
        answer, messages = check(config, body)
        noted(answer.text)
        failed = failed or bool(messages) or answer.verdict != "taken"
        say(f"{len(json.loads(body)['events'])} events, {len(body):,} bytes: {answer.text}, {len(messages)} messages")
        for message in messages:
            say(f"    {json.dumps(message)}")
    if failed:
        raise typer.Exit(INVALID)
