"""A run as the JSON document of ``report --format json``, schema 1. Keys are only ever added.

The rule it keeps: a value that was not measured is left out. It is neither 0 nor null.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from profiler.records.case import CaseRecord, rates, shares
from profiler.records.energy import Energies, Energy, energy_by_gpu, sum_of
from profiler.records.histogram import NS, Histogram
from profiler.records.reading_record import ReadingRecord
from profiler.records.run import EpochRecord, Run
from profiler.records.timing import Path, StageRecord, Timing
from profiler.report.accounts import Accounts
from profiler.report.baseline import beside
from profiler.report.cause_document import causes
from profiler.report.ledger import ledger_of
from profiler.report.stragglers import rank_table
from profiler.report.verdict import Verdict, judge
from profiler.report.when import growing, recurring, rfc3339, slow_part, slowest, timeline

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.report.baseline import Baseline


SCHEMA = 1
METERED_SHARE = 0.9  # of the time: less is said


def document(
    run: Run,
    whole: EpochRecord | None = None,
    *,
    with_epochs: bool = True,
    tariff: str | None = None,
    baseline: Baseline | None = None,
) -> dict[str, Any]:
    """Return the whole run as plain dictionaries, lists, numbers and strings.

    Args:
        run: the run.
        whole: the result of ``run.whole()``, if the caller has it.
        with_epochs: list each epoch, too.
        tariff: the setting of that name, for the price of the energy.
        baseline: how the jobs of others usually are.
    """
    whole = run.whole() if whole is None else whole
    energy = run.energy()
    accounts = Accounts(run, whole)
    verdict = judge(run, whole, accounts)
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "run": _run(run),
        "hardware": _hardware(run),
        "epochs": epochs(run) if with_epochs else [],
        "stages": {name: _stage(run, stage, energy) for name, stage in whole.stages.items()},
        "readings": [_reading(reading) for reading in _in_order(whole.readings.values())],
        "verdict": _verdict(verdict),
    }
    ledger = ledger_of(run, whole, accounts, tariff)
    if ledger:
        result["ledger"] = ledger
    if baseline is not None:
        result["beside"] = beside(run, whole, accounts, baseline)
    if whole.phases:
        result["phases"] = _phases(whole.phases)
    if energy:
        result["energy"] = _energy(run, energy_by_gpu(energy), run.duration_ns)
    if whole.cases:
        result["bench"] = {"cases": [bench_case(case) for case in sorted(whole.cases, key=_suite_order)]}
    if run.overhead_ns is not None:
        result["overhead"] = _overhead(run, run.overhead_ns)
    result.update({key: value for key, value in {**_when(run, whole), **causes(run, whole)}.items() if value})
    gathered = rank_table(run)
    if gathered:
        result["ranks"] = gathered
    if run.notes:
        result["notes"] = dict(run.notes)
    return result


def _verdict(verdict: Verdict) -> dict[str, Any]:
    told: dict[str, Any] = {"kind": verdict.kind, "evidence": verdict.evidence}
    told["findings"] = [finding.to_dict() for finding in verdict.findings]
    if verdict.next:
        told["next"] = verdict.next
    return told


def _when(run: Run, whole: EpochRecord) -> dict[str, Any]:
    """Return the times of the events that the run shows."""
    rhythms = {name: recurring(stage) for name, stage in whole.stages.items()}
    return {
        "timeline": timeline(run),
        "slowest": {name: slowest(run, stage) for name, stage in whole.stages.items() if stage.slowest},
        "recurring": {name: rhythm for name, rhythm in rhythms.items() if rhythm},
        "slow_part": slow_part(run),
        "growing": growing(run),
    }


def epochs(run: Run) -> list[dict[str, Any]]:
    """Return the epochs of a run, in their order."""
    return [_epoch(run, epoch) for epoch in run.epochs]


def _run(run: Run) -> dict[str, Any]:
    result: dict[str, Any] = {"id": run.id, "name": run.name, "state": run.state}
    if run.exit_code is not None:
        result["exit_code"] = run.exit_code
    if run.started_unix_ns:
        result["started"] = rfc3339(run.started_unix_ns)
    result["duration_s"] = run.duration_ns / NS
    if run.rank is not None and run.world_size is not None:
        result.update(rank=run.rank, world_size=run.world_size)
    if run.planned_epochs is not None:
        result["planned_epochs"] = run.planned_epochs
    return result


def _hardware(run: Run) -> dict[str, Any]:
    hardware = run.hardware
    return {
        "cpu": dict(hardware.cpu),
        "memory": dict(hardware.memory),
        "gpus": [{"index": index, **facts} for index, facts in sorted(hardware.gpus.items())],
        "runtime": dict(hardware.runtime),
    }


def _epoch(run: Run, epoch: EpochRecord) -> dict[str, Any]:
    result: dict[str, Any] = {
        "index": epoch.index,
        "duration_s": epoch.duration_ns / NS,
        "stages": [_stage(run, stage, epoch.energy) for stage in epoch.stages.values()],
    }
    if epoch.energy:
        result["energy"] = _energy(run, energy_by_gpu(epoch.energy), epoch.duration_ns)
    if epoch.inferred:
        result["inferred"] = True
    if epoch.phases:
        result["phases"] = _phases(epoch.phases)
    if epoch.readings:
        result["readings"] = [_reading(reading) for reading in _in_order(epoch.readings.values())]
    return result


def _stage(run: Run, stage: StageRecord, energy: Energies) -> dict[str, Any]:
    result: dict[str, Any] = {"stage": stage.stage, "duration_s": stage.elapsed_ns / NS, "steps": stage.steps}
    if stage.beside_ns:
        result["call_time_s"] = stage.duration_ns / NS
    if stage.samples is not None:
        result["samples"] = stage.samples
        if stage.elapsed_ns:
            result["samples_per_s"] = stage.samples / (stage.elapsed_ns / NS)
    result["partial"] = bool(stage.partial_passes)
    result["passes"] = stage.passes
    if stage.step.count:
        result["step"] = _timing(stage.step)
    if stage.latency.count:
        result["latency"] = _timing(stage.latency)
    if stage.batch.count:
        result["batch_size"] = _batch_size(stage.batch)
    if stage.device_share is not None:
        result["device_busy"] = stage.device_share
    if stage.stage in energy:
        result["energy"] = _energy(run, energy[stage.stage], stage.duration_ns, stage.samples)
    phases = _phases(stage.phases)
    still_open = sum(entry["total_s"] for entry in phases.values() if "open" in entry)
    result["phases"] = {**phases, "other": {"total_s": max(stage.other_ns / NS - still_open, 0.0)}}
    return result


def _phases(phases: Mapping[Path, Timing], above: Path = ()) -> dict[str, Any]:
    """Return the phases directly inside ``above``, each with its nested phases and its own time."""
    result = {}
    depth = len(above) + 1
    for path in dict.fromkeys(path[:depth] for path in phases if len(path) >= depth and path[: depth - 1] == above):
        inner = _phases(phases, path)
        timing = phases.get(path)
        if timing is None:  # it was open when the run was killed, or is now: what is inside it is known
            result[path[-1]] = {"total_s": sum(entry["total_s"] for entry in inner.values()), "open": True, "phases": inner}
            continue
        entry = _timing(timing)
        if inner:
            nested = sum(t.total_ns for p, t in phases.items() if len(p) == len(path) + 1 and p[: len(path)] == path)
            entry["self_s"] = (timing.total_ns - nested) / NS
            entry["phases"] = inner
        result[path[-1]] = entry
    return result


def _timing(timing: Timing) -> dict[str, Any]:
    """Return totals over all steps, and percentiles over the steady ones (or the first, if there is no other)."""
    result: dict[str, Any] = {"total_s": timing.total_ns / NS, "count": timing.count}
    if timing.count:
        result["mean_s"] = timing.total_ns / NS / timing.count
        result.update(_percentiles(timing.steady if timing.steady.count else timing.cold))
    if timing.max_ns is not None:
        result["max_s"] = timing.max_ns / NS
    if timing.cold.count:
        result["cold"] = {"count": timing.cold.count, "total_s": timing.cold.sum_ns / NS}
    if timing.device.count:
        device = timing.device
        result["device"] = {"total_s": device.sum_ns / NS, "count": device.count, **_percentiles(device)}
    return result


def _energy(run: Run, gpus: Mapping[str, Energy], duration_ns: int, samples: int | None = None) -> dict[str, Any]:
    """Return the joules of all GPUs together, or "below resolution" if most may belong to a neighbour.

    The mean power is over the time in which the counters were read.
    """
    watts = sum(energy.joules / energy.seconds for energy in gpus.values() if energy.seconds)
    total = sum_of(gpus.values())
    if not total.is_resolved:
        return {"below_resolution": True}
    result: dict[str, Any] = {"total_j": total.joules, "uncertainty_j": total.uncertain, "mean_w": watts}
    metered = min(energy.seconds for energy in gpus.values())
    is_whole = metered >= METERED_SHARE * duration_ns / NS
    if not is_whole:
        result["metered_s"] = metered
    if len(gpus) > 1 or len(run.hardware.gpus) > len(gpus):  # one of several may not have been read
        result["gpus"] = {gpu: energy.joules for gpu, energy in gpus.items()}
    if any("mig_instance" in facts for facts in run.hardware.gpus.values()):
        result["shared"] = True  # the counter is the whole card's, whoever else has an instance on it
    elif samples and is_whole:
        result["samples_per_j"] = samples / total.joules
    return result


SUITE_ORDER = ("limits", "models", "yours", "loader")
CASE_TIMES = {  # in the document: the numbers of a case that are in it
    "time_s": {"median": "time", "low": "time_low", "high": "time_high", "blocks": "blocks", "launches": "launches"},
    "latency_s": {"p50": "p50", "p90": "p90", "p99": "p99", "max": "max", "calls": "calls"},
    "limits": {"operations_per_s": "flops_limit", "bytes_per_s": "moved_limit"},
}
CASE_NUMBERS = {
    "device_time_s": "device_time",
    "operations": "flops",
    "bytes": "moved",
    "cold_s": "cold",
    "compile_s": "compile",
    "memory_peak_bytes": "memory",
    "joules_per_sample": "joules",
}


def bench_case(case: CaseRecord) -> dict[str, Any]:
    """Return one case of a benchmark. ``share_of_limit`` is its share of the machine's limits."""
    shown = ("suite", "name", "device", "stage", "dtype", "batch", "workers", "shape", "status", "error")
    result = {key: value for key in shown if (value := getattr(case, key)) not in (None, "")}
    if case.compiled:
        result["compiled"] = True
    if case.remarks:
        result["remarks"] = list(case.remarks)
    for key, parts in CASE_TIMES.items():
        found = {part: case.numbers[name] for part, name in parts.items() if name in case.numbers}
        if found:
            result[key] = found
    result.update({key: case.numbers[name] for key, name in CASE_NUMBERS.items() if name in case.numbers})
    words = {"sample_rate": "samples_per_s", "operation_rate": "operations_per_s", "byte_rate": "bytes_per_s"}
    result.update({words[rate]: value for rate, value in rates(case).items()})
    of_limits = shares(case)
    if of_limits:
        result["share_of_limit"] = of_limits
    return result


