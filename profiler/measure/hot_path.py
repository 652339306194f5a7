"""The hot path in use: the compiled one (`compiled.c`) where it could be built, else the one in Python (`reference`).

Both have the same classes, pass the same tests and give the same numbers. ``EPOCHMETER_PURE=1`` chooses the one in Python.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

from profiler.measure import reference
from profiler.measure.clocks import Clock, host_clock
from profiler.measure.frames import drop_own_frame
from profiler.records.timing import Timing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.measure.reference import (
        FastPath,
        HotFeed,
        HotPass,
        HotSpan,
        HotTree,
        Place,
        forward_begins,
        forward_ends,
        phase_begins,
        phase_ends,
        sized_by,
    )
    from profiler.measure.spans import Tree

__all__ = [
    "ASKED",
    "ASKED_BEFORE",
    "COMPILED",
    "WHY_PURE",
    "FastPath",
    "HotFeed",
    "HotPass",
    "HotTree",
    "Place",
    "Span",
    "forward_begins",
    "forward_ends",
    "now",
    "phase_begins",
    "phase_ends",
    "sized_by",
    "use_clock",
]
P = ParamSpec("P")
R = TypeVar("R")
PURE = "EPOCHMETER_PURE"
LAYOUT = 1  # of what is called in `compiled.c`; raised there and here with every change of it
ASKED, ASKED_BEFORE = 2, 3  # of `Span.shared`: the phase's next end closes a slice


def _find_compiled() -> tuple[Any, str]:
    """Return the compiled hot path and "", or None and the reason."""
    if os.environ.get(PURE, "0") not in ("", "0"):
        return None, f"{PURE} is set"
    try:
        compiled = importlib.import_module("profiler.measure.compiled")
    except ImportError as error:
        is_there = error.name != "profiler.measure.compiled"
        return None, "the compiled one was built for another Python" if is_there else "no compiler where it was installed"
    if getattr(compiled, "LAYOUT", None) != LAYOUT:  # sources that were updated, and not installed again
        return None, "the compiled one is of another version of the sources; install again"
    # Its times are compared with those that Python reads, so both must come from one clock.
    before, at, after = host_clock(), compiled.now(), host_clock()
    return (compiled, "") if before <= at <= after else (None, "the compiled one reads another clock than Python here")


COMPILED, WHY_PURE = _find_compiled()
now: Clock = host_clock


def use_clock(clock: Clock | None) -> None:
    """Measure with another clock: a test's, or None for the host's."""
    global now
    now = clock or host_clock
    (COMPILED or reference).use_clock(clock)


if not TYPE_CHECKING:
    _used = reference if COMPILED is None else importlib.import_module("profiler.measure.counted")
    Place, HotSpan, HotTree, HotPass, FastPath = _used.Place, _used.HotSpan, _used.HotTree, _used.HotPass, _used.FastPath
    HotFeed = _used.HotFeed
    phase_begins, phase_ends, sized_by = _used.phase_begins, _used.phase_ends, _used.sized_by
    forward_begins, forward_ends = _used.forward_begins, _used.forward_ends


class Span(HotSpan):
    """One phase in one place of the tree, timed by ``with``. The same object serves every step."""

    __slots__ = ()

    def __init__(self, tree: Tree, parent: Span | None, name: str) -> None:
        super().__init__(tree.state, parent)
        self.tree = tree
        self.name = name
        self.children = {}
        self.timing = Timing()

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Return the function with every call timed; coroutine functions are supported."""
        timer, name = self.state.timer, self.name
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def timed_coroutine(*args: P.args, **kwargs: P.kwargs) -> Any:
                with timer.phase(name):
                    try:
                        return await function(*args, **kwargs)
                    except BaseException as error:
                        drop_own_frame(error)
                        raise

            return cast("Callable[P, R]", timed_coroutine)

        @functools.wraps(function)
        def timed(*args: P.args, **kwargs: P.kwargs) -> R:
            with timer.phase(name):
                try:
                    return function(*args, **kwargs)
                except BaseException as error:
                    drop_own_frame(error)
                    raise

        return timed

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle as a span that measures nothing: a model may hold its phases."""
        return Unmeasured, ()

    def child(self, name: str) -> Span:
        """Return the span for a phase inside this one; it is made at its first use."""
        found = self.children.get(name)
        return self.tree.add_child(self, name) if found is None else found

    def end_unrecorded(self) -> int:
        """Leave the span without a measurement. Return how long it was open (ns): that belongs to a later one."""
        end = now()
        timer = self.state.timer
        with timer.lock:
            return timer.state().leave(self.name, end, is_recorded=False)

    def _enter_elsewhere(self) -> Span:
        timer = self.state.timer
        state = timer.state()
        if state is not self.state:
            self.shared = True
        with timer.lock:
            span = state.current.child(self.name)
            span.t0 = now()
            state.current = span
        return self

    def _exit_elsewhere(self, end: int, has_raised: bool) -> None:
        timer = self.state.timer
        with timer.lock:
            timer.state().leave(self.name, end, ends_inner=has_raised)
        if self.shared in (ASKED, ASKED_BEFORE):
            self.state.answer()


class Unmeasured:
    """The copy of a span: entered and called like one, it measures nothing."""

    def __enter__(self) -> Unmeasured:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        return function
