"""``epochmeter telemetry log``: every payload that this machine sent and still keeps a copy of."""

from __future__ import annotations

import base64
from typing import Annotated, Any

import typer

from profiler.cli.output import say, say_json
from profiler.errors import RunNotFoundError
from profiler.records.plain_text import printable

UNKNOWN = "the answer is not known"


def log(
    entry: Annotated[str | None, typer.Argument(help="The id of one entry, or its beginning: shows its content.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, on stdout alone, with the verbatim bodies.")] = False,
) -> None:
    """List the payloads this machine sent, each with its time, destination, size and answer.

    Example: epochmeter telemetry log --json
    """
    from exporters.sentlog import read
    from profiler.config.folder import Folder
    from profiler.config.paths import sent_path

    sent = [one for one in read(Folder(sent_path())) if entry is None or one.id.startswith(entry.lower())]
    if entry is not None and not sent:
        raise RunNotFoundError(f"nothing with the id {entry!r} was sent. 'epochmeter telemetry log' lists all entries.")
    if as_json:
        say_json([_as_data(one) for one in sent])
        return
    if not sent:
        say("nothing was sent from this machine", err=True)
        return
    for one in sent:
        say(printable(f"{one.id}  {one.time}  {len(one.body):,} bytes to {one.destination}"))
        say(f"    SHA-256 {one.sha256}\n    {printable(one.answer or UNKNOWN)}")
        if entry is not None:
            say(_content(one.body))


def _content(body: bytes) -> str:
    from profiler.cli.telemetry.preview import shown

    try:
        return shown(_target(body), body)
    except Exception as error:  # the file was changed by somebody
        return f"its content cannot be shown: {type(error).__name__}"


def _target(body: bytes) -> str:
    """Return the kind of a body: Google's events and Sentry's envelopes are JSON, and OTLP never begins with a brace."""
    if body.startswith(b"{"):
        return "sentry" if body.startswith(b'{"event_id"') else "ga"
    return "otlp-logs" if b"epochmeter.crash" in body else "otlp"


def _as_data(one: Any) -> dict[str, Any]:
    from exporters import form_of

    try:
        content = form_of(_target(one.body)).readable(one.body)
    except Exception:  # the file was changed by somebody
        content = None
    answer = {} if one.answer is None else {"answer": one.answer}
    return {
        "id": one.id,
        "time": one.time,
        "destination": one.destination,
        **answer,
        "bytes": len(one.body),
        "sha256": one.sha256,
        "body": base64.b64encode(one.body).decode("ascii"),
        "content": content,
    }
