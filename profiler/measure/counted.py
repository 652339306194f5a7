"""The Python side of the compiled hot path: durations are counted in C, and join a histogram when they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from profiler.measure import compiled, hot_path  # type: ignore[attr-defined]  # built from compiled.c
from profiler.records.histogram import Histogram

TYPE_CHECKING = False
Place, HotTree, HotPass, FastPath = compiled.Place, compiled.HotTree, compiled.HotPass, compiled.FastPath
HotFeed = compiled.HotFeed
sized_by = compiled.sized_by


class HotSpan(compiled.HotSpan):  # type: ignore[misc]
    """The part of `Span` that runs at every phase; see `reference.HotSpan`."""

    __slots__ = ()

    if TYPE_CHECKING:
        n: int  # durations that are in no histogram yet, but for those that are taken; 0 forgets them
        taken: bool  # durations are set aside; False forgets them

    def fold(self) -> None:
        """Move the counted durations into the histogram: the cold one during the stage's first step, else the steady one."""
        if not (self.n or self.taken):
            return
        began = hot_path.now()
        while (new := self.take_new()) is not None:  # again, for those that come meanwhile, as in a signal's handler
            timing, is_cold = self.timing, self.tree.cold
            whole = Histogram()
            whole.merge(timing.cold if is_cold else timing.steady)
            whole.merge(Histogram.of(**new))
            # No call comes between the next two: if a signal's handler raises before, these durations are taken again.
            if is_cold:
                timing.cold = whole
            else:
                timing.steady = whole
            self.taken = False  # type: ignore[misc]  # a slot of the compiled class
        self.state.timer.overhead_ns += hot_path.now() - began

    def record_large(self, number: int) -> None:
        """Count a number that with the others may be beyond 64 bits."""
        self.fold()
        (self.timing.cold if self.tree.cold else self.timing.steady).add((number,))


def phase_begins(fast: Any, state: Any, slow: Callable[[Any], None]) -> Callable[..., None]:
    """Return a hook to call when a phase begins; see `reference.phase_begins`."""
    begins: Callable[..., None] = compiled.Hook(fast, fast, state, slow).begins
    return begins


def phase_ends(fast: Any, state: Any, slow: Callable[[Any], None], *, ends_step: bool = False) -> Callable[..., None]:
    """Return a hook to call when a phase has ended; see `reference.phase_ends`."""
    hook = compiled.Hook(fast, fast, state, slow)
    ends: Callable[..., None] = hook.ends_step if ends_step else hook.ends
    return ends


def forward_begins(
    learning: Any,
    other: Any,
    state: Any,
    slow: Callable[[Any], None],
    *,
    hooked: Callable[[], Any],
    takes_gradients: Callable[[], bool],
    is_compiling: Callable[[], bool],
) -> Callable[..., None]:
    """Return a forward pre-hook; see `reference.forward_begins`."""
    begins = compiled.Hook(learning, other, state, slow, hooked, takes_gradients).forward_begins

    # ``torch.compile`` traces this function, and sees that it ends here. It cannot trace one of C.
    def before(module: Any, args: Any) -> None:
        if not is_compiling():
            begins(module)

    return before


def forward_ends(
    fast: Any, state: Any, slow: Callable[[Any], None], *, hooked: Callable[[], Any], is_compiling: Callable[[], bool]
) -> Callable[..., None]:
    """Return a forward hook; see `reference.forward_ends`."""
    ends = compiled.Hook(fast, fast, state, slow, hooked).forward_ends

    def after(module: Any, args: Any, result: Any) -> None:
        if not is_compiling():
            ends(module)

    return after
