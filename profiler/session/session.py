"""One run from its start to its end: the composition root that joins timer, sampler, run log and sending.

`Profiler` is the facade that users see. Adapters, ``epochmeter run``, the benchmark and `Telemetry` use its `session`.

The rules it keeps: the user's run never fails and never waits for us. Our own errors are counted, logged once, and shown
by ``epochmeter doctor``.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import itertools
import os
import secrets
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Literal

from profiler.config.own_words import own_words, unsayable
from profiler.config.paths import crashes_path, runs_path
from profiler.config.resolve import resolve
from profiler.errors import ProfilerError
from profiler.hardware import PROBES, load_probe, module_of
from profiler.hardware.sampler import Sampler
from profiler.measure import clocks
from profiler.measure.energy_meter import EnergyMeter
from profiler.measure.open_step import open_step
from profiler.measure.spans import never_begun
from profiler.measure.timer import Timer
from profiler.records.faults import Faults, warn_once
from profiler.records.run import UNREAD, EpochRecord, Run
from profiler.records.vocabulary import Stage
from profiler.sending.sender import Sending
from profiler.sending.yielding import pause
from profiler.session.endings import end_with_program
from profiler.session.keeper import RunKeeper
from profiler.session.live import LiveLines
from profiler.session.loop_ends import LoopEnds
from profiler.session.observation import Observation
from profiler.session.overhead import on_the_loop_ns
from profiler.session.rank_exchange import RankExchange
from profiler.session.slices import SliceCutter
from profiler.storage.crash_notes import forget_crashes
from profiler.storage.run_log import prune

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.config.resolve import EmbeddingApp, Resolved
    from profiler.records.case import CaseRecord
    from profiler.records.run import State


PROBE_MODULES = (*(module_of(name) for name in PROBES), "psutil", "pynvml")
LOG_MODULES = ("filelock", "platformdirs")
UNREAD_SHARE = 0.1  # of the phases; if the GPU time of more is unknown at the end, a note says so
_live: weakref.WeakSet[Session] = weakref.WeakSet()


class Session:
    """One run.

    Args:
        name: the run's name, checked.
        planned_epochs: how many epochs are planned, or None.
        arguments: settings given in code, checked.
        exporter: an OpenTelemetry ``MetricExporter`` of the program, or None.
        interval: seconds between two readings of the hardware.
        device: "cuda", "cuda:0", "cpu" and so on; None to use torch's device.
        distributed: ranks exchange the times of their epochs.
        live: write one line to stderr after each slice and each epoch.
    """

    def __init__(
        self,
        name: str,
        *,
        planned_epochs: int | None,
        arguments: Mapping[str, Any],
        exporter: Any,
        interval: float,
        device: str | None,
        distributed: bool,
        live: bool,
    ) -> None:
        self.run = Run(secrets.token_hex(6), name, 0, planned_epochs=planned_epochs)
        self.state: Literal["new", "running", "over"] = "new"
        self.timer = Timer(device)
        self.faults = Faults(self.run.note, is_logged=True)
        self.observation = Observation(self.timer, _Control(self))
        self._arguments = arguments
        self._live = LiveLines(self.run, self.faults, is_on=live)
        self._app: EmbeddingApp | None = None
        self._keeper = RunKeeper(self.run, self.faults, self.refresh, pause, self._live.slices_written)
        self._meter = EnergyMeter(self.timer.edges, lambda index, energy: self.slices.add_energy(index, energy))
        self.sampler = Sampler(
            interval, prepare=self._prepare, load=lambda name: load_probe(name, device), energy=self._meter.add
        )
        self.slices = SliceCutter(self.timer, self.sampler, self._keeper, self._now, self.faults)
        self.timer.on_slice = self.slices.close_in_loop
        self.sampler.add_reading("garbage", self.timer.causes.garbage.reading())
        self.sampler.add_reading("loaders", self.timer.causes.loaders.reading())
        self._ends = LoopEnds(self.timer, self._keeper, self.sampler, self.faults)
        self.sampler.each_tick += [self._ends.catch_up, self._keeper.sum_up, self.slices.look]
        self.timer.edges.on_edge = self.sampler.nudge
        self.sampler.rest = self.timer.causes.loop.rest
        self.sending = Sending(self.run, self.resolve, exporter, self._snapshot, self.run.note)
        self._ranks = RankExchange(self.run, distributed, self.resolve)
        self.sampler.each_tick.append(lambda: self._keeper.add_ranks(self._ranks.look()))
        self._indices: set[int] = set()  # of the epochs begun so far
        self.tariff: str | None = None  # the setting, as it was when the run began
        self.names_epochs = False  # True if the loop says itself where its epochs begin
        self._end_lock, self._epoch_lock = threading.RLock(), threading.RLock()  # of several threads, one tells the epochs

    # ---- the run's life --------------------------------------------------------------------------------------------

    @property
    def epoch(self) -> EpochRecord | None:
        """The open epoch, with its slices that are closed."""
        return self._keeper.open_epoch

    def start(self) -> None:
        """Begin the run. Do nothing if it is running.

        Raises:
            ProfilerError: the run is over.
        """
        if self.state == "over":
            raise ProfilerError("this Profiler's run is over; make a new Profiler for another run")
        if self.state == "running":
            return
        self.state = "running"
        resolved = self.resolve()
        self.faults.swallow("a part of the profiler could not be loaded", lambda: _load(resolved.settings.local))
        self.faults.swallow("nothing will be sent", lambda: self.sending.prepare(resolved))
        self.timer.began_ns = clocks.host_clock()
        self.run.started_unix_ns = time.time_ns()
        _take_words(self.run, resolved)
        self.tariff = resolved.settings.tariff
        self._ranks.find()
        for problem in resolved.problems:
            warn_once(problem)
        if resolved.settings.local:
            self.faults.swallow("there is no folder for the run log", lambda: self._keeper.open_log(runs_path()))
        if self.sending.begin(self._keeper.log_path):
            self.sampler.every = (resolved.settings.export_interval, self.export)
            self.sampler.each_tick.append(self.sending.consent)
        self.sampler.look_s = self.slices.start(resolved.settings.slice_s)
        self.timer.causes.start(samples_lines=resolved.settings.lines and self._app is None)
        self.sampler.start()
        _live.add(self)
        atexit.register(self._at_exit)

    def start_if_new(self) -> bool:
        """Begin the run if nobody did, and return True while it is running."""
        if self.state == "new":
            self.start()
        return self.state == "running"

    def finish(self, state: State, exit_code: int | None = None) -> None:
        """End the run: close open passes, take the last readings, complete the log, send the final payload.

        Do nothing unless the run is running. Two threads may call it: the second one waits for the first.
        """
        with self._end_lock:
            if self.state == "running" and not self.slices.is_ending:
                self.slices.is_ending, self.run.exit_code = True, exit_code
                self._finish(state)

    def _finish(self, state: State) -> None:
        self.faults.swallow("hooks could not be removed", self.observation.remove)
        self.timer.causes.stop()
        self.end_epoch()
        self.timer.close_passes()
        self.state = "over"
        _live.discard(self)
        self.slices.collect()
        self.faults.swallow("times of other ranks could not be read", lambda: self._keeper.add_ranks(self._ranks.finish()))
        self.sampler.stop()
        self._meter.finish()
        self._keeper.save_outside_energy()
        if self.timer.device_fault is not None:
            self.run.note(f"the GPU's clock failed: {self.timer.device_fault}")
        self.slices.collect()  # the GPU has gone on meanwhile
        self.slices.close_tail()
        whole = self._keeper.whole()
        _note_unmeasured(self.run, whole, self.timer)
        self.run.state = state
        self.run.overhead_ns = on_the_loop_ns(self.timer, whole, are_modules_hooked=self.observation.is_in_place)
        self.refresh()
        self._keeper.save()
        self._send_last()
        self._keeper.close_log()
        atexit.unregister(self._at_exit)  # not before: the end of the interpreter waits for a thread that ends the run

    def record_so_far(self) -> tuple[Run, EpochRecord]:
        """Return the run with its open epoch, and its sums."""
        if self.state != "running":
            return self._keeper.so_far(None)
        epoch = self.slices.so_far()
        if epoch is None:
            self._keep_outside()
        self.refresh()
        return self._keeper.so_far(epoch)

    def belongs_to(self, app: EmbeddingApp, facts: Mapping[str, str]) -> None:
        """Make this the run of a package that embeds us: its settings count below the user's, its facts are recorded."""
        self._app = app
        self.sending.belongs_to(app)
        self.run.app = dict(facts)

    def resolve(self) -> Resolved:
        """Return the settings in force for this run."""
        return resolve(self._arguments, self._app)

    def retire(self) -> None:
        """Make this a session that measures nothing: the state after the end of a run."""
        self.state = "over"

    def refresh(self) -> None:
        """Bring the run's duration, rank, facts and notes up to date."""
        run = self.run
        run.duration_ns = self._now()
        run.open_step = open_step(self.timer, expects_steps=self.names_epochs and self.epoch is not None)
        run.loaders, run.growth = self.timer.causes.loaders.facts(), self.timer.causes.loop.memory.growth()
        self._ranks.find()
        run.hardware = self.sampler.hardware()
        run.background_ns = self.sampler.cpu_ns
        run.notes.update({**self.sampler.notes, **self.timer.unmeasured})

    def forget(self) -> None:
        """Reset in a forked child: the run belongs to the parent, and everything here passes through unmeasured."""
        self.retire()
        atexit.unregister(self._at_exit)
        self._end_lock, self._epoch_lock = threading.RLock(), threading.RLock()
        self.timer.forget_threads()
        self.observation.forget()
        self.sampler.forget_threads()
        self.sending.forget()
        self._keeper.forget()

    # ---- epochs and passes -----------------------------------------------------------------------------------------

    def begin_named_epoch(self, index: int | None = None) -> EpochRecord:
        """Begin an epoch that the loop names; None counts on. From now on no epoch is inferred."""
        self.names_epochs = True
        with self._epoch_lock:
            return self._begin_epoch(len(self._indices) if index is None else index, inferred=False)

    def begin_inferred_epoch(self, started: int | None = None, *, is_first: bool = False) -> None:
        """Begin an epoch unless the loop names its own. See `RunControl.begin_inferred_epoch`."""
        with self._epoch_lock:
            is_begun = is_first and self.epoch is not None  # by another thread, a moment ago
            if self.state == "running" and not self.names_epochs and not is_begun:
                self._begin_epoch(len(self._indices), inferred=True, started=started)

    def begin_epoch_with_pass(self) -> None:
        """Begin an epoch with a training pass that is not nested in any pass, unless the loop names its epochs."""
        if not (self.timer.state().segments or self.timer.is_open(Stage.TRAIN)):
            self.begin_inferred_epoch()

    def has_epoch(self) -> bool:
        """Return True if an epoch is open, or the loop names its own."""
        return self.epoch is not None or self.names_epochs

    def end_epoch(self, at: int | None = None, *, keep_undecided: bool = False) -> None:
        """Complete the open epoch, if there is one. It is on disk before this returns.

        Args:
            at: its end in ns since the run's start, if that is only noticed now.
            keep_undecided: leave passes open whose stage is not known yet; they go on in the next epoch.
        """
        epoch = self.epoch
        if epoch is None or self.state != "running":
            return
        self.observation.epoch_ends()
        self.timer.close_passes(keep_undecided=keep_undecided)
        last = self.slices.close_last(self._now() if at is None else at)
        began = clocks.host_clock()
        self.timer.enter_epoch(None, None if at is None else at + self.timer.began_ns)
        self.refresh()
        self._keeper.save(*(() if last is None else (last,)))
        self.faults.swallow("times could not be sent to other ranks", lambda: self._ranks.publish(epoch))
        self._live.epoch_ended(epoch)
        self.timer.overhead_ns += clocks.host_clock() - began

    def leave_epoch(self, record: EpochRecord | None, *, is_within_us: bool) -> None:
        """End an epoch if it is still the open one, after its loop has ended."""
        self._ends.follow(lambda: self.end_epoch() if self.epoch is record else None, is_within_us=is_within_us)

    def after_pass(self) -> None:
        """Write a pass outside epochs to the log."""
        if self.epoch is None and self.state == "running":
            self._ends.follow(self._keep_outside)

    def after_call(self) -> None:
        """Close a slice that is due: a service's calls are its steps."""
        if self.timer.is_slice_due:
            self.slices.close_in_loop(clocks.host_clock())

    def add_cases(self, cases: list[CaseRecord]) -> None:
        """Add and write cases of a benchmark."""
        self._keeper.add_outside(EpochRecord(None, started_ns=self._now(), cases=cases))

    # ---- inside ----------------------------------------------------------------------------------------------------

    def _begin_epoch(self, index: int, *, inferred: bool, started: int | None = None) -> EpochRecord:
        """Begin an epoch, and end the previous one; ``started`` is its start on the host's clock, if not now."""
        if self.state != "running":
            return EpochRecord(index)
        began = self._now() if started is None else started - self.timer.began_ns
        self.end_epoch(began, keep_undecided=started is not None)
        if index < 0 or index in self._indices:
            index = next(free for free in itertools.count(len(self._indices)) if free not in self._indices)
        self._indices.add(index)
        self._keep_outside()
        epoch = EpochRecord(index, started_ns=began, inferred=inferred)
        self.slices.begin_epoch(epoch, began)
        self.timer.enter_epoch(index, started)
        self.faults.swallow("other ranks could not be joined", self._ranks.join)
        return epoch

    def _now(self) -> int:
        return clocks.host_clock() - self.timer.began_ns

    def _keep_outside(self) -> None:
        if self.slices.close_outside():
            self.refresh()
            self._keeper.save()

    def _prepare(self) -> None:
        """Write the log's first line in the sampling thread, which does the imports that writing needs."""
        self._keeper.save(EpochRecord(None))
        path = self._keeper.log_path
        if path is not None:
            days = self.resolve().settings.retention_days
            prune(path.parent, days)
            forget_crashes(crashes_path(), days)

    def _snapshot(self, yield_gil: Callable[[], None]) -> Any:
        made = self._keeper.snapshot(self.state == "running", yield_gil)
        self._keeper.write_slices()  # what is sent is on disk, too: a sum that is made from the log later is not lower
        return made

    def export(self) -> None:
        """Export the run so far; called by the sampling thread every ``export_interval``."""
        self.faults.swallow("an export failed", self.sending.export)
        self._keeper.note_alive()

    def _send_last(self) -> None:
        known = dict(self.run.notes)
        self.sampler.finish()
        self.faults.swallow("an export failed", self.sending.finish)
        if self.run.notes != known:
            self._keeper.save(EpochRecord(None))

    def _at_exit(self) -> None:
        """End a run that nobody stopped."""
        end_with_program(self.finish)


