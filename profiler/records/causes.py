"""The costs inside the phases of a loop, and the lines that were busy, as plain data.

A cost is a part of a phase's time that a cause of its own took: a garbage collection, a compilation, waiting for a CPU. A
line is a place in the run's own code, with the number of samples that found the loop there.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

ON_CPU = "on_cpu"  # the loop's thread ran on a CPU
STARVED = "starved"  # it was ready to run, and no CPU was free for it
COLLECTION = "collection"  # Python's garbage collector stopped it
COMPILATION = "compilation"  # torch.compile compiled
LOADER_START = "loader_start"  # the first batch of a loader with workers, which had to start
START_UP, IMPORTS = "start-up", "imports"  # in the place of a phase, before the first pass
MOST_LINES = 12  # of a slice; the samples of the others are counted together
MOST_LINES_OF_RUN = 400


@dataclass(slots=True)
class Cost:
    """The time (ns) that one cause took in one phase, and how often."""

    ns: int = 0
    times: int = 0

    def add(self, ns: int, times: int = 1) -> None:
        """Add more of it."""
        self.ns += ns
        self.times += times


class CausePlace(NamedTuple):
    """A cause, the stage ("" outside stages) and the top-level phase ("" for none) that it took time of."""

    cause: str
    stage: str
    phase: str


Costs = dict[CausePlace, Cost]


class Line(NamedTuple):
    """A place where samples found the loop's thread.

    Attributes:
        stage: the open stage, "" outside stages.
        phase: the open top-level phase, "" for none.
        file: the file's name without its folder, of the innermost frame of the run's own code; "" for all other lines.
        line: the line's number.
        function: the function's name.
        called: the function that it was calling, with its module, or the name of a built-in one; "" for nothing.
    """

    stage: str
    phase: str
    file: str
    line: int
    function: str
    called: str


Lines = dict[Line, int]  # how many samples


def add_cost(costs: Costs, place: CausePlace, ns: int, times: int = 1) -> None:
    """Add the time (ns) that a cause took in a place."""
    found = costs.get(place)
    if found is None:
        found = costs[place] = Cost()
    found.add(ns, times)


def merge_costs(into: Costs, more: Costs) -> None:
    """Add the costs of another part of a run."""
    for place, cost in more.items():
        add_cost(into, place, cost.ns, cost.times)


def merge_lines(into: Lines, more: Lines) -> None:
    """Add the samples of another part of a run. A run keeps at most `MOST_LINES_OF_RUN` different lines."""
    for line, samples in more.items():
        if line not in into and len(into) >= MOST_LINES_OF_RUN:
            line = rest_of(line)
        into[line] = into.get(line, 0) + samples


def rest_of(line: Line) -> Line:
    """Return the line that stands for all others in this line's place."""
    return Line(line.stage, line.phase, "", 0, "", "")


def busiest(lines: Lines, most: int = MOST_LINES) -> Lines:
    """Return the lines with the most samples, and the samples of all others together, by place."""
    if len(lines) <= most:
        return lines
    kept: Lines = {}
    for position, (line, samples) in enumerate(Counter(lines).most_common()):
        line = line if position < most else rest_of(line)
        kept[line] = kept.get(line, 0) + samples
    return kept
