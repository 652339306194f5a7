"""The verdict: the cause that held the run back, with the measurements as evidence, and the next step.

`rules` has the thresholds, `findings` the cost of each cause. Here it is decided which finding stands first. If the numbers do
not decide, the verdict is "unknown" or "balanced", never a guess.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from profiler.records.histogram import NS
from profiler.records.run import UNREAD
from profiler.report import rules
from profiler.report.accounts import COMPUTE_PHASES, LOSS_GAP, OTHER, PARTS, UNNAMED, USEFUL, Accounts
from profiler.report.findings import Finder, Finding
from profiler.report.silence import why_no_steps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from profiler.records.reading_record import ReadingRecord
    from profiler.records.run import EpochRecord, Run
    from profiler.records.timing import StageRecord


HELD_DOWN_BY = {"thermal": "heat", "sw_thermal": "heat", "hw_thermal": "heat", "power_brake": "a power brake"}
AHEAD = 1.2  # phases take so much longer on the GPU than here: the host runs ahead, and the GPU always has work
GPU_BUSY = 0.80
GPU_IDLE = 0.40
BESIDE_THE_GPU = ("host", "tail", "growth", "transfer")  # losses of the host's time that cost nothing while a GPU is at work


@dataclass
class Verdict:
    """The verdict on a run.

    Attributes:
        kind: that of the first finding's rule, or balanced, or unknown.
        evidence: the measurements, in words; the first finding's comes first.
        findings: the causes, the one that stands first, and then the dearest.
        next: the next step, or the next thing to measure.
    """

    kind: str
    evidence: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    next: str = ""


def judge(run: Run, whole: EpochRecord | None = None, accounts: Accounts | None = None) -> Verdict:
    """Return the verdict on a run, from its training stage (or its only stage) and its readings.

    Args:
        run: the run.
        whole: the result of ``run.whole()``, if the caller has it.
        accounts: those of the run, if the caller has them.
    """
    whole = run.whole() if whole is None else whole
    if whole.cases and not whole.stages:
        return Verdict("unknown", ["a benchmark: each case is held against this machine's limits, not judged"])
    stage = whole.stages.get("train") or next(iter(whole.stages.values()), None)
    if stage is None or stage.steps < rules.MIN_STEPS or not stage.duration_ns:
        why, step = why_no_steps(run, whole, stage)
        return Verdict("unknown", [why], next=step)
    readings = _own(run, list(whole.readings.values()))
    finder = Finder(run, whole, stage, Accounts(run, whole) if accounts is None else accounts)
    losses = finder.losses()
    pressing = _throttled(run, readings) or _memory(readings)
    start_up = finder.start_up()
    late = [] if start_up is None else [start_up]
    if pressing is not None:
        return _of([pressing, *losses, *late], [])
    return _by_time(run, stage, readings, finder, losses, late)


def _of(findings: list[Finding], more: list[str], evidence: list[str] | None = None) -> Verdict:
    first = findings[0]
    return Verdict(first.kind, [*(first.evidence if evidence is None else evidence), *more], findings, first.next)


def _own(run: Run, readings: list[ReadingRecord]) -> list[ReadingRecord]:
    """Drop the readings of GPUs if torch was there and used none: they show the work of other programs."""
    held = [r.maximum for r in readings if r.spec.name == "epochmeter.torch.memory.reserved"]
    if any(held) or "torch" not in run.hardware.runtime:
        return readings
    return [r for r in readings if not r.spec.name.startswith(("hw.", "epochmeter.gpu."))]


# ---- causes that count wherever the time goes ------------------------------------------------------------------------


def _throttled(run: Run, readings: list[ReadingRecord]) -> Finding | None:
    stopped = sum(r.last for r in readings if r.spec.name == "epochmeter.container.cpu.throttled_time")
    share = stopped / (run.duration_ns / NS) if run.duration_ns else 0.0
    if share >= rules.THROTTLED_SHARE:
        words = f"the container's CPU quota stopped it for {stopped:.1f} s, {share:.0%} of the run"
        step = f"raise the container's CPU quota, or use fewer threads and workers: at most {share:.0%}"
        return Finding("throttled", round(stopped * NS), share, [words], step, gain_at_most=share)
    return _held_down(run, readings)


def _held_down(run: Run, readings: list[ReadingRecord]) -> Finding | None:
    """Return the throttling by the driver's time counters, or else by the state that is sampled now and then."""
    step = "cool the machine, or raise the card's power limit: how much that brings, only a cool card shows"
    for reading in readings:
        by = HELD_DOWN_BY.get(reading.attributes.get("epochmeter.gpu.throttle_reason", ""))
        share = reading.last / (run.duration_ns / NS) if run.duration_ns else 0.0
        if by is not None and share >= rules.HELD_DOWN_SHARE:
            gpu = reading.attributes.get("hw.id", "a GPU")
            words = f"{by} held the clocks of {gpu} down for {reading.last:.1f} s, {share:.0%} of the run"
            return Finding("throttled", round(reading.last * NS), share, [words], step)
    for reading in readings:
        if reading.spec.name == "hw.status" and reading.attributes.get("hw.state") == "degraded" and reading.count:
            held = reading.total / reading.count
            if held >= rules.HELD_DOWN_SHARE:
                gpu = reading.attributes.get("hw.id", "a GPU")
                words = f"heat or a power brake slowed {gpu} in {held:.0%} of the readings"
                return Finding("throttled", round(held * run.duration_ns), held, [words], step)
    return None


