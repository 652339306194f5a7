"""The vocabulary of probes: the description of a metric (`MetricSpec`), a value of it (`Sample`), its source (`Probe`).

Frozen data over the standard library alone, so that every layer can use it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NamedTuple, Protocol, runtime_checkable

Kind = Literal["gauge", "counter", "updowncounter", "histogram"]
Number = int | float
Attributes = Mapping[str, str]
NO_ATTRIBUTES: Attributes = MappingProxyType({})


@dataclass(frozen=True)
class MetricSpec:
    """One metric: its OpenTelemetry name if the conventions have one, its UCUM unit, its meaning."""

    name: str
    unit: str
    kind: Kind
    help: str


class Sample(NamedTuple):  # cheaper to make than a frozen dataclass
    """One value of one metric. A counter's value is the source's own running total.

    ``attributes`` does not change once it is handed on. A probe makes it once and returns the same object each time.
    """

    spec: MetricSpec
    value: Number
    attributes: Attributes = NO_ATTRIBUTES


class Samples(NamedTuple):
    """The values of one metric since the last call, from a source that buffers them; for a histogram.

    Whole numbers ``>= 0``, ``per`` of which are one of the metric's unit; ``per`` is a divisor of 1e9.
    """

    spec: MetricSpec
    values: Sequence[int]
    per: int
    attributes: Attributes = NO_ATTRIBUTES


@dataclass(frozen=True)
class Reading:
    """A row of a probe's table: the metrics of one call, and the call. It fails alone.

    ``every`` is the number of ticks between two calls, for expensive readings and slow changes.
    """

    specs: tuple[MetricSpec, ...]
    read: Callable[[], Iterable[Sample | Samples]]
    every: int = 1

    def all(self) -> Sequence[Sample | Samples]:
        """Return the samples. Errors of the source are raised here."""
        answer = self.read()
        return answer if isinstance(answer, (tuple, list)) else list(answer)


@dataclass(frozen=True)
class Fact:
    """A fact about the machine that does not change during a run. ``read`` returns None if it is not known."""

    section: Literal["cpu", "memory", "gpus", "runtime"]
    key: str
    read: Callable[[], str | Number | bool | None]
    device: int | None = None  # the GPU's index, in the section "gpus"
    late: bool = False  # may become known during the run, as when torch is imported: asked again until it is


class Probe(Protocol):
    """A source of facts and readings. It leaves out a value that it cannot read, and never guesses."""

    @property
    def name(self) -> str: ...

    def start(self) -> None:
        """Find the source. Called once, in the sampling thread.

        Raises:
            ProbeUnavailableError: the source is not on this machine; the text says why and what helps.
        """

    def facts(self) -> Sequence[Fact]: ...

    def readings(self) -> Sequence[Reading]: ...

    def close(self) -> None:
        """Release the source. Called once, in the sampling thread, after the last reading."""


@runtime_checkable
class EnergySource(Protocol):
    """A probe whose devices count the energy they use."""

    def energy(self) -> Mapping[str, float]:
        """Return the counters' values in joules by ``hw.id``, without those that cannot be read now."""
