"""What a run measured, as plain data: the one shape that the timers fill, the run log keeps and the reports read.

Times are whole nanoseconds of the monotonic clock; only `Run.started_unix_ns` is wall-clock time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from profiler.records.histogram import NS, Histogram

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.readings import MetricSpec, Number, Sample, Samples


Path = tuple[str, ...]  # a phase and what it is nested in, outermost first: ("forward", "attention")
State = Literal["running", "finished", "interrupted", "crashed"]
FactValue = str | int | float | bool
NOTE_LIMIT = 20
UNREAD = "phases that the GPU was still at work on when the run ended: their GPU time is not known"  # a note
STEP_NS = 100_000_000  # NVIDIA's energy counters move every 20 to 100 ms, by kind of card
MAX_WAITING = 250  # values of a buffer; what waits at an epoch's end is counted by the loop's thread
SENSOR_SCALE = 7  # of a histogram of readings: percentiles within 0.3 %, nearer than any sensor; fewer buckets cost less
READING_PREFIX = "epochmeter.reading."  # the statistics of a reading, in the run log
FACT_NAMES = {  # facts that OpenTelemetry has a name for; all others are epochmeter.<section>.<key>
    ("runtime", "os"): "os.type",
    ("cpu", "architecture"): "host.arch",
    ("runtime", "implementation"): "process.runtime.name",
    ("runtime", "python"): "process.runtime.version",
}


AFTER = {word: f"after {word}" for word in ("data_wait", "forward", "backward", "optimizer")}
GAPS = frozenset(AFTER.values())  # what lies between two known phases of a loop that names none
OF_THE_HOST = GAPS | {"data_wait", "checkpoint", "logging"}  # phases in which the GPU need not be at work


@dataclass
class Timing:
    """The durations of one thing that happens again and again.

    Those of the run's first step are kept apart (``cold``): allocation, compilation and worker start-up are in it,
    and would spoil the percentiles. They count in the total, the mean and the maximum.
    """

    steady: Histogram = field(default_factory=Histogram)
    cold: Histogram = field(default_factory=Histogram)
    device: Histogram = field(default_factory=Histogram)  # the same, on the GPU's clock, where there is one

    @property
    def count(self) -> int:
        return self.steady.count + self.cold.count

    @property
    def total_ns(self) -> int:
        return self.steady.sum_ns + self.cold.sum_ns

    @property
    def max_ns(self) -> int | None:
        return max((h.max_ns for h in (self.steady, self.cold) if h.max_ns is not None), default=None)

    def merge(self, other: Timing) -> None:
        self.steady.merge(other.steady)
        self.cold.merge(other.cold)
        self.device.merge(other.device)


@dataclass
class StageRecord:
    """Train, validation or inference within one epoch (or one run): every pass of it, added up."""

    stage: str
    duration_ns: int = 0
    steps: int = 0
    samples: int | None = None  # None: no batch told its size
    passes: int = 0
    partial_passes: int = 0
    step: Timing = field(default_factory=Timing)
    latency: Timing = field(default_factory=Timing)  # inference alone: a step without its wait for data
    batch: Histogram = field(default_factory=Histogram)  # inference alone: samples in a step, times 1e9
    phases: dict[Path, Timing] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        return not (self.duration_ns or self.passes or self.steps or self.phases or self.step.count or self.latency.count)

    @property
    def other_ns(self) -> int:
        """What no top-level phase covers."""
        return self.duration_ns - sum(timing.total_ns for path, timing in self.phases.items() if len(path) == 1)

    @property
    def device_share(self) -> float | None:
        """Of a step, the share that its top-level phases took on the GPU's own clock, once the first step is over.

        Without gaps and what is the host's work. The two clocks are compared over the whole stage, never added: a phase may
        end on the GPU long after it did here. None where the device reached less than half of the marks.
        """
        return self._share_of_step(lambda timing: timing.device.sum_ns / timing.device.count)

    @property
    def host_share(self) -> float | None:
        """The share that the same phases took here."""
        return self._share_of_step(lambda timing: timing.steady.sum_ns / timing.steady.count)

    def _share_of_step(self, mean: Callable[[Timing], float]) -> float | None:
        phases = [
            timing
            for path, timing in self.phases.items()
            if len(path) == 1 and path[0] not in OF_THE_HOST and timing.device.count and timing.steady.count
        ]
        if not phases or not self.step.steady.sum_ns or any(t.device.count * 2 < t.steady.count for t in phases):
            return None
        # some marks may not have been reached yet: the mean stands for them
        return min(sum(mean(t) * t.steady.count for t in phases) / self.step.steady.sum_ns, 1.0)

    def merge(self, other: StageRecord) -> None:
        self.duration_ns += other.duration_ns
        self.steps += other.steps
        if other.samples is not None:
            self.samples = (self.samples or 0) + other.samples
        self.passes += other.passes
        self.partial_passes += other.partial_passes
        self.step.merge(other.step)
        self.latency.merge(other.latency)
        self.batch.merge(other.batch)
        merge_phases(self.phases, other.phases)


@dataclass
class ReadingRecord:
    """One metric with one set of attributes, over the ticks of the sampling thread.

    A counter is kept as what it grew by, so that a counter that runs since the machine was started tells of this run
    alone; a counter that falls back, and is not up again soon, has been restarted: what it stands at is the growth since then.
    """

    spec: MetricSpec
    attributes: Mapping[str, str]
    count: int = 0
    minimum: Number = 0
    maximum: Number = 0
    total: Number = 0
    last: Number = 0
    _histogram: Histogram = field(default_factory=lambda: Histogram(SENSOR_SCALE))
    _waiting: list[int] = field(default_factory=list)
    _per: int = 1

    @property
    def histogram(self) -> Histogram:
        """For the kind "histogram" alone: the values, times 1e9."""
        self.settle()
        return self._histogram

    def settle(self) -> None:
        """Counts what waits: before the record is handed to where more than one thread reads it."""
        if self._waiting:
            factor = NS // self._per
            self._histogram.add([value * factor for value in self._waiting])
            self._waiting.clear()

    def add_all(self, values: Sequence[int], per: int) -> None:
        """The values of a source that buffers them, whole numbers of which ``per`` are one of the metric's unit.

        They wait until there are many, which costs less than counting a few at a time.
        """
        self._waiting += values
        self._per = per
        self.count += len(values)
        if len(self._waiting) > MAX_WAITING:
            self.settle()

    def add(self, value: Number) -> None:
        if self.spec.kind == "counter":
            self.last += value
        else:
            if not self.count:
                self.minimum = self.maximum = value
            elif value < self.minimum:
                self.minimum = value
            elif value > self.maximum:
                self.maximum = value
            self.total += value
            self.last = value
        self.count += 1

    def merge(self, other: ReadingRecord) -> None:
        """Adds a later record of the same metric."""
        if not other.count:
            return
        if self.spec.kind == "counter":
            self.last += other.last
        elif self.spec.kind == "histogram":
            self.histogram.merge(other.histogram)
        else:
            self.minimum = other.minimum if not self.count else min(self.minimum, other.minimum)
            self.maximum = other.maximum if not self.count else max(self.maximum, other.maximum)
            self.total += other.total
            self.last = other.last
        self.count += other.count


ReadingKey = tuple[str, tuple[tuple[str, str], ...]]
Readings = dict[ReadingKey, ReadingRecord]


def reading_of(readings: Readings, sample: Sample | Samples, key: ReadingKey | None = None) -> ReadingRecord:
    """The record that a sample belongs to, made when it is the first of its kind. ``key`` is the sample's, if known."""
    key = reading_key(sample) if key is None else key
    record = readings.get(key)
    if record is None:
        record = readings[key] = ReadingRecord(sample.spec, dict(sample.attributes))
    return record


