"""Measurements on both sides of the gate, as plain data: the `Snapshot` that goes in, the `Outgoing` that comes out.

The rule it keeps: nothing here knows the profiler, or the classes of OpenTelemetry's SDK.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


@dataclass(frozen=True)
class HistogramValue:
    """A base-2 exponential histogram, in the metric's unit.

    Bucket ``offset + i`` holds ``counts[i]`` values; the meaning of a bucket is that of OpenTelemetry's data model at
    this scale.
    """

    count: int
    sum: float
    scale: int
    zero_count: int
    offset: int
    counts: tuple[int, ...]
    minimum: float
    maximum: float


class Measured(NamedTuple):
    """One value before the gate.

    Attributes:
        name: the metric's name.
        kind: histogram, sum (that only grows), updowncounter or gauge.
        value: a number, or a `HistogramValue`.
        attributes: those of the value.
    """

    name: str
    kind: str
    value: Any
    attributes: Mapping[str, Any]


class Snapshot(NamedTuple):
    """Cumulative measurements between two moments (ns since 1970), before the gate.

    Attributes:
        facts: of the run, its machine, or a package.
        points: the values.
        began: the first moment.
        now: the second one.
    """

    facts: Mapping[str, Any]
    points: Sequence[Measured]
    began: int
    now: int


class OutgoingMetric(NamedTuple):
    """A listed metric with its values, each with its attributes, in a fixed order."""

    name: str
    purpose: str
    unit: str
    kind: str
    points: tuple[tuple[dict[str, Any], Any], ...]


class Outgoing(NamedTuple):
    """Measurements behind the gate: only listed facts, metrics and attributes, in the order of the list.

    ``left_out`` is the number of points whose numbers are out of bounds.
    """

    facts: dict[str, Any]
    metrics: tuple[OutgoingMetric, ...]
    began: int
    now: int
    left_out: int = 0