def _memory(readings: list[ReadingRecord]) -> Finding | None:
    used = {r.spec.name: r for r in readings if r.spec.name.startswith("container.memory.")}
    working_set, available = used.get("container.memory.working_set"), used.get("container.memory.available")
    if working_set and available:
        limit = working_set.last + available.last
        if limit and working_set.maximum / limit >= rules.MEMORY_SHARE:
            words = f"memory reached {working_set.maximum / limit:.0%} of the container's limit"
            step = "raise the limit, or lower the batch size or the number of workers, before the kernel ends the run"
            return Finding("memory", 0, 0.0, [words], step)
    return None


# ---- by time -------------------------------------------------------------------------------------------------------


def _by_time(
    run: Run, stage: StageRecord, readings: list[ReadingRecord], finder: Finder, losses: list[Finding], late: list[Finding]
) -> Verdict:
    shares = {path[0]: t.total_ns / stage.duration_ns for path, t in stage.phases.items() if len(path) == 1}
    wait = shares.get("data_wait", 0.0)
    waited = [f"{wait:.0%} of {stage.stage} time was spent waiting for data"] if wait >= rules.WORTH_SAYING else []
    compute = finder.accounts.total(USEFUL) / finder.loop_ns
    utilization = (r.total / r.count for r in readings if r.spec.name == "hw.gpu.utilization" and r.count)
    busy = max(utilization, default=None)
    has_gpu = stage.device_share is not None or (busy is not None and busy > 0) or UNREAD in run.notes
    leading = [loss for loss in losses if not (has_gpu and loss.cause in BESIDE_THE_GPU)]
    if has_gpu or compute >= rules.COMPUTE_SHARE:
        leading = [loss for loss in leading if loss.weight >= _certain(loss)]
    if leading:
        rest = [loss for loss in losses if loss is not leading[0]]
        is_of_stage = leading[0].cause != "data_wait" and leading[0].where.get("stage") == stage.stage
        return _of([leading[0], *rest, *late], waited if is_of_stage else [])
    if has_gpu:
        return _on_gpu(run, stage, busy, losses, late, waited, finder)
    if compute >= rules.COMPUTE_SHARE:
        found = _launch(stage, finder, compute) or _compute(stage, finder, compute)
        return _of([found, *losses, *late], waited)
    unnamed = finder.accounts.total(UNNAMED) / finder.loop_ns
    if unnamed >= rules.NOTABLE:
        why, step = "nothing else was timed: name the phases of a step with prof.phase(...)", "name the phases of a step"
        step += " with prof.phase(...), or prof.attach(model)"
        if any(part in shares for part in PARTS):
            why = f"{unnamed:.0%} of the loop is in no phase, and too few samples of its lines say what it is"
            step = _lacking(shares)
        return Verdict("unknown", [*waited, why], [*losses, *late], step)
    words = [*waited, f"compute took {compute:.0%}, everything else {max(1 - compute - wait, 0):.0%}"]
    step = "nothing stands out: see the phases, and epochmeter bench for what this machine can do"
    return Verdict("balanced", words, [*losses, *late], step)


