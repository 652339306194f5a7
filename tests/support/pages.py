"""The pages that users read, and their code: what each block of Python and each command line does when it is run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, SkipParser

from support.processes import epochmeter

ROOT = Path(__file__).parents[2]
PAGES = (
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "skills/epochmeter/SKILL.md")),
    *sorted((ROOT / "docs").glob("*.md")),
)
NOT_RUN = ("text", "sbatch", "sql")  # drawings and outputs; Slurm; queries, which tests of their engines run
LANGUAGES = ("python", "bash", "yaml", *NOT_RUN)
OLDER = "3f2a"  # stands for the id of the second newest run
SQL = "SELECT count(*) AS n FROM fleet_epoch"
EXTRAS = re.compile(r"^pip install (?:'(?:epochmeter|\.)\[(?P<extras>[a-z,]+)\]'|\.|-e \.)$")
TRAIN = ROOT / "examples" / "first" / "train.py"


def run_lines(text: str) -> None:
    """Run a block of shell commands, one after another, in the working folder."""
    for line in re.sub(r"\\\n", " ", text).splitlines():
        command = line.strip()
        if command and not command.startswith("#"):
            _run(command)


def _run(command: str) -> None:
    command = re.sub(r"\s+#.*$", "", command)
    if command.startswith("pip install"):
        _check_install(command)
    elif command.startswith("make "):
        assert f"\n{command[5:]}:" in (ROOT / "Makefile").read_text("utf-8"), f"the Makefile has no target {command[5:]!r}"
    else:
        shell = _with_real_names(command)
        path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
        done = subprocess.run(shell, shell=True, capture_output=True, text=True, env={**os.environ, "PATH": path}, timeout=100)  # noqa: S602
        cannot_tell = "--fail-on" in shell and "differ too much" in done.stderr  # beside other tests, short runs do
        assert done.returncode == 0 or cannot_tell, f"{shell}\nexit code {done.returncode}\n{done.stdout}\n{done.stderr}"


def _check_install(command: str) -> None:
    """Check that there are the extras that a command installs; all of them are installed here."""
    found = EXTRAS.match(command)
    assert found, command
    declared = (ROOT / "pyproject.toml").read_text("utf-8")
    for extra in (found["extras"] or "").split(","):
        assert not extra or f"\n{extra} = [" in declared, f"there is no extra {extra!r}"


def _with_real_names(command: str) -> str:
    """Put real runs, files and folders in the place of those that a page makes up."""
    if OLDER in shlex.split(command):
        newest = epochmeter("runs", "--json").json
        command = command.replace(OLDER, newest[min(1, len(newest) - 1)]["id"])
    return command.replace("/shared/runs", f"{os.environ['EPOCHMETER_HOME']}/runs")


def prepare(folder: Path) -> None:
    """Make the files that pages speak of: a user's script, a package, a query, and the examples of the repository."""
    script = TRAIN.read_text("utf-8").replace("range(8)", "range(3)")
    (folder / "train.py").write_text(script)
    (folder / "package").mkdir()
    (folder / "package" / "train.py").write_text(script)
    (folder / "mine.sql").write_text(SQL)
    (folder / "mypackage.py").write_text("__version__ = '1.2.3'\n")
    for name in ("examples", "tests", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)


def blocks(python: Callable[[Example], Any]) -> Sybil:
    """Return the parser of a page's blocks, which runs those of Python so."""
    return Sybil(
        [
            SkipParser(),
            CodeBlockParser("python", python),
            CodeBlockParser("bash", lambda example: run_lines(example.parsed)),
            CodeBlockParser("yaml", lambda example: yaml.safe_load(example.parsed) and None),
        ]
    )
