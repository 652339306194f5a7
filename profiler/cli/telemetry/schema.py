"""``epochmeter telemetry schema``: every field that can leave, its precision and its purpose."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from profiler.cli.options import AsJson
from profiler.cli.output import say, say_json

Markdown = Annotated[bool, typer.Option("--markdown", help="As a page: docs/telemetry.md, or a section of a package's README.")]

Entropy = Annotated[bool, typer.Option("--entropy", help="How many bits each field, and each payload, tells about a machine.")]


def schema(as_json: AsJson = False, markdown: Markdown = False, entropy: Entropy = False) -> None:
    """List every field that can leave this machine, its values, and its purpose.

    Example: epochmeter telemetry schema --json
    """
    if entropy:
        _show_entropy(as_json)
        return
    show(as_json, markdown)


def _show_entropy(as_json: bool) -> None:
    """Show how many bits each field, and a payload for each destination, gives away about one machine at most."""
    from dataclasses import asdict

    from exporters.entropy import GA_GOAL, budget, facts_of, request_bits

    whole, requests = budget(), request_bits()
    if as_json:
        fields = {target: [asdict(field) for field in facts_of(target)] for target in ("otlp", "prometheus", "ga", "crash")}
        say_json({"payload": whole, "ga_goal": GA_GOAL, "ga_requests": requests, "fields": fields})
        return
    say("bits that one payload tells about a machine at most, its measurements left aside:")
    for target, bits in whole.items():
        one = {"ga": f"one request (goal: {GA_GOAL:g})", "author": "one fact apart from the others, to a package's author"}
        of = one.get(target, "all facts of a payload together")
        say(f"  {target:12} {bits:5.1f}  {of}")
    say("\nfacts, as they go to a collector:")
    for field in facts_of("otlp"):
        say(f"  {field.bits:5.1f}  {field.name}: {field.words} values; {field.source}")
    say("\nrequests to Google Analytics, each with one cell and a client id of its own:")
    for metric, bits in requests.items():
        say(f"  {bits:5.1f}  {metric}")


def show(as_json: bool, markdown: bool, declaration: Mapping[str, Any] | None = None) -> None:
    """Show the list, with a package's declarations if a package asks."""
    from exporters.rules import declared_from
    from exporters.schema import page, rule_in_words, section
    from exporters.schema import schema as the_list

    declared = None if declaration is None else declared_from(declaration)
    if markdown:
        say(page() if declared is None else section(declared), nl=False)
        return
    printed = the_list(declared)
    if as_json:
        printed["own_words"]["in_force"] = _own_words()
        say_json(printed)
        return
    for entry in printed["metrics"]:
        say(f"{entry['name']}  [{entry['unit']}]  {entry['kind']}: {entry['value']}\n    {entry['purpose']}")
        for name, rule in entry["attributes"].items():
            say(f"    {name}: {rule_in_words(rule)}")
    say("\nfacts about the run and its machine:")
    for entry in printed["resource"]:
        say(f"{entry['name']}: {rule_in_words(entry)}\n    {entry['purpose']}")
    _show_own_words()
    say("\ncrash reports of packages that embed Epochmeter, only where crash_reports is on:")
    for entry in printed["crash"]["parts"]:
        say(f"{entry['name']}: {rule_in_words(entry)}\n    {entry['purpose']}")
    say("\nheaders of the request:")
    for name, value in printed["request"]["headers"].items():
        say(f"{name}: {value}")
    say("\nas events for Google Analytics (metric: its cells):")
    for word, cells in printed["ga"]["metrics"].items():
        say(f"{word}: {', '.join(cells)}")


def _own_words() -> dict[str, str]:
    from profiler.config.own_words import own_words
    from profiler.config.resolve import resolve

    return own_words(resolve())


def _show_own_words() -> None:
    say("\nyour own words for a run, for your own collector or Prometheus alone:")
    words = _own_words()
    for name, value in words.items():
        say(f"{name}: {value}")
    if not words:
        say("none; the settings service_name, labels and otlp_resource set them")
