"""The sampling threads: they ask the probes every interval, and add up the answers until an epoch takes them.

Probes that ask a driver have a thread of their own: a call that hangs there leaves all other readings as they are.

The rules it keeps: daemon threads, and nothing of them on the user's thread; a reading that fails is counted and left
out, its neighbours are not touched; ending never waits for a call that hangs.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from profiler.errors import ProbeUnavailableError
from profiler.hardware import DRIVERS, PROBES, load_probe
from profiler.hardware.gpu import FIRST_REST_S, LONGEST_REST_S
from profiler.measure.energy_meter import RESET_AFTER_NS
from profiler.records.readings import EnergySource, Samples
from profiler.records.run import Hardware, reading_key, reading_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.readings import Attributes, Fact, MetricSpec, Number, Probe, Reading, Sample
    from profiler.records.run import ReadingKey, ReadingRecord, Readings


PATIENCE = 5  # failures in a row after which a reading is asked only now and then
REST_TICKS = 60
RESET_AFTER_S = RESET_AFTER_NS / 1e9
FACT_TICKS = 5  # between two looks for facts that are not known yet, such as torch's version before torch is imported
STOP_TIMEOUT_S = 0.04  # with all else that is to be done at the end, less than 50 ms
OPEN_DEADLINE_S = 10.0  # without persistence mode, the first call to a driver takes seconds for each GPU
ROUND_DEADLINE_S = 2.0  # a round of calls takes a millisecond or two
SLOW_CALL_S = 0.2
MAX_SLOTS = 4096
EnergyListener = Callable[[int, Mapping[str, float]], None]


@dataclass(eq=False)
class _Row:
    probe: str
    reading: Reading
    failures: int = 0
    rest: int = 0
    has_answered: bool = False


class _Slot(NamedTuple):
    """Where the values of one metric of one source go; it holds what it is known by, so that no other can take its place."""

    spec: MetricSpec
    attributes: Attributes
    key: ReadingKey
    record: ReadingRecord
    is_counter: bool


class _Lane:
    """The probes that one thread asks, and how far it is."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(names)
        self.probes: list[Probe] = []
        self.sources: list[Any] = []  # those of them that count energy
        self.rows: list[_Row] = []
        self.facts: list[tuple[str, Fact]] = []
        self.hopeful: list[str] = list(self.names)  # probes that are not open, and may yet be
        self.ticks = 0
        self.cpu_ns: int | None = None
        self.asked_at: float | None = None  # since when it has been asking, while it does
        self.is_overdue = False
        self.wake = threading.Event()
        self.sampled = threading.Event()  # the last reading has been taken
        self.thread: threading.Thread | None = None


