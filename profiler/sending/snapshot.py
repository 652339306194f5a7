"""A run, or a package's counts, as the plain data that the gate takes. It is cumulative, so sending it twice does no harm."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import profiler
from exporters.measurements import HistogramValue, Measured, Snapshot
from profiler.records.histogram import NS
from profiler.records.run import Sums
from profiler.storage.points import exported_resource, summed_points
from profiler.storage.usage_points import usage_points

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.histogram import Histogram
    from profiler.records.run import EpochRecord, Run
    from profiler.storage.points import Point
    from profiler.storage.usage_ledger import Counts


def run_snapshot(run: Run, now_unix_ns: int) -> Snapshot:
    """Return the run so far for an exporter, without its name and without the user's own words."""
    sums = Sums()
    return summed_snapshot(run, now_unix_ns, sums, sums.of(run))


def summed_snapshot(
    run: Run, now_unix_ns: int, sums: Sums, whole: EpochRecord, yield_gil: Callable[[], None] = lambda: None
) -> Snapshot:
    """Return the same from kept sums; the arguments are those of `summed_points`."""
    points = _measured(summed_points(run, sums, whole, yield_gil))
    return Snapshot(exported_resource(run), points, run.started_unix_ns, now_unix_ns)


def usage_snapshot(summary: str, facts: Mapping[str, Any], counts: Counts, began: int, ended: int) -> Snapshot:
    """Return the counts of a package between two moments (ns since 1970).

    Args:
        summary: the id of the summary. Sent twice, it is the same cumulative sum of the same instance.
        facts: of the package and its environment.
        counts: the counts.
        began: the start of counting.
        ended: its end.
    """
    ours = {"service.name": "epochmeter", "service.version": profiler.__version__, "service.instance.id": summary}
    return Snapshot({**ours, **facts}, _measured(usage_points(counts)), began, ended)


def _measured(points: Iterable[Point]) -> list[Measured]:
    return [
        Measured(
            *(point.name, point.kind, histogram_value(point.value) if point.kind == "histogram" else point.value),
            point.attributes,
        )
        for point in points
    ]


def histogram_value(histogram: Histogram) -> HistogramValue:
    """Return a copy of a histogram in seconds, bucket for bucket. The original goes on being filled."""
    offset, counts = histogram.dense()
    return HistogramValue(
        count=histogram.count,
        sum=histogram.sum_ns / NS,
        scale=histogram.scale,
        zero_count=histogram.zero_count,
        offset=offset,
        counts=tuple(counts),
        minimum=(histogram.min_ns or 0) / NS,
        maximum=(histogram.max_ns or 0) / NS,
    )