def reading_key(sample: Sample | Samples) -> ReadingKey:
    """What a reading is known by: its metric's name and its attributes."""
    return sample.spec.name, tuple(sorted(sample.attributes.items()))


@dataclass
class Energy:
    """What one GPU used, in joules, and how sure that is.

    Attributes:
        seconds: for how long it was metered.
        uncertain: of the joules, those that may be of what went on before or after: between the same two readings, or within
            a step of the counter. As a counter is always behind, these lie in one direction, and add up.
        between_epochs: of what lay between two readings, that with another epoch.
        between_stages: of what is uncertain, that with another stage.
    """

    joules: float = 0.0
    seconds: float = 0.0
    uncertain: float = 0.0
    between_epochs: float = 0.0
    between_stages: float = 0.0

    @property
    def is_resolved(self) -> bool:
        """Whether the counters moved, and most of it is sure to belong here."""
        return 0 < self.joules >= 2 * self.uncertain

    def add(self, other: Energy) -> None:
        self.joules += other.joules
        self.seconds += other.seconds
        self.uncertain += other.uncertain
        self.between_epochs += other.between_epochs
        self.between_stages += other.between_stages


Energies = dict[str, dict[str, Energy]]  # by stage ("" is what was in none), and by the GPU's hw.id


def sum_of(energies: Iterable[Energy]) -> Energy:
    total = Energy()
    for energy in energies:
        total.add(energy)
    return total


