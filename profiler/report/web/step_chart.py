"""The distribution of a stage's steps, from its histogram."""

from __future__ import annotations

import math
from xml.etree.ElementTree import Element

from profiler.records.histogram import NS, upper_bound_ns
from profiler.report.layout import Column, duration, words
from profiler.report.web.charts import axis, columns, drawing, figure, scale
from profiler.report.web.page import el, table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.histogram import Histogram
    from profiler.records.timing import StageRecord


BARS = 48
SHOWN = {"half": 0.5, "9 of 10": 0.9, "99 of 100": 0.99}


def step_chart(name: str, stage: StageRecord) -> Element | None:
    """Return how long steps took, the first one left out; None without steps, or if all took the same time."""
    steady = stage.step.steady
    bars = bars_of(steady)
    if len(bars) < 2:
        return None
    most = max(count for _, _, count in bars)
    ends = [duration(bars[0][0] / NS), duration(math.sqrt(bars[0][0] * bars[-1][1]) / NS), duration(bars[-1][1] / NS)]
    found = {part: steady.percentile(share) for part, share in SHOWN.items()}
    below = [f"{part} below {duration(value)}" for part, value in found.items() if value is not None]
    title = f"How long {steady.count:,} {name} steps took, after the first: {', '.join(below)}"
    plot = drawing(title, columns([count / most for _, _, count in bars]))
    listed = [
        words("from", [duration(low / NS) for low, _, _ in bars]),
        words("to", [duration(high / NS) for _, high, _ in bars]),
        Column("steps", [f"{count:,}" for _, _, count in bars]),
    ]
    numbers = table(listed, f"Steps of {name} by their time")
    return figure(title, el("div", plot, scale("0", f"{most:,} steps"), class_="held"), axis(*ends), numbers=numbers)


def bars_of(histogram: Histogram, most: int = BARS) -> list[tuple[int, int, int]]:
    """Return bars of equal width on a logarithmic axis: the lower and the upper end (ns), and how many are in it."""
    offset, counts = histogram.dense()
    if not counts:
        return []
    group = math.ceil(len(counts) / most)
    found = []
    for begin in range(0, len(counts), group):
        low, high = offset + begin - 1, offset + min(begin + group, len(counts)) - 1
        ends = upper_bound_ns(low, histogram.scale), upper_bound_ns(high, histogram.scale)
        found.append((*ends, sum(counts[begin : begin + group])))
    return found
