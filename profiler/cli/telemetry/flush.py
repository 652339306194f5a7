"""``epochmeter telemetry flush``: deliver the entries of the outbox now."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from profiler.cli.options import AsJson
from profiler.cli.output import complain, say, say_json

REMAIN = 3


OF_OTHERS = "Also send payloads made for another destination, or by another version, to the one chosen now."
Adopt = Annotated[bool, typer.Option("--adopt", help=OF_OTHERS)]
Again = Annotated[bool, typer.Option("--again", help="Also send payloads that a destination has refused.")]


def flush(adopt: Adopt = False, again: Again = False, as_json: AsJson = False) -> None:
    """Deliver all waiting payloads now. Exit code 3: some remain.

    Example: epochmeter telemetry flush --again
    """
    from profiler.embedding.usage_delivery import declarations_known, export_waiting
    from profiler.errors import SettingsError
    from profiler.sending.flush import flush as deliver

    try:
        notes = export_waiting()
        done = deliver(adopt=adopt, again=again, declared=declarations_known())
    except ValueError as error:
        raise SettingsError(str(error)) from error
    except OSError as error:
        raise SettingsError(f"the outbox cannot be used: {error.strerror}. Make its folder writable, and try again.") from error
    if as_json:
        say_json(asdict(done))
    else:
        say(f"{done.delivered} delivered, {done.aside} refused and set aside, {done.left} still waiting")
    for reason in (*notes, *done.reasons):
        complain(reason)
    if done.aside or done.refused_before:
        refused = done.aside + done.refused_before
        say(f"epochmeter: {refused} set aside: 'epochmeter doctor' says why, --again tries once more", err=True)
    if done.left or done.aside:
        raise typer.Exit(REMAIN)
