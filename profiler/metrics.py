"""What a reading is: its fixed description (`MetricSpec`), one value of it (`Sample`), and who takes it (`Probe`).

Frozen data over the standard library alone, so that every layer can speak of readings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

Kind = Literal["gauge", "counter", "updowncounter"]
Number = int | float
Attributes = Mapping[str, str]


@dataclass(frozen=True)
class MetricSpec:
    """One metric: its OpenTelemetry name where the conventions have one, its UCUM unit, what it tells."""

    name: str
    unit: str
    kind: Kind
    help: str


@dataclass(frozen=True)
class Sample:
    """One value of one metric. A counter's value is the source's own running total."""

    spec: MetricSpec
    value: Number
    attributes: Attributes = field(default_factory=dict)


@dataclass(frozen=True)
class Reading:
    """A row of a probe's table: the metrics that one call gives, and the call. It fails alone."""

    specs: tuple[MetricSpec, ...]
    read: Callable[[], Iterable[Sample]]

    def all(self) -> list[Sample]:
        """The samples, with whatever goes wrong on the way to the last of them raised here."""
        return list(self.read())


@dataclass(frozen=True)
class Fact:
    """Something about the machine that does not change during a run; ``read`` gives None where it is not known."""

    section: Literal["cpu", "memory", "gpus", "runtime"]
    key: str
    read: Callable[[], str | Number | bool | None]
    device: int | None = None  # the GPU's index, in the section "gpus"
    late: bool = False  # may become known during the run, as when torch is imported: asked again until it is


class Probe(Protocol):
    """A source of facts and readings. What it cannot read it leaves out; it never answers with a guess."""

    @property
    def name(self) -> str: ...

    def start(self) -> None:
        """Finds the source. Called once, in the sampling thread.

        Raises:
            ProbeUnavailableError: the source is not on this machine; the text says why and what helps.
        """

    def facts(self) -> Sequence[Fact]: ...

    def readings(self) -> Sequence[Reading]: ...
