"""``epochmeter run``: an unchanged training script, measured."""

from __future__ import annotations

import shutil
import subprocess  # the program that was asked for; where the system can, it takes this process's place
import sys
from pathlib import Path
from typing import Annotated

import typer

from profiler.errors import ArgumentValueError

CONTEXT = {"allow_interspersed_args": False, "ignore_unknown_options": False}  # what follows SCRIPT is the script's
SCRIPTS = (".py", ".pyw", ".pyz", ".pyc")
SHUT = ("-E", "-I", "-S")  # with these flags Python would not look where we are


def run(
    target: Annotated[str, typer.Argument(metavar="SCRIPT", help="A Python script, or after -- a launcher, such as torchrun.")],
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[ARGS]...", help="Its own arguments.")] = None,
    module: Annotated[bool, typer.Option("-m", help="SCRIPT is a module's name, as for python -m.")] = False,
    name: Annotated[str | None, typer.Option("--name", help="What to call the run; by default as the script.")] = None,
    live: Annotated[bool, typer.Option("--live", help="Write a line on stderr every ten seconds or so.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no report at the end.")] = False,
    json: Annotated[Path | None, typer.Option("--json", help="At the end, write the report as JSON into this file.")] = None,
) -> None:
    """Run a training script unchanged and show where its time went. Its output, exit code and signals are its own.

    Example: epochmeter run train.py --lr 0.1, or epochmeter run -- torchrun --nproc-per-node 2 train.py
    """
    import os

    from profiler.config.environment import environment_for_run
    from profiler.config.resolve import resolve

    if name is not None:
        from profiler.session.profiler import Profiler

        Profiler(name)  # says what is wrong with it
    resolve()
    command = python_command(target, arguments or [], module)
    if json is not None and not json.absolute().parent.is_dir():
        raise ArgumentValueError(f"--json {json}: there is no folder {json.absolute().parent}")
    report = None if json is None else str(json.absolute())
    environment = environment_for_run({"name": name, "quiet": quiet, "live": live, "json": report})
    if sys.platform == "win32":  # where a process cannot take another's place
        raise typer.Exit(subprocess.run(command, env=environment, check=False).returncode)  # noqa: S603
    sys.stdout.flush()
    os.execvpe(command[0], command, environment)  # noqa: S606


def python_command(target: str, arguments: list[str], module: bool) -> list[str]:
    """Return the program to start: Python with the script, or the launcher itself.

    Raises:
        ArgumentValueError: there is no such script or program.
    """
    python = [sys.executable, *(flag for flag in subprocess._args_from_interpreter_flags() if flag not in SHUT)]  # type: ignore[attr-defined]
    path = Path(target)
    if module:
        return [*python, "-m", target, *arguments]
    if path.is_dir() or (path.exists() and path.suffix.lower() in SCRIPTS):
        return [*python, target, *arguments]
    program = shutil.which(target)
    if program is not None:
        return [program, *arguments]
    if path.exists():
        return [*python, target, *arguments]
    raise ArgumentValueError(f"there is no script {target!r} here, and no program of that name on the PATH.")
