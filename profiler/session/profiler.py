"""The composition root: joins timers, sampling thread, run log and exporters into class `Profiler`.

The rules it keeps: the user's run never fails and never waits for us; what goes wrong on our side is counted, said once,
and shown by ``epochmeter doctor``.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import itertools
import logging
import os
import secrets
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, Literal, ParamSpec, TypeVar

from profiler.config.resolve import check_exporter, check_settings, crashes_path, resolve, runs_path, variables
from profiler.embedding.crash import forget_crashes
from profiler.errors import ArgumentTypeError, ArgumentValueError, ProfilerError
from profiler.hardware import PROBES, load_probe, module_of
from profiler.hardware.sampler import Recorder
from profiler.measure import ranks
from profiler.measure.clocks import host_clock
from profiler.measure.energy_meter import Meter
from profiler.measure.follow.follower import Follower
from profiler.measure.follow.torch_hooks import Hooks, in_foreign_backward
from profiler.measure.timer import Stage, Timer, batch_size, printable
from profiler.records.run import UNREAD, EpochRecord, Run, Sums, energy_by_gpu, merge_energy, sum_of
from profiler.report.summary import RunSummary
from profiler.sending.outlet import Sending
from profiler.storage.run_log import RunLog, prune

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.config.resolve import Host, Resolved
    from profiler.measure.ranks import Ranks
    from profiler.measure.timer import Phase, SampleCount, Span
    from profiler.records.readings import Probe
    from profiler.records.run import CaseRecord, Energies, State


T = TypeVar("T")
P = ParamSpec("P")
R = TypeVar("R")
PROBE_MODULES = (*(module_of(name) for name in PROBES), "psutil", "pynvml")
LOG_MODULES = ("filelock", "platformdirs")
KEEP_NS = 60_000_000_000  # a service's calls are kept that often
UNREAD_SHARE = 0.1  # of the phases, whose GPU time is not known at the end: more is worth a note
MAX_UNSAVED = 16  # epochs kept for a disk that may have room again
logger = logging.getLogger("epochmeter")
_live: weakref.WeakSet[Profiler] = weakref.WeakSet()


class Pass(Generic[T]):
    """A loader with its passes timed: iterates, and tells its length, as the loader does."""

    def __init__(self, items: Iterable[T], iterate: Callable[[], Iterator[T]]) -> None:
        self._items = items
        self._iterate = iterate

    def __iter__(self) -> Iterator[T]:
        return self._iterate()

    def __bool__(self) -> bool:
        return bool(self._items)

    def __len__(self) -> int:
        return len(self._items)  # type: ignore[arg-type]  # the loader's own TypeError where it has no length

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("_items", "_iterate"):
            raise AttributeError(name)
        return getattr(self._items, name)  # loader.sampler, loader.dataset: as if it stood there unwrapped


class Attachment:
    """What `Profiler.attach` has put in place; taken away by `remove`, or at the end of a ``with``."""

    def __init__(self, hooks: Hooks, things: tuple[Any, ...]) -> None:
        self._hooks = hooks
        self._things = things

    def remove(self) -> None:
        """Takes the hooks away, but for those that another attachment needs. Nothing happens the second time."""
        things, self._things = self._things, ()
        for thing in things:
            self._hooks.drop(thing)

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove()


class Profiler:
    """Times a training loop, samples the hardware meanwhile, and keeps what it measured.

    Use it as a context manager, or with `start` and `stop`. One Profiler measures one run.

    Args:
        name: what you call the run, 1 to 200 characters. It stays on this machine.
        epochs: how many epochs are planned; `epochs()` then needs no number.
        settings: settings for this run, such as ``{"sync": False}``; an "off" elsewhere still wins.
        exporter: "none", "otlp", "ga" or "prometheus" instead of the setting, or an OpenTelemetry ``MetricExporter`` of
            your own.
        interval: seconds between two readings of the hardware, at least 0.01.
        device: "cuda", "cuda:0" or "cpu"; None looks what torch uses.
        distributed: "auto": every rank of a torch.distributed run records a run of its own, and the first one also
            what the others' epochs took. False: ranks know nothing of each other.
        live: write one line to stderr after each epoch.

    Raises:
        ArgumentTypeError, ArgumentValueError, SettingsError: an argument that cannot be used.
    """

    def __init__(
        self,
        name: str,
        *,
        epochs: int | None = None,
        settings: Mapping[str, Any] | None = None,
        exporter: Any = None,
        interval: float = 1.0,
        device: Any = None,
        distributed: Literal["auto"] | bool = "auto",
        live: bool = False,
    ) -> None:
        self._arguments = _checked_settings(settings, exporter)
        self._exporter = exporter if exporter is not None and not isinstance(exporter, str) else None
        if distributed not in ("auto", True, False):
            raise ArgumentValueError(f"distributed is 'auto', True or False, not {distributed!r}")
        self._live = bool(live)
        self._timer = Timer(_checked_device(device))
        self._owner = self._timer.owner
        self._run = Run(secrets.token_hex(6), _checked_name(name), 0, planned_epochs=_checked_count("epochs", epochs))
        self._late = EpochRecord(None)  # the energy that was used outside of epochs
        self._meter = Meter(self._timer.edges, self._add_energy)
        self._recorder = Recorder(
            _checked_interval(interval), prepare=self._prepare, load=self._load_probe, energy=self._meter.add
        )
        self._timer.edges.on_edge = self._recorder.nudge
        self._log: RunLog | None = None
        self._log_lock = threading.Lock()
        self._run_lock = threading.RLock()  # the loop adds to the run while an export reads it
        self._unsaved: list[EpochRecord] = []
        self._sums = Sums()
        self._sums_lock = threading.Lock()
        self._host: Host | None = None
        self._sending = Sending(self._run, self._resolve, self._exporter, self._snapshot, self._run.note)
        self._state: Literal["new", "running", "over"] = "new"
        self._hooks: Hooks | None = None
        self._distributed = distributed is not False
        self._ranks: Ranks | None = None
        self._epoch: EpochRecord | None = None
        self._indices: set[int] = set()  # of the epochs begun so far
        self._tells_epochs = False  # whether the loop says itself where its epochs begin
        self._began = 0
        self._kept_at = host_clock()
        self._timer.on_tasks = lambda: setattr(self, "phase", self._phase_in_tasks)

    # ---- a run's life ----------------------------------------------------------------------------------------------

    def start(self) -> Profiler:
        """Begins the run. Called by ``with``, and by the first pass or epoch if nobody else did.

        Raises:
            ProfilerError: the run is over; a second one needs a second Profiler.
        """
        if self._state == "over":
            raise ProfilerError("this Profiler's run is over; make a new Profiler for another run")
        if self._state == "running":
            return self
        self._state = "running"
        resolved = self._resolve()
        self._attempt("a part of the profiler could not be loaded", lambda: _load(resolved.settings.local))
        self._attempt("nothing will be sent", lambda: self._sending.prepare(resolved))
        self._began = host_clock()
        self._run.started_unix_ns = time.time_ns()
        self._find_rank()
        for problem in resolved.problems:
            _warn_once(problem)
        if resolved.settings.local:
            self._attempt("there is no folder for the run log", self._open_log)
        if self._sending.begin(None if self._log is None else self._log.path):
            self._recorder.every = (resolved.settings.export_interval, self._export)
            self._recorder.each_tick = self._sending.consent
        self._recorder.start()
        _live.add(self)
        atexit.register(self._at_exit)
        return self

    def stop(self) -> None:
        """Ends the run: open passes are closed, the last readings taken, the log completed, the last word sent.

        Nothing happens the second time, or before the start. Delivery is waited for as long as ``exit_timeout`` says.
        """
        self._finish("finished")

    def __enter__(self) -> Profiler:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: object) -> None:
        self._finish(_state_after(value))

    @property
    def summary(self) -> RunSummary:
        """What was measured so far; passes that are still open are not in it."""
        if self._state == "running":
            self._refresh()
            epoch = self._epoch  # the loop's thread may end it meanwhile
            if epoch is not None:
                self._collect(epoch)
                epoch.duration_ns = self._now() - epoch.started_ns
                shown = Run(**{**vars(self._run), "epochs": [*self._run.epochs, epoch]})
                return RunSummary(shown)
            self._keep_outside()
        return RunSummary(self._run)

    # ---- what the loop uses ----------------------------------------------------------------------------------------

    def phase(self, name: str | Phase) -> Span:
        """Times a part of a step: ``with prof.phase("forward"):``, or as a decorator. Phases nest.

        Args:
            name: a `Phase`, or a word of your own (which never leaves this machine).

        Raises:
            ArgumentTypeError, ArgumentValueError: a name that cannot be used.
        """
        try:
            return self._owner.current.children[name]
        except (KeyError, TypeError):
            return self._timer.phase(name)

    def train(self, loader: Iterable[T], *, samples: int | Callable[[Any], int] | None = None) -> Pass[T]:
        """One training pass: iterate over the answer as over the loader.

        Args:
            loader: any iterable; every item is passed through unchanged.
            samples: how many samples one item holds, a number or a function of the item; by default the first
                dimension of the first tensor in it.

        Raises:
            ArgumentTypeError, ArgumentValueError: an argument that cannot be used.
        """
        return self._pass(Stage.TRAIN, loader, samples)

    def validate(self, loader: Iterable[T], *, samples: int | Callable[[Any], int] | None = None) -> Pass[T]:
        """One validation pass; otherwise as `train`."""
        return self._pass(Stage.VAL, loader, samples)

    def infer(self, loader: Iterable[T], *, samples: int | Callable[[Any], int] | None = None) -> Pass[T]:
        """One inference pass; its steps without their wait for data are the ``latency``. Otherwise as `train`."""
        return self._pass(Stage.INFERENCE, loader, samples)

    def inference(self, function: Callable[P, R]) -> Callable[P, R]:
        """Decorates a function or coroutine function: every call is one step of inference.

        Calls may overlap, in threads as in tasks of asyncio: each has a latency of its own, and the phases in it. The
        samples of a call are the first dimension of the first tensor among its arguments.

        Raises:
            ArgumentTypeError: it is a generator function, whose calls return before the work is done, or no function.
        """
        import inspect

        if not callable(function) or inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise ArgumentTypeError(f"prof.inference decorates a function that returns its result, not {function!r}")
        return self._timer.call(function, batch_size, self._start_if_new, self._after_call)

    def epochs(self, epochs: int | Iterable[T] | None = None) -> Pass[Any]:
        """Epochs: ``for epoch in prof.epochs(10)``, or any iterable, or the number given to the Profiler.

        Raises:
            ArgumentTypeError, ArgumentValueError: neither is there, or the number is not a whole one above 0.
        """
        if epochs is None:
            epochs = self._run.planned_epochs
            if epochs is None:
                raise ArgumentValueError("how many epochs? Profiler(name, epochs=10), or prof.epochs(10)")
        if isinstance(epochs, (int, float)):
            count = _checked_count("epochs", epochs)
            self._run.planned_epochs = count
            items: Iterable[Any] = range(count or 0)
        else:
            items = _checked_iterable("epochs", epochs)
        return Pass(items, lambda: self._iterate_epochs(items))

    def attach(self, *things: Any) -> Attachment:
        """Times forward, backward and optimizer of what is named here, without a ``with`` in the loop.

        Where the loop says what it does (`train`, `validate`, `infer`), these phases are added to its passes. Otherwise
        passes are inferred: over the loaders named here, else from one step of an optimizer to the next.

        Args:
            things: the outermost modules (after wrapping: DistributedDataParallel, ``torch.compile``), optimizers, and
                DataLoaders that are not handed to `train`, `validate` or `infer`.

        Returns:
            a handle with ``remove()``, which is a context manager, too. All hooks go at the run's end.

        Raises:
            ArgumentTypeError: something that is none of these; nothing is attached then.
        """
        if not things:
            raise ArgumentTypeError("attach what? prof.attach(model, optimizer)")
        if self._state == "over":
            return Attachment(Hooks(self._follower(gaps=False)), ())
        if self._hooks is None:
            self._hooks = Hooks(self._follower(gaps=False))
        added: list[Any] = []
        try:
            for thing in things:
                self._hooks.add(thing)
                added.append(thing)
        except BaseException:
            Attachment(self._hooks, tuple(added)).remove()
            raise
        return Attachment(self._hooks, things)

    # ---- inside ----------------------------------------------------------------------------------------------------

    def _resolve(self) -> Resolved:
        return resolve(self._arguments, self._host)

    def _belongs_to(self, host: Host, app: Mapping[str, str]) -> None:
        """The run is of a package that embeds us: its users' choices outweigh its own, and its version is told."""
        self._host = host
        self._sending.belongs_to(host)
        self._run.app = dict(app)

    def _pass(self, stage: Stage, loader: Iterable[T], samples: int | Callable[[Any], int] | None) -> Pass[T]:
        items = _checked_iterable(f"{stage.value} loader", loader)
        count = _sample_count(samples)

        def iterate() -> Iterator[T]:
            if self._state == "over":
                return iter(items)
            self.start()
            before = self._infer_epoch if stage is Stage.TRAIN else _nothing
            return self._timer.iterate(stage, items, count, before, self._after_pass)

        return Pass(items, iterate)

    def _follower(self, *, gaps: bool) -> Follower:
        return Follower(self._timer, _Host(self), gaps=gaps, in_backward=in_foreign_backward)

    def _follow_loaders(self) -> None:
        """For a framework, which makes its loaders itself, and saves by itself."""
        if self._hooks is None:
            self._hooks = Hooks(self._follower(gaps=False), all_loaders=True)
        else:
            self._hooks.listen_to_loaders()

    def _follow_everything(self) -> None:
        """For a script that names nothing: all loaders, modules and optimizers, and what lies between."""
        if self._hooks is None:
            self._hooks = Hooks(self._follower(gaps=True), everything=True)

    def _infer_epoch(self) -> None:
        """Where the loop does not say itself where its epochs begin, each training pass is taken for one."""
        if self._state == "running" and not self._tells_epochs and not self._timer.is_open(Stage.TRAIN):
            self._begin_epoch(len(self._indices), inferred=True)

    def _start_if_new(self) -> bool:
        if self._state == "new":
            self.start()
        return self._state == "running"

    def _after_call(self) -> None:
        """A service runs for weeks: what its calls measured goes on disk every minute, not only at its end."""
        if self._epoch is None and host_clock() - self._kept_at > KEEP_NS:
            self._keep_outside()

    def _phase_in_tasks(self, name: str | Phase) -> Span:
        """`phase`, once tasks of asyncio have places of their own."""
        return self._timer.phase(name)

    def _after_pass(self) -> None:
        if self._epoch is None and self._state == "running":
            self._keep_outside()

    def _iterate_epochs(self, items: Iterable[Any]) -> Iterator[Any]:
        if self._state == "over":
            yield from items
            return
        self.start()
        self._tells_epochs = True
        try:
            for item in items:
                index = item if type(item) is int else len(self._indices)
                record = self._begin_epoch(index, inferred=False)
                yield item
                if self._epoch is record:
                    self._end_epoch()
        finally:
            self._end_epoch()

    def _begin_epoch(self, index: int, *, inferred: bool, started: int | None = None) -> EpochRecord:
        """Begins an epoch, and ends the one before; ``started`` is when, on the host's clock, if not now."""
        began = self._now() if started is None else started - self._began
        self._end_epoch(began, keep_undecided=started is not None)
        if index < 0 or index in self._indices:
            index = next(free for free in itertools.count(len(self._indices)) if free not in self._indices)
        self._indices.add(index)
        self._keep_outside()
        self._epoch = EpochRecord(index, started_ns=began, inferred=inferred)
        self._timer.enter_epoch(index, started)
        return self._epoch

    def _end_epoch(self, at: int | None = None, *, keep_undecided: bool = False) -> None:
        """Completes the epoch that is open, if one is: it is on disk before this returns."""
        epoch = self._epoch
        if epoch is None or self._state != "running":
            return
        if self._hooks is not None:
            self._hooks.follower.epoch_ends()
        self._timer.close_passes(keep_undecided=keep_undecided)
        epoch.duration_ns = max((self._now() if at is None else at) - epoch.started_ns, 0)
        self._collect(epoch)
        epoch.readings = self._recorder.take()
        began = host_clock()
        self._epoch = None
        with self._run_lock:
            self._run.epochs.append(epoch)
        self._timer.enter_epoch(None, None if at is None else at + self._began)
        self._refresh()
        self._save(epoch)
        self._attempt("the ranks could not be told", lambda: self._tell_ranks(epoch))
        if self._live:
            self._attempt("stderr takes no lines", lambda: self._say(epoch))
        self._timer.overhead_ns += host_clock() - began

    def _say(self, epoch: EpochRecord) -> None:
        sys.stderr.write(f"{self._run.name}: epoch {epoch.index} in {epoch.duration_ns / 1e9:.2f} s\n")

    def _find_rank(self) -> None:
        """Which rank this is, once that is known."""
        found = None if not self._distributed else ranks.place() or ranks.told_by(variables(("RANK", "WORLD_SIZE")))
        if found is not None:
            self._run.rank, self._run.world_size = found

    def _tell_ranks(self, epoch: EpochRecord) -> None:
        """Each rank tells what the epoch took; the first one keeps what all have told by now."""
        if self._ranks is None and self._distributed and ranks.place() is not None and self._may_tell():
            self._ranks = ranks.join(self._run.name)
        if self._ranks is not None:
            self._ranks.tell(epoch)
            self._keep_ranks(last=False)

    def _keep_ranks(self, *, last: bool) -> None:
        if self._ranks is not None and self._ranks.rank == 0:
            for epoch in self._ranks.gather(last=last):
                self._save(EpochRecord(epoch.index, started_ns=epoch.started_ns, ranks=epoch.ranks))

    def _may_tell(self) -> bool:
        """Where "nothing leaves this machine" was said, ranks on other machines are not told either."""
        local = variables(("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
        on_one_machine = len(local) == 2 and len(set(local.values())) == 1
        return self._resolve().values["sync"].value is True or on_one_machine

    def _collect(self, into: EpochRecord) -> None:
        with self._run_lock:
            known = self._timer.take(into, ended=self._state == "over")
        for part in known:
            self._add_late(part)

    def _add_late(self, part: EpochRecord) -> None:
        """Device times of an epoch that has ended: the device was behind."""
        position = self._position(part.index)
        if position is None:
            self._add_outside(part)
            return
        with self._run_lock:
            epoch = self._run.epochs[position]
            epoch.merge(part)
            self._sums.add_late(position, part)
        part.started_ns = epoch.started_ns
        self._save(part)

    def _keep_outside(self) -> None:
        """What lies outside every epoch goes on disk as soon as it is known, too."""
        self._kept_at = host_clock()
        part = EpochRecord(None, started_ns=self._now())
        self._collect(part)
        if not part.is_empty:
            self._add_outside(part)

    def _position(self, index: int | None) -> int | None:
        """Where in the run the epoch of this number is, if it has ended; the latest one, where there are several."""
        epochs = self._run.epochs
        return next((position for position in reversed(range(len(epochs))) if epochs[position].index == index), None)

    def _add_outside(self, part: EpochRecord) -> None:
        with self._run_lock:
            self._run.outside.merge(part)
        self._refresh()
        self._save(part)

    def _add_cases(self, cases: list[CaseRecord]) -> None:
        """What a benchmark has measured, as soon as it is known."""
        self._add_outside(EpochRecord(None, started_ns=self._now(), cases=cases))

    def _learn(self, facts: Mapping[str, str]) -> None:
        """Versions that other processes told: a benchmark's torch is not in this one."""
        self._recorder.learn("runtime", facts)

    def _add_energy(self, index: int | None, energy: Energies) -> None:
        """What an epoch used, as soon as the counters have been read after its end; called beside the loop."""
        with self._run_lock:
            position = self._position(index)
            epoch = self._run.outside if position is None else self._run.epochs[position]
            if not sum_of(energy_by_gpu(energy).values()).is_resolved:
                epoch = self._run.outside  # so short that it is only told in the sums, and no line of the log is spent on it
            merge_energy(epoch.energy, energy)
            if epoch is self._run.outside:
                merge_energy(self._late.energy, energy)
        if epoch is not self._run.outside:
            self._save(EpochRecord(epoch.index, started_ns=epoch.started_ns, energy=energy))

    def _now(self) -> int:
        return host_clock() - self._began

    def _refresh(self) -> None:
        run = self._run
        run.duration_ns = self._now()
        self._find_rank()
        run.hardware = self._recorder.hardware()
        run.background_ns = self._recorder.cpu_ns
        run.notes.update(self._recorder.notes)

    def _finish(self, state: State) -> None:
        if self._state != "running":
            return
        if self._hooks is not None:
            self._attempt("hooks could not be removed", self._hooks.remove)
        self._end_epoch()
        self._timer.close_passes()
        self._state = "over"
        atexit.unregister(self._at_exit)
        _live.discard(self)
        tail = EpochRecord(None, started_ns=self._now())
        self._collect(tail)
        self._attempt("the ranks could not be heard", lambda: self._keep_ranks(last=True))
        self._recorder.stop()
        self._meter.finish()
        if self._late.energy:
            self._save(self._late)
        if self._timer.device_fault is not None:
            self._run.note(f"the GPU's clock failed: {self._timer.device_fault}")
        self._collect(tail)  # the device has gone on meanwhile
        self._note_unread(tail)
        tail.readings = self._recorder.take()
        self._run.state = state
        self._run.overhead_ns = self._timer.overhead_ns + self._hot_path_ns(tail)
        self._add_outside(tail)
        self._send_last()
        self._close_log()

    def _note_unread(self, tail: EpochRecord) -> None:
        whole = self._run.whole()
        whole.merge(tail)
        read = sum(t.device.count for stage in whole.stages.values() for t in stage.phases.values())
        unread = self._timer.unread
        if unread > UNREAD_SHARE * (read + unread):
            self._run.note(UNREAD, unread)

    def _hot_path_ns(self, tail: EpochRecord) -> int:
        """What the phases and steps themselves cost: how many there were, times what one costs here and now."""
        whole = self._run.whole()
        whole.merge(tail)
        steps = sum(stage.steps for stage in whole.stages.values())
        spans = sum(t.count for stage in whole.stages.values() for t in stage.phases.values()) - steps
        spans += sum(t.count for t in whole.phases.values())
        phase_ns, step_ns = unit_costs()
        return round(max(spans, 0) * phase_ns + steps * step_ns)

    # ---- keeping ---------------------------------------------------------------------------------------------------

    def _open_log(self) -> None:
        self._log = RunLog(runs_path(), self._run)

    def _load_probe(self, name: str) -> Probe:
        return load_probe(name, self._timer.device)

    def _prepare(self) -> None:
        """In the sampling thread: the first line of the log, and with it the imports that writing needs."""
        self._save(None)
        log = self._log
        if log is not None:
            days = self._resolve().settings.retention_days
            prune(log.path.parent, days)
            forget_crashes(crashes_path(), days)

    def _save(self, part: EpochRecord | None) -> None:
        with self._log_lock:
            if self._log is not None:
                self._unsaved.append(part if part is not None else EpochRecord(None))
                self._attempt("the run log could not be written", self._append_unsaved)
                del self._unsaved[:-MAX_UNSAVED]

    def _append_unsaved(self) -> None:
        while self._unsaved and self._log is not None:
            self._log.append(self._run, self._unsaved[0])
            del self._unsaved[0]

    def _attempt(self, what: str, action: Callable[[], None]) -> None:
        """Does it; where it fails the run goes on: counted, and said once. All that we do beside measuring goes here."""
        try:
            action()
        except Exception as error:
            ours = type(error).__module__.startswith(("profiler.", "exporters."))  # its text was written for the user
            reason = getattr(error, "strerror", None) or (str(error) if ours else type(error).__name__)
            self._run.note(f"{what}: {reason}")
            _warn_once(f"{what} ({reason}); the run goes on. 'epochmeter doctor' tells what helps.")

    def _close_log(self) -> None:
        with self._log_lock:
            if self._log is not None:
                self._attempt("the run log could not be closed", self._log.close)
            self._log = None

    # ---- sending ---------------------------------------------------------------------------------------------------

    def _snapshot(self, rest: Callable[[], None]) -> Any:
        """The run so far as an exporter's gate may see it. The loop is locked out for the adding up alone."""
        from profiler.sending.otel_data import summed_data

        with self._sums_lock:
            with self._run_lock:
                if self._state == "running":  # afterwards, what is sent is what the log's last line says
                    self._refresh()
                whole = self._sums.of(self._run)
            rest()
            now = self._run.started_unix_ns + self._run.duration_ns
            return summed_data(self._run, now, self._sums, whole, rest)

    def _export(self) -> None:
        self._attempt("an export failed", self._sending.export)

    def _send_last(self) -> None:
        known = dict(self._run.notes)
        self._recorder.finish()
        self._attempt("an export failed", self._sending.finish)
        if self._run.notes != known:
            self._save(EpochRecord(None))

    # ---- at the edges ----------------------------------------------------------------------------------------------

    def _at_exit(self) -> None:
        """A run that nobody stopped. How it ended is read from the exception the interpreter has just shown, if any."""
        self._finish(_state_after(getattr(sys, "last_value", None)))

    def _forget(self) -> None:
        """In a forked child: the run belongs to the parent; here everything is passed through and nothing kept."""
        self._state = "over"
        atexit.unregister(self._at_exit)
        self._timer.forget_threads()
        if self._hooks is not None:
            self._hooks.follower.forget()
        self._recorder.forget_threads()
        self._sending.forget()
        self._log_lock = threading.Lock()
        self._run_lock = threading.RLock()
        self._sums_lock = threading.Lock()
        self._log = None

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy in another process (a spawned worker's data set may hold one) passes through and measures nothing."""
        return _passive, (self._run.name,)

    def __repr__(self) -> str:
        return f"<Profiler {self._run.name!r} {self._run.id} {self._state}>"


class _Host:
    """What `follower.Host` asks of a run."""

    def __init__(self, session: Profiler) -> None:
        self._session = session

    def is_running(self) -> bool:
        return self._session._state == "running" or self._session._start_if_new()

    def begin_inferred_epoch(self, started: int | None) -> None:
        session = self._session
        if session._state == "running" and not session._tells_epochs:
            session._begin_epoch(len(session._indices), inferred=True, started=started)

    def has_epoch(self) -> bool:
        return self._session._epoch is not None or self._session._tells_epochs

    def after_pass(self) -> None:
        self._session._after_pass()

    def count_fault(self, error: Exception) -> None:
        self._session._run.note(f"a loop could not be followed: {type(error).__name__}")


def _load(keeps_log: bool) -> None:
    """Imports what a run needs before its clock starts.

    Beside the loop the imports would hold the interpreter's lock, 5 ms at a time, and the loop's first steps would show
    it. Nothing of an exporter is among them: that waits for consent.
    """
    for module in (*PROBE_MODULES, *(LOG_MODULES if keeps_log else ())):
        with contextlib.suppress(ImportError):  # whoever needs it says so, and what helps
            importlib.import_module(module)


def unit_costs(repeats: int = 200) -> tuple[float, float]:
    """What one phase and one step cost in this process now, in nanoseconds."""
    timer = Timer()
    segment = timer.begin(Stage.TRAIN)
    began = host_clock()
    for _ in range(repeats):
        with timer.owner.current.children["data_wait"]:
            pass
    phase_ns = (host_clock() - began) / repeats
    segment.close(partial=False)
    began = host_clock()
    for _ in timer.iterate(Stage.TRAIN, range(repeats), batch_size):
        pass
    return phase_ns, (host_clock() - began) / repeats


def _nothing() -> None:
    pass


def _passive(name: str) -> Profiler:
    passive = Profiler(name)
    passive._state = "over"
    return passive


def _after_fork() -> None:
    for session in list(_live):
        session._forget()
    _live.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


_said: set[str] = set()


def _warn_once(text: str) -> None:
    """One log record for each kind of trouble in a process."""
    if text not in _said:
        _said.add(text)
        logger.warning("epochmeter: %s", text)


def _state_after(error: BaseException | None) -> State:
    if error is None or (isinstance(error, SystemExit) and error.code in (None, 0)):
        return "finished"
    return "interrupted" if isinstance(error, (KeyboardInterrupt, GeneratorExit)) else "crashed"


# ---- arguments -----------------------------------------------------------------------------------------------------


def _checked_name(name: Any) -> str:
    if not isinstance(name, str):
        raise ArgumentTypeError(f"a run needs a name, such as Profiler('digits-mlp'), not {name!r}")
    if not name.strip() or len(name) > 200:
        raise ArgumentValueError(f"a run's name has 1 to 200 characters, unlike {name[:220]!r}")
    return printable(name)


def _checked_count(what: str, value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise ArgumentTypeError(f"{what} is a whole number, not {value!r}")
    if value < 1:
        raise ArgumentValueError(f"{what} is a whole number above 0, not {value!r}")
    return value


def _checked_interval(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ArgumentTypeError(f"interval is a number of seconds, not {value!r}")
    if not 0.01 <= value <= 3600:
        raise ArgumentValueError(f"interval is between 0.01 and 3600 seconds, not {value!r}")
    return float(value)


def _checked_device(value: Any) -> str | None:
    if value is None:
        return None
    text = str(value)  # a torch.device prints as its name
    kind, _, index = text.partition(":")
    if kind not in ("cuda", "cpu", "mps", "xpu") or (index and not index.isdigit()):
        raise ArgumentValueError(f"device is 'cuda', 'cuda:0', 'cpu' or 'mps', not {value!r}")
    return text


def _checked_iterable(what: str, value: Any) -> Any:
    if not hasattr(value, "__iter__") and not hasattr(value, "__getitem__"):
        raise ArgumentTypeError(f"{what}: something to iterate over was expected, such as a DataLoader, not {value!r}")
    return value


def _checked_settings(settings: Any, exporter: Any) -> dict[str, Any]:
    check_exporter(exporter)
    named = {"exporter": exporter} if isinstance(exporter, str) else {}
    return {**check_settings(settings), **check_settings(named)}


def _sample_count(samples: Any) -> SampleCount:
    if samples is None:
        return batch_size
    if isinstance(samples, bool) or not (isinstance(samples, int) or callable(samples)):
        raise ArgumentTypeError(f"samples is a whole number or a function of a batch, not {samples!r}")
    if not isinstance(samples, int):
        return samples  # type: ignore[no-any-return]
    if samples < 0:
        raise ArgumentValueError(f"samples is a number of samples in a batch, not {samples!r}")
    return lambda _: samples
