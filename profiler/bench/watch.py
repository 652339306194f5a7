"""Watch the rest of the machine around a case: other programs, a hypervisor, a CPU quota, a throttled GPU.

The rule it keeps: it reads before and after a block of calls, never during one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import psutil

from profiler.hardware import DRIVERS, load_probe
from profiler.hardware.cgroup import Cgroups
from profiler.records.readings import EnergySource, Fact, Probe, Reading, Sample

HELD, CLOCK = "epochmeter.gpu.throttled_time", "epochmeter.gpu.clock.frequency"
OTHERS_SHARE = 0.10  # of the machine's CPU time, used by other programs
OTHERS_S = 0.15  # and at least so much: a block's ends are read in steps of 0.01 s for each core
STOLEN_SHARE = 0.05
STOPPED_SHARE = 0.01  # of the time measured
CLOCK_SPREAD = 0.05


class Watch:
    """Reads counters around blocks. Counters that this machine does not have are left out.

    Args:
        device: the case's; for a GPU, its driver is read as well.

    Attributes:
        has_children: True if this process has children that work for the case.
    """

    def __init__(self, device: str) -> None:
        self.has_children = False
        self._process = psutil.Process()
        self._cgroups = Cgroups()
        self._gpu = None if device == "cpu" else open_driver(device)
        rows = () if self._gpu is None else self._gpu.readings()
        self._held, self._clock = ([row for row in rows if {s.name for s in row.specs} & {name}] for name in (HELD, CLOCK))
        self._before: dict[str, float] = {}

    @property
    def energy(self) -> EnergySource | None:
        """The counter of this GPU's energy alone, or None."""
        gpu = self._gpu
        if not isinstance(gpu, EnergySource) or any(fact.key == "mig_instance" and _known(fact) for fact in gpu.facts()):
            return None
        return gpu

    def before(self) -> None:
        self._before = self._counters()

    def after(self) -> dict[str, float]:
        """Return the growth of the counters, and the present SM clock (Hz)."""
        now = self._counters()
        grown = {name: value - self._before[name] for name, value in now.items() if name in self._before}
        for sample in _samples(self._clock, CLOCK):
            if sample.attributes.get("epochmeter.gpu.clock") == "sm":
                grown["clock"] = float(sample.value)
        return grown

    def _counters(self) -> dict[str, float]:
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        stolen = getattr(times, "steal", 0.0)
        own = self._process.cpu_times()
        found = {
            "wall": time.perf_counter(),
            "busy": times.user + times.system + getattr(times, "nice", 0.0) + getattr(times, "irq", 0.0),
            "idle": idle,
            "stolen": stolen,
            "own": own.user + own.system + self._of_children(),
        }
        stopped = self._cgroups.throttled_seconds()
        if stopped is not None:
            found["stopped"] = stopped
        for sample in _samples(self._held, HELD):
            found[f"held {sample.attributes['epochmeter.gpu.throttle_reason']}"] = float(sample.value)
        return found

    def _of_children(self) -> float:
        if not self.has_children:
            return 0.0
        total = 0.0
        for child in self._process.children(recursive=True):
            try:
                times = child.cpu_times()
            except psutil.Error:  # it has ended meanwhile
                continue
            total += times.user + times.system
        return total


def open_driver(device: str) -> Probe | None:
    """Return the first GPU probe that finds its source."""
    for name in DRIVERS:
        probe = load_probe(name, device)
        try:
            probe.start()
        except Exception:  # noqa: S112  # no such driver, or one that fails: the case is measured without it
            continue
        return probe
    return None


def _samples(rows: Iterable[Reading], metric: str) -> Iterable[Sample]:
    for row in rows:
        try:
            found = row.all()
        except Exception:  # noqa: S112  # a reading that fails is one that is not there
            continue
        yield from (sample for sample in found if isinstance(sample, Sample) and sample.spec.name == metric)


def _known(fact: Fact) -> bool:
    try:
        return fact.read() is not None
    except Exception:  # not known
        return False


def remarks(blocks: Sequence[Mapping[str, float]]) -> list[str]:
    """Return the unusual events during these blocks, in words."""
    total: dict[str, float] = {}
    for block in blocks:
        for name, value in block.items():
            total[name] = total.get(name, 0.0) + value
    wall = total.get("wall", 0.0)
    if not wall:
        return []
    return [*_of_the_cpu(total, wall), *_of_the_gpu(total, wall, blocks)]


def _of_the_cpu(total: Mapping[str, float], wall: float) -> Iterable[str]:
    capacity = total["busy"] + total["idle"] + total["stolen"]
    spent = total["busy"] - total["own"]
    others = spent / capacity if capacity > 0 else 0.0
    if others > OTHERS_SHARE and spent > OTHERS_S:
        yield f"other programs used {others * (os.cpu_count() or 1):.1f} cores meanwhile"
    if capacity > 0 and total["stolen"] / capacity > STOLEN_SHARE:
        yield f"the hypervisor took {total['stolen'] / capacity:.0%} of the CPU time"
    if total.get("stopped", 0.0) / wall > STOPPED_SHARE:
        yield f"the CPU quota stopped it for {total['stopped'] / wall:.0%} of the time"


def _of_the_gpu(total: Mapping[str, float], wall: float, blocks: Sequence[Mapping[str, float]]) -> Iterable[str]:
    for name, seconds in total.items():
        if name.startswith("held ") and seconds / wall > STOPPED_SHARE:
            reason = name.removeprefix("held ").replace("_", " ")
            yield f"clocks held down for {min(seconds / wall, 1):.0%} of the time: {reason}"
    clocks = [block["clock"] for block in blocks if "clock" in block]
    if clocks and min(clocks) < (1 - CLOCK_SPREAD) * max(clocks):
        yield f"SM clock between {min(clocks) / 1e6:.0f} and {max(clocks) / 1e6:.0f} MHz"


def joules_per_call(
    counter: Callable[[], float], block: Callable[[int], float], times: int, seconds: float, patience: float = 1.0
) -> float | None:
    """Return the energy of a call: from one step of the energy counter to another, with calls without a pause.

    Args:
        counter: returns the counter's value (J).
        block: makes that many calls, and returns their time (s).
        times: how many calls are long enough for one block.
        seconds: the least duration of the measurement.
        patience: the longest wait for a step of the counter.

    Returns:
        J, or None if the counter does not move.
    """

    def until_it_moves(least: float) -> tuple[int, float] | None:
        calls, spent, still, before = 0, 0.0, 0.0, counter()
        while still <= patience:
            took = block(times)
            calls, spent = calls + times, spent + took
            now = counter()
            still = 0.0 if now != before else still + took
            if now != before and spent >= least:
                return calls, now
            before = now
        return None

    first = until_it_moves(0.0)
    last = None if first is None else until_it_moves(seconds)
    return None if first is None or last is None else (last[1] - first[1]) / last[0]