def _suite_order(case: CaseRecord) -> int:
    return SUITE_ORDER.index(case.suite) if case.suite in SUITE_ORDER else len(SUITE_ORDER)


def _batch_size(sizes: Histogram) -> dict[str, float]:
    """Return the samples in a step. The histogram holds them scaled like seconds."""
    result = {"count": sizes.count, "mean": sizes.sum_ns / NS / sizes.count}
    for key, value in (("min", sizes.min_ns), ("max", sizes.max_ns)):
        if value is not None:
            result[key] = value // NS
    middle = sizes.percentile(0.5)
    return result if middle is None else {**result, "p50": round(middle)}


def _percentiles(histogram: Histogram) -> dict[str, float]:
    shares = {"p50_s": 0.5, "p90_s": 0.9, "p99_s": 0.99}
    found = {key: histogram.percentile(share) for key, share in shares.items()}
    result = {key: value for key, value in found.items() if value is not None}
    if result and histogram.min_ns != histogram.max_ns:
        result["relative_error"] = histogram.relative_error
    return result


def _in_order(readings: Iterable[ReadingRecord]) -> list[ReadingRecord]:
    return sorted(readings, key=lambda reading: (reading.spec.name, sorted(reading.attributes.items())))


def _reading(reading: ReadingRecord) -> dict[str, Any]:
    """Return the statistics of a reading. A counter has only ``last``, its growth."""
    spec = reading.spec
    result: dict[str, Any] = {"metric": spec.name, "unit": spec.unit, "attributes": dict(reading.attributes)}
    if spec.kind == "histogram":
        return {**result, "count": reading.count, **_distribution(reading.histogram)}
    if spec.kind != "counter" and reading.count:
        result["count"] = reading.count
        result["min"] = reading.minimum
        result["mean"] = reading.total / reading.count
        result["max"] = reading.maximum
    result["last"] = reading.last
    return result


def _distribution(values: Histogram) -> dict[str, float]:
    """Return the distribution of values that the histogram holds scaled like seconds."""
    if values.min_ns is None or values.max_ns is None:
        return {}
    shares = {"p10": 0.1, "p50": 0.5, "p90": 0.9, "p99": 0.99}
    found = {key: value for key, share in shares.items() if (value := values.percentile(share)) is not None}
    return {"min": values.min_ns / NS, "mean": values.sum_ns / NS / values.count, "max": values.max_ns / NS, **found}


def _overhead(run: Run, overhead_ns: int) -> dict[str, float]:
    result = {"measured_s": overhead_ns / NS}
    if run.duration_ns:
        result["ratio"] = overhead_ns / run.duration_ns
    if run.background_ns is not None:
        result["background_cpu_s"] = run.background_ns / NS
    return result
