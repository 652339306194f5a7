"""``epochmeter telemetry preview``: the exact bytes that a run sends, made from its log, with nothing sent."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Annotated, Any

import typer

INVALID = 1


def preview(
    run: Annotated[str, typer.Argument(help="A run's id, the beginning of one, or 'last'.")] = "last",
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, on stdout alone.")] = False,
    raw: Annotated[bool, typer.Option("--bytes", help="The bytes themselves, on stdout, not compressed.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Google Analytics: asks its validation server, which keeps nothing, about them.")
    ] = False,
) -> None:
    """Show the exact bytes that a run sends at its end. Nothing is sent, except with --check."""
    from profiler.preferences import resolve, runs_path
    from profiler.runlog import find, load

    resolved = resolve()
    recorded = load(find(runs_path(), run))
    target = resolved.settings.exporter if resolved.may_send else "otlp"
    bodies = payload(recorded, target, resolved.settings.usage)
    if check:
        _check(resolved, bodies)
        return
    if raw:
        typer.get_binary_stream("stdout").write(b"\n".join(bodies))
        return
    where, why_off = _where(resolved)
    if as_json:
        typer.echo(json.dumps(_as_data(recorded.id, target, bodies, where, why_off), indent=2))
        return
    if not bodies:
        typer.echo(f"run {recorded.id} measured nothing that {target} is told of: it sends nothing", err=True)
    for body in bodies:
        typer.echo(f"run {recorded.id}: {len(body):,} bytes, SHA-256 {hashlib.sha256(body).hexdigest()}")
        typer.echo(f"nothing leaves this machine: {why_off}; this is what would" if why_off else f"to {where}")
        typer.echo(shown(target, body))


def payload(recorded: Any, target: str, usage: bool) -> list[bytes]:
    """The bodies of the requests with which this run ends. Those for Google have random ids: others each time."""
    from exporters import form_of
    from exporters.gate import rebuild
    from profiler.otel import run_data

    data = rebuild(run_data(recorded, recorded.started_unix_ns + recorded.duration_ns), target)
    found: list[bytes] = form_of(target).bodies(data, usage)
    return found


def shown(target: str, body: bytes) -> str:
    """A body for people, with nothing left out."""
    from exporters import form_of
    from profiler.report.payload import rendered

    content = form_of(target).readable(body)
    return json.dumps(content, indent=2) if target == "ga" else rendered(content)


def _where(resolved: Any) -> tuple[str, str]:
    """Where it would go, and why it would not, both in words."""
    from exporters import why_not
    from profiler.destinations import destination, in_words
    from profiler.errors import SettingsError

    try:
        where = in_words(resolved)
        if resolved.why_off:
            return where, resolved.why_off
        chosen = destination(resolved)
        return where, why_not(chosen["target"], chosen["protocol"])
    except SettingsError as error:
        return "", str(error).rstrip(".")


def _as_data(run: str, target: str, bodies: list[bytes], where: str, why_off: str) -> dict[str, Any]:
    from exporters import form_of
    from exporters.schema import request_headers

    told = [
        {
            "bytes": len(body),
            "sha256": hashlib.sha256(body).hexdigest(),
            "body": base64.b64encode(body).decode("ascii"),
            "content": form_of(target).readable(body),
        }
        for body in bodies
    ]
    return {
        "run": run,
        "may_leave": not why_off,
        **({"why_not": why_off} if why_off else {}),
        "destination": where,
        "headers": request_headers(target),
        **(told[0] if told else {}),
        **({"more": told[1:]} if told[1:] else {}),
    }


def _check(resolved: Any, bodies: list[bytes]) -> None:
    """On the user's explicit word, and noted like anything that leaves."""
    from exporters import Config, ExporterError
    from exporters.ga import check, checked_body, validation_of
    from profiler.destinations import destination, without_credentials
    from profiler.errors import SettingsError
    from profiler.sending import record

    if resolved.settings.exporter != "ga" or not resolved.may_send:
        reason = resolved.why_off or f"exporter is {resolved.settings.exporter}"
        raise SettingsError(f"--check is for exporter=ga, and asks Google's validation server; here, {reason}.")
    try:
        config = validation_of(Config(**destination(resolved)))
    except ExporterError as error:
        raise SettingsError(str(error)) from error
    failed = False
    for body in map(checked_body, bodies):
        noted = record(f"{without_credentials(config.address)} (validation)", body)
        answer, messages = check(config, body)
        noted(answer.text)
        failed = failed or bool(messages) or answer.verdict != "taken"
        typer.echo(f"{len(json.loads(body)['events'])} events, {len(body):,} bytes: {answer.text}, {len(messages)} messages")
        for message in messages:
            typer.echo(f"    {json.dumps(message)}")
    if failed:
        raise typer.Exit(INVALID)
