"""Where a loop is right now, seen from another thread."""

from __future__ import annotations

from profiler.measure import hot_path
from profiler.records.run import OpenStep

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.measure.timer import Timer


def open_step(timer: Timer) -> OpenStep | None:
    """Return the step in progress in the timer's own thread or else in another one, or None outside passes.

    The loop goes on meanwhile, and takes no lock: the answer may be a moment old.
    """
    states = [timer.owner, *(state for state in list(timer.places.all) if state is not timer.owner)]
    for segment in [segments[-1] for state in states if (segments := list(state.segments))]:
        tree, span, now = segment.tree, segment.state.current, hot_path.now()
        if tree.stage is not None:
            step_ns = max(now - segment.step_started, 0)
            is_in_phase = span.parent is not None and span.tree is tree
            return OpenStep(
                stage=tree.stage.value,
                epoch=timer.edges.epoch,
                step=tree.in_epoch + tree.record.steps - bool(segment.in_step),
                phase=span.name if is_in_phase else "",
                step_ns=step_ns,
                phase_ns=max(now - span.t0, 0) if is_in_phase else step_ns,
                slowest_ns=max(tree.top, default=0),
                length=segment.length,
            )
    return None
