"""A run as plain data: the one shape that the timer fills, the run log keeps and the reports read.

Times are whole nanoseconds of the monotonic clock. Only `Run.started_unix_ns` is wall-clock time.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from profiler.records.case import add_cases
from profiler.records.causes import merge_costs, merge_lines
from profiler.records.energy import merge_energy
from profiler.records.histogram import NS, Histogram
from profiler.records.reading_record import merge_readings
from profiler.records.timing import StageRecord, merge_phases

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.case import CaseRecord
    from profiler.records.causes import Costs, Lines
    from profiler.records.energy import Energies
    from profiler.records.loader import LoaderFacts
    from profiler.records.reading_record import Readings
    from profiler.records.slices import Slice
    from profiler.records.timing import Path, Timing


State = Literal["running", "finished", "interrupted", "crashed"]
FactValue = str | int | float | bool
NOTE_LIMIT = 20
MEDIANS = -1  # no rank: the medians of all
STALLED_TIMES = 10
STALLED_NS = 10 * NS  # and no step is called a hang before that
UNREAD = "phases that the GPU was still at work on when the run ended: their GPU time is not known"  # a note
FACT_NAMES = {  # facts that OpenTelemetry has a name for; all others are epochmeter.<section>.<key>
    ("runtime", "os"): "os.type",
    ("cpu", "architecture"): "host.arch",
    ("runtime", "implementation"): "process.runtime.name",
    ("runtime", "python"): "process.runtime.version",
}


@dataclass
class RankStage:
    """A stage of one rank, over the epochs that all ranks have reported: its time, and that of its top-level phases (ns).

    Of many ranks, only the notable ones are kept, and rank `MEDIANS` stands for all of them.
    """

    duration_ns: int = 0
    phases: dict[str, int] = field(default_factory=dict)


@dataclass
class EpochRecord:
    """One epoch, or (``index`` None) everything a run did outside its epochs."""

    index: int | None
    started_ns: int = 0
    duration_ns: int = 0
    inferred: bool = False  # the loop named no epochs, so each training pass counts as one
    stages: dict[str, StageRecord] = field(default_factory=dict)
    phases: dict[Path, Timing] = field(default_factory=dict)  # outside stages, such as a checkpoint between two
    readings: Readings = field(default_factory=dict)
    costs: Costs = field(default_factory=dict)  # time inside its phases that had a cause of its own
    lines: Lines = field(default_factory=dict)  # samples of the run's own code; they stay on this machine
    ranks: dict[int, dict[str, RankStage]] = field(default_factory=dict)  # outside epochs, of the first rank: see `RankStage`
    rank_epochs: int = 0  # how many epochs are in these times
    rank_missing: list[int] = field(default_factory=list)  # ranks that have not told of the last of them
    energy: Energies = field(default_factory=dict)  # known shortly after the epoch's end; see `Run.energy`
    cases: list[CaseRecord] = field(default_factory=list)  # of a benchmark
    slice: int | None = None  # the number, in the run, of the slice that this is; None for a whole epoch, and what is no slice

    def stage(self, name: str) -> StageRecord:
        """Return the record of a stage, made at the first use."""
        if name not in self.stages:
            self.stages[name] = StageRecord(name)
        return self.stages[name]

    def merge(self, other: EpochRecord) -> None:
        """Add another part of the same epoch."""
        self.duration_ns += other.duration_ns
        for name, stage in other.stages.items():
            self.stage(name).merge(stage)
        merge_phases(self.phases, other.phases)
        merge_readings(self.readings, other.readings)
        merge_costs(self.costs, other.costs)
        merge_lines(self.lines, other.lines)
        add_cases(self.cases, other.cases)

    @property
    def ended_ns(self) -> int:
        """The end."""
        return self.started_ns + self.duration_ns

    def copied(self) -> EpochRecord:
        """Return a copy that later measurements do not change."""
        empty: dict[str, Any] = {name: {} for name in ("stages", "phases", "readings", "costs", "lines")}
        copied = replace(self, duration_ns=0, cases=[], energy=deepcopy(self.energy), **empty)
        copied.merge(self)
        return copied

    @property
    def is_empty(self) -> bool:
        """True if nothing was measured."""
        measured = (self.stages, self.phases, self.readings, self.costs, self.lines, self.ranks, self.energy, self.cases)
        return not any(measured)


@dataclass
class OpenStep:
    """Where the loop is: the step in progress.

    Attributes:
        stage: train, val or inference; "" between two passes, where ``step`` has no meaning, and the times are since the last.
        epoch: the epoch, or None.
        step: its number in the epoch, from 0.
        phase: the innermost open phase, "" for none.
        step_ns: how long the step has been going on.
        phase_ns: how long the phase has, or the step if there is none.
        slowest_ns: the longest step of this stage so far, or else of any, 0 if none has ended; between passes also the longest
            time there.
        length: how many steps the pass has, or None.
    """

    stage: str
    epoch: int | None
    step: int
    phase: str
    step_ns: int
    phase_ns: int
    slowest_ns: int = 0
    length: int | None = None

    @property
    def is_stalled(self) -> bool:
        """True if no step has ended for ten times the slowest one: the run hangs, or something is very wrong."""
        return 0 < self.slowest_ns * STALLED_TIMES <= self.step_ns and self.step_ns >= STALLED_NS


@dataclass(frozen=True)
class MemoryGrowth:
    """How the peak of the process's physical memory has grown since the first pass began.

    Attributes:
        by: bytes, along the line that fits best.
        over_ns: the time for which it was watched.
        fit: the share of the variance that the line explains.
    """

    by: int
    over_ns: int
    fit: float


@dataclass
class Hardware:
    """Facts of the machine, by section, without unknown ones."""

    cpu: dict[str, FactValue] = field(default_factory=dict)
    memory: dict[str, FactValue] = field(default_factory=dict)
    gpus: dict[int, dict[str, FactValue]] = field(default_factory=dict)
    runtime: dict[str, FactValue] = field(default_factory=dict)


class Sums:
    """The sums of the finished epochs of a run. They are kept, so that each epoch is added only once."""

    def __init__(self) -> None:
        self._whole = EpochRecord(None)
        self._seen = 0
        self.open_ns = 0  # how long the open epoch has lasted
        self.open_energy: Energies = {}  # and what it has used
        self.epochs = Histogram()  # how long each epoch took
        self.stages: dict[str, Histogram] = {}  # how long each stage took in each epoch

    def add_late(self, position: int, part: EpochRecord) -> None:
        """Add a part of an epoch that became known after its end."""
        if position < self._seen:
            self._whole.merge(part)

    def advance(self, run: Run, most: int | None = None) -> bool:
        """Add finished epochs, at most so many. Return True if there are more."""
        for epoch in run.epochs[self._seen : None if most is None else self._seen + most]:
            self._whole.merge(epoch)
            self.epochs.add([epoch.duration_ns])
            for name, stage in epoch.stages.items():
                self.stages.setdefault(name, Histogram()).add([stage.duration_ns])
            self._seen += 1
        return self._seen < len(run.epochs)

    def of(self, run: Run, open_epoch: EpochRecord | None = None) -> EpochRecord:
        """Return everything the run measured so far, with the slices of the epoch that is open."""
        self.advance(run)
        whole = EpochRecord(None)
        for part in (self._whole, run.outside, *(() if open_epoch is None else (open_epoch,))):
            whole.merge(part)
        self.open_ns = 0 if open_epoch is None else open_epoch.duration_ns
        self.open_energy = {} if open_epoch is None else deepcopy(open_epoch.energy)
        return whole


@dataclass
class Run:
    """A whole run."""

    id: str
    name: str
    started_unix_ns: int
    state: State = "running"
    duration_ns: int = 0
    planned_epochs: int | None = None
    rank: int | None = None  # of a distributed run
    world_size: int | None = None
    node: int | None = None  # the number of its machine in the job
    job: str = ""  # a random id that all ranks of a run share
    said: dict[str, str] = field(default_factory=dict)  # the user's own words for it, as resource attributes
    way: str = "code"  # how it is measured: "script" by ``epochmeter run``, "code" by the program itself
    command: str = ""  # the words of ``epochmeter run``, without folders and secrets; they stay on this machine
    app: dict[str, str] = field(default_factory=dict)  # of a package that embeds us: name, version, install
    hardware: Hardware = field(default_factory=Hardware)
    epochs: list[EpochRecord] = field(default_factory=list)
    outside: EpochRecord = field(default_factory=lambda: EpochRecord(None))
    overhead_ns: int | None = None  # of the loop's own threads
    background_ns: int | None = None  # CPU time of the sampling thread
    notes: dict[str, int] = field(default_factory=dict)  # our own faults, each with its number
    loaders: dict[str, LoaderFacts] = field(default_factory=dict)  # by stage
    growth: MemoryGrowth | None = None
    slices: list[Slice] = field(default_factory=list)  # in the order of time, joined where there are many
    open_step: OpenStep | None = None  # when the run was last heard of
    exit_code: int | None = None  # that the program asked for by SystemExit, if it is not 0
    by_index: dict[int, EpochRecord] = field(default_factory=dict, repr=False)  # the epochs of a run that is being read

    def parts(self) -> Iterable[EpochRecord]:
        """Yield the epochs, and then the part outside them."""
        yield from self.epochs
        yield self.outside

    def whole(self) -> EpochRecord:
        """Return everything the run measured, added up."""
        return Sums().of(self)

    def energy(self, more: Energies | None = None) -> Energies:
        """Return the energy of the GPUs over all epochs. Energy shared by two epochs of a stage belongs to the stage.

        ``more`` is that of an epoch that is open.

        It is not part of `whole`, because it becomes known after an epoch has been added up.
        """
        total: Energies = {}
        for part in self.parts():
            merge_energy(total, part.energy)
        merge_energy(total, more or {})
        for gpus in total.values():
            for energy in gpus.values():
                energy.uncertain, energy.between_epochs = energy.between_stages, 0.0
        return total

    def note(self, what: str, times: int = 1) -> None:
        """Count a fault of our own under a text. A new text beyond the limit counts as "more"."""
        if what not in self.notes and len(self.notes) >= NOTE_LIMIT:
            what = "more"
        self.notes[what] = self.notes.get(what, 0) + times
