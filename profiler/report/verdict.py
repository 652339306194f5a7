"""The verdict: what held the run back, with the measurements as evidence.

The rules are few and visible. Each has a named threshold, and the evidence quotes the numbers that crossed it. If the
numbers do not decide, the verdict is "unknown" or "balanced", never a guess.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from profiler.records.run import UNREAD
from profiler.report.stragglers import rank_table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.reading_record import ReadingRecord
    from profiler.records.run import EpochRecord, Run
    from profiler.records.timing import StageRecord


MIN_STEPS = 8  # below this a share of the time says little
THROTTLED_SHARE = 0.10  # of the run's time, stopped by the CPU quota
MEMORY_SHARE = 0.95  # of a memory limit
WAIT_SHARE = 0.30  # of training time, spent waiting for the loader
COMPUTE_SHARE = 0.60  # of training time, in forward, loss, backward and optimizer
OTHER_SHARE = 0.50  # of training time, in no phase, when compute is timed
HELD_DOWN_SHARE = 0.10  # of the run's time, or of the readings, in which heat or a brake slowed a GPU's clocks
HELD_DOWN_BY = {"thermal": "heat", "sw_thermal": "heat", "hw_thermal": "heat", "power_brake": "a power brake"}
AHEAD = 1.2  # phases take so much longer on the GPU than here: the host runs ahead, and the GPU always has work
GPU_BUSY = 0.80
GPU_IDLE = 0.40
COMPUTE_PHASES = ("forward", "loss", "backward", "optimizer")


@dataclass
class Verdict:
    """``kind`` is input-bound, compute-bound, host-bound, memory-bound, throttled, balanced or unknown."""

    kind: str
    evidence: list[str] = field(default_factory=list)


def judge(run: Run, whole: EpochRecord | None = None) -> Verdict:
    """Return the verdict on a run, from its training stage (or its only stage) and its readings.

    Args:
        run: the run.
        whole: the result of ``run.whole()``, if the caller has it.
    """
    whole = run.whole() if whole is None else whole
    if whole.cases and not whole.stages:
        return Verdict("unknown", ["a benchmark: each case is held against this machine's limits, not judged"])
    stage = whole.stages.get("train") or next(iter(whole.stages.values()), None)
    if stage is None or stage.steps < MIN_STEPS or not stage.duration_ns:
        steps = stage.steps if stage else 0
        return Verdict("unknown", [f"{steps} steps were timed; at least {MIN_STEPS} are needed"])
    readings = _own(run, list(whole.readings.values()))
    waited = _waited(run, stage)
    if waited is not None:
        return waited
    return _throttled(run, readings) or _memory(readings) or _time(run, stage, readings)


def _own(run: Run, readings: list[ReadingRecord]) -> list[ReadingRecord]:
    """Drop the readings of GPUs if torch was there and used none: they show the work of other programs."""
    held = [r.maximum for r in readings if r.spec.name == "epochmeter.torch.memory.reserved"]
    if any(held) or "torch" not in run.hardware.runtime:
        return readings
    return [r for r in readings if not r.spec.name.startswith(("hw.", "epochmeter.gpu."))]


def _waited(run: Run, stage: StageRecord) -> Verdict | None:
    """Return the verdict on a rank that waits for another: the bottleneck is the phase in which that one is behind."""
    for wait in rank_table(run).get("waits", ()):
        if wait["stage"] == stage.stage and wait["waited_s"] >= WAIT_SHARE * stage.duration_ns / 1e9:
            kinds = {"data_wait": "input-bound", **dict.fromkeys(COMPUTE_PHASES, "compute-bound")}
            behind = f"rank {wait['rank']} was {wait['behind_s']:.2g} s behind in {wait['phase']}"
            waited = f"the others waited for it {wait['waited_s']:.2g} s in {wait['waited_in']}"
            return Verdict(kinds.get(wait["phase"], "host-bound"), [behind, waited])
    return None


def _throttled(run: Run, readings: list[ReadingRecord]) -> Verdict | None:
    stopped = sum(r.last for r in readings if r.spec.name == "epochmeter.container.cpu.throttled_time")
    share = stopped / (run.duration_ns / 1e9) if run.duration_ns else 0.0
    if share >= THROTTLED_SHARE:
        return Verdict("throttled", [f"the container's CPU quota stopped it for {stopped:.1f} s, {share:.0%} of the run"])
    return _held_down(run, readings)


def _held_down(run: Run, readings: list[ReadingRecord]) -> Verdict | None:
    """Return the throttling by the driver's time counters, or else by the state that is sampled now and then."""
    for reading in readings:
        by = HELD_DOWN_BY.get(reading.attributes.get("epochmeter.gpu.throttle_reason", ""))
        share = reading.last / (run.duration_ns / 1e9) if run.duration_ns else 0.0
        if by is not None and share >= HELD_DOWN_SHARE:
            gpu = reading.attributes.get("hw.id", "a GPU")
            return Verdict(
                "throttled", [f"{by} held the clocks of {gpu} down for {reading.last:.1f} s, {share:.0%} of the run"]
            )
    for reading in readings:
        if reading.spec.name == "hw.status" and reading.attributes.get("hw.state") == "degraded" and reading.count:
            held = reading.total / reading.count
            if held >= HELD_DOWN_SHARE:
                gpu = reading.attributes.get("hw.id", "a GPU")
                return Verdict("throttled", [f"heat or a power brake slowed {gpu} in {held:.0%} of the readings"])
    return None


