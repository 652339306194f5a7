"""Numbers and tables for people.

The rule they keep: no number is ever cut. A table that is wider than its place leaves out columns, the least needed first, and
then folds its words.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len, set_cell_size
from rich.markup import escape
from rich.table import Table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

CPU, MEMORY, GPU = "epochmeter.process.cpu.utilization", "process.memory.usage", "hw.gpu.utilization"  # readings of every view
GAP = 2  # blanks between two columns
LEAST_WORDS, MOST_WORDS = 12, 24  # letters of a line of words that are folded: in a narrow place, and beside numbers
LABEL = 10  # letters of a row's label
BAR = 10  # letters of a share of 100 %
ALWAYS = 0  # of a column: it stays
UNITS = (("h", 3600.0), ("min", 60.0), ("s", 1.0), ("ms", 1e-3), ("µs", 1e-6), ("ns", 1e-9))
FROM = {"h": 36_000.0, "min": 1_000.0, "s": 1.0, "ms": 1e-3, "µs": 1e-6, "ns": 0.0}  # s: the longest time that has the unit
DIGITS = 3
MOST = 10_000  # of a unit


def duration(seconds: float) -> str:
    """Return a duration with three significant digits and the unit that fits."""
    for limit, factor, unit in ((1e-6, 1e9, "ns"), (1e-3, 1e6, "µs"), (1.0, 1e3, "ms"), (100.0, 1.0, "s")):
        if seconds < limit:
            value = seconds * factor
            return f"{value:.{0 if value >= 100 or unit == 'ns' else 1 if value >= 10 else 2}f}{unit}"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}h{minutes % 60:02d}m" if minutes >= 60 else f"{minutes}m{rest:02d}s"


def place_width(otherwise: int) -> int:
    """Return how many columns a terminal has, or ``COLUMNS`` of the environment says; without both, ``otherwise``."""
    return shutil.get_terminal_size((otherwise, 0)).columns


def shortened(text: str, most: int) -> str:
    """Return at most so many letters of a text; the last one then says that there are more."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def count_of(number: float, thing: str) -> str:
    """Return a number of things in words: ``1 epoch``, ``2 epochs``."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def share_bar(share: float, width: int = BAR) -> str:
    """Return a share from 0 to 1 as a bar of so many letters at most, rounded to half a letter."""
    halves = round(min(max(share, 0.0), 1.0) * width * 2)
    return "█" * (halves // 2) + "▌" * (halves % 2)


def unit_of(seconds: Sequence[float]) -> tuple[str, float]:
    """Return the unit in which times are shown together, and its length in seconds.

    It fits the longest, or is the next smaller one if the shortest could not be read otherwise.
    """
    longest = max(seconds, default=0.0)
    shortest = min((value for value in seconds if value), default=0.0)
    fits = next(place for place, (name, _) in enumerate(UNITS) if longest >= FROM[name])
    smaller = UNITS[min(fits + 1, len(UNITS) - 1)]
    return smaller if shortest < 10**-DIGITS * UNITS[fits][1] and longest < MOST * smaller[1] else UNITS[fits]


def number(value: float) -> str:
    """Return a number with three significant digits, at most three of them decimals."""
    if not value:
        return "0"
    if abs(value) < 0.5 * 10**-DIGITS:
        return f"<{10**-DIGITS}"
    return f"{value:,.{min(max(DIGITS - 1 - math.floor(math.log10(abs(value))), 0), DIGITS)}f}"


def labelled(rows: Iterable[tuple[str, RenderableType]]) -> Table:
    """Return texts, each after its label, for rich."""
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(no_wrap=True, min_width=LABEL)
    table.add_column()
    for label, text in rows:
        table.add_row(label, text)
    return table


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        head: its title.
        cells: its texts, one a row.
        rank: how soon it may be left out, the highest rank first; `ALWAYS`: never.
        is_words: text on the left, which may be folded, and no number.
        room: letters for which its words keep room; longer ones are folded.
    """

    head: str
    cells: Sequence[str]
    rank: int = ALWAYS
    is_words: bool = False
    room: int = MOST_WORDS

    @property
    def width(self) -> int:
        """The letters of its longest line."""
        return max(cell_len(text) for text in (self.head, *self.cells))


