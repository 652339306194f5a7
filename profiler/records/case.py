"""One case of a benchmark, as plain data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class CaseRecord:
    """One case of ``epochmeter bench``, its conditions and its results.

    Attributes:
        suite: limits, models, loader or yours.
        name: the case's name, or the user's "module:factory", which stays on this machine.
        device: cpu, cuda or mps.
        stage: train, val or inference; None if it has none.
        dtype: the type of the numbers, or None.
        batch: samples in a step, or None.
        workers: processes that load data, or None.
        shape: its size in words; results are compared only if it is the same.
        compiled: compiled by torch.compile.
        status: ok, failed, timed out, or skipped if there was nothing to measure.
        error: the error in a line, or None.
        remarks: cautions that a reader must know before believing the numbers.
        numbers: the known results, by the names of `NUMBERS`.
    """

    suite: str
    name: str
    device: str
    stage: str | None = None
    dtype: str | None = None
    batch: int | None = None
    workers: int | None = None
    shape: str = ""
    compiled: bool = False
    status: str = "ok"
    error: str | None = None
    remarks: list[str] = field(default_factory=list)
    numbers: dict[str, float] = field(default_factory=dict)


def case_identity(case: CaseRecord) -> tuple[object, ...]:
    """Return the values that are equal for two results of the same case."""
    return case.suite, case.name, case.device, case.stage, case.dtype, case.batch, case.workers, case.shape, case.compiled


def add_cases(into: list[CaseRecord], cases: Iterable[CaseRecord]) -> None:
    """Add cases. A known case is replaced, because limits become better known as a benchmark goes on."""
    for case in cases:
        places = [index for index, known in enumerate(into) if case_identity(known) == case_identity(case)]
        if places:
            into[places[0]] = case
        else:
            into.append(case)


def rates(case: CaseRecord) -> dict[str, float]:
    """Return a case's known rates by second: ``sample_rate``, ``operation_rate``, ``byte_rate``."""
    amounts = (("sample_rate", "samples"), ("operation_rate", "flops"), ("byte_rate", "moved"))
    return {rate: case.numbers[of] / case.numbers["time"] for rate, of in amounts if of in case.numbers}


def shares(case: CaseRecord) -> dict[str, float]:
    """Return a case's known shares of the machine's limits: ``operations`` and ``memory``."""
    limits = (("operations", "operation_rate", "flops_limit"), ("memory", "byte_rate", "moved_limit"))
    found = rates(case)
    return {name: found[rate] / case.numbers[limit] for name, rate, limit in limits if rate in found and limit in case.numbers}


NUMBERS = {  # of a case: unit and meaning
    "time": ("s", "Duration of a call, the median of blocks of calls."),
    "time_low": ("s", "Lower end of its 95 % confidence interval."),
    "time_high": ("s", "Upper end of its 95 % confidence interval."),
    "blocks": ("{block}", "Blocks of calls that were timed."),
    "launches": ("{launch}", "Processes that it was measured in."),
    "device_time": ("s", "Duration of a call by the GPU's clock, calls not waited for."),
    "samples": ("{sample}", "Samples in a call."),
    "flops": ("{operation}", "Floating-point operations in a call, as torch counts them."),
    "moved": ("By", "Bytes that a call's operators read and write."),
    "flops_limit": ("{operation}/s", "What this machine's matrix product reached meanwhile, in the same dtype."),
    "moved_limit": ("By/s", "What this machine's memory reached meanwhile."),
    "memory": ("By", "Peak of the memory in use."),
    "cold": ("s", "Duration of the first call of all."),
    "compile": ("s", "Duration of the first call after torch.compile."),
    "joules": ("J", "Energy used for a sample."),
    "p50": ("s", "Median of the calls, each waited for."),
    "p90": ("s", "90th percentile of the calls, each waited for."),
    "p99": ("s", "99th percentile of the calls, each waited for."),
    "max": ("s", "Longest call."),
    "calls": ("{call}", "Calls that were timed one by one."),
}
