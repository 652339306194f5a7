"""The cost of our own phases and steps, measured in the process they ran in."""

from __future__ import annotations

import itertools
import statistics
import sys
from collections.abc import Callable

from profiler.measure import clocks
from profiler.measure.batch_size import batch_size
from profiler.measure.timer import Timer
from profiler.records.timing import GAPS
from profiler.records.vocabulary import Phase, Stage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.run import EpochRecord
    from profiler.records.timing import Timing


CACHE_BYTES = 1 << 21  # about what a core's second cache holds
COLD_NS = 100_000  # a mean step above this does enough else to push our code and data out of the caches
COLD_REPEATS, WARM_REPEATS = 9, 200
# By A/B (benchmarks/bench_own_cost.py): our code also pushes the loop's own out of the caches, and a module's call takes
# longer once it has a pair of hooks, even if they do nothing.
DISPLACED = 2.3
TORCH_HOOKS_NS = 7_000


class _Tensor:
    """The part of a tensor that a step of a pass looks at."""

    __slots__ = ("shape",)

    def __init__(self, *shape: int) -> None:
        self.shape = shape


def on_the_loop_ns(timer: Timer, whole: EpochRecord, *, are_modules_hooked: bool) -> int:
    """Return all time (ns) that we have taken from the loop's threads; see `hot_path_ns` for the arguments."""
    return timer.overhead_ns + timer.causes.loop.spent_ns + hot_path_ns(whole, are_modules_hooked=are_modules_hooked)


def hot_path_ns(whole: EpochRecord, *, are_modules_hooked: bool = False) -> int:
    """Return the time (ns) spent in phases and steps: their number times the cost of one here and now.

    A gap between two phases costs nothing more: it begins and ends with the readings of its neighbours.

    Args:
        whole: everything the run measured.
        are_modules_hooked: forwards were seen by hooks of torch.
    """
    stages = list(whole.stages.values())
    steps = sum(stage.steps for stage in stages)
    timings = [(path[-1], timing) for stage in stages for path, timing in stage.phases.items()]
    timings += [(path[-1], timing) for path, timing in whole.phases.items()]
    spans = sum(timing.count for name, timing in timings if name not in GAPS and name != Phase.DATA_WAIT.value)
    calls = sum(timing.count for name, timing in timings if name == Phase.FORWARD.value) if are_modules_hooked else 0
    is_cold = _mean_ns([stage.step for stage in stages]) > COLD_NS
    phase_ns, step_ns = unit_costs(is_cold=is_cold)
    ours = (spans * phase_ns + steps * step_ns) * (DISPLACED if is_cold else 1)
    return round(ours + calls * TORCH_HOOKS_NS)


def _mean_ns(timings: list[Timing]) -> float:
    count = sum(timing.count for timing in timings)
    return sum(timing.total_ns for timing in timings) / count if count else 0.0


def unit_costs(*, is_cold: bool = False) -> tuple[float, float]:
    """Return the cost (ns) of one phase and of one step in this process now.

    Args:
        is_cold: measure each with the caches full of other data, as between two pieces of the loop's own work. It is then
            several times as much.
    """
    timer = Timer("cpu")
    steps = timer.iterate(Stage.TRAIN, itertools.repeat((_Tensor(8, 1), _Tensor(8))), batch_size)
    for _ in range(3):
        next(steps)
    timer.owner.segments[-1].tree.limit = sys.maxsize  # no step here is one of the slowest, as few are in a run

    def phase() -> None:
        with timer.owner.phase("forward"):
            pass

    def step() -> None:
        next(steps)

    phase()
    found = [_cold_ns(action) if is_cold else _warm_ns(action) for action in (phase, step)]
    steps.close()  # type: ignore[attr-defined]  # a generator
    return found[0], found[1]


def _warm_ns(action: Callable[[], None]) -> float:
    began = clocks.host_clock()
    for _ in range(WARM_REPEATS):
        action()
    return (clocks.host_clock() - began) / WARM_REPEATS


def _cold_ns(action: Callable[[], None]) -> float:
    other, taken = bytearray(CACHE_BYTES), []
    for _ in range(COLD_REPEATS):
        bytes(other)  # a copy goes through all of it
        began = clocks.host_clock()
        action()
        taken.append(clocks.host_clock() - began)
    return statistics.median(taken)