def energy_by_gpu(energies: Energies) -> dict[str, Energy]:
    """What each GPU used in an epoch, or in a run: what its stages share is its own, and one step of the counter is open."""
    found: dict[str, Energy] = {}
    for gpus in energies.values():
        for gpu, energy in gpus.items():
            found.setdefault(gpu, Energy()).add(replace(energy, uncertain=energy.between_epochs))
    for energy in found.values():
        energy.uncertain += energy.joules / energy.seconds * STEP_NS / NS if energy.seconds else 0.0
    return found


def merge_energy(into: Energies, other: Energies) -> None:
    for stage, gpus in other.items():
        for gpu, energy in gpus.items():
            into.setdefault(stage, {}).setdefault(gpu, Energy()).add(energy)


@dataclass
class CaseRecord:
    """One case of ``epochmeter bench``: what was measured, how, and what came out.

    Attributes:
        suite: limits, models, loader or yours.
        name: the case's, or the user's own "module:factory", which stays on this machine.
        device: cpu, cuda or mps.
        stage: train, val or inference; None where there are none.
        shape: what it is made of, in words; results are compared where it is the same.
        status: ok, failed, timed out, or skipped where there was nothing to measure.
        error: what went wrong, in a line.
        remarks: what a reader has to know before believing the numbers.
        numbers: by the names of `NUMBERS`, those that are known.
    """

    suite: str
    name: str
    device: str
    stage: str | None = None
    dtype: str | None = None
    batch: int | None = None
    workers: int | None = None
    shape: str = ""
    compiled: bool = False
    status: str = "ok"
    error: str | None = None
    remarks: list[str] = field(default_factory=list)
    numbers: dict[str, float] = field(default_factory=dict)


def case_identity(case: CaseRecord) -> tuple[object, ...]:
    """What makes two cases the same one."""
    return case.suite, case.name, case.device, case.stage, case.dtype, case.batch, case.workers, case.shape, case.compiled


def add_cases(into: list[CaseRecord], cases: Iterable[CaseRecord]) -> None:
    """A case that is there already takes the earlier one's place: limits become better known as a benchmark goes on."""
    for case in cases:
        places = [index for index, known in enumerate(into) if case_identity(known) == case_identity(case)]
        if places:
            into[places[0]] = case
        else:
            into.append(case)


def rates(case: CaseRecord) -> dict[str, float]:
    """What a case does in a second: ``sample_rate``, ``operation_rate``, ``byte_rate``, those that are known."""
    amounts = (("sample_rate", "samples"), ("operation_rate", "flops"), ("byte_rate", "moved"))
    return {rate: case.numbers[of] / case.numbers["time"] for rate, of in amounts if of in case.numbers}


def shares(case: CaseRecord) -> dict[str, float]:
    """Of what the machine itself can do, how much that is: ``operations`` and ``memory``."""
    limits = (("operations", "operation_rate", "flops_limit"), ("memory", "byte_rate", "moved_limit"))
    found = rates(case)
    return {name: found[rate] / case.numbers[limit] for name, rate, limit in limits if rate in found and limit in case.numbers}


NUMBERS = {  # of a case: unit and meaning
    "time": ("s", "Duration of a call, the median of blocks of calls."),
    "time_low": ("s", "Lower end of its 95 % confidence interval."),
    "time_high": ("s", "Upper end of its 95 % confidence interval."),
    "blocks": ("{block}", "Blocks of calls that were timed."),
    "launches": ("{launch}", "Processes that it was measured in."),
    "device_time": ("s", "Duration of a call by the GPU's clock, calls not waited for."),
    "samples": ("{sample}", "Samples in a call."),
    "flops": ("{operation}", "Floating-point operations in a call, as torch counts them."),
    "moved": ("By", "Bytes that a call's operators read and write."),
    "flops_limit": ("{operation}/s", "What this machine's matrix product reached meanwhile, in the same dtype."),
    "moved_limit": ("By/s", "What this machine's memory reached meanwhile."),
    "memory": ("By", "Peak of the memory in use."),
    "cold": ("s", "Duration of the first call of all."),
    "compile": ("s", "Duration of the first call after torch.compile."),
    "joules": ("J", "Energy used for a sample."),
    "p50": ("s", "Median of the calls, each waited for."),
    "p90": ("s", "90th percentile of the calls, each waited for."),
    "p99": ("s", "99th percentile of the calls, each waited for."),
    "max": ("s", "Longest call."),
    "calls": ("{call}", "Calls that were timed one by one."),
}


