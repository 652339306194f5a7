"""The next step for a loop that waits for data, from its loader's settings, its workers and the CPUs."""

from __future__ import annotations

from dataclasses import dataclass

from profiler.report import rules
from profiler.report.cause_words import mean_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.loader import LoaderFacts
    from profiler.records.run import EpochRecord, Run


BLOCKED = 0.4  # of a phase's time on a CPU: below, its thread mostly slept
SLEEPERS = 4  # workers that mostly wait
NO_CPU_FREE = 0.5  # CPUs: with less, another worker only takes turns
CHEAPER = "make an item cheaper (cache what is the same in each epoch, decode once)"


@dataclass(frozen=True)
class LoaderAdvice:
    """The next step for a loader.

    Attributes:
        evidence: the facts of the loader and the CPUs, in words.
        step: the next step.
        most_workers: how many workers would share the loader's work, None if the step makes the work itself smaller.
        work: that work, if one worker did it: a share of the loop's time.
        is_blocked: the loading mostly waits, for a disk or a network.
    """

    evidence: list[str]
    step: str
    most_workers: int | None = None
    work: float = 0.0
    is_blocked: bool = False


def loader_advice(
    run: Run, whole: EpochRecord, facts: LoaderFacts | None, line: str | None, on_cpu: float | None, share: float
) -> LoaderAdvice:
    """Return the next step that follows from a loader's settings, its workers and the CPUs.

    Args:
        run: the run.
        whole: its sums.
        facts: the settings of the loader, None if it is no DataLoader.
        line: the busy line while the loop waited, or None.
        on_cpu: the share of that time in which the loop's thread was on a CPU, or None.
        share: the share of the loop's time that it waited for data.
    """
    at = "" if line is None else f", at {line}"
    if facts is None:
        evidence = [f"the batches were made in the loop's own thread{at}"] if line else []
        return LoaderAdvice(evidence, "make a batch cheaper, or beside the loop")
    free = _free_cpus(run, whole)
    told = "" if free is None else f", {free:.1f} of {_cpus(run):g} CPUs were free"
    if facts.workers:
        return _with_workers(whole, facts, free, told)
    evidence = [f"the loader has no workers: the loop's own thread makes each batch{at}{told}"]
    if on_cpu is not None and on_cpu < BLOCKED:
        evidence.append("meanwhile it mostly slept, or waited for a disk or a network")
        step = f"workers wait beside the loop, on any number of CPUs: DataLoader(num_workers={SLEEPERS})"
        return LoaderAdvice(evidence, step, SLEEPERS, share, is_blocked=True)
    # While the loop waits, workers have its CPU, too.
    workers = 1 if free is None else round(free + share)
    if workers < 1 or (free is not None and free < NO_CPU_FREE):
        return LoaderAdvice(evidence, f"no whole CPU is free for workers: {CHEAPER}")
    return LoaderAdvice(evidence, f"load beside the loop: DataLoader(num_workers={workers})", workers, share)


def _with_workers(whole: EpochRecord, facts: LoaderFacts, free: float | None, told: str) -> LoaderAdvice:
    wanted = mean_of(whole, "epochmeter.loader.worker.cpu.demand")
    evidence = [f"the loader has {facts.workers} workers{told}"]
    if wanted is not None:
        words = f"each of the loader's {facts.workers} workers was on a CPU, or ready for one, for {wanted:.0%} of the time"
        evidence = [f"{words}{told}"]
    more = facts.workers + max(round(free or 0), 1)
    if wanted is not None and wanted < rules.IDLE_WORKER:
        step = f"the workers wait themselves, for a disk, a network or a lock: num_workers={2 * facts.workers}, or nearer data"
        return LoaderAdvice(evidence, step, 2 * facts.workers, facts.workers, is_blocked=True)
    if free is not None and free < NO_CPU_FREE:
        return LoaderAdvice(evidence, f"no CPU is free for more workers: {CHEAPER}")
    if wanted is None or free is None or free < 1:
        return LoaderAdvice(evidence, f"see whether more workers help (epochmeter bench loader), or {CHEAPER}")
    return LoaderAdvice(evidence, f"more workers: num_workers={more}", more, facts.workers)


def _cpus(run: Run) -> float:
    cores = run.hardware.cpu.get("available_cores", 0)
    return float(cores) if isinstance(cores, (int, float)) else 0.0


def _free_cpus(run: Run, whole: EpochRecord) -> float | None:
    """Return how many of the CPUs that the run may use were idle, or None if that was not read."""
    busy = mean_of(whole, "system.cpu.utilization")
    return None if busy is None or not _cpus(run) else _cpus(run) * (1 - busy)
