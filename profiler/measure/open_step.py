"""Where a loop is right now, seen from another thread."""

from __future__ import annotations

from profiler.measure import hot_path
from profiler.records.run import OpenStep

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.measure.passes import Segment, ThreadState
    from profiler.measure.timer import Timer


def open_step(timer: Timer, *, expects_steps: bool = False) -> OpenStep | None:
    """Return the step in progress in the timer's own thread or else in another one.

    Between two passes of the own thread, the time since the last one counts if a phase is open. It also counts if a loop
    that names its epochs is in one. Return None anywhere else. The loop goes on meanwhile, and takes no lock: the answer may
    be a moment old.

    Args:
        expects_steps: the loop is in an epoch that it has named.
    """
    states = [timer.owner, *(state for state in list(timer.places.all) if state is not timer.owner)]
    for segment in [segments[-1] for state in states if (segments := list(state.segments))]:
        if segment.tree.stage is not None:
            return _in_pass(timer, segment, segment.tree.stage.value)
    return _between_passes(timer, timer.owner, expects_steps)


def _in_pass(timer: Timer, segment: Segment, stage: str) -> OpenStep:
    tree, span, now = segment.tree, segment.state.current, hot_path.now()
    step_ns = max(now - segment.step_started, 0)
    is_in_phase = span.parent is not None and span.tree is tree
    return OpenStep(
        stage=stage,
        epoch=timer.edges.epoch,
        step=tree.counts.in_epoch + tree.steps - bool(segment.in_step),
        phase=span.name if is_in_phase else "",
        step_ns=step_ns,
        phase_ns=max(now - span.t0, 0) if is_in_phase else step_ns,
        slowest_ns=max(tree.counts.top, default=0) or _slowest(timer),
        length=segment.length,
    )


def _slowest(timer: Timer) -> int:
    """Return the longest step of any stage so far (ns), 0 without any."""
    return max(
        (step for state in list(timer.places.all) for counts in list(state.counts.values()) for step in counts.top[:]),
        default=0,
    )


def _between_passes(timer: Timer, state: ThreadState, expects_steps: bool) -> OpenStep | None:
    span, now = state.current, hot_path.now()
    slowest = _slowest(timer)
    is_in_phase = span.parent is not None
    if not slowest or not (is_in_phase or expects_steps):
        return None
    since = max(timer.edges.last.at, timer.began_ns)
    return OpenStep(
        stage="",
        epoch=timer.edges.epoch,
        step=0,
        phase=span.name if is_in_phase else "",
        step_ns=max(now - since, 0),
        phase_ns=max(now - (span.t0 if is_in_phase else since), 0),
        slowest_ns=max(slowest, timer.longest_gap_ns),
    )
