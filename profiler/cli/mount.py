"""Our ``settings`` and ``telemetry`` commands as sub-commands of a package that embeds us, each in one line.

mount.settings(app)
mount.telemetry(app, telemetry)
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import typer

from profiler.cli.options import AsJson
from profiler.cli.output import say
from profiler.cli.telemetry import COMMANDS
from profiler.cli.telemetry.flush import Adopt, Again
from profiler.cli.telemetry.flush import flush as deliver
from profiler.cli.telemetry.preview import show_own
from profiler.cli.telemetry.schema import Markdown, show
from profiler.embedding.telemetry import Telemetry
from profiler.errors import ArgumentTypeError, ProfilerError
from profiler.records.plain_text import printable


def settings(app: typer.Typer) -> None:
    """Mount ``settings``: show, change and reset the settings of the whole machine.

    Raises:
        ArgumentTypeError: it is no Typer app.
    """
    _check(app)
    from profiler.cli.settings import settings as command

    app.command("settings")(_with_short_errors(command))


def telemetry(app: typer.Typer, of: Telemetry) -> None:
    """Mount ``telemetry``, with ``schema``, ``preview``, ``log``, ``flush`` and ``verify``.

    The first two show the package's own data.

    Args:
        app: the package's Typer app.
        of: the package's `Telemetry`.

    Raises:
        ArgumentTypeError: it is no Typer app.
    """
    _check(app)
    group = typer.Typer(help="Show all data that can leave, would leave or has left this machine.", no_args_is_help=True)
    own: dict[str, Callable[..., Any]] = {"schema": _schema(of), "preview": _preview(of), "flush": _flush(of)}
    for name in COMMANDS:
        command = own.get(name) or getattr(importlib.import_module(f"profiler.cli.telemetry.{name}"), name)
        group.command(name)(_with_short_errors(command))
    app.add_typer(group, name="telemetry")


def _check(app: Any) -> None:
    if not isinstance(app, typer.Typer):
        raise ArgumentTypeError(
            f"our commands are mounted in a Typer app, not in {app!r}; 'epochmeter settings' shows the same"
        )


def _with_short_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Show a user's error in one line, as in our own program."""

    @functools.wraps(command)
    def run(*arguments: Any, **more: Any) -> Any:
        try:
            return command(*arguments, **more)
        except ProfilerError as error:
            say(f"error: {printable(error)}", err=True)
            raise typer.Exit(2) from None

    return run


def _schema(of: Telemetry) -> Callable[..., None]:
    def schema(as_json: AsJson = False, markdown: Markdown = False) -> None:
        """List every field that can leave this machine, its values, and its purpose."""
        show(as_json, markdown, of.declared())

    return schema


def _preview(of: Telemetry) -> Callable[..., None]:
    def preview(as_json: AsJson = False) -> None:
        """Show the exact bytes of usage counters and crash reports. Nothing is sent."""
        show_own(of.declared()["app"], as_json)

    return preview


def _flush(of: Telemetry) -> Callable[..., None]:
    def flush(adopt: Adopt = False, again: Again = False, as_json: AsJson = False) -> None:
        """Deliver all waiting payloads now. Exit code 3: some remain."""
        of.close()
        deliver(adopt, again, as_json)

    return flush
