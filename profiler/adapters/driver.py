"""The part that all adapters share: a framework announces epochs, passes and batches, and they become a run.

The rule it keeps: nothing raises into the framework. A fault is counted in the run's notes. A copy (for another process,
or by ``copy.deepcopy``) begins a run of its own, unless the adapter was given a Profiler.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from profiler.measure.batch_size import batch_size
from profiler.measure.passes import Segment
from profiler.records.faults import is_of_a_signal
from profiler.records.vocabulary import Stage
from profiler.report.summary import RunSummary
from profiler.session.endings import ending
from profiler.session.profiler import Profiler

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.session.session import Session


P = ParamSpec("P")
R = TypeVar("R")
Method = TypeVar("Method", bound=Callable[..., None])


def guarded(method: Method) -> Method:
    """Return the method with its errors counted instead of raised."""

    @functools.wraps(method)
    def called(self: FrameworkRun, *args: Any, **kwargs: Any) -> None:
        try:
            method(self, *args, **kwargs)
        except Exception as error:
            if is_of_a_signal(error):
                raise
            self.count(error)

    return called  # type: ignore[return-value]


class FrameworkRun:
    """The run of one adapter.

    Args:
        profiler: the user's run, or None for a run that begins and ends with the framework's.
        name: the name of such a run.
        options: further arguments of `Profiler` for it.

    Raises:
        ArgumentTypeError, ArgumentValueError, SettingsError: `Profiler` cannot use an argument.
    """

    def __init__(self, profiler: Profiler | None, name: str, options: Mapping[str, Any]) -> None:
        self._given = profiler
        self._name = name
        self._options = dict(options)
        if profiler is None:
            Profiler(name, **self._options)  # raises now, and not in the middle of a training
        self._profiler = profiler
        self._segments: list[Segment] = []
        self._attached: list[Any] = []

    @property
    def summary(self) -> RunSummary | None:
        """The run so far, or None before it begins."""
        return None if self._profiler is None else self._profiler.summary

    def count(self, error: Exception) -> None:
        """Count an error of the adapter's in the run's notes."""
        if self._profiler is not None:
            self._profiler.session.run.note(f"an adapter failed: {type(error).__name__}")

    def _running(self) -> Session | None:
        """Return the run while it is running, else None."""
        session = None if self._profiler is None else self._profiler.session
        return session if session is not None and session.state == "running" else None

    @guarded
    def begin(self, *things: Any) -> None:
        """Begin the run, unless it is running, and observe modules, optimizers and loaders.

        Args:
            things: the things to attach; None among them is skipped.
        """
        if self._given is None and self._running() is None:
            self._profiler = Profiler(self._name, **self._options)
            self._attached = []
        if self._profiler is not None and self._profiler.session.state == "new":
            self._profiler.start()
        session = self._running()
        if session is None:
            return
        session.observation.follow_loaders()
        for thing in things:
            if thing is not None and not any(thing is known for known in self._attached):
                session.observation.hooks.add(thing)
                self._attached.append(thing)

    @guarded
    def end(self, error: BaseException | None = None) -> None:
        """End the run. A Profiler that was handed in goes on."""
        while self._segments:
            self._segments.pop().close(partial=True)
        session = self._running()
        if session is None:
            return
        session.end_epoch()
        if self._given is None:
            session.finish(*ending(error))

    @guarded
    def begin_epoch(self, index: int) -> None:
        """Begin an epoch."""
        session = self._running()
        if session is not None:
            session.begin_named_epoch(index)

    @guarded
    def end_epoch(self) -> None:
        """End the open epoch."""
        session = self._running()
        if session is not None:
            session.end_epoch()

    @guarded
    def begin_pass(self, stage: Stage) -> None:
        """Begin a pass over a loader, perhaps inside another one, whose clock then stops."""
        session = self._running()
        if session is not None:
            self._segments.append(session.timer.begin(stage))

    @guarded
    def end_pass(self, stage: Stage, *, partial: bool = False) -> None:
        """End the innermost pass of that stage, and everything inside it."""
        while any(segment.tree.stage is stage for segment in self._segments):
            segment = self._segments.pop()
            segment.close(partial=partial)
            if segment.tree.stage is stage:
                break
        session = self._running()
        if session is not None:
            session.after_pass()

    @guarded
    def begin_wait(self) -> None:
        """Begin the wait for a batch."""
        if self._segments and not self._segments[-1].closed:
            self._segments[-1].wait.__enter__()

    @guarded
    def end_wait(self) -> None:
        """End the wait for a batch."""
        if self._segments and not self._segments[-1].closed:
            self._segments[-1].wait.__exit__()

    @guarded
    def begin_batch(self, batch: Any = None) -> None:
        """Begin the work on a batch; None stands for the batch that was fetched last."""
        session = self._running()
        if session is None or not self._segments:
            return
        if self._segments[-1].closed and self._segments[-1].tree.stage is not None:  # the epoch has ended, the pass goes on
            self._segments[-1] = session.timer.begin(self._segments[-1].tree.stage)
        fetched = session.observation.fetched
        self._segments[-1].begin_step(fetched if batch is None else batch_size(batch))

    @guarded
    def end_batch(self) -> None:
        """End the work on a batch."""
        if self._segments and not self._segments[-1].closed and self._segments[-1].in_step:
            self._segments[-1].leave_open_spans()
            self._segments[-1].end_step()
            if self._segments[-1].state.timer.is_slice_due:
                self._segments[-1].state.close_slice()

    @guarded
    def begin_phase(self, name: str) -> None:
        """Begin a phase in the calling thread."""
        session = self._running()
        if session is not None:
            session.timer.state().current.child(name).__enter__()

    @guarded
    def end_phase(self, name: str) -> None:
        """End the innermost phase of that name."""
        session = self._running()
        if session is not None:
            session.timer.end_phase(name)

    def __reduce__(self) -> tuple[Any, ...]:
        return FrameworkRun, (self._given, self._name, self._options)
