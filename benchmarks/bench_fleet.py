"""What a fleet's table costs: rows a second and bytes a row, into Parquet files and into ClickHouse's engine.

Logs are made by hand: runs of so many epochs with training and validation, seven phases and the readings of a GPU. The load is
the one that the command does, in one process. ClickHouse is chDB behind its HTTP interface, as in the tests.

    PYTHONPATH=tests python benchmarks/bench_fleet.py [--runs 200] [--epochs 50] [--json FILE]
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from profiler.fleet.clickhouse import ClickHouseFleet
from profiler.fleet.columns import FILES
from profiler.fleet.loading import Fleet, load_logs, logs_in
from profiler.fleet.parquet import ParquetFleet
from profiler.records.histogram import NS
from profiler.storage.run_log import RunLog
from support.big_run import big_run

TESTS = Path(__file__).parents[1] / "tests"
BYTES = "SELECT sum(data_compressed_bytes) FROM system.parts WHERE active AND table = 'fleet_epoch_loaded'"


def make(folder: Path, runs: int, epochs: int) -> int:
    """Write logs, and return their bytes."""
    for number in range(runs):
        run = big_run(epochs, gpus=1, name=f"workload {number % 5}", seed=number)
        run.id, run.started_unix_ns = f"{number:012x}", run.started_unix_ns + number * 600 * NS
        log = RunLog(folder / f"node{number % 8}", run)
        for part in run.parts():
            log.append(run, part)
        log.close()
    return sum(path.stat().st_size for path in logs_in([folder]))


def loaded(folder: Path, fleet: Fleet) -> dict[str, Any]:
    """Load the logs twice, and return what it took."""
    logs, times, found = logs_in([folder]), [], None
    for _ in range(2):
        began = time.perf_counter()
        told = load_logs(logs, fleet)
        times.append(time.perf_counter() - began)
        found = found or told
    assert found is not None and not found.bad and told.rows == 0
    return {
        "rows": found.rows,
        "s": round(times[0], 2),
        "rows_per_s": round(found.rows / times[0]),
        "again_s": round(times[1], 2),
    }


def main() -> None:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    gc.disable()  # as the command does
    with tempfile.TemporaryDirectory() as place:
        folder, files = Path(place) / "runs", Path(place) / "fleet"
        log_bytes = make(folder, given.runs, given.epochs)
        parquet = loaded(folder, ParquetFleet(files))
        parquet["bytes_per_row"] = round(sum(path.stat().st_size for path in files.glob(FILES)) / parquet["rows"], 1)
        server = [sys.executable, str(TESTS / "support" / "clickhouse_server.py")]
        with subprocess.Popen(server, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None and process.stdout is not None
            address = f"clickhouse://127.0.0.1:{int(process.stdout.readline())}/default"
            there = ClickHouseFleet(address)
            there.prepare()
            clickhouse = loaded(folder, there)
            import clickhouse_connect

            client = clickhouse_connect.get_client(dsn=address)
            client.command("OPTIMIZE TABLE fleet_epoch_loaded FINAL")
            clickhouse["bytes_per_row"] = round(client.query(BYTES).result_rows[0][0] / clickhouse["rows"], 1)
            process.stdin.close()
            process.kill()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    told = {
        "machine": platform.machine(),
        "python": platform.python_version(),
        "runs": given.runs,
        "epochs": given.epochs,
        "log_bytes": log_bytes,
        "parquet": parquet,
        "clickhouse": clickhouse,
        "peak_mib": peak,
    }
    print(json.dumps(told, indent=2))
    if given.json:
        given.json.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