class _Control:
    """The run, as its observer sees it."""

    def __init__(self, session: Session) -> None:
        self.is_running = session.start_if_new
        self.begin_inferred_epoch = session.begin_inferred_epoch
        self.has_epoch = session.has_epoch
        self.after_pass = session.after_pass
        self.note = session.run.note
        self._session = session

    def count_fault(self, error: Exception) -> None:
        self._session.run.note(f"a loop could not be followed: {type(error).__name__}")


def _take_words(run: Run, resolved: Resolved) -> None:
    """Take the user's own words for a run, and note those that cannot be sent."""
    run.said = own_words(resolved)
    for name in unsayable(resolved):
        run.note(f"the value of the resource attribute {name} cannot be sent: it has characters that no word has")


def _note_unmeasured(run: Run, whole: EpochRecord, timer: Timer) -> None:
    """Note phases without a GPU's time, and phases that were named and never begun."""
    read = sum(t.device.count for stage in whole.stages.values() for t in stage.phases.values())
    if timer.unread > UNREAD_SHARE * (read + timer.unread):
        run.note(UNREAD, timer.unread)
    trees = [tree for state in timer.places.all for tree in (*state.trees, state.outside)]
    for name in never_begun(trees, whole):
        run.note(f'phase {name} was named and never begun; around its lines write: with prof.phase("{name}"):')


def _load(keeps_log: bool) -> None:
    """Import everything a run needs before its clock starts.

    Beside the loop the imports would hold the interpreter's lock, 5 ms at a time, and show in the loop's first steps. No
    module of an exporter is among them: those wait for consent.
    """
    for module in (*PROBE_MODULES, *(LOG_MODULES if keeps_log else ())):
        with contextlib.suppress(ImportError):  # the part that needs it reports it, with the cure
            importlib.import_module(module)


def _after_fork() -> None:
    for session in list(_live):
        session.forget()
    _live.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
