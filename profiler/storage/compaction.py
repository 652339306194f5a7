"""Make the log of a long run shorter: older slices of an epoch are joined, and the log is written anew.

The rule by which slices become coarser: once the log is full (`session.keeper`), its newest slices stay as they are. Of the
older ones, neighbours in one epoch are joined, so that about `KEPT_BYTES` are left, in slices of about equal length. Sums,
counts, histograms, extremes and the slowest steps of joined slices are exact. Only "when" becomes coarser.

A line that is no slice (a whole epoch, energy, times of other ranks) is copied as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from profiler.records.causes import busiest
from profiler.records.run import Run
from profiler.records.slices import groups_of, length_of_joined
from profiler.storage.log_lines import lines
from profiler.storage.run_log import line_of
from profiler.storage.run_reader import read_run_line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

    from profiler.storage.run_log import RunLog


KEPT_BYTES = 1_500_000
FEWEST = 24  # slices that are kept, however long their lines are
MOST_FRESH = 60  # slices that stay as they are: ten minutes
NUMBER = re.compile(rb'"epochmeter.run.slice","value":\{"intValue":"(\d+)"\}')
EPOCH = re.compile(rb'"epochmeter.epoch.index","value":\{"intValue":"(-?\d+)"\}')
TIMES = re.compile(rb'"startTimeUnixNano":"(\d+)","timeUnixNano":"(\d+)"')


class _Line(NamedTuple):
    """Where a slice stands in the log, and the part of the run that it is of."""

    place: int
    size: int
    number: int
    epoch: bytes
    times: tuple[int, int]


def make_shorter(log: RunLog, swap: Callable[[Callable[[], None]], None], yield_gil: Callable[[], None]) -> None:
    """Write a log anew, with fewer slices. Called by the sampling thread alone.

    Args:
        log: the log.
        swap: calls a function while nobody writes to the log.
        yield_gil: called between two lines, so that the loop gets its turn.

    Raises:
        OSError: the disk refuses it; the log stays as it is.
    """
    size = log.size()
    log.write_anew(joined_lines(log.path, size, yield_gil), size, swap)


def joined_lines(path: Path, upto: int, yield_gil: Callable[[], None] = lambda: None) -> Iterator[bytes]:
    """Yield the lines of a log's first ``upto`` bytes, with slices joined where they are many."""
    found = [seen for place, line in enumerate(lines(path, upto)) if (seen := _seen(place, line)) is not None]
    groups = _groups(found)
    last_of = {group[-1].place: group for group in groups}
    inner = {one.place for group in groups for one in group[:-1]}
    waiting: dict[int, bytes] = {}
    for place, line in enumerate(lines(path, upto)):
        yield_gil()
        if place in inner:
            waiting[place] = line
        elif place in last_of:
            yield _joined([*(waiting.pop(one.place) for one in last_of[place][:-1]), line])
        else:
            yield line


def _seen(place: int, line: bytes) -> _Line | None:
    number, epoch, times = NUMBER.search(line), EPOCH.search(line), TIMES.search(line)
    if number is None or times is None or not line.endswith(b"\n"):
        return None
    began, ended = map(int, times.groups())
    return _Line(place, len(line), int(number[1]), b"" if epoch is None else epoch[1], (began, ended))


def _groups(found: list[_Line]) -> list[list[_Line]]:
    """Return which slices are to be one."""
    if not found:
        return []
    mean = sum(one.size for one in found) / len(found)
    most = max(round(KEPT_BYTES / mean), FEWEST)
    fresh = min(MOST_FRESH, most // 2)
    older, newest = found[: max(len(found) - fresh, 0)], found[max(len(found) - fresh, 0) :]

    def times(one: _Line) -> tuple[int, int]:
        return one.times

    longest = length_of_joined(older, most - fresh, times)
    pieces = groups_of(newest, 2**63, times, lambda a, b: (a.epoch, a.number) == (b.epoch, b.number))
    return [*groups_of(older, longest, times, lambda a, b: a.epoch == b.epoch), *pieces]


def _joined(parts: list[bytes]) -> bytes:
    """Return the lines of neighbouring slices as one line. If one of them cannot be read, all stay as they are."""
    if len(parts) == 1:
        return parts[0]
    whole = Run("", "", 0)
    number = None
    for line in parts:
        if not read_run_line(whole, line):
            return b"".join(parts)
        number = int(NUMBER.search(line)[1])  # type: ignore[index]  # `_seen` has found it
    part = whole.epochs[0] if whole.epochs else whole.outside
    part.slice = number
    part.lines = busiest(part.lines)  # no more than a slice that is not joined has
    whole.id = _instance(parts[-1])
    return line_of(whole, part)


def _instance(line: bytes) -> str:
    """Return the run's id, which the reader takes from the name of the file."""
    found = re.search(rb'"service.instance.id","value":\{"stringValue":"([0-9a-f]+)"\}', line)
    return "" if found is None else found[1].decode()
