"""The parts of a run that a fleet has rows of: its epochs, and the hours of an epoch that lasts longer.

A run of days may have one epoch. As one row, it would be of the week in which it began.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from profiler.fleet.columns import SCALE
from profiler.records.energy import merge_energy
from profiler.records.histogram import NS
from profiler.records.run import EpochRecord, Run
from profiler.storage.log_lines import lines
from profiler.storage.run_reader import read_run_line

HOUR_NS = 3_600 * NS
LONG_NS = 2 * HOUR_NS  # an epoch, or the time outside epochs, that is told by the hour


class Piece(NamedTuple):
    """An epoch, or the time outside epochs, or the part of either within one hour (since 1970)."""

    part: EpochRecord
    hour: int | None = None


def pieces_of(run: Run, log: Path) -> list[Piece]:
    """Return the pieces of a run. Only the lines of slices in the log split an epoch into hours.

    Raises:
        RunLogError: the log cannot be read.
    """
    long = {part.index for part in run.parts() if part.duration_ns > LONG_NS}
    found = [Piece(part) for part in run.parts() if part.index not in long]
    if not long:
        return found
    hours: dict[tuple[int | None, int], EpochRecord] = {}
    for line in lines(log):
        told = Run(id=run.id, name="", started_unix_ns=0)
        if not read_run_line(told, line, sums_at=SCALE):
            continue
        for part in told.parts():
            if part.index in long and not part.is_empty:
                hour = (told.started_unix_ns + part.started_ns) // HOUR_NS
                into = hours.setdefault((part.index, hour), EpochRecord(part.index, started_ns=part.started_ns))
                into.merge(part)
                merge_energy(into.energy, part.energy)
    return found + [Piece(part, hour) for (_, hour), part in hours.items()]