def _certain(loss: Finding) -> float:
    """Return the share of the loop's time from which on a loss stands before useful work."""
    return rules.CERTAIN_WAIT if loss.cause == "data_wait" else rules.NOTABLE


def _on_gpu(
    run: Run,
    stage: StageRecord,
    busy: float | None,
    losses: list[Finding],
    late: list[Finding],
    waited: list[str],
    finder: Finder,
) -> Verdict:
    """Return the verdict of a run with a GPU: the host's clock shows only the launching of its work."""
    decided = _device(stage, busy)
    if decided is None and busy is not None and busy >= GPU_BUSY:
        decided = "compute", [f"the busiest GPU ran kernels {busy:.0%} of the time"]
    elif decided is None and busy is not None and 0 < busy < GPU_IDLE:
        decided = "host", [f"the busiest GPU ran kernels only {busy:.0%} of the time"]
    if decided is None:
        unread = run.notes.get(UNREAD)
        why = _undecided(stage, busy)
        if unread:
            why = f"the GPU was still at work on {unread} phases when the run ended"
        step = "measure where the GPU waits: epochmeter bench, or torch.profiler for a few steps"
        return Verdict("unknown", [why, *waited], [*losses, *late], step)
    cause, evidence = decided
    if cause == "compute":
        found = _compute(stage, finder, finder.accounts.total(USEFUL) / finder.loop_ns)
        return _of([found, *losses, *late], waited, evidence)
    idle = 1 - (stage.device_share if stage.device_share is not None else busy or 0.0)
    hosts = [loss for loss in losses if loss.cause in BESIDE_THE_GPU]
    if hosts:
        return _of(
            [hosts[0], *(loss for loss in losses if loss is not hosts[0]), *late], waited, [*evidence, *hosts[0].evidence]
        )
    step = f"keep the GPU busy: larger batches, torch.compile or CUDA graphs, less Python a step: at most {idle:.0%}"
    found = Finding("host", round(idle * finder.loop_ns), idle, evidence, step, {"stage": stage.stage}, gain_at_most=idle)
    return _of([found, *losses, *late], waited)


