"""Play a run of a day with one epoch, by a clock that only this program moves, and measure its log, memory and report.

The loop's own calls, the slices, the log and its compaction are the real ones. Only the clock is not: each step moves it.
The readings are those of this machine, taken once a simulated second.

    python benchmarks/bench_day.py [--steps 10_000_000] [--hours 24] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SECOND = 1_000_000_000


def play(steps: int, hours: float) -> dict[str, Any]:
    """Run the day in this process. Return what it took."""
    from profiler.measure import clocks, hot_path

    at = time.perf_counter_ns()

    def clock() -> int:
        return at

    clocks.host_clock = hot_path.now = clock
    from profiler import Profiler

    rss_before = _rss()
    prof = Profiler("a day", interval=3600.0, epochs=1)
    session = prof.session
    session.sampler.start = lambda: None  # type: ignore[method-assign]  # this loop is the sampling thread, too
    prof.start()
    sampler = session.sampler
    for name in ("process", "host", "runtime"):
        sampler.open(name)
    session._prepare()
    step_ns = round(hours * 3600 * SECOND / steps)
    due, largest, slices = at + SECOND, 0, 0
    began = time.perf_counter()
    for _ in prof.epochs():
        for number, _ in enumerate(prof.train(range(steps))):
            with prof.phase("forward"):
                at += step_ns * 2 // 5
            with prof.phase("backward"):
                at += step_ns * 2 // 5
            with prof.phase("optimizer"):
                at += step_ns // 5
            if number % 5000 == 4999:
                at += 20 * step_ns  # a checkpoint
            if at >= due:
                due += SECOND
                sampler.tick()
                for look in sampler.each_tick:
                    look()
                slices += 1
                if slices % 600 == 0:
                    largest = max(largest, session._keeper.log_path.stat().st_size)  # type: ignore[union-attr]
    peak = _rss()
    path = session._keeper.log_path
    prof.stop()
    assert path is not None
    return {
        "steps": steps,
        "simulated_s": round(hours * 3600),
        "wall_s": round(time.perf_counter() - began, 1),
        "log_bytes": path.stat().st_size,
        "log_bytes_largest": max(largest, path.stat().st_size),
        "log_lines": path.read_bytes().count(b"\n"),
        "memory_added_mib": round((peak - rss_before) / 2**20, 1),
        "steps_in_log": _steps(path),
    }


def _steps(path: Path) -> int:
    from profiler.storage.run_reader import load

    return load(path).whole().stages["train"].steps


def _rss() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


REPORT = """
import resource, sys
sys.argv = ["epochmeter", "report", "--format", "json", "-o", sys.argv[1]]
from profiler.cli import main
try:
    main()
finally:
    sys.stderr.write(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
"""


def report(home: str) -> dict[str, float]:
    """Time ``epochmeter report`` of the day, and its memory."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", REPORT, os.devnull], env={**os.environ, "EPOCHMETER_HOME": home}, capture_output=True, check=True
    )
    return {
        "report_s": round(time.perf_counter() - began, 2),
        "report_memory_mb": round(int(done.stderr.split()[-1]) / 1000),
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000_000)
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ["EPOCHMETER_HOME"] = home
        result = {**play(given.steps, given.hours), **report(home)}
    print(json.dumps(result, indent=2))
    if given.json:
        given.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
