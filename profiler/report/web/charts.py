"""Charts as SVG: shapes alone, which stretch to the width there is. All text beside them is HTML, and stays readable.

Drawn here, because the charting libraries for one file weigh 50 kB to 4 MB of script, and none draws without its script.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple
from xml.etree.ElementTree import Element

from profiler.report.web.page import Content, el, folded

WIDTH, HEIGHT = 1000, 100  # of the plane in which shapes are drawn
ROW = 16  # the height of one change
COLOURS = (  # of M. Okabe and K. Ito (2008), to be told apart by everybody; and two greys
    *("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442"),
    *("#7f7f7f", "#b8b8b8"),
)


class Series(NamedTuple):
    """Values over time: the mean of each interval, and the lowest and the highest. None where nothing was read."""

    name: str
    means: Sequence[float | None]
    lows: Sequence[float | None] = ()
    highs: Sequence[float | None] = ()


def figure(caption: str, *content: Content, numbers: Element | None = None, class_: str | None = None) -> Element:
    """Return a chart with its caption, and its numbers as a table on request."""
    more = None if numbers is None else folded("the numbers", numbers)
    return el("figure", el("figcaption", caption), *content, more, class_=class_)


def legend(names: Iterable[str]) -> Element:
    """Return the names of a chart's parts, each with its colour."""
    return el("ul", *(el("li", _swatch(place), f" {name}") for place, name in enumerate(names)), class_="legend")


def _swatch(place: int) -> Element:
    square = el("rect", width=10, height=10, fill=colour(place))
    return el("svg", square, width=10, height=10, viewBox="0 0 10 10", aria_hidden="true")


def colour(place: int) -> str:
    """Return the colour of the part with that number."""
    return COLOURS[min(place, len(COLOURS) - 1)]


def drawing(title: str, *shapes: Content, height: int = HEIGHT, class_: str = "plot") -> Element:
    """Return shapes as one image with a name for screen readers."""
    return el(
        "svg",
        el("title", title),
        *shapes,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        preserveAspectRatio="none",
        width="100%",
        height=height,
        role="img",
        class_=class_,
    )


def stacked(edges: Sequence[tuple[float, float]], parts: Sequence[Sequence[float]]) -> list[Element]:
    """Return areas on top of each other.

    Args:
        edges: the begin and end of each interval, as shares of the width.
        parts: the height of each part in each interval, as shares; together at most 1.
    """
    below = [0.0] * len(edges)
    shapes = []
    for place, heights in enumerate(parts):
        path = []
        for index, ((begin, end), height) in enumerate(zip(edges, heights, strict=True)):
            if height > 0:
                top = below[index] + height
                path.append(f"M{_x(begin)} {_y(below[index])}V{_y(top)}H{_x(end)}V{_y(below[index])}z")
                below[index] = top
        if path:
            shapes.append(el("path", d="".join(path), fill=colour(place)))
    return shapes


def band(edges: Sequence[tuple[float, float]], series: Series, top: float, place: int = 0) -> list[Element]:
    """Return a line through the means, and a band from the lowest to the highest."""
    shapes = []
    if series.lows and series.highs:
        path = "".join(
            f"M{_x(begin)} {_y(low / top)}V{_y(high / top)}H{_x(end)}V{_y(low / top)}z"
            for (begin, end), low, high in zip(edges, series.lows, series.highs, strict=True)
            if low is not None and high is not None
        )
        shapes.append(el("path", d=path, fill=colour(place), fill_opacity="0.3"))
    line, was_there = [], False
    for (begin, end), mean in zip(edges, series.means, strict=True):
        if mean is not None:
            line.append(f"{'L' if was_there else 'M'}{_x(begin)} {_y(mean / top)}H{_x(end)}")
        was_there = mean is not None
    shapes.append(
        el("path", d="".join(line), fill="none", stroke=colour(place), stroke_width=2, vector_effect="non-scaling-stroke")
    )
    return shapes


def columns(heights: Sequence[float], place: int = 0) -> Element:
    """Return columns side by side; heights are shares."""
    step = 1 / max(len(heights), 1)
    path = "".join(
        f"M{_x(index * step)} {HEIGHT}V{_y(height)}H{_x((index + 0.9) * step)}V{HEIGHT}z"
        for index, height in enumerate(heights)
        if height > 0
    )
    return el("path", d=path, fill=colour(place))


def change_line(title: str, change: float, low: float | None, high: float | None, reach: float, tone: str) -> Element:
    """Return a change as a mark beside no change, which is in the middle, with its interval; ``reach`` is at both ends."""

    def x(share: float) -> str:
        return f"{WIDTH * (min(max(share / reach, -1.0), 1.0) + 1) / 2:.1f}"

    shapes = [el("path", d=f"M{WIDTH / 2} 0V{ROW}", stroke="currentColor", vector_effect="non-scaling-stroke")]
    if low is not None and high is not None:
        line = f"M{x(low)} {ROW / 2}H{x(high)}"
        shapes.append(el("path", d=line, stroke=tone, stroke_width=6, stroke_opacity="0.5", vector_effect="non-scaling-stroke"))
    shapes.append(el("path", d=f"M{x(change)} 2V{ROW - 2}", stroke=tone, stroke_width=4, vector_effect="non-scaling-stroke"))
    plot = drawing(title, *shapes, height=ROW)
    plot.set("viewBox", f"0 0 {WIDTH} {ROW}")
    return plot


def share_line(parts: Sequence[tuple[str, float]]) -> Element:
    """Return one line that is divided into parts; each is a name and a share."""
    shapes, begin = [], 0.0
    for place, (name, share) in enumerate(parts):
        tip = el("title", f"{name} {share:.1%}")
        shapes.append(el("rect", tip, x=_x(begin), y=0, width=_x(share), height=HEIGHT, fill=colour(place)))
        begin += share
    return drawing("; ".join(f"{name} {share:.1%}" for name, share in parts), *shapes, height=24)


def scale(low: str, high: str) -> Element:
    """Return the ends of a chart's height in words."""
    return el("p", el("span", high), " ", el("span", low), class_="scale")


def axis(*labels: str, class_: str = "axis") -> Element:
    """Return the labels below a chart, from its left to its right."""
    return el("p", *(part for label in labels for part in (el("span", label), " ")), class_=class_)


def nice(value: float) -> float:
    """Return a round number that is at least the value: 1, 2 or 5 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value * (1 - 1e-9))


def _x(share: float) -> str:
    return f"{round(share * WIDTH, 1):g}"


def _y(share: float) -> str:
    return f"{round((1 - min(max(share, 0.0), 1.0)) * HEIGHT, 1):g}"
