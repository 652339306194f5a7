"""The sampling thread: asks the probes every interval, and adds up their answers until an epoch takes them.

The rules it keeps: one daemon thread a run, and nothing of it on the user's thread; a reading that fails is counted and
left out, its neighbours are not touched; ending never waits for a call that hangs.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from profiler.errors import ProbeUnavailableError
from profiler.metrics import Fact, Number, Probe, Reading, Sample
from profiler.probes import PROBES, SLOW, load_probe
from profiler.record import Hardware, ReadingKey, Readings, reading_of

PATIENCE = 5  # failures in a row after which a reading is asked only now and then
REST_TICKS = 60
STOP_TIMEOUT_S = 0.05


@dataclass
class _Row:
    probe: str
    reading: Reading
    failures: int = 0
    rest: int = 0


class Recorder:
    """Samples probes in a daemon thread.

    Args:
        interval: seconds between two readings.
        probes: names from `PROBES`.
        prepare: called once in the thread, after the quick probes and before the slow ones.
        every: ``(seconds, function)`` to call in the thread about every so many seconds, or None.
        load: makes a probe from its name.
    """

    def __init__(
        self,
        interval: float,
        *,
        probes: Iterable[str] = tuple(PROBES),
        prepare: Callable[[], None] | None = None,
        every: tuple[float, Callable[[], None]] | None = None,
        load: Callable[[str], Probe] = load_probe,
    ) -> None:
        self.interval = interval
        self.notes: dict[str, int] = {}
        self.missing: dict[str, str] = {}  # probe: why it is not there, and the cure
        self.cpu_ns: int | None = None  # CPU time of the thread
        self._names = tuple(probes)
        self._load = load
        self._prepare = prepare
        self.every = every
        self.each_tick: Callable[[], object] | None = None
        self._rows: list[_Row] = []
        self._facts: list[tuple[str, Fact]] = []
        self._hardware = Hardware()
        self._readings: Readings = {}
        self._counters: dict[ReadingKey, Number] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._sampled = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Starts the thread. Where none can be started, the run goes on without readings."""
        self._thread = threading.Thread(target=self._main, name="epochmeter", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            self._thread = None
            self.note("the sampling thread could not be started")

    def stop(self, timeout: float = STOP_TIMEOUT_S) -> None:
        """Asks for one last reading and waits for it, but not longer than ``timeout`` seconds."""
        self._stop.set()
        if self._thread is not None:
            self._sampled.wait(timeout)

    def finish(self, timeout: float = STOP_TIMEOUT_S) -> None:
        """Waits for the thread's end, but not longer than ``timeout`` seconds."""
        if self._thread is not None:
            self._thread.join(timeout)

    def take(self) -> Readings:
        """The readings since the last time they were taken."""
        with self._lock:
            taken, self._readings = self._readings, {}
        return taken

    def hardware(self) -> Hardware:
        """The facts known by now; those not yet known are asked again, as torch may have been imported meanwhile."""
        with self._lock:
            return self._hardware

    def note(self, what: str) -> None:
        with self._lock:
            self.notes[what] = self.notes.get(what, 0) + 1

    def forget_threads(self) -> None:
        """After a fork: the thread and whoever held the lock do not exist here."""
        self._thread = None
        self._lock = threading.Lock()
        self._stop, self._sampled = threading.Event(), threading.Event()

    def tick(self) -> None:
        """One round of readings."""
        for row in list(self._rows):
            if row.rest:
                row.rest -= 1
                continue
            for sample in self._attempt(row.probe, row.reading.all, row) or ():
                self._keep(sample)
        self.ask_facts()

    def ask_facts(self) -> int:
        """Asks for the facts that are not known yet, and says how many became known; most are asked only once."""
        facts, self._facts = self._facts, []
        learnt = 0
        for probe, fact in facts:
            value = self._attempt(probe, fact.read)
            if value is not None:
                self._learn(fact, value)
                learnt += 1
            elif fact.late:
                self._facts.append((probe, fact))
        return learnt

    def _main(self) -> None:
        for name in sorted(self._names, key=lambda name: name in SLOW):
            if name in SLOW:
                self._prepare_once()
            if not self._stop.is_set():
                self.open(name)
        self._prepare_once()
        last = time.monotonic()
        while True:
            self.tick()
            if self.each_tick is not None:
                self._attempt("look", self.each_tick)
            if self.every is not None and time.monotonic() - last >= self.every[0]:
                last = time.monotonic()
                self._attempt("export", self.every[1])
            self.cpu_ns = time.thread_time_ns()
            if self._stop.wait(self.interval):
                break
        self.tick()
        self.cpu_ns = time.thread_time_ns()
        self._sampled.set()

    def _prepare_once(self) -> None:
        prepare, self._prepare = self._prepare, None
        if prepare is not None:
            self._attempt("prepare", prepare)

    def open(self, name: str) -> tuple[int, int]:
        """Starts a probe and asks for its facts: how many of those are known, and how many readings it has."""

        def opened() -> tuple[Sequence[Fact], Sequence[Reading]]:
            probe = self._load(name)
            try:
                probe.start()
            except ProbeUnavailableError as error:
                self.missing[name] = str(error)
                return (), ()
            return probe.facts(), probe.readings()

        facts, readings = self._attempt(name, opened) or ((), ())
        self._facts += [(name, fact) for fact in facts]
        self._rows += [_Row(name, reading) for reading in readings]
        return self.ask_facts(), len(readings)

    def _attempt(self, probe: str, read: Callable[[], Any], row: _Row | None = None) -> Any:
        """The answer of a call, or None where it fails: the one place that swallows what probes raise."""
        try:
            answer = read()
        except ProbeUnavailableError:
            if row is not None:
                self._rows.remove(row)  # this machine cannot tell: not an error, and not asked again
            return None
        except Exception as error:
            self.note(f"{probe}: {type(error).__name__}")
            if row is not None:
                row.failures += 1
                row.rest = REST_TICKS if row.failures >= PATIENCE else 0
            return None
        if row is not None:
            row.failures = 0
        return answer

    def _keep(self, sample: Sample) -> None:
        value = sample.value
        if isinstance(value, float) and not math.isfinite(value):
            return
        with self._lock:
            record = reading_of(self._readings, sample)
            if sample.spec.kind != "counter":
                record.add(value)
                return
            key = (sample.spec.name, tuple(sorted(sample.attributes.items())))
            before = self._counters.get(key, value)
            self._counters[key] = value
            record.add(value - before if value >= before else value)

    def _learn(self, fact: Fact, value: str | Number | bool) -> None:
        with self._lock:
            if fact.device is not None:
                self._hardware.gpus.setdefault(fact.device, {})[fact.key] = value
            elif fact.section != "gpus":
                getattr(self._hardware, fact.section)[fact.key] = value
