"""``epochmeter telemetry schema``: every field that can leave, how exactly it is told, and why."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def schema(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, on stdout alone.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="As the reference page, docs/telemetry.md.")] = False,
) -> None:
    """List every field that can leave this machine, its values, and its purpose."""
    from exporters.schema import page, rule_in_words
    from exporters.schema import schema as the_list

    if markdown:
        typer.echo(page(), nl=False)
        return
    printed = the_list()
    if as_json:
        typer.echo(json.dumps(printed, indent=2))
        return
    for entry in printed["metrics"]:
        typer.echo(f"{entry['name']}  [{entry['unit']}]  {entry['kind']}: {entry['value']}\n    {entry['purpose']}")
        for name, rule in entry["attributes"].items():
            typer.echo(f"    {name}: {rule_in_words(rule)}")
    typer.echo("\nfacts about the run and its machine:")
    for entry in printed["resource"]:
        typer.echo(f"{entry['name']}: {rule_in_words(entry)}\n    {entry['purpose']}")
    typer.echo("\nheaders of the request:")
    for name, value in printed["request"]["headers"].items():
        typer.echo(f"{name}: {value}")
    typer.echo("\nas events for Google Analytics (metric: its cells):")
    for word, cells in printed["ga"]["metrics"].items():
        typer.echo(f"{word}: {', '.join(cells)}")
