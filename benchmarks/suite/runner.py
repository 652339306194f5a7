"""Run the ways of a case in turns, each in a fresh process, and collect the figures that they print."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from case import PEER, TOLD, Case, Way
from medians import beside

TIMEOUT_S = 900
QUIET = {  # nothing of this leaves the machine, and no peer asks the network for anything
    "DO_NOT_TRACK": "1",
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
    "MLFLOW_ALLOW_FILE_STORE": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "TRACEML_DISABLE_TELEMETRY": "1",
    "OMP_NUM_THREADS": "1",
}


class FailedError(Exception):
    """A way whose program failed."""


def started(way: Way, folder: Path, shared: Path, library: str) -> subprocess.Popen[str]:
    """Start a way's program in a folder of its own."""
    folder.mkdir(parents=True)
    script = folder / "train.py"
    script.write_text(TOLD + way.code, encoding="utf-8")
    environment = {
        **os.environ,
        **QUIET,
        "EPOCHMETER_HOME": str(folder / "home"),
        "HOME": str(folder),
        "SHARED": str(shared),
        "LD_LIBRARY_PATH": library,
        **way.environment,
    }
    pipe = subprocess.PIPE
    return subprocess.Popen(way.words(script), stdout=pipe, stderr=pipe, text=True, env=environment, cwd=folder)


def figures_of(way: Way, process: subprocess.Popen[str]) -> dict[str, float]:
    """Wait for a way's program, and return what it told.

    Raises:
        FailedError: it failed, or told nothing.
    """
    try:
        out, err = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise FailedError(f"it did not end within {TIMEOUT_S} s") from None
    lines = [line for line in out.splitlines() if line.startswith("FIGURES")]
    if process.returncode or not lines:
        raise FailedError("\n".join((out + err).strip().splitlines()[-6:]) or f"exit code {process.returncode}")
    figures: dict[str, float] = json.loads(lines[-1].removeprefix("FIGURES"))
    return figures


def chosen(case: Case, with_peers: bool) -> tuple[list[Way], dict[str, str]]:
    """Return the ways of a case that can run here, and why the others cannot."""
    ways, absent = [], {}
    for way in case.ways:
        if way.whose == PEER and not with_peers:
            continue
        if way.needs and importlib.util.find_spec(way.needs.partition(".")[0]) is None:
            absent[way.name] = f"{way.needs} is not installed"
        else:
            ways.append(way)
    return ways, absent


def measure(case: Case, with_peers: bool, repeats: int | None = None, library: str = "") -> dict[str, Any]:
    """Return the rows of a case: for each figure, each way's numbers; and the ways that failed or are not here."""
    ways, absent = chosen(case, with_peers)
    found: dict[str, list[dict[str, float]]] = {way.name: [] for way in ways}
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        shared = root / "shared"
        shared.mkdir()
        if case.setup:
            setup = Way("setup", case.setup)
            figures_of(setup, started(setup, root / "setup", shared, library))
        for turn in range(repeats or case.repeats):
            begin = [(way, root / f"{turn}-{number}") for number, way in enumerate(ways) if way.name not in absent]
            if case.at_once:
                running = [(way, started(way, folder, shared, library)) for way, folder in begin]
                told = [(way, _figures(way, process)) for way, process in running]
            else:
                told = [(way, _in_turn(way, folder, shared, library)) for way, folder in begin]
            for way, figures in told:
                if figures is None:
                    absent[way.name] = "it failed"
                else:
                    found[way.name].append(figures)
    complete = {name: entries for name, entries in found.items() if name not in absent}
    figures = {figure.key: beside(case, figure, complete) for figure in case.figures}
    return {"title": case.title, "figures": figures, "absent": absent}


def _in_turn(way: Way, folder: Path, shared: Path, library: str) -> dict[str, float] | None:
    """Run a way by itself, a second time if it fails: some peers do once in a while."""
    figures = _figures(way, started(way, folder, shared, library))
    return figures or _figures(way, started(way, folder.with_name(f"{folder.name}-again"), shared, library))


def _figures(way: Way, process: subprocess.Popen[str]) -> dict[str, float] | None:
    """Return what a way told, or None if it failed."""
    try:
        figures = figures_of(way, process)
    except FailedError as error:
        print(f"    {way.name} failed: {error}", file=sys.stderr, flush=True)
        return None
    print(f"    {way.name}: {figures}", file=sys.stderr, flush=True)
    return figures
