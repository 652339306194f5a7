"""Sample the probes in daemon threads at every interval.

Probes that ask a driver have a thread of their own: a call that hangs there leaves all other readings alone.

The rules it keeps: nothing runs on the user's thread. A reading that fails is counted and left out, and its neighbours
are not affected. The end never waits for a call that hangs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from profiler.errors import ProbeUnavailableError
from profiler.hardware import DRIVERS, PROBES, load_probe
from profiler.hardware.accumulator import Accumulator
from profiler.hardware.gpu import FIRST_BACKOFF_S, LONGEST_BACKOFF_S
from profiler.records.faults import Faults, is_of_a_signal
from profiler.records.readings import EnergySource
from profiler.records.run import Hardware

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.reading_record import Readings
    from profiler.records.readings import Fact, Number, Probe, Reading, Sample, Samples


PATIENCE = 5  # failures in a row after which a reading is asked for only now and then
BACKOFF_TICKS = 60
FACT_TICKS = 5  # between two requests for unknown facts, such as torch's version before torch is imported
STOP_TIMEOUT_S = 0.04  # with everything else at a run's end, less than 50 ms
OPEN_DEADLINE_S = 10.0  # without persistence mode, the first call to a driver takes seconds for each GPU
ROUND_DEADLINE_S = 2.0  # a round of calls takes a millisecond or two
SLOW_CALL_S = 0.2
EnergyListener = Callable[[int, Mapping[str, float]], None]


@dataclass(eq=False)
class _ReadingRow:
    probe: str
    reading: Reading
    failures: int = 0
    backoff: int = 0  # ticks to leave out
    has_answered: bool = False


class ProbeThread:
    """The probes that one thread asks, and its progress."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(names)
        self.probes: list[Probe] = []
        self.energy_sources: list[Any] = []  # the probes that count energy
        self.rows: list[_ReadingRow] = []
        self.facts: list[tuple[str, Fact]] = []  # not known yet
        self.hopeful: list[str] = list(self.names)  # probes that are not open, and may open later
        self.ticks = 0
        self.cpu_ns: int | None = None
        self.asked_at: float | None = None  # the start of the round that is going on
        self.is_overdue = False
        self.wake = threading.Event()
        self.sampled = threading.Event()  # the last reading has been taken
        self.thread: threading.Thread | None = None


