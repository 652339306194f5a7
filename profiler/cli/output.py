"""Text of the commands on stdout and stderr: nothing in it can steer the terminal."""

from __future__ import annotations

import typer

from profiler.records.plain_text import printable, printable_lines


def say(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Write lines to stdout, or to stderr with ``err``. What stands in a line is made printable; its end is ours."""
    typer.echo(printable_lines(text), err=err, nl=nl)


def complain(what: object) -> None:
    """Write one line about a fault to stderr."""
    typer.echo(f"epochmeter: {printable(what)}", err=True)
