"""Text of the commands on stdout and stderr: nothing in it can steer the terminal."""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer

from profiler.errors import ProfilerError
from profiler.records.plain_text import printable, printable_lines

SCHEMA = 1  # of all JSON on stdout: docs/commands.md has the shapes, to which keys are only added
PLAINER = "epochmeter.plainer"  # what is done about a character that a stream does not have
PLAIN = {  # what our reports, and the pages of --help, are made of
    **dict.fromkeys("█▌", "#"),
    **dict.fromkeys("─━╌═", "-"),
    **dict.fromkeys("╭╮╰╯┌┐└┘├┤┬┴┼", "+"),
    "│": "|",
    "µ": "u",
    "…": "...",
    "±": "+-",
    "°": "deg ",
}


def plainer(error: UnicodeError) -> tuple[str, int]:
    """Return the plain letters that stand for a character of ours, or the number of one of the user's."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(PLAIN.get(letter) or letter.encode("ascii", "backslashreplace").decode() for letter in missing), error.end


codecs.register_error(PLAINER, plainer)


def say(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Write lines to stdout, or to stderr with ``err``. Each line is made printable; its end is ours."""
    typer.echo(printable_lines(text), err=err, nl=nl)


def say_json(data: dict[str, Any] | list[Any], default: Callable[[Any], Any] | None = None) -> None:
    """Write a document on stdout; an object says the version of its shape."""
    if isinstance(data, dict):
        data = {"schema": SCHEMA, **data}
    typer.echo(json.dumps(data, indent=2, default=default))


def complain(what: object) -> None:
    """Write one line about a fault to stderr."""
    typer.echo(f"epochmeter: {printable(what)}", err=True)


def prepare_streams() -> None:
    """Let stdout and stderr replace each character that they do not have by plain letters, and show nothing if closed."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115  # until the process ends
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=PLAINER)


@contextlib.contextmanager
def written() -> Iterator[None]:
    """Report output that cannot be written, on a full disk for example. Nobody else may swallow an OSError of a stream.

    Raises:
        ProfilerError: it cannot.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough
        _end_stdout()
        sys.exit(1)
    except OSError as error:
        _end_stdout()
        what = "the output cannot be written" if error.filename is None else "a file cannot be used"
        raise ProfilerError(f"{what}: {error.strerror or type(error).__name__}") from None


def _end_stdout() -> None:
    """Drop the rest of the output: the interpreter flushes once more when it ends, and would complain."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
