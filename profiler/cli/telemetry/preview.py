"""``epochmeter telemetry preview``: the exact bytes that a run sends, made from its log, with nothing sent."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Annotated, Any

import typer


def preview(
    run: Annotated[str, typer.Argument(help="A run's id, the beginning of one, or 'last'.")] = "last",
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, on stdout alone.")] = False,
    raw: Annotated[bool, typer.Option("--bytes", help="The bytes themselves, on stdout: protobuf, not compressed.")] = False,
) -> None:
    """Show the exact bytes that a run sends at its end. Nothing is sent."""
    from exporters import why_not
    from profiler.preferences import destination, resolve, runs_path
    from profiler.report.payload import rendered
    from profiler.runlog import find, load

    recorded = load(find(runs_path(), run))
    body = payload(recorded)
    if raw:
        typer.get_binary_stream("stdout").write(body)
        return
    resolved = resolve()
    where = destination(resolved.settings)
    why_off = resolved.why_off or why_not(resolved.settings.exporter, resolved.settings.otlp_protocol)
    if as_json:
        typer.echo(json.dumps(_as_data(recorded.id, body, where, why_off), indent=2))
        return
    typer.echo(f"run {recorded.id}: {len(body):,} bytes, SHA-256 {hashlib.sha256(body).hexdigest()}")
    typer.echo(f"nothing leaves this machine: {why_off}; this is what would" if why_off else f"to {where}")
    typer.echo(rendered(_content(body)))


def payload(recorded: Any) -> bytes:
    """The body of the request with which this run ends."""
    from exporters.gate import rebuild
    from exporters.payload import encode
    from profiler.otel import run_data

    return encode(rebuild(run_data(recorded, recorded.started_unix_ns + recorded.duration_ns)))


def _content(body: bytes) -> dict[str, Any]:
    from exporters.payload import readable

    return readable(body)


def _as_data(run: str, body: bytes, where: str, why_off: str) -> dict[str, Any]:
    from exporters.allowlist import HEADERS

    return {
        "run": run,
        "may_leave": not why_off,
        **({"why_not": why_off} if why_off else {}),
        "destination": where,
        "headers": dict(HEADERS),
        "bytes": len(body),
        "sha256": hashlib.sha256(body).hexdigest(),
        "body": base64.b64encode(body).decode("ascii"),
        "content": _content(body),
    }
