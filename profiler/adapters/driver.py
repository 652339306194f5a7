"""What an adapter tells a run: epochs, passes and batches, as the framework announces them.

The rule it keeps: nothing raises into the framework; a fault is counted in the run's notes. A copy (for another process,
or by ``copy.deepcopy``) begins a run of its own, unless the adapter was given a Profiler.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from profiler.measure.timer import Segment, Stage, batch_size
from profiler.report.summary import RunSummary
from profiler.session.profiler import Profiler

P = ParamSpec("P")
R = TypeVar("R")
Method = TypeVar("Method", bound=Callable[..., None])


def guarded(method: Method) -> Method:
    """The method, with whatever it raises counted instead."""

    @functools.wraps(method)
    def called(self: Driver, *args: Any, **kwargs: Any) -> None:
        try:
            method(self, *args, **kwargs)
        except Exception as error:
            self.count(error)

    return called  # type: ignore[return-value]


class Driver:
    """One adapter's side of a run.

    Args:
        profiler: the run, or None for one that is begun and ended with the framework's.
        name: what such a run is called.
        options: further arguments of `Profiler` for it.

    Raises:
        ArgumentTypeError, ArgumentValueError, SettingsError: what `Profiler` cannot use.
    """

    def __init__(self, profiler: Profiler | None, name: str, options: Mapping[str, Any]) -> None:
        self._given = profiler
        self._name = name
        self._options = dict(options)
        if profiler is None:
            Profiler(name, **self._options)  # says at once what is wrong with them
        self._profiler = profiler
        self._segments: list[Segment] = []
        self._attached: list[Any] = []

    @property
    def summary(self) -> RunSummary | None:
        """What was measured, once there is a run."""
        return None if self._profiler is None else self._profiler.summary

    def count(self, error: Exception) -> None:
        if self._profiler is not None:
            self._profiler._run.note(f"an adapter failed: {type(error).__name__}")

    def _running(self) -> Profiler | None:
        return self._profiler if self._profiler is not None and self._profiler._state == "running" else None

    @guarded
    def begin(self, *things: Any) -> None:
        """The framework's run begins, if it has not yet; modules, optimizers and loaders are followed.

        Args:
            things: what is to be attached; None among them is passed over.
        """
        if self._given is None and self._running() is None:
            self._profiler = Profiler(self._name, **self._options)
            self._attached = []
        if self._profiler is not None and self._profiler._state == "new":
            self._profiler.start()
        profiler = self._running()
        if profiler is None:
            return
        profiler._follow_loaders()
        for thing in things:
            if thing is not None and not any(thing is known for known in self._attached):
                profiler.attach(thing)
                self._attached.append(thing)

    @guarded
    def end(self, error: BaseException | None = None) -> None:
        """The framework's run is over. A Profiler that was handed in goes on."""
        while self._segments:
            self._segments.pop().close(partial=True)
        profiler = self._running()
        if profiler is None:
            return
        profiler._end_epoch()
        if self._given is None:
            profiler.__exit__(type(error) if error is not None else None, error, None)

    @guarded
    def begin_epoch(self, index: int) -> None:
        profiler = self._running()
        if profiler is not None:
            profiler._tells_epochs = True
            profiler._begin_epoch(index, inferred=False)

    @guarded
    def end_epoch(self) -> None:
        profiler = self._running()
        if profiler is not None:
            profiler._end_epoch()

    @guarded
    def begin_pass(self, stage: Stage) -> None:
        """A pass over a loader begins, perhaps inside of another one, whose clock stops then."""
        profiler = self._running()
        if profiler is not None:
            self._segments.append(profiler._timer.begin(stage))

    @guarded
    def end_pass(self, stage: Stage, *, partial: bool = False) -> None:
        """The innermost pass of that stage has ended, and whatever is inside of it."""
        while any(segment.tree.stage is stage for segment in self._segments):
            segment = self._segments.pop()
            segment.close(partial=partial)
            if segment.tree.stage is stage:
                break
        profiler = self._running()
        if profiler is not None:
            profiler._after_pass()

    @guarded
    def begin_wait(self) -> None:
        """A batch is asked for."""
        if self._segments and not self._segments[-1].closed:
            self._segments[-1].wait.__enter__()

    @guarded
    def end_wait(self) -> None:
        if self._segments and not self._segments[-1].closed:
            self._segments[-1].wait.__exit__()

    @guarded
    def begin_batch(self, batch: Any = None) -> None:
        """The loop works on a batch now; where the framework does not hand it over, the one that was fetched last."""
        profiler = self._running()
        if profiler is None or not self._segments:
            return
        if self._segments[-1].closed and self._segments[-1].tree.stage is not None:  # the epoch has ended, the pass goes on
            self._segments[-1] = profiler._timer.begin(self._segments[-1].tree.stage)
        fetched = profiler._hooks.follower.fetched if profiler._hooks is not None else None
        self._segments[-1].begin_step(fetched if batch is None else batch_size(batch))

    @guarded
    def end_batch(self) -> None:
        if self._segments and not self._segments[-1].closed and self._segments[-1].in_step:
            self._segments[-1].leave_open_spans()
            self._segments[-1].end_step()

    @guarded
    def begin_phase(self, name: str) -> None:
        profiler = self._running()
        if profiler is not None:
            profiler._timer.state().current.child(name).__enter__()

    @guarded
    def end_phase(self, name: str) -> None:
        profiler = self._running()
        if profiler is not None:
            profiler._timer.end_phase(name)

    def __reduce__(self) -> tuple[Any, ...]:
        return Driver, (self._given, self._name, self._options)
