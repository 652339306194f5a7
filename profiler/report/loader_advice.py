"""The next step for a loop that waits for data, from its loader's settings, its workers and the CPUs."""

from __future__ import annotations

from profiler.report import rules

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.loader import LoaderFacts
    from profiler.records.run import EpochRecord, Run


BLOCKED = 0.4  # of a phase's time on a CPU: below, its thread mostly slept
NO_CPU_FREE = 0.5  # CPUs: with less, another worker only takes turns
CHEAPER = "make an item cheaper (cache what is the same in each epoch, decode once)"


def loader_advice(
    run: Run, whole: EpochRecord, facts: LoaderFacts | None, line: str | None, on_cpu: float | None, disk: list[str]
) -> tuple[list[str], str]:
    """Return the facts of the loader and the CPUs in words, and the next step that follows from them.

    Args:
        run: the run.
        whole: its sums.
        facts: the settings of the loader, None if it is no DataLoader.
        line: the busy line while the loop waited, or None.
        on_cpu: the share of that time in which the loop's thread was on a CPU, or None.
        disk: words on the waits for disks.
    """
    at = "" if line is None else f", at {line}"
    if facts is None:
        evidence = [f"the batches were made in the loop's own thread{at}"] if line else []
        return evidence, "make a batch cheaper, or beside the loop"
    cpus, free = _cpus(run), _free_cpus(run, whole)
    told = "" if free is None else f", {free:.1f} of {cpus:g} CPUs were free"
    if facts.workers:
        return _with_workers(whole, facts, free, told)
    evidence = [f"the loader has no workers: the loop's own thread makes each batch{at}{told}"]
    if on_cpu is not None and on_cpu < BLOCKED:
        evidence += ["meanwhile it mostly slept, or waited for a disk or a network", *disk]
        return evidence, "workers wait beside the loop, on any number of CPUs: DataLoader(num_workers=4)"
    if free is not None and free < NO_CPU_FREE:
        return evidence, f"no CPU is free for workers: {CHEAPER}"
    return evidence, f"load beside the loop: DataLoader(num_workers={1 if free is None else max(round(free), 1)})"


def _with_workers(whole: EpochRecord, facts: LoaderFacts, free: float | None, told: str) -> tuple[list[str], str]:
    busy = _mean_of(whole, "epochmeter.loader.worker.cpu.utilization")
    evidence = [f"the loader has {facts.workers} workers{told}"]
    if busy is not None:
        evidence = [f"each of the loader's {facts.workers} workers was on a CPU for {busy:.0%} of the time{told}"]
    if free is not None and free < NO_CPU_FREE:
        return evidence, f"no CPU is free for more workers: {CHEAPER}"
    if busy is None:
        return evidence, "see whether more workers help (epochmeter bench loader)"
    if busy < rules.IDLE_WORKER:
        return evidence, "the workers wait themselves, for a disk, a network or a lock: more of them, or data that is nearer"
    if free is not None and free >= 1:
        return evidence, f"more workers: num_workers={facts.workers + round(free)}"
    return evidence, f"the workers are busy: {CHEAPER}"


def _mean_of(whole: EpochRecord, name: str) -> float | None:
    """Return the mean of a reading, or None if nobody took it."""
    found = [one for key, one in whole.readings.items() if key[0] == name and one.count]
    return found[0].total / found[0].count if found else None


def _cpus(run: Run) -> float:
    cores = run.hardware.cpu.get("available_cores", 0)
    return float(cores) if isinstance(cores, (int, float)) else 0.0


def _free_cpus(run: Run, whole: EpochRecord) -> float | None:
    """Return how many of the CPUs that the run may use were idle, or None if that was not read."""
    busy = _mean_of(whole, "system.cpu.utilization")
    return None if busy is None or not _cpus(run) else _cpus(run) * (1 - busy)
