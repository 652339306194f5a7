"""Put what commands print into the pages that show it, and take the README's picture: ``make outputs``, on a quiet machine.

A page marks the place: ``<!-- output: NAME -->`` to ``<!-- end of output: NAME -->``.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from support.browser import browse

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/quickstart.md", "docs/report.md")
PLACE = r"(<!-- output: {name} -->\n)(.*?)(<!-- end of output: {name} -->)"
PICTURE = ROOT / "docs" / "images" / "report.png"


class Output(NamedTuple):
    """A command whose report is shown, and the part of it that is shown."""

    arguments: tuple[str, ...]
    part: Callable[[str], str]


def _head(report: str) -> str:
    """Return a report's lines up to the first table, without the one that names the run."""
    return report.partition("\n\n")[0].partition("\n")[2]


OUTPUTS = {
    "run": Output(("examples/first/train.py",), _head),
    "logging": Output(("tests/support/known_loops.py", "logging"), str.strip),
}


def shown(name: str, home: Path) -> str:
    """Return what a page shows of a command, from a run of now."""
    output = OUTPUTS[name]
    environment = {**os.environ, "EPOCHMETER_HOME": str(home), "COLUMNS": "100"}
    command = [sys.executable, "-m", "epochmeter"]
    with tempfile.TemporaryDirectory() as folder:  # where a loop writes its files
        script, *more = output.arguments
        run = [*command, "run", "--quiet", str(ROOT / script), *more]
        subprocess.run(run, env=environment, cwd=folder, check=True, capture_output=True)
    done = subprocess.run([*command, "report"], env=environment, check=True, capture_output=True, text=True)
    return output.part(done.stdout)


def standing(name: str, page: Path) -> str | None:
    """Return what a page shows of a command now, or None if it shows nothing of it."""
    found = re.search(PLACE.format(name=name), page.read_text("utf-8"), re.DOTALL)
    return None if found is None else found[2].strip().removeprefix("```text\n").removesuffix("\n```")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        for name in OUTPUTS:
            text = shown(name, home / name)
            for page in (ROOT / page for page in PAGES):
                if standing(name, page) is not None:
                    put = f"\\1\n```text\n{text}\n```\n\n\\3"
                    page.write_text(re.sub(PLACE.format(name=name), put, page.read_text("utf-8"), flags=re.DOTALL), "utf-8")
        page = home / "report.html"
        command = [sys.executable, "-m", "epochmeter", "report", "--format", "html", "-o", str(page)]
        subprocess.run(command, env={**os.environ, "EPOCHMETER_HOME": str(home / "run")}, check=True)
        PICTURE.parent.mkdir(exist_ok=True)
        browse(page.as_uri(), "--hide-scrollbars", "--window-size=1000,820", f"--screenshot={PICTURE}")


if __name__ == "__main__":
    main()
