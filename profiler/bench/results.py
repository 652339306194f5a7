"""Turn the measured times into one `CaseRecord` a case, compared with this machine's own limits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median

from profiler.bench.estimate import estimate, percentile
from profiler.bench.runner import Raw
from profiler.bench.watch import remarks
from profiler.records.case import CaseRecord

PERCENTILES = (("p50", 0.5, 10), ("p90", 0.9, 20), ("p99", 0.99, 100))  # and how many calls it takes to speak of one


class CaseLedger:
    """The results so far: groups come in as they are measured, and records go out.

    A limit is measured once more beside each net. A machine has one limit a dtype: the median of all of these blocks, with
    which every net is compared.
    """

    def __init__(self) -> None:
        self._limits: dict[tuple[str, str, str | None, str], Raw] = {}
        self._others: list[Raw] = []

    def add(self, group: Sequence[Raw]) -> None:
        """Add a group that has been measured."""
        for raw in group:
            if raw.case.suite == "limits":
                self._add_limit(raw)
            else:
                self._others.append(raw)

    def records(self) -> list[CaseRecord]:
        """Return all cases, compared with the limits as they are known now."""
        return [*self._compared(), *map(self._record, self._limits.values())]

    def _compared(self) -> Iterator[CaseRecord]:
        limits = self._limits.values()
        flops = {raw.case.dtype: _rate(raw, "flops") for raw in limits if raw.case.name == "matmul"}
        moved = {raw.case.device: _rate(raw, "moved") for raw in limits if raw.case.name == "memory"}
        for raw in self._others:
            record = self._record(raw)
            for name, limit in (("flops_limit", flops.get(raw.case.dtype)), ("moved_limit", moved.get(raw.case.device))):
                if limit is not None and record.status == "ok" and raw.case.suite != "loader":
                    record.numbers[name] = limit
            yield record

    def speeds(self) -> dict[str, float]:
        """Return the speed of the matrix product so far in FLOP/s, by dtype."""
        found = {raw.case.dtype: _rate(raw, "flops") for raw in self._limits.values() if raw.case.name == "matmul"}
        return {dtype: speed for dtype, speed in found.items() if dtype is not None and speed is not None}

    def _add_limit(self, raw: Raw) -> None:
        case = raw.case
        if not any(raw.seconds) and raw.failure is None:
            return  # nothing was there to be held against it
        known = self._limits.setdefault((case.name, case.device, case.dtype, case.shape), raw)
        if known is raw:
            return
        known.seconds += raw.seconds
        known.answers += raw.answers
        known.blocks += raw.blocks
        known.remarks += raw.remarks
        known.failure = raw.failure if not any(known.seconds) else None

    def _record(self, raw: Raw) -> CaseRecord:
        case = raw.case
        record = CaseRecord(
            *(case.suite, case.name, case.device.split(":")[0], case.stage, case.dtype, case.batch, case.workers, case.shape),
            compiled=case.compiled,
            remarks=[*raw.remarks, *remarks(raw.blocks)],
        )
        if raw.failure is not None:
            failure = raw.failure
            record.status = "timed out" if failure.timed_out else "skipped" if failure.was_skipped else "failed"
            record.error = str(raw.failure)
            return record
        record.numbers = _numbers(raw)
        if not all(answer.get("stable", True) for answer in raw.answers):
            record.remarks.insert(0, "times were still changing after the warm-up")
        return record


def _numbers(raw: Raw) -> dict[str, float]:
    middle, low, high = estimate(raw.seconds)
    found: dict[str, float] = {"time": middle, "time_low": low, "time_high": high}
    found["blocks"], found["launches"] = sum(map(len, raw.seconds)), len(raw.seconds)
    if any(raw.device):
        found["device_time"] = estimate(raw.device).middle
    answer = _last(raw.answers)
    for name in ("samples", "flops", "moved", "memory"):
        if name in answer:
            found[name] = answer[name]
    for name in ("cold", "compile"):
        times = [launch[name] for launch in raw.answers if name in launch]
        if times:
            found[name] = median(times)
    if raw.joules is not None and found.get("samples"):
        found["joules"] = raw.joules / found["samples"]
    ordered = sorted(raw.each)
    if ordered:
        found.update({name: percentile(ordered, share) for name, share, least in PERCENTILES if len(ordered) >= least})
        found["calls"], found["max"] = len(ordered), ordered[-1]
    return found


def _last(answer: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the answers of all launches, later ones over earlier ones."""
    return {name: value for launch in answer for name, value in launch.items()}


def _rate(raw: Raw, what: str) -> float | None:
    amount = _last(raw.answers).get(what)
    return amount / estimate(raw.seconds).middle if amount and any(raw.seconds) and raw.failure is None else None
