"""``epochmeter version``: the versions that a report of a fault should name."""

from __future__ import annotations

import contextlib
import json
import platform
from importlib import metadata

import typer

import profiler
from profiler.cli.options import AsJson
from profiler.cli.output import say


def version(as_json: AsJson = False) -> None:
    """Show the version, and those of Python and torch.

    Example: epochmeter version
    """
    found = {"schema": 1, "epochmeter": profiler.__version__, "python": platform.python_version()}
    with contextlib.suppress(metadata.PackageNotFoundError):
        found["torch"] = metadata.version("torch")
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        say(", ".join(f"{name} {number}" for name, number in found.items() if name != "schema"))