def _device(stage: StageRecord, busy: float | None) -> tuple[str, list[str]] | None:
    """Return the answer of the GPU's own clock: "compute" or "host", and the evidence.

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
        return "host", [f"the GPU was in no phase for {1 - on_device:.0%} of a {stage.stage} step"]
    if on_device >= GPU_BUSY and on_device >= here * AHEAD:
        longer = f"phases take {on_device / here:.1f} times as long there as here: the host runs ahead"
        return "compute", [f"the GPU was in a phase for {on_device:.0%} of a {stage.stage} step", longer]
    return None


def _undecided(stage: StageRecord, busy: float | None) -> str:
    on_device, here = stage.device_share or 0.0, stage.host_share or 0.0
    utilization = "its utilization was not read" if busy is None else f"it ran kernels {busy:.0%} of the time"
    if on_device >= here * AHEAD:
        return f"the GPU was in a phase for {on_device:.0%} of a {stage.stage} step; {utilization}"
    why = "the loop launches too little at a time, or waits for the GPU within them"
    return f"phases take as long on the GPU as here: {why}; {utilization}"


# ---- useful work -----------------------------------------------------------------------------------------------------


def _lacking(named: Iterable[str]) -> str:
    """Return the step to take if not all parts of the computing are named."""
    missing = " and ".join(part for part in PARTS if part not in named)
    return f"name {missing} too, with prof.phase(...), or prof.attach(model, optimizer)"


def _compute(stage: StageRecord, finder: Finder, compute: float) -> Finding:
    """Return the finding that the work itself takes the time, with the largest phase of it."""
    shares = {path[0]: t.total_ns / max(stage.duration_ns, 1) for path, t in stage.phases.items() if len(path) == 1}
    named = [phase for phase in COMPUTE_PHASES if phase in shares]
    cost = finder.accounts.total(USEFUL)
    if not named:
        words = f"by samples of its lines, {compute:.0%} of the loop was spent in torch"
        step = "name the phases of a step with prof.phase(...), to see which of them it is"
        return Finding("compute", cost, compute, [words], step, {"stage": stage.stage})
    inside = sum(shares[phase] for phase in named)
    evidence = [f"{inside:.0%} of {stage.stage} time was spent in {', '.join(named)}"]
    largest = max(named, key=lambda phase: shares[phase])
    unnamed = sum(one.ns for one in finder.accounts.of(USEFUL) if (one.stage, one.phase) == (stage.stage, OTHER))
    if unnamed / max(stage.elapsed_ns, 1) > shares[largest]:
        words = f"by samples of its lines, {unnamed / max(stage.elapsed_ns, 1):.0%} in torch and in no phase"
        return Finding("compute", cost, compute, [*evidence, words], _lacking(shares), {"stage": stage.stage})
    evidence.append(f"the most in {largest}, {shares[largest]:.0%}")
    half = shares[largest] / 2
    how = {"optimizer": "a fused or foreach optimizer, or fewer and larger batches"}.get(
        largest, "mixed precision, torch.compile, or a faster machine (epochmeter bench shows this one's limits)"
    )
    step = f"{how}: with {largest} twice as fast, at most {half:.0%}"
    where = {"stage": stage.stage, "phase": largest}
    return Finding("compute", cost, compute, evidence, step, where, gain_at_most=half)


def _launch(stage: StageRecord, finder: Finder, compute: float) -> Finding | None:
    """Return the finding that operations are so small that their fixed costs are most of them; on CPUs alone."""
    if not stage.operations or not stage.steps or stage.stage != "train":
        return None
    phases = {path[0]: timing for path, timing in stage.phases.items() if len(path) == 1}
    forward = [phases[name] for name in ("forward", "loss", LOSS_GAP) if name in phases]
    steady = sum(timing.steady.sum_ns for timing in forward)
    steps = max((timing.steady.count for timing in forward), default=0)
    operations = stage.operations / stage.steps
    samples = stage.samples / stage.steps if stage.samples else None
    is_small = samples is not None and samples <= rules.SMALL_BATCH
    each = steady / steps / operations if steps and operations else math.inf
    if each >= (rules.OPERATION_OF_SMALL_BATCH_NS if is_small else rules.OPERATION_NS):
        return None
    size = "" if samples is None else f", with {samples:.0f} samples"
    evidence = [
        f"{compute:.0%} of the loop is torch's work, and each of its operations took {each / 1e3:.0f} us of forward and loss",
        f"a step has {operations:.0f} of them{size}: most of that is the fixed cost of an operation",
    ]
    half = compute / 2
    step = f"larger batches, or fewer and larger operations (torch.compile): with batches twice as large, at most {half:.0%}"
    cost = finder.accounts.total(USEFUL)
    return Finding("launch", cost, compute, evidence, step, {"stage": stage.stage}, gain_at_most=half)
