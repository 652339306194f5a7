"""The run over time: its phases on top of each other, and below them, on the same axis, CPU, GPUs, memory and power."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from xml.etree.ElementTree import Element

from profiler.records.histogram import NS
from profiler.records.plain_text import printable
from profiler.report.layout import Column, duration, number, numbers, shares, words
from profiler.report.tracks import TRACKS, Track, spent_by_phase
from profiler.report.web.charts import COLOURS, WIDTH, Series, axis, band, drawing, figure, legend, nice, scale, stacked
from profiler.report.web.page import el, folded, section, table
from profiler.report.when import moment, shown_slices

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.run import EpochRecord, Run
    from profiler.records.slices import Slice


FEWEST_SLICES = 2
OTHERS = "others"
LABELS = 5  # below the charts


def timeline_section(run: Run, whole: EpochRecord) -> Element | None:
    """Return the charts over time, or None if there are too few slices; ``whole`` is the run's sums."""
    slices = [one for one in shown_slices(run) if one.duration_ns > 0]
    if len(slices) < FEWEST_SLICES:
        return None
    length = max(run.duration_ns, slices[-1].ended_ns)
    edges = [(one.started_ns / length, one.ended_ns / length) for one in slices]
    names, parts = _parts(slices)
    slow = [step.at_ns / length for stage in whole.stages.values() for step in stage.slowest if not step.is_first]
    charts = [_phases(slow, edges, names, parts)]
    tracks = [(track, series) for track in TRACKS if (series := _series(slices, track)) is not None]
    charts += [_track(edges, track, series) for track, series in tracks]
    labels = ["0", *(duration(length / NS * place / (LABELS - 1)) for place in range(1, LABELS))]
    clock = axis(*labels, class_="axis clock")
    clock.set("data-seconds", f"{length / NS}")
    listed = table(_columns(run, slices, names, parts, tracks), "The run in slices", identity="timeline")
    return section("Over time", *charts, clock, folded("the slices as a table", listed))


def _phases(slow: Sequence[float], edges: Sequence[tuple[float, float]], names: list[str], parts: list[list[float]]) -> Element:
    marks = "".join(f"M{at * WIDTH:.1f} 0v6" for at in sorted(slow))
    ticks = el("path", d=marks, stroke="currentColor", stroke_width=2, fill="none", vector_effect="non-scaling-stroke")
    title = "The loop's time by phase"
    plot = drawing(title, *stacked(edges, parts), ticks if marks else None, height=160, class_="plot time")
    caption = f"{title}; a stroke at the top is one of the slowest steps" if marks else title
    return figure(caption, el("div", plot, scale("0", "all of the time"), class_="held"), legend(names))


def _parts(slices: Sequence[Slice]) -> tuple[list[str], list[list[float]]]:
    """Return the names of the largest phases, and their share of each slice's time."""
    found = [spent_by_phase(one) for one in slices]
    totals: dict[str, int] = {}
    for spent in found:
        for name, ns in spent.items():
            totals[name] = totals.get(name, 0) + ns
    ordered = sorted((name for name in totals if totals[name] > 0), key=lambda name: -totals[name])
    named = ordered if len(ordered) <= len(COLOURS) else ordered[: len(COLOURS) - 1]
    rest = ordered[len(named) :]
    parts = []
    for names in [*([name] for name in named), *([rest] if rest else [])]:
        inside = [sum(spent.get(name, 0) for name in names) for spent in found]
        parts.append([ns / one.duration_ns for one, ns in zip(slices, inside, strict=True)])
    for index in range(len(slices)):  # calls that overlap have more time than passes
        over = max(sum(part[index] for part in parts), 1.0)
        for part in parts:
            part[index] /= over
    return [printable(name) for name in [*named, *([OTHERS] if rest else [])]], parts


def _series(slices: Sequence[Slice], track: Track) -> Series | None:
    """Return a reading over time, the mean of all GPUs with the lowest and the highest of them; None if it was never read."""
    means: list[float | None] = []
    lows: list[float | None] = []
    highs: list[float | None] = []
    for one in slices:
        found = [reading for (name, _), reading in one.readings.items() if name == track.metric and not reading.is_counter]
        length = track.length or 1.0
        means.append(sum(r.total / r.count for r in found) / len(found) / length if found else None)
        lows.append(min(r.minimum for r in found) / length if found else None)
        highs.append(max(r.maximum for r in found) / length if found else None)
    return None if all(mean is None for mean in means) else Series(track.name, means, lows, highs)


def _track(edges: Sequence[tuple[float, float]], track: Track, series: Series) -> Element:
    highest = max(value for value in series.highs if value is not None)
    top = nice(highest) if track.length else max(1.0, highest)
    known = [value for value in series.means if value is not None]
    told = "{:.0%}".format if track.length is None else lambda value: f"{number(value)} {track.unit}"
    ends = dict.fromkeys((told(min(known)), told(max(known))))
    title = f"{track.name}: {' to '.join(ends)}"
    plot = drawing(title, *band(edges, series, top), height=70, class_="plot time")
    return figure(title, el("div", plot, scale("0", told(top)), class_="held"))


def _columns(
    run: Run, slices: Sequence[Slice], names: list[str], parts: list[list[float]], tracks: Sequence[tuple[Track, Series]]
) -> Iterable[Column]:
    """Yield the columns of the numbers behind the charts. The script reads the second one: seconds since the run's start."""
    yield words("from (UTC)", [moment(run, one.started_ns)[11:19] for one in slices])
    yield Column("at s", [f"{one.started_ns / NS:,.2f}" for one in slices])
    yield words("epoch", [_epochs(one) for one in slices])
    yield Column("steps", [f"{sum(stage.steps for stage in one.stages.values()):,}" for one in slices])
    for name, part in zip(names, parts, strict=True):
        yield shares(name, part)
    for track, series in tracks:
        if track.length is None:
            yield shares(track.name, series.means)
        else:
            yield numbers(f"{track.name} {track.unit}", series.means)


def _epochs(one: Slice) -> str:
    if one.epoch is None:
        return ""
    return str(one.epoch) if one.last_epoch in (None, one.epoch) else f"{one.epoch}-{one.last_epoch}"
