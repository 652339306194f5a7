"""``epochmeter telemetry``: the data that can leave, would leave, has left or waits, and the proof that off is off."""

from __future__ import annotations

import importlib

import typer

COMMANDS = ("schema", "preview", "log", "flush", "verify")  # each a module here with a function of the same name

telemetry = typer.Typer(
    help="Show all data that can leave, would leave or has left this machine, and prove that off is off.\n\n"
    "Example: epochmeter telemetry preview",
    no_args_is_help=True,
)
for _name in COMMANDS:
    telemetry.command(_name)(getattr(importlib.import_module(f"profiler.cli.telemetry.{_name}"), _name))
