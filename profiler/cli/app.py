"""The commands of ``epochmeter``, put together. A command that is named first is loaded alone."""

from __future__ import annotations

import importlib
import sys
from typing import Annotated

import typer

import profiler
from profiler.cli import COMMANDS
from profiler.cli.output import say

app = typer.Typer(
    name="epochmeter",
    help="Where did training, validation and inference time go, and what held the run back?\n\n"
    "First: epochmeter demo, which shows a report. Then: epochmeter run train.py, with a script of yours.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for _name in COMMANDS if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS else sys.argv[1:2]:  # what `run` starts is waiting
    _module = importlib.import_module(f"profiler.cli.{_name}")
    _command = getattr(_module, _name)
    if isinstance(_command, typer.Typer):
        app.add_typer(_command, name=_name)
    else:
        app.command(_name, context_settings=getattr(_module, "CONTEXT", None))(_command)


def _version(asked: bool) -> None:
    if asked:
        say(f"epochmeter {profiler.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    pass
