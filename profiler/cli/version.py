"""``epochmeter version``: the versions that a report of a fault should name."""

from __future__ import annotations

import contextlib
import platform
from importlib import metadata

import profiler
from profiler.cli.options import AsJson
from profiler.cli.output import say, say_json


def version(as_json: AsJson = False) -> None:
    """Show the version, and those of Python and torch.

    Example: epochmeter version
    """
    found = {"epochmeter": profiler.__version__, "python": platform.python_version()}
    with contextlib.suppress(metadata.PackageNotFoundError):
        found["torch"] = metadata.version("torch")
    if as_json:
        say_json(found)
    else:
        say(", ".join(f"{name} {number}" for name, number in found.items()))