def _memory(readings: list[ReadingRecord]) -> Verdict | None:
    used = {r.spec.name: r for r in readings if r.spec.name.startswith("container.memory.")}
    working_set, available = used.get("container.memory.working_set"), used.get("container.memory.available")
    if working_set and available:
        limit = working_set.last + available.last
        if limit and working_set.maximum / limit >= MEMORY_SHARE:
            return Verdict("memory-bound", [f"memory reached {working_set.maximum / limit:.0%} of the container's limit"])
    return None


def _time(run: Run, stage: StageRecord, readings: list[ReadingRecord]) -> Verdict:
    shares = {path[0]: t.total_ns / stage.duration_ns for path, t in stage.phases.items() if len(path) == 1}
    wait = shares.get("data_wait", 0.0)
    compute = sum(shares.get(phase, 0.0) for phase in COMPUTE_PHASES)
    other = stage.other_ns / stage.duration_ns
    waited = [f"{wait:.0%} of {stage.stage} time was spent waiting for data"] if "data_wait" in shares else []
    if wait >= WAIT_SHARE:
        return Verdict("input-bound", waited)
    utilization = (r.total / r.count for r in readings if r.spec.name == "hw.gpu.utilization" and r.count)
    busy = max(utilization, default=None)
    device = _device(stage, busy)
    if device is not None:
        return Verdict(device.kind, [*device.evidence, *waited])
    if busy is not None and busy >= GPU_BUSY:
        return Verdict("compute-bound", [f"the busiest GPU ran kernels {busy:.0%} of the time", *waited])
    if busy is not None and 0 < busy < GPU_IDLE:
        return Verdict("host-bound", [f"the busiest GPU ran kernels only {busy:.0%} of the time", *waited])
    unread = run.notes.get(UNREAD)
    if unread:
        return Verdict("unknown", [f"the GPU was still at work on {unread} phases when the run ended", *waited])
    if stage.device_share is not None:  # with a GPU, the host's clock measures only the launching of work
        return Verdict("unknown", [_undecided(stage, busy), *waited])
    if compute >= COMPUTE_SHARE:
        return Verdict("compute-bound", [f"{compute:.0%} of {stage.stage} time was spent in {_named(shares)}", *waited])
    if compute and other >= OTHER_SHARE:
        return Verdict("host-bound", [f"{other:.0%} of {stage.stage} time was spent outside every phase", *waited])
    if len(shares) < 2:
        return Verdict("unknown", [*waited, "nothing else was timed: name the phases of a step with prof.phase(...)"])
    return Verdict("balanced", [*waited, f"compute took {compute:.0%}, everything else {1 - compute - wait:.0%}"])


def _device(stage: StageRecord, busy: float | None) -> Verdict | None:
    """Return the verdict from the GPU's own clock.

    Time outside phases is idle if the work is named. Time inside phases may be idle, too, unless the host runs ahead.

    Args:
        stage: the judged stage.
        busy: the share of time in which the busiest GPU ran kernels, or None if it was not read.
    """
    on_device, here = stage.device_share, stage.host_share
    if on_device is None or not here:
        return None
    named = {path[0] for path in stage.phases}
    is_named = named >= ({"forward", "backward"} if stage.stage == "train" else {"forward"})
    if on_device < GPU_IDLE and is_named and (busy is None or busy < GPU_BUSY):
        return Verdict("host-bound", [f"the GPU was in no phase for {1 - on_device:.0%} of a {stage.stage} step"])
    if on_device >= GPU_BUSY and on_device >= here * AHEAD:
        longer = f"phases take {on_device / here:.1f} times as long there as here: the host runs ahead"
        return Verdict("compute-bound", [f"the GPU was in a phase for {on_device:.0%} of a {stage.stage} step", longer])
    return None


def _undecided(stage: StageRecord, busy: float | None) -> str:
    on_device, here = stage.device_share or 0.0, stage.host_share or 0.0
    utilization = "its utilization was not read" if busy is None else f"it ran kernels {busy:.0%} of the time"
    if on_device >= here * AHEAD:
        return f"the GPU was in a phase for {on_device:.0%} of a {stage.stage} step; {utilization}"
    why = "the loop launches too little at a time, or waits for the GPU within them"
    return f"phases take as long on the GPU as here: {why}; {utilization}"


def _named(shares: dict[str, float]) -> str:
    return ", ".join(phase for phase in COMPUTE_PHASES if phase in shares)
