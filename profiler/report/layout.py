"""Numbers and tables for people."""

from __future__ import annotations

from rich import box
from rich.table import Table

CPU, MEMORY, GPU = "epochmeter.process.cpu.utilization", "process.memory.usage", "hw.gpu.utilization"  # readings of every view


def duration(seconds: float) -> str:
    """Return a duration with three significant digits and the unit that fits."""
    for limit, factor, unit in ((1e-6, 1e9, "ns"), (1e-3, 1e6, "µs"), (1.0, 1e3, "ms"), (100.0, 1.0, "s")):
        if seconds < limit:
            value = seconds * factor
            return f"{value:.{0 if value >= 100 or unit == 'ns' else 1 if value >= 10 else 2}f}{unit}"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}h{minutes % 60:02d}m" if minutes >= 60 else f"{minutes}m{rest:02d}s"


def shortened(text: str, most: int) -> str:
    """Return at most so many letters of a text; the last one then says that there are more."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def new_table(*columns: str) -> Table:
    """Return a table without rows. The first column is text, the others are numbers."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for position, column in enumerate(columns):
        table.add_column(column, justify="left" if position < 1 else "right", no_wrap=True)
    return table
