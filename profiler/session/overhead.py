"""The cost of our own phases and steps, measured in the process they ran in."""

from __future__ import annotations

from profiler.measure import clocks
from profiler.measure.batch_size import batch_size
from profiler.measure.timer import Timer
from profiler.records.vocabulary import Stage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.run import EpochRecord


def hot_path_ns(whole: EpochRecord) -> int:
    """Return the time (ns) spent in phases and steps: their number times the cost of one here and now.

    Args:
        whole: everything the run measured.
    """
    steps = sum(stage.steps for stage in whole.stages.values())
    spans = sum(t.count for stage in whole.stages.values() for t in stage.phases.values()) - steps
    spans += sum(t.count for t in whole.phases.values())
    phase_ns, step_ns = unit_costs()
    return round(max(spans, 0) * phase_ns + steps * step_ns)


def unit_costs(repeats: int = 200) -> tuple[float, float]:
    """Return the cost (ns) of one phase and of one step in this process now."""
    timer = Timer()
    segment = timer.begin(Stage.TRAIN)
    began = clocks.host_clock()
    for _ in range(repeats):
        with timer.owner.current.children["data_wait"]:
            pass
    phase_ns = (clocks.host_clock() - began) / repeats
    segment.close(partial=False)
    began = clocks.host_clock()
    for _ in timer.iterate(Stage.TRAIN, range(repeats), batch_size):
        pass
    return phase_ns, (clocks.host_clock() - began) / repeats
