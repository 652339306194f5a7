"""The stage and the top-level phase that a span lies in: where the loop is, seen from another thread."""

from __future__ import annotations

from profiler.records.causes import START_UP

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.measure.hot_path import Span
    from profiler.measure.passes import ThreadState
    from profiler.measure.timer import Timer


def place_of(span: Span, *, has_begun: bool = True) -> tuple[str, str]:
    """Return the stage ("" outside stages) and the top-level phase ("" for none) of an open span.

    Args:
        span: the innermost open span of a thread.
        has_begun: a pass has begun in this run; before that, time in no phase belongs to the start-up.
    """
    stage = span.tree.stage_name
    name = ""
    while span.parent is not None:
        name, span = span.name, span.parent
    return stage, name if name or stage or has_begun else START_UP


def looping_state(timer: Timer) -> ThreadState:
    """Return the place of the thread that runs the loop: the run's own thread, or another one that is in a pass."""
    owner = timer.owner
    if owner.segments:
        return owner
    return next((state for state in list(timer.places.all) if state.segments), owner)
