"""`Profiler`: the facade that users see. The work is done by `Session`."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Literal, ParamSpec, TypeVar

from profiler.errors import ArgumentTypeError, ArgumentValueError
from profiler.measure import clocks
from profiler.measure.frames import drop_own_frame, is_closed_within_us
from profiler.records.vocabulary import Stage
from profiler.session.arguments import (
    checked_count,
    checked_device,
    checked_distributed,
    checked_interval,
    checked_iterable,
    checked_name,
    checked_settings,
    sample_count,
)
from profiler.session.endings import ending
from profiler.session.handles import Attachment, Pass
from profiler.session.session import Session
from profiler.session.unheld import end_soon

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.measure.hot_path import Span
    from profiler.measure.timer import Timer
    from profiler.records.vocabulary import Phase
    from profiler.report.summary import RunSummary


T = TypeVar("T")
P = ParamSpec("P")
R = TypeVar("R")


class Profiler:
    """Time a training loop, sample the hardware meanwhile, and keep the measurements.

    Use it as a context manager, or with `start` and `stop`. One Profiler measures one run. The run also ends when nobody
    holds the Profiler any more, as when a notebook's cell runs again.

    Args:
        name: the run's name, 1 to 200 characters. It stays on this machine.
        epochs: how many epochs are planned; `epochs()` then needs no number.
        settings: settings for this run, such as ``{"sync": False}``; an "off" elsewhere still wins.
        exporter: "none", "otlp", "ga" or "prometheus" instead of the setting, or an OpenTelemetry ``MetricExporter`` of
            your own.
        interval: seconds between two readings of the hardware, at least 0.01.
        device: "cuda", "cuda:0" or "cpu"; None for the device that torch uses.
        distributed: "auto": every rank of a torch.distributed run records a run of its own, and the first one also
            the times of the other ranks' epochs. False: ranks know nothing of each other.
        live: write one line to stderr after each epoch, and about every ten seconds within one (the setting `slice_s`).

    Attributes:
        session: the inner run, for adapters and tools of this project.

    Raises:
        ArgumentTypeError, ArgumentValueError, SettingsError: an argument cannot be used.
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
        self.session = Session(
            checked_name(name),
            planned_epochs=checked_count("epochs", epochs),
            arguments=checked_settings(settings, exporter),
            exporter=exporter if exporter is not None and not isinstance(exporter, str) else None,
            interval=checked_interval(interval),
            device=checked_device(device),
            distributed=checked_distributed(distributed),
            live=bool(live),
        )
        self._timer = self.session.timer
        self._owner = self._timer.owner
        self.phase = self._owner.phase  # type: ignore[method-assign]  # the same without a call in between: it is the hot path
        self._timer.places.on_tasks = partial(_look_up_slowly, weakref.ref(self), self._timer)
        weakref.finalize(self, end_soon, self.session).atexit = False

    # ---- the run's life --------------------------------------------------------------------------------------------

    def start(self) -> Profiler:
        """Begin the run. ``with`` calls it, and so does the first pass or epoch if nobody else did.

        Raises:
            ProfilerError: the run is over; a second one needs a second Profiler.
        """
        self.session.start()
        return self

    def stop(self) -> None:
        """End the run: close open passes, take the last readings, complete the log, send the final payload.

        A second call, or one before the start, does nothing. The end waits for a delivery for ``exit_timeout`` seconds.
        """
        self.session.finish("finished")

    def __enter__(self) -> Profiler:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: object) -> None:
        self.session.finish(*ending(value))

    @property
    def summary(self) -> RunSummary:
        """The run so far, without passes that are still open."""
        from profiler.report.summary import RunSummary  # few runs need its imports

        began = clocks.host_clock()
        made = RunSummary(*self.session.record_so_far(), self._timer.spend, self.session.tariff)
        self._timer.spend(clocks.host_clock() - began)
        return made

    # ---- the loop --------------------------------------------------------------------------------------------------

    def phase(self, name: str | Phase) -> Span:
        """Time a part of a step: ``with prof.phase("forward"):``, or as a decorator. Phases nest.

        Args:
            name: a `Phase`, or a word of your own (which never leaves this machine).

        Raises:
            ArgumentTypeError, ArgumentValueError: the name cannot be used.
        """
        return self._owner.phase(name)

    def train(self, loader: Iterable[T], *, samples: int | Callable[[Any], int] | None = None) -> Pass[T]:
        """Return the loader as one training pass; iterate over it as over the loader.

        Args:
            loader: any iterable; every item is passed through unchanged.
            samples: how many samples one item holds, a number or a function of the item; by default the first
                dimension of the first tensor in it. An error, or a result that is no whole number, is noted
                in the report, and the samples are unknown.

        Raises:
            ArgumentTypeError, ArgumentValueError: an argument cannot be used.
        """
        return self._pass(Stage.TRAIN, loader, samples)

    def validate(self, loader: Iterable[T], *, samples: int | Callable[[Any], int] | None = None) -> Pass[T]:
        """Return the loader as one validation pass; otherwise like `train`."""
        return self._pass(Stage.VAL, loader, samples)

    def infer(self, loader: Iterable[T], *, samples: int | Callable[[Any], int] | None = None) -> Pass[T]:
        """Return the loader as one inference pass. Its ``latency`` is a step without its wait for data."""
        return self._pass(Stage.INFERENCE, loader, samples)

    def inference(self, function: Callable[P, R]) -> Callable[P, R]:
        """Decorate a function or coroutine function: every call is one inference step.

        Calls may overlap, in threads and in tasks of asyncio: each has its own latency and phases. The samples of a call
        are the first dimension of the first tensor among its arguments.

        Raises:
            ArgumentTypeError: it is no function, or a generator function, whose calls return before the work is done.
        """
        if not callable(function) or inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise ArgumentTypeError(f"prof.inference decorates a function that returns its result, not {function!r}")
        return self._timer.call(function, self.session.start_if_new, self._after_call)

    def epochs(self, epochs: int | Iterable[T] | None = None) -> Pass[Any]:
        """Iterate over epochs: ``for epoch in prof.epochs(10)``, any iterable, or the number given to the Profiler.

        Raises:
            ArgumentTypeError, ArgumentValueError: no number is given anywhere, or it is not a whole number above 0.
        """
        run = self.session.run
        if epochs is None:
            epochs = run.planned_epochs
            if epochs is None:
                raise ArgumentValueError("how many epochs? Profiler(name, epochs=10), or prof.epochs(10)")
        if isinstance(epochs, (int, float)):
            count = checked_count("epochs", epochs)
            run.planned_epochs = count
            items: Iterable[Any] = range(count or 0)
        else:
            items = checked_iterable("epochs", epochs)
        return Pass(items, lambda: self._iterate_epochs(items))

    def attach(self, *things: Any) -> Attachment:
        """Time forward, backward and optimizer of the named things, without a ``with`` in the loop.

        If the loop names its passes (`train`, `validate`, `infer`), these phases are added to them. Otherwise passes are
        inferred: over the loaders named here, or else from one step of an optimizer to the next.

        Args:
            things: the outermost modules (after wrapping: DistributedDataParallel, ``torch.compile``), optimizers, and
                DataLoaders that are not handed to `train`, `validate` or `infer`. If the loop calls parts of a module
                instead of it, they are found.

        Returns:
            a handle with ``remove()``, also a context manager. All hooks are removed at the run's end.

        Raises:
            ArgumentTypeError: something is none of these; then nothing is attached.
        """
        if not things:
            raise ArgumentTypeError("attach what? prof.attach(model, optimizer)")
        if self.session.state == "over":
            return Attachment(self.session.observation.unused_hooks(), ())
        hooks = self.session.observation.hooks
        added: list[Any] = []
        try:
            for thing in things:
                hooks.add(thing)
                added.append(thing)
        except BaseException:
            Attachment(hooks, tuple(added)).remove()
            raise
        return Attachment(hooks, things, held=self)

    def _pass(self, stage: Stage, loader: Iterable[T], samples: int | Callable[[Any], int] | None) -> Pass[T]:
        items = checked_iterable(f"{stage.value} loader", loader)
        session = self.session
        count = sample_count(samples, session.run.note)

        def iterate() -> Iterator[T]:
            if session.state == "over":
                return iter(items)
            session.start()
            before = session.begin_epoch_with_pass if stage is Stage.TRAIN else _nothing
            return self._timer.iterate(stage, items, count, before, self._after_pass)

        return Pass(items, iterate)

    # These two are methods so that a loop over a pass, or a decorated function, holds this object: nobody else may.

    def _after_pass(self) -> None:
        self.session.after_pass()

    def _after_call(self) -> None:
        self.session.after_call()

    def _iterate_epochs(self, items: Iterable[Any]) -> Iterator[Any]:
        session = self.session
        if session.state == "over":
            yield from items
            return
        session.start()
        session.names_epochs = True
        record, is_within_us = None, False
        try:
            for item in items:
                record = session.begin_named_epoch(item if type(item) is int else None)
                yield item
                if session.epoch is record:
                    session.end_epoch()
        except BaseException as error:
            is_within_us = isinstance(error, GeneratorExit) and is_closed_within_us()
            drop_own_frame(error)
            raise
        finally:
            session.leave_epoch(record, is_within_us=is_within_us)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as a Profiler that measures nothing: a spawned worker's data set may hold one."""
        return _passive, (self.session.run.name,)

    def _repr_html_(self) -> str:
        """Return the run so far for a notebook."""
        return self.summary._repr_html_()

    def __repr__(self) -> str:
        return f"<Profiler {self.session.run.name!r} {self.session.run.id} {self.session.state}>"


def _nothing() -> None:
    pass


def _look_up_slowly(reference: weakref.ref[Profiler], timer: Timer) -> None:
    """Replace `Profiler.phase` by the look-up that knows tasks of asyncio."""
    prof = reference()
    if prof is not None:
        prof.phase = timer.phase  # type: ignore[method-assign]


def _passive(name: str) -> Profiler:
    passive = Profiler(name)
    passive.session.retire()
    return passive
