"""Readings of the machine as words of evidence: each says a measurement, or nothing where there is none."""

from __future__ import annotations

from profiler.records.histogram import NS
from profiler.report import rules
from profiler.report.layout import duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.run import EpochRecord, Run


def others_on_cpu(whole: EpochRecord) -> list[str]:
    """Return how busy the machine was, and how much of that was this process."""
    system, own = mean_of(whole, "system.cpu.utilization"), mean_of(whole, "epochmeter.process.cpu.utilization")
    if system is None or own is None:
        return []
    return [f"the machine's CPUs were busy for {system:.0%}, this process took {own:.0%}"]


def growth_words(run: Run, steps: int) -> list[str]:
    """Return how fast memory grows, if it does so steadily and fast; ``steps`` are those of the loop."""
    growth = run.growth
    if growth is None or not steps or growth.fit < rules.GROWTH_FIT:
        return []
    if growth.by < max(rules.GROWTH_BYTES, rules.GROWTH_PER_STEP * steps):
        return []
    by, each = growth.by / 2**20, growth.by / steps / 2**20
    return [f"the process's memory grew by {by:,.0f} MiB in {duration(growth.over_ns / NS)}, about {each:.1f} MiB a step"]


def disk_words(whole: EpochRecord) -> list[str]:
    """Return words on the waits for disks, if they were long."""
    grown = {key: one.last for key, one in whole.readings.items() if one.spec.kind == "counter"}
    at_disk = ("disk.io.direction", "read")
    read = sum(value for (name, at), value in grown.items() if name == "process.disk.io" and at_disk in at)
    faults = sum(value for (name, _), value in grown.items() if name == "process.paging.faults")
    words = [f"the process read {read / 2**20:,.0f} MiB from disks"] if read >= rules.READ_BYTES else []
    if faults >= rules.MAJOR_FAULTS:
        words.append(f"{faults:,.0f} pages had to come from a disk: memory is short")
    return words


def mean_of(whole: EpochRecord, name: str) -> float | None:
    """Return the mean of a reading, or None if nobody took it."""
    found = [one for key, one in whole.readings.items() if key[0] == name and one.count]
    return found[0].total / found[0].count if found else None
