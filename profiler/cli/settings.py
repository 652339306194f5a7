"""``epochmeter settings``: show, change and reset the settings, each with its source."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from profiler.cli.options import AsJson
from profiler.cli.output import complain
from profiler.config.schema import displayed
from profiler.errors import SettingsError
from profiler.records.plain_text import printable


def settings(
    changes: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]... | reset", help="What to change.")] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Show each value's source and meaning.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the settings, change them (sync=false), or restore the defaults (reset).

    Example: epochmeter settings exporter=otlp otlp_endpoint=http://localhost:4318
    """
    from profiler.config import file as config_file
    from profiler.config.resolve import resolve

    if changes == ["reset"]:
        config_file.reset()
    elif changes:
        config_file.update(dict(_split(change) for change in changes))
    resolved = resolve()
    for problem in resolved.problems:
        complain(problem)
    if changes == ["reset"] and resolved.values["sync"].value is False and resolved.values["sync"].source == "file":
        complain("sync stays false: an explicit off outlasts a reset; epochmeter settings sync=true ends it")
    if as_json:
        typer.echo(json.dumps(_as_data(resolved.values, explain), indent=2))
    else:
        _print(resolved, explain)
    if changes and any(change.startswith(("exporter=", "otlp_")) for change in changes):
        _say_if_unreachable(resolved)
    if any(problem.startswith("EPOCHMETER_") for problem in resolved.problems):
        raise typer.Exit(2)


def _say_if_unreachable(resolved: Any) -> None:
    """Say at once that nobody listens at the address that was just chosen. The choice stands."""
    from profiler.sending.destination import in_words
    from profiler.sending.reach import why_unreachable

    if why := why_unreachable(resolved):
        complain(
            f"nobody listens at {in_words(resolved)} now: {why}. Runs keep their measurements on this machine, and send them "
            "when a collector is there. docs/pipeline.md shows how to start one"
        )


def _split(change: str) -> tuple[str, str]:
    key, equals, value = change.partition("=")
    if not equals:
        raise SettingsError(f"settings are changed as KEY=VALUE, such as sync=false; {change!r} has no '='.")
    return key.strip(), value.strip()


def _as_data(values: dict[str, Any], explain: bool) -> dict[str, Any]:
    if not explain:
        return {key: displayed(key, value.value) for key, value in values.items()}
    return {key: {"value": displayed(key, v.value), "source": v.source, "detail": v.detail} for key, v in values.items()}


def _print(resolved: Any, explain: bool) -> None:
    from profiler.config.paths import settings_path
    from profiler.config.schema import HELP

    table = Table("setting", "value", *(("from", "meaning") if explain else ()), box=box.SIMPLE_HEAD, show_edge=False)
    for key, value in resolved.values.items():
        source = f"{value.source} ({value.detail})" if value.detail else value.source
        table.add_row(key, json.dumps(displayed(key, value.value)), *((source, HELP[key]) if explain else ()))
    console = Console()
    console.print(table)
    if explain:
        console.print(f"\nfile: {printable(settings_path())}", highlight=False, soft_wrap=True)
        if resolved.decided is not None:
            console.print(f"the destination was chosen: {printable(resolved.decided)}", highlight=False, soft_wrap=True)