class Sampler:
    """Two threads that sample probes.

    Args:
        interval: seconds between two readings.
        probes: names from `PROBES`.
        prepare: called once in the first thread, when its probes are open.
        every: ``(seconds, function)``: a function to call in that thread at this interval, or None.
        load: makes a probe from its name.
        energy: receives the GPUs' energy counters (J, by ``hw.id``) and the moment (ns), in the drivers' thread.
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
        self.missing: dict[str, str] = {}  # probe: why it is not available, and the cure
        self.every = every
        self.look_s = interval  # how often `each_tick` is called at least
        self.each_tick: list[Callable[[], object]] = []  # functions to call after each reading, and each `look_s`
        self.rest: Callable[[threading.Event, float], bool] = threading.Event.wait  # between two of these rounds
        names = tuple(probes)
        self._quick = ProbeThread(name for name in names if name not in DRIVERS)
        self._drivers = ProbeThread(name for name in names if name in DRIVERS)
        self._load = load
        self._prepare = prepare
        self._energy = energy
        self._hardware = Hardware()
        self._accumulator = Accumulator()
        self._faults = Faults(self.note)
        self._lock = threading.Lock()
        self._stop = threading.Event()

    @property
    def threads(self) -> tuple[ProbeThread, ProbeThread]:
        """The thread for probes that answer at once, and the one for drivers."""
        return self._quick, self._drivers

    @property
    def cpu_ns(self) -> int | None:
        """CPU time of both threads (ns) up to their last round; None before that."""
        known = [thread.cpu_ns for thread in self.threads if thread.cpu_ns is not None]
        return sum(known) if known else None

    def start(self) -> None:
        """Start the threads. If none can be started, the run goes on without readings."""
        for probes, name, main in (
            (self._quick, "epochmeter", self._main),
            (self._drivers, "epochmeter-drivers", self._main_of_drivers),
        ):
            if probes is self._drivers and not probes.names:
                continue
            probes.thread = threading.Thread(target=main, args=(probes,), name=name, daemon=True)
            try:
                probes.thread.start()
            except RuntimeError:
                probes.thread = None
                self.note("a sampling thread could not be started")

    def stop(self, timeout: float = STOP_TIMEOUT_S) -> None:
        """Request one last reading and wait for it, at most ``timeout`` seconds."""
        self._stop.set()
        deadline = time.monotonic() + timeout
        for probes in self.threads:
            probes.wake.set()
        for probes in self.threads:
            if probes.thread is not None and not probes.is_overdue:
                probes.sampled.wait(max(deadline - time.monotonic(), 0))
        asked_at = self._drivers.asked_at
        if asked_at is not None and not self._drivers.is_overdue and time.monotonic() - asked_at > SLOW_CALL_S:
            self.note("no answer from the GPU's driver at the end of the run")

    def finish(self, timeout: float = STOP_TIMEOUT_S) -> None:
        """Wait for the end of the first thread, which exports, at most ``timeout`` seconds."""
        if self._quick.thread is not None:
            self._quick.thread.join(timeout)

    def add_reading(self, name: str, reading: Reading) -> None:
        """Add a reading that is no probe's; before the start."""
        self._quick.rows.append(_ReadingRow(name, reading))

    def nudge(self) -> None:
        """Read the energy counters soon, because something begins or ends."""
        self._drivers.wake.set()

    def take(self) -> Readings:
        """Remove and return the readings since the last call."""
        return self._accumulator.take()

    def hardware(self) -> Hardware:
        """Return the facts known by now. The others are asked again: torch may be imported later."""
        with self._lock:
            return self._hardware

    def add_facts(self, section: Literal["cpu", "memory", "runtime"], facts: Mapping[str, str | Number | bool]) -> None:
        """Add facts that no probe of this process can know."""
        with self._lock:
            getattr(self._hardware, section).update(facts)

    def note(self, what: str) -> None:
        """Count a fault under a text."""
        with self._lock:
            self.notes[what] = self.notes.get(what, 0) + 1

    def forget_threads(self) -> None:
        """Reset after a fork: neither the threads nor the holder of a lock exist here."""
        for probes in self.threads:
            probes.thread = None
            probes.wake, probes.sampled = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._accumulator.forget_threads()

    def open(self, name: str) -> tuple[int, int]:
        """Start a probe and ask for its facts. Return the number of known facts and of readings."""
        probes = self._drivers if name in self._drivers.names else self._quick

        def opened() -> tuple[Sequence[Fact], Sequence[Reading]]:
            probe = self._load(name)
            try:
                probe.start()
            except ProbeUnavailableError as error:
                if error.is_trouble and name not in self.missing:
                    self.note(f"{name}: {error}")
                self.missing[name] = str(error)
                probes.hopeful += [name] if error.may_come else []
                return (), ()
            self.missing.pop(name, None)
            probes.probes.append(probe)
            probes.energy_sources += [probe] if isinstance(probe, EnergySource) else []
            return probe.facts(), probe.readings()

        facts, readings = self._ask(name, opened) or ((), ())
        probes.facts += [(name, fact) for fact in facts]
        probes.rows += [_ReadingRow(name, reading) for reading in readings]
        return self._ask_facts(probes), len(readings)

    def tick(self) -> None:
        """Take one round of readings from all probes."""
        for probes in self.threads:
            self._tick(probes)

    # ---- in the threads --------------------------------------------------------------------------------------------

    def _main(self, probes: ProbeThread) -> None:
        for name in probes.names:
            if not self._stop.is_set():
                self.open(name)
        if self._prepare is not None:
            self._faults.swallow("prepare", self._prepare)
        last = due = time.monotonic()
        while True:
            if time.monotonic() >= due:
                due = time.monotonic() + self.interval  # a round that is late is not made up for
                self._tick(probes)
            self._watch(self._drivers)
            for look in self.each_tick:
                self._faults.swallow("look", look)
            if self.every is not None and time.monotonic() - last >= self.every[0]:
                last = time.monotonic()
                self._faults.swallow("export", self.every[1])
            probes.cpu_ns = time.thread_time_ns()
            seconds = min(self.look_s, max(due - time.monotonic(), 0))
            has_ended = self._faults.swallow("samples of the loop", lambda: self.rest(self._stop, seconds))  # noqa: B023
            if self._stop.wait(seconds) if has_ended is None else has_ended:
                break
        self._tick(probes)
        self._end(probes)

    def _main_of_drivers(self, probes: ProbeThread) -> None:
        # Two clocks drive this thread. Readings are due once an interval. Energy counters are also read when the loop enters
        # another pass or epoch (`nudge`), because that is where their difference must be cut. `asked_at` lets the other
        # thread see a call that hangs here: nothing can interrupt a call into a driver.
        self._open_drivers(probes)
        due = time.monotonic()
        while probes.probes and not self._stop.is_set():  # without a GPU, the thread ends here
            probes.asked_at = time.monotonic()
            self._read_energy(probes)
            if probes.asked_at >= due:
                due = probes.asked_at + self.interval  # a round that is late is not made up for
                self._tick(probes)
            probes.asked_at, probes.is_overdue = None, False
            probes.cpu_ns = time.thread_time_ns()
            probes.wake.wait(max(due - time.monotonic(), 0))
            probes.wake.clear()
        self._read_energy(probes)
        self._tick(probes)
        self._end(probes)

    def _open_drivers(self, probes: ProbeThread) -> None:
        """Open the first driver that answers. One that does not start now is tried again, at growing intervals."""
        backoff_s = FIRST_BACKOFF_S
        while probes.hopeful and not probes.probes and not self._stop.is_set():
            probes.asked_at = time.monotonic()
            names, probes.hopeful = probes.hopeful, []
            for name in names:
                if not probes.probes and not self._stop.is_set():
                    self.open(name)
            probes.asked_at, probes.is_overdue = None, False
            if not probes.probes and probes.hopeful:
                self._stop.wait(backoff_s)
                backoff_s = min(backoff_s * 2, LONGEST_BACKOFF_S)

    def _end(self, probes: ProbeThread) -> None:
        probes.asked_at = None
        probes.cpu_ns = time.thread_time_ns()
        probes.sampled.set()
        for probe in probes.probes:
            self._faults.swallow(probe.name, probe.close)

    def _watch(self, probes: ProbeThread) -> None:
        """Count a driver that takes longer to answer than any should."""
        asked_at = probes.asked_at
        deadline = ROUND_DEADLINE_S if probes.probes else OPEN_DEADLINE_S
        if asked_at is not None and not probes.is_overdue and time.monotonic() - asked_at > deadline:
            probes.is_overdue = True
            self.note(f"no answer from the GPU's driver within {deadline:g} s")

    def _read_energy(self, probes: ProbeThread) -> None:
        listener = self._energy
        if listener is None:
            return
        for source in probes.energy_sources:
            counters = self._faults.swallow(source.name, source.energy)
            if counters:
                at = time.perf_counter_ns()
                self._faults.swallow("energy", lambda: listener(at, counters))  # noqa: B023  # called at once

    def _tick(self, probes: ProbeThread) -> None:
        is_last = self._stop.is_set()
        found: list[Sample | Samples] = []
        for row in list(probes.rows):
            if row.backoff:
                row.backoff -= 1
                continue
            if is_last or probes.ticks % row.reading.every == 0:
                found += self._ask(row.probe, row.reading.all, row) or ()
        self._accumulator.add(found)
        if is_last or probes.ticks % FACT_TICKS == 0:
            self._ask_facts(probes)
        probes.ticks += 1

    def _ask_facts(self, probes: ProbeThread) -> int:
        """Ask for the facts that are not known yet, and return how many became known. Most are asked for only once."""
        facts, probes.facts = probes.facts, []
        known = 0
        for probe, fact in facts:
            value = self._ask(probe, fact.read)
            if value is not None:
                self._add_fact(fact, value)
                known += 1
            elif fact.late:
                probes.facts.append((probe, fact))
        return known

    def _ask(self, probe: str, read: Callable[[], Any], row: _ReadingRow | None = None) -> Any:
        """Return a probe's answer, or None if it fails. One sampling tick must survive any probe."""
        try:
            answer = read()
        except ProbeUnavailableError:
            if row is not None:
                self._refuse(row)
            return None
        except Exception as error:
            if is_of_a_signal(error):
                raise
            self.note(f"{probe}: {type(error).__name__}")
            if row is not None:
                _back_off(row)
            return None
        if row is not None:
            row.failures = 0
            row.has_answered = row.has_answered or bool(answer)
        return answer

    def _refuse(self, row: _ReadingRow) -> None:
        """Drop a reading that this machine does not have. If it had answered before, only back off."""
        # "Not supported" at the first request is final, and costs a driver call each tick if it is asked again. Later it means
        # that the card is resetting, or was taken away for a while.
        if row.has_answered:
            _back_off(row)
            return
        for probes in self.threads:
            if row in probes.rows:
                probes.rows.remove(row)

    def _add_fact(self, fact: Fact, value: str | Number | bool) -> None:
        with self._lock:
            if fact.device is not None:
                self._hardware.gpus.setdefault(fact.device, {})[fact.key] = value
            elif fact.section != "gpus":
                getattr(self._hardware, fact.section)[fact.key] = value


def _back_off(row: _ReadingRow) -> None:
    row.failures += 1
    row.backoff = BACKOFF_TICKS if row.failures >= PATIENCE else 0