@dataclass
class RankStage:
    """A stage in one epoch of one rank: its time, and that of its top-level phases."""

    duration_ns: int = 0
    phases: dict[str, int] = field(default_factory=dict)


@dataclass
class EpochRecord:
    """One epoch, or (``index`` None) what a run did outside its epochs."""

    index: int | None
    started_ns: int = 0
    duration_ns: int = 0
    inferred: bool = False  # the loop did not say where epochs begin: each training pass is taken for one
    stages: dict[str, StageRecord] = field(default_factory=dict)
    phases: dict[Path, Timing] = field(default_factory=dict)  # those in no stage, such as a checkpoint between two
    readings: Readings = field(default_factory=dict)
    ranks: dict[int, dict[str, RankStage]] = field(default_factory=dict)  # in the first rank: what all of them told
    energy: Energies = field(default_factory=dict)  # known a little after the epoch's end; see `Run.energy`
    cases: list[CaseRecord] = field(default_factory=list)  # of a benchmark

    def stage(self, name: str) -> StageRecord:
        if name not in self.stages:
            self.stages[name] = StageRecord(name)
        return self.stages[name]

    def merge(self, other: EpochRecord) -> None:
        self.duration_ns += other.duration_ns
        for name, stage in other.stages.items():
            self.stage(name).merge(stage)
        merge_phases(self.phases, other.phases)
        for key, reading in other.readings.items():
            self.readings.setdefault(key, ReadingRecord(reading.spec, reading.attributes)).merge(reading)
        add_cases(self.cases, other.cases)

    @property
    def is_empty(self) -> bool:
        return not (self.stages or self.phases or self.readings or self.ranks or self.energy or self.cases)


def merge_phases(into: dict[Path, Timing], other: Mapping[Path, Timing]) -> None:
    for path, timing in other.items():
        into.setdefault(path, Timing()).merge(timing)


@dataclass
class Hardware:
    """Facts of the machine, by section; what is not known is not in it."""

    cpu: dict[str, FactValue] = field(default_factory=dict)
    memory: dict[str, FactValue] = field(default_factory=dict)
    gpus: dict[int, dict[str, FactValue]] = field(default_factory=dict)
    runtime: dict[str, FactValue] = field(default_factory=dict)


class Sums:
    """What the finished epochs of a run add up to: kept, so that each epoch is added once, however often it is asked."""

    def __init__(self) -> None:
        self._whole = EpochRecord(None)
        self._seen = 0
        self.epochs = Histogram()  # how long each epoch took
        self.stages: dict[str, Histogram] = {}  # how long each stage took in each epoch

    def add_late(self, position: int, part: EpochRecord) -> None:
        """What was added to an epoch after its end."""
        if position < self._seen:
            self._whole.merge(part)

    def of(self, run: Run) -> EpochRecord:
        """Everything the run measured so far."""
        for epoch in run.epochs[self._seen :]:
            self._whole.merge(epoch)
            self.epochs.add([epoch.duration_ns])
            for name, stage in epoch.stages.items():
                self.stages.setdefault(name, Histogram()).add([stage.duration_ns])
            self._seen += 1
        whole = EpochRecord(None)
        whole.merge(self._whole)
        whole.merge(run.outside)
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
    app: dict[str, str] = field(default_factory=dict)  # of a package that embeds us: name, version, how it is installed
    hardware: Hardware = field(default_factory=Hardware)
    epochs: list[EpochRecord] = field(default_factory=list)
    outside: EpochRecord = field(default_factory=lambda: EpochRecord(None))
    overhead_ns: int | None = None  # on the loop's own threads
    background_ns: int | None = None  # CPU time of the sampling thread
    notes: dict[str, int] = field(default_factory=dict)  # what went wrong on our side, and how often

    def parts(self) -> Iterable[EpochRecord]:
        yield from self.epochs
        yield self.outside

    def whole(self) -> EpochRecord:
        """Everything the run measured, added up."""
        return Sums().of(self)

    def energy(self) -> Energies:
        """What the GPUs used, over all epochs: what those share is the stage's own.

        Not in `whole`: it becomes known when an epoch has been added up.
        """
        total: Energies = {}
        for part in self.parts():
            merge_energy(total, part.energy)
        for gpus in total.values():
            for energy in gpus.values():
                energy.uncertain, energy.between_epochs = energy.between_stages, 0.0
        return total

    def note(self, what: str, times: int = 1) -> None:
        """Counts something that went wrong on our side. A new kind of note beyond the limit counts as "more"."""
        if what not in self.notes and len(self.notes) >= NOTE_LIMIT:
            what = "more"
        self.notes[what] = self.notes.get(what, 0) + times
