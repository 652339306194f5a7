"""What a case of the suite is: some ways to do one thing, each a program that prints its figures."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

OURS, FLOOR, PEER = "ours", "floor", "peer"


@dataclass(frozen=True)
class Way:
    """One way to do what a case is about.

    Attributes:
        name: as tables show it.
        code: a Python program whose last words are ``told(figure=value, ...)``.
        whose: ours, the floor's or a peer's.
        needs: the module that the program imports; without it, the way is left out.
        command: what runs the script, by its module; empty for Python itself.
        environment: variables of its process.
    """

    name: str
    code: str
    whose: str = PEER
    needs: str = ""
    command: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)

    def words(self, script: Path) -> list[str]:
        """Return the command line that runs the script so."""
        if not self.command:
            return [sys.executable, str(script)]
        program, *options = self.command
        if program == "epochmeter":
            return [sys.executable, "-m", "profiler.cli", *options, str(script)]
        return [str(Path(sys.executable).with_name(program)), *options, str(script)]


@dataclass(frozen=True)
class Figure:
    """One number that each way of a case tells.

    Attributes:
        key: its name in the JSON.
        title: what it is, for the table.
        unit: of the number that is shown.
        scale: shown is the number that was told, times this.
        against: how it stands beside the floor: "ratio", "difference" or "" (by itself).
    """

    key: str
    title: str
    unit: str
    scale: float = 1.0
    against: str = "ratio"


@dataclass(frozen=True)
class Case:
    """Some ways to do one thing, and the numbers that they tell.

    Attributes:
        key: its name in the JSON.
        title: what is done.
        ways: the ways; the first one is the floor.
        figures: the numbers.
        repeats: how often each way runs, each time in a fresh process.
        at_once: True if the ways run beside each other, over the same seconds; else they take turns.
        setup: a program that makes files for all ways, in the folder that they find in ``SHARED``.
        goals: the most that a way of ours may be, in what is shown beside the floor, by the way's name and the figure's.
    """

    key: str
    title: str
    ways: tuple[Way, ...]
    figures: tuple[Figure, ...]
    repeats: int = 9
    at_once: bool = False
    setup: str = ""
    goals: dict[tuple[str, str], float] = field(default_factory=dict)


TOLD = """
import json as _json, sys as _sys
def told(**figures):
    _sys.__stdout__.write("\\nFIGURES" + _json.dumps(figures) + "\\n")
    _sys.__stdout__.flush()
"""