class Recorder:
    """Samples probes in daemon threads.

    Args:
        interval: seconds between two readings.
        probes: names from `PROBES`.
        prepare: called once in the first thread, when its probes are open.
        every: ``(seconds, function)`` to call in that thread about every so many seconds, or None.
        load: makes a probe from its name.
        energy: told by the drivers' thread what the GPUs' energy counters stand at (J, by ``hw.id``), and when (ns).
    """

    def __init__(
        self,
        interval: float,
        *,
        probes: Iterable[str] = tuple(PROBES),
        prepare: Callable[[], None] | None = None,
        every: tuple[float, Callable[[], None]] | None = None,
        load: Callable[[str], Probe] = load_probe,
        energy: EnergyListener | None = None,
    ) -> None:
        self.interval = interval
        self.notes: dict[str, int] = {}
        self.missing: dict[str, str] = {}  # probe: why it is not there, and the cure
        names = tuple(probes)
        self._quick = _Lane(name for name in names if name not in DRIVERS)
        self._drivers = _Lane(name for name in names if name in DRIVERS)
        self._load = load
        self._prepare = prepare
        self.every = every
        self.each_tick: Callable[[], object] | None = None
        self._energy = energy
        self._hardware = Hardware()
        self._readings: Readings = {}
        self._slots: dict[tuple[int, int], _Slot] = {}  # by the identity of spec and attributes, which a probe gives again
        self._counters: dict[ReadingKey, Number] = {}
        self._fell_at: dict[ReadingKey, float] = {}  # counters that stand below what they did
        self._lock = threading.Lock()
        self._stop = threading.Event()

    @property
    def cpu_ns(self) -> int | None:
        """CPU time of the threads, as far as they have told it."""
        told = [lane.cpu_ns for lane in self._lanes() if lane.cpu_ns is not None]
        return sum(told) if told else None

    def start(self) -> None:
        """Starts the threads. Where none can be started, the run goes on without readings."""
        for lane, name, main in (
            (self._quick, "epochmeter", self._main),
            (self._drivers, "epochmeter-drivers", self._main_of_drivers),
        ):
            if lane is self._drivers and not lane.names:
                continue
            lane.thread = threading.Thread(target=main, args=(lane,), name=name, daemon=True)
            try:
                lane.thread.start()
            except RuntimeError:
                lane.thread = None
                self.note("a sampling thread could not be started")

    def stop(self, timeout: float = STOP_TIMEOUT_S) -> None:
        """Asks for one last reading and waits for it, but not longer than ``timeout`` seconds."""
        self._stop.set()
        deadline = time.monotonic() + timeout
        for lane in self._lanes():
            lane.wake.set()
        for lane in self._lanes():
            if lane.thread is not None and not lane.is_overdue:
                lane.sampled.wait(max(deadline - time.monotonic(), 0))
        asked_at = self._drivers.asked_at
        if asked_at is not None and not self._drivers.is_overdue and time.monotonic() - asked_at > SLOW_CALL_S:
            self.note("no answer from the GPU's driver at the end of the run")

    def finish(self, timeout: float = STOP_TIMEOUT_S) -> None:
        """Waits for the end of the first thread, the one that exports, but not longer than ``timeout`` seconds."""
        if self._quick.thread is not None:
            self._quick.thread.join(timeout)

    def nudge(self) -> None:
        """Has the energy counters read soon: something begins or ends."""
        self._drivers.wake.set()

    def take(self) -> Readings:
        """The readings since the last time they were taken."""
        with self._lock:
            taken, self._readings = self._readings, {}
            self._slots.clear()
        for record in taken.values():
            record.settle()
        return taken

    def hardware(self) -> Hardware:
        """The facts known by now; those not yet known are asked again, as torch may have been imported meanwhile."""
        with self._lock:
            return self._hardware

    def learn(self, section: Literal["cpu", "memory", "runtime"], facts: Mapping[str, str | Number | bool]) -> None:
        """Facts that no probe of this process can know."""
        with self._lock:
            getattr(self._hardware, section).update(facts)

    def note(self, what: str) -> None:
        with self._lock:
            self.notes[what] = self.notes.get(what, 0) + 1

    def forget_threads(self) -> None:
        """After a fork: the threads and whoever held the lock do not exist here."""
        for lane in self._lanes():
            lane.thread = None
            lane.wake, lane.sampled = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def open(self, name: str) -> tuple[int, int]:
        """Starts a probe and asks for its facts: how many of those are known, and how many readings it has."""
        lane = self._drivers if name in self._drivers.names else self._quick

        def opened() -> tuple[Sequence[Fact], Sequence[Reading]]:
            probe = self._load(name)
            try:
                probe.start()
            except ProbeUnavailableError as error:
                if error.is_trouble and name not in self.missing:
                    self.note(f"{name}: {error}")
                self.missing[name] = str(error)
                lane.hopeful += [name] if error.may_come else []
                return (), ()
            self.missing.pop(name, None)
            lane.probes.append(probe)
            lane.sources += [probe] if isinstance(probe, EnergySource) else []
            return probe.facts(), probe.readings()

        facts, readings = self._attempt(name, opened) or ((), ())
        lane.facts += [(name, fact) for fact in facts]
        lane.rows += [_Row(name, reading) for reading in readings]
        return self._ask_facts(lane), len(readings)

    def tick(self) -> None:
        """One round of readings, of all probes."""
        for lane in self._lanes():
            self._tick(lane)

    # ---- in the threads --------------------------------------------------------------------------------------------

    def _lanes(self) -> tuple[_Lane, _Lane]:
        return self._quick, self._drivers

    def _main(self, lane: _Lane) -> None:
        for name in lane.names:
            if not self._stop.is_set():
                self.open(name)
        if self._prepare is not None:
            self._attempt("prepare", self._prepare)
        last = time.monotonic()
        while True:
            self._tick(lane)
            self._watch(self._drivers)
            if self.each_tick is not None:
                self._attempt("look", self.each_tick)
            if self.every is not None and time.monotonic() - last >= self.every[0]:
                last = time.monotonic()
                self._attempt("export", self.every[1])
            lane.cpu_ns = time.thread_time_ns()
            if self._stop.wait(self.interval):
                break
        self._tick(lane)
        self._end(lane)

    def _main_of_drivers(self, lane: _Lane) -> None:
        self._open_drivers(lane)
        due = time.monotonic()
        while lane.probes and not self._stop.is_set():  # without a GPU, the thread ends here
            lane.asked_at = time.monotonic()
            self._read_energy(lane)
            if lane.asked_at >= due:
                due = lane.asked_at + self.interval  # a round that comes late is not made up for
                self._tick(lane)
            lane.asked_at, lane.is_overdue = None, False
            lane.cpu_ns = time.thread_time_ns()
            lane.wake.wait(max(due - time.monotonic(), 0))
            lane.wake.clear()
        self._read_energy(lane)
        self._tick(lane)
        self._end(lane)

    def _open_drivers(self, lane: _Lane) -> None:
        """Opens the first one that is there; one that does not start now is tried again, more and more rarely."""
        rest_s = FIRST_REST_S
        while lane.hopeful and not lane.probes and not self._stop.is_set():
            lane.asked_at = time.monotonic()
            names, lane.hopeful = lane.hopeful, []
            for name in names:
                if not lane.probes and not self._stop.is_set():
                    self.open(name)
            lane.asked_at, lane.is_overdue = None, False
            if not lane.probes and lane.hopeful:
                self._stop.wait(rest_s)
                rest_s = min(rest_s * 2, LONGEST_REST_S)

    def _end(self, lane: _Lane) -> None:
        lane.asked_at = None
        lane.cpu_ns = time.thread_time_ns()
        lane.sampled.set()
        for probe in lane.probes:
            self._attempt(probe.name, probe.close)

    def _watch(self, lane: _Lane) -> None:
        """Counts a driver that takes longer to answer than any should."""
        asked_at = lane.asked_at
        deadline = ROUND_DEADLINE_S if lane.probes else OPEN_DEADLINE_S
        if asked_at is not None and not lane.is_overdue and time.monotonic() - asked_at > deadline:
            lane.is_overdue = True
            self.note(f"no answer from the GPU's driver within {deadline:g} s")

    def _read_energy(self, lane: _Lane) -> None:
        listener = self._energy
        if listener is None:
            return
        for source in lane.sources:
            counters = self._attempt(source.name, source.energy)
            if counters:
                at = time.perf_counter_ns()
                self._attempt("energy", lambda: listener(at, counters))  # noqa: B023  # called at once

    def _tick(self, lane: _Lane) -> None:
        is_last = self._stop.is_set()
        found: list[Sample | Samples] = []
        for row in list(lane.rows):
            if row.rest:
                row.rest -= 1
                continue
            if is_last or lane.ticks % row.reading.every == 0:
                found += self._attempt(row.probe, row.reading.all, row) or ()
        self._keep(found)
        if is_last or lane.ticks % FACT_TICKS == 0:
            self._ask_facts(lane)
        lane.ticks += 1

    def _ask_facts(self, lane: _Lane) -> int:
        """Asks for the facts that are not known yet, and says how many became known; most are asked only once."""
        facts, lane.facts = lane.facts, []
        learnt = 0
        for probe, fact in facts:
            value = self._attempt(probe, fact.read)
            if value is not None:
                self._learn(fact, value)
                learnt += 1
            elif fact.late:
                lane.facts.append((probe, fact))
        return learnt

    def _attempt(self, probe: str, read: Callable[[], Any], row: _Row | None = None) -> Any:
        """The answer of a call, or None where it fails: the one place that swallows what probes raise."""
        try:
            answer = read()
        except ProbeUnavailableError:
            if row is not None:
                self._refuse(row)
            return None
        except Exception as error:
            self.note(f"{probe}: {type(error).__name__}")
            if row is not None:
                row.failures += 1
                row.rest = REST_TICKS if row.failures >= PATIENCE else 0
            return None
        if row is not None:
            row.failures = 0
            if answer:
                row.has_answered = True
        return answer

    def _refuse(self, row: _Row) -> None:
        """This machine cannot tell: not an error, and not asked again, unless it could before."""
        if row.has_answered:
            row.failures += 1
            row.rest = REST_TICKS if row.failures >= PATIENCE else 0
            return
        for lane in self._lanes():
            if row in lane.rows:
                lane.rows.remove(row)

    # ---- what was read ---------------------------------------------------------------------------------------------

    def _keep(self, samples: Iterable[Sample | Samples]) -> None:
        slots, isfinite = self._slots, math.isfinite
        with self._lock:
            for sample in samples:
                value = sample[1]
                if isinstance(value, float) and not isfinite(value):
                    continue
                slot = slots.get((id(sample[0]), id(sample[-1]))) or self._slot_for(sample)
                if isinstance(sample, Samples):
                    slot.record.add_all(sample.values, sample.per)
                    continue
                value = sample.value
                if slot.is_counter:
                    before = self._counters.get(slot.key, value)
                    if value < before:
                        fell_at = self._fell_at.setdefault(slot.key, time.monotonic())
                        if time.monotonic() - fell_at < RESET_AFTER_S:
                            continue  # it was reset, unless it is up again soon
                    self._counters[slot.key] = value
                    if self._fell_at:
                        self._fell_at.pop(slot.key, None)
                    value = value - before if value >= before else value
                slot.record.add(value)

    def _slot_for(self, sample: Sample | Samples) -> _Slot:
        if len(self._slots) >= MAX_SLOTS:  # a probe that makes its attributes anew each time
            self._slots.clear()
        key = reading_key(sample)
        record = reading_of(self._readings, sample, key)
        slot = _Slot(sample.spec, sample.attributes, key, record, sample.spec.kind == "counter")
        self._slots[id(sample.spec), id(sample.attributes)] = slot
        return slot

    def _learn(self, fact: Fact, value: str | Number | bool) -> None:
        with self._lock:
            if fact.device is not None:
                self._hardware.gpus.setdefault(fact.device, {})[fact.key] = value
            elif fact.section != "gpus":
                getattr(self._hardware, fact.section)[fact.key] = value