def words(head: str, cells: Iterable[str], rank: int = ALWAYS) -> Column:
    """Return a column of words."""
    return Column(head, list(cells), rank, is_words=True)


def numbers(head: str, values: Iterable[float | None], rank: int = ALWAYS) -> Column:
    """Return a column of numbers, with their decimal points below each other. None is an empty cell."""
    shown = ["" if value is None else number(value) for value in values]
    decimals = [len(text.partition(".")[2]) + ("." in text) for text in shown]
    most = max(decimals, default=0)
    return Column(head, [text + " " * (most - own) for text, own in zip(shown, decimals, strict=True)], rank)


def times(head: str, seconds: Iterable[float | None], rank: int = ALWAYS, beside: Iterable[float | None] = ()) -> Column:
    """Return a column of times in one unit, which stands after its head; ``beside`` are the times of a column with the same."""
    listed = list(seconds)
    unit, length = unit_of([value for value in (*listed, *beside) if value is not None])
    return numbers(f"{head} {unit}", [None if value is None else value / length for value in listed], rank)


def counts(head: str, values: Iterable[int | None], rank: int = ALWAYS) -> Column:
    """Return a column of whole numbers."""
    return Column(head, ["" if value is None else f"{value:,}" for value in values], rank)


def shares(head: str, values: Iterable[float | None], rank: int = ALWAYS) -> Column:
    """Return a column of shares in per cent."""
    return Column(head, ["" if value is None else f"{value:.1%}" for value in values], rank)


def bars(values: Iterable[float | None], rank: int = ALWAYS) -> Column:
    """Return a column of shares as bars."""
    return Column("", ["" if value is None else share_bar(value) for value in values], rank, is_words=True)


class Fitted:
    """A table for rich that is as wide as its place at most.

    Args:
        columns: all columns, in their order. One without any cell that is filled is left out.
        dim: the numbers of rows that are shown dim.

    Attributes:
        columns: those that are not empty.
    """

    def __init__(self, *columns: Column, dim: Iterable[int] = ()) -> None:
        self.columns = [column for column in columns if any(column.cells) or column.rank == ALWAYS]
        self._dim = frozenset(dim)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shown = fitting(self.columns, options.max_width)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, GAP - 1, 0, 0))
        for column in shown:
            table.add_column(
                escape(column.head),
                justify="left" if column.is_words else "right",
                no_wrap=not column.is_words,
                overflow="fold",
                min_width=min(column.width, LEAST_WORDS) if column.is_words else column.width,
            )
        for row, cells in enumerate(zip(*(column.cells for column in shown), strict=True)):
            table.add_row(*map(escape, cells), style="dim" if row in self._dim else None)
        yield table


def fitting(columns: Sequence[Column], width: int) -> list[Column]:
    """Return the columns that have room, in their order: the others have the highest ranks."""
    shown = list(columns)
    while sum(_needed(column) + GAP for column in shown) - GAP > width:
        most = max(column.rank for column in shown)
        if most == ALWAYS:
            break
        shown.remove(next(column for column in reversed(shown) if column.rank == most))
    return shown


def _needed(column: Column) -> int:
    return min(column.width, column.room) if column.is_words else column.width


def lines(columns: Sequence[Column], width: int) -> Iterator[str]:
    """Yield a long list as lines of text, which rich would need seconds for. Words in the last column are cut at the width."""
    shown = fitting([column for column in columns if any(column.cells)], width)
    widths = [column.width for column in shown]
    for cells in zip(*((column.head, *column.cells) for column in shown), strict=True):
        padded = [
            text + " " * (most - cell_len(text)) if column.is_words else " " * (most - cell_len(text)) + text
            for text, most, column in zip(cells, widths, shown, strict=True)
        ]
        line = (" " * GAP).join(padded).rstrip()
        yield set_cell_size(line, width - 1) + "…" if shown[-1].is_words and cell_len(line) > width else line
