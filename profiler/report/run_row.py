"""One line of a list of runs: a run's verdict, speed, energy and memory. Also the list's sums."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from profiler.records.energy import energy_by_gpu, sum_of
from profiler.records.histogram import NS
from profiler.records.vocabulary import STAGES
from profiler.report.layout import MEMORY, count_of, duration
from profiler.report.ledger import J_PER_KWH
from profiler.report.verdict import judge
from profiler.report.when import rfc3339

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.run import EpochRecord, Run


Row = dict[str, Any]
PEAKS = {MEMORY: "memory_peak_bytes", "hw.gpu.memory.usage": "gpu_memory_peak_bytes"}


def outline_row(run: Run) -> Row:
    """Return the row of a log's last line: ``id``, ``name``, ``state``, ``started`` and ``duration_s``."""
    row: Row = {"id": run.id, "name": run.name, "state": run.state}
    if run.exit_code is not None:
        row["exit_code"] = run.exit_code
    row |= {"started": rfc3339(run.started_unix_ns), "duration_s": run.duration_ns / NS}
    if run.rank is not None:
        row |= {"rank": run.rank, "world_size": run.world_size}
    return row


def run_row(run: Run) -> Row:
    """Return the same of a whole run, with verdict, speed, energy, peak memory and the words of its command, where known."""
    whole = run.whole()
    row = outline_row(run) | {"verdict": judge(run, whole).kind} | _speed(whole)
    energy = sum_of(energy_by_gpu(run.energy()).values())
    if energy.is_resolved:
        row["energy_j"] = energy.joules
    for reading in whole.readings.values():
        key = PEAKS.get(reading.spec.name)
        if key is not None and reading.count:
            row[key] = max(row.get(key, 0), reading.maximum)
    if run.command:
        row["command"] = run.command
    return row


def _speed(whole: EpochRecord) -> Row:
    """Return the samples and steps a second of training; without any, of the first stage that has steps."""
    stage = next((whole.stages[name] for name in STAGES if name in whole.stages and whole.stages[name].steps), None)
    if stage is None or not stage.elapsed_ns:
        return {}
    seconds = stage.elapsed_ns / NS
    rate = {} if stage.samples is None else {"samples_per_s": stage.samples / seconds}
    return {"steps": stage.steps, "steps_per_s": stage.steps / seconds, **rate}


def sums(rows: Sequence[Row]) -> str:
    """Return the sums of all rows in words."""
    words = [count_of(len(rows), "run"), f"{duration(sum(row['duration_s'] for row in rows))} in all"]
    joules = [row["energy_j"] for row in rows if "energy_j" in row]
    if joules:
        words.append(f"{sum(joules) / J_PER_KWH:.3g} kWh" + ("" if len(joules) == len(rows) else f" in {len(joules)} of them"))
    kinds = Counter(row["verdict"] for row in rows if "verdict" in row)
    words += [f"{times} {kind}" for kind, times in kinds.most_common()]
    return ", ".join(words)
