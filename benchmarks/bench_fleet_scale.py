"""How a fleet grows: the load of one more log, every question, and an export, over 1e5, 1e6 and 1e7 rows.

Each is a process of its own. The rows are the training of one hand-made run, loaded from its log, and multiplied in DuckDB to
10,000 ranks in jobs of 100, each with times of its own: 10, 100 and 1,000 epochs. So the load of 10,000 logs is not in it:
`bench_fleet.py` measures loading.

    PYTHONPATH=tests python benchmarks/bench_fleet_scale.py [--rows 100000 1000000 10000000] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import duckdb

from profiler.fleet.loading import load_logs, logs_in
from profiler.fleet.parquet import ParquetFleet
from profiler.fleet.questions import QUESTIONS
from profiler.records.run import Run
from profiler.storage.run_log import RunLog
from support.big_run import big_run

COMMAND = """
import re, sys
from pathlib import Path
from profiler.cli import main
peak = sys.argv.pop(1)
try:
    main()
finally:
    Path(peak).write_text(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
"""  # the kernel's figure for children has that of the process which started them
RANKS = 10_000
PER_FILE = 500_000
MULTIPLIED = """
COPY (
  SELECT * REPLACE (
    printf('%012x', rank_) AS run, printf('%012x', rank_ // 100) AS job, rank_ % 100 AS rank, 100 AS world_size,
    (rank_ % 100) // 8 AS node, map {{'node': 'n' || (rank_ // 8 % 300)}} AS labels, 'net ' || (rank_ // 100 % 20) AS workload,
    ['0.2.0', '0.3.0'][1 + rank_ // 100 % 2] AS package_version, 1 AS gpus, {epochs} AS log_rows,
    start + to_hours(CAST(rank_ // 100 * 5 AS INTEGER)) AS start, duration_s * (0.98 + 0.04 * random()) AS duration_s,
    300.0 * duration_s * (0.9 + 0.2 * random()) AS energy_j, 1.0 AS energy_uncertain_j,
    map_from_entries(list_transform(map_entries(phases_s),
      lambda e: {{'k': e.key, 'v': CAST(e.value * (0.98 + 0.04 * random()) AS FLOAT)}})) AS phases_s)
  FROM (SELECT * FROM base WHERE stage = 'train') AS base
    CROSS JOIN (SELECT range AS rank_ FROM range({first}, {last})) AS ranks
  ORDER BY gpu, stage, run, epoch
) TO '{path}' (FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 9)
"""


def write_log(folder: Path, run: Run) -> None:
    """Write the log of a run."""
    log = RunLog(folder, run)
    for part in run.parts():
        log.append(run, part)
    log.close()


def make(folder: Path, rows: int) -> int:
    """Make a fleet of so many rows, and return its bytes."""
    epochs = max(rows // RANKS, 1)
    ranks = rows // epochs
    run = big_run(epochs, gpus=1)
    run.outside.ranks, run.outside.rank_epochs = {}, 0
    write_log(folder / "logs", run)
    load_logs(logs_in([folder / "logs"]), ParquetFleet(folder / "base"))
    more = big_run(20, gpus=1, seed=2)
    more.id = "f" * 12
    write_log(folder / "more", more)
    connection = duckdb.connect()
    connection.execute(f"CREATE TABLE base AS SELECT * FROM read_parquet('{folder}/base/*/*.parquet', hive_partitioning=false)")  # noqa: S608
    (folder / "fleet" / "month=2026-09").mkdir(parents=True)
    step = max(PER_FILE // epochs, 1)
    for first in range(0, ranks, step):
        path = folder / "fleet" / "month=2026-09" / f"{first:08d}.parquet"
        connection.execute(MULTIPLIED.format(epochs=epochs, first=first, last=min(first + step, ranks), path=path))
    return sum(path.stat().st_size for path in (folder / "fleet").rglob("*.parquet"))


def measured(*arguments: str) -> dict[str, float]:
    """Run the command, and return its seconds and its peak of memory in MB."""
    with tempfile.NamedTemporaryFile() as peak:
        began = time.perf_counter()
        program = [sys.executable, "-c", COMMAND, peak.name, "fleet", *arguments]
        subprocess.run(program, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return {"s": round(time.perf_counter() - began, 2), "mb": round(int(Path(peak.name).read_text()) / 1024)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found: dict[str, Any] = {"machine": {"cores": os.cpu_count(), "system": platform.system()}, "ranks": RANKS, "sizes": {}}
    for rows in arguments.rows:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            size = make(folder, rows)
            place = str(folder / "fleet")
            told = {}
            for question in QUESTIONS:
                if question != "features":
                    versions = ("0.2.0", "0.3.0") if question == "regression" else ()
                    told[question] = measured("ask", question, *versions, "--from", place, "--csv")
            told["load"] = measured("load", str(folder / "more"), "--into", place)
            told["export"] = measured("export", str(folder / "out"), "--from", place, "--k", "5")
            ((counted,),) = duckdb.sql(f"SELECT count(*) FROM read_parquet('{place}/*/*.parquet')").fetchall()  # noqa: S608
            found["sizes"][str(counted)] = {"bytes": size, "bytes_a_row": round(size / counted, 1), **told}
        print(counted, json.dumps(found["sizes"][str(counted)]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
