"""Measure what long runs, many runs and many ranks take: log, memory, report, list, loading, gathering, a step.

    python benchmarks/bench_long_runs.py [--quick] [--json FILE]

A day of one epoch is played by a clock that only this program moves. The loop's own calls, the slices, the log and its
compaction are the real ones, and the readings are those of this machine, taken once a simulated second. Ranks share a store
of torch.distributed in this process.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SECOND = 1_000_000_000
STEPS, HOURS = 10_000_000, 24.0
SAMPLES, LINES = 4, 24  # of lines: how many a simulated second, of how many different ones
RUNS, RANKS, EPOCHS = 5_000, 10_000, 1_000


def memory() -> int:
    """Return this process's memory in bytes; psutil is not imported for it, as the profiler imports it, too."""
    pages = Path("/proc/self/statm").read_text("ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def day(steps: int, hours: float) -> dict[str, Any]:
    """Play a day in this process, which has imported torch, as a training program has, and not the profiler yet."""
    import torch

    assert torch.__version__
    before = memory()
    from profiler.measure import clocks, hot_path

    at = time.perf_counter_ns()

    def clock() -> int:
        return at

    clocks.host_clock = clock
    hot_path.use_clock(clock)
    from profiler import Profiler

    prof = Profiler("a day", interval=3600.0, epochs=1)
    session = prof.session
    session.sampler.start = lambda: None  # type: ignore[method-assign]  # this loop is the sampling thread, too
    prof.start()
    for name in ("process", "host", "runtime"):
        session.sampler.open(name)
    session._prepare()
    path = session._keeper.log_path
    assert path is not None
    step_ns = round(hours * 3600 * SECOND / steps)
    session.timer.causes.loop.start(samples_lines=True)
    places = [eval(compile("lambda look, turn: look(turn)", f"busy_{n}.py", "eval")) for n in range(LINES)]  # noqa: S307
    due, largest, looks, peak = at + SECOND, 0, 0, 0
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
                session.sampler.tick()
                for sample in range(SAMPLES):
                    places[(looks + 7 * sample) % len(places)](session.timer.causes.loop.look, sample)
                for look in session.sampler.each_tick:
                    look()
                looks += 1
                if looks % 300 == 0:
                    largest, peak = max(largest, path.stat().st_size), max(peak, memory())
    peak = max(peak, memory())
    prof.stop()
    from profiler.storage.run_reader import load

    return {
        "steps": steps,
        "hours": hours,
        "played_in_s": round(time.perf_counter() - began, 1),
        "log_bytes_at_most": max(largest, path.stat().st_size),
        "log_lines": path.read_bytes().count(b"\n"),
        "memory_added_mib": round((peak - before) / 2**20, 1),
        "steps_in_log": load(path).whole().stages["train"].steps,
    }


def command(home: str, *arguments: str) -> tuple[float, int]:
    """Return the seconds and the memory (MB) of a command in a process of its own; the median of three."""
    code = (
        "import sys\nfrom profiler.cli import main\ntry:\n    main()\nfinally:\n"
        "    peak = next(line for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
        "    sys.stderr.write('\\n' + peak.split()[1])"  # ru_maxrss would be that of the process that started it
    )
    found = []
    for _ in range(3):
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env={**os.environ, "EPOCHMETER_HOME": home},
            capture_output=True,
            text=True,
            check=True,
        )
        found.append((time.perf_counter() - began, int(done.stderr.split()[-1]) // 1000))
    return sorted(found)[1]


def listing(home: Path, runs: int) -> dict[str, Any]:
    """Time the list of many runs: all with a short log, and all with the day's."""
    (day_log,) = (home / "runs").iterdir()
    content = day_log.read_bytes()
    short = content.splitlines(keepends=True)[-1]
    result = {}
    for name, log in (("short_logs", short), ("logs_of_100_kb", content[-100_000:].partition(b"\n")[2])):
        with tempfile.TemporaryDirectory() as folder:
            logs = Path(folder) / "runs"
            logs.mkdir(mode=0o700)
            for number in range(runs):
                stamp = f"20260101T{number // 3600:02d}{number // 60 % 60:02d}{number % 60:02d}.000000Z"
                (logs / f"{stamp}-{number:012x}.otlp.jsonl").write_bytes(log)
            result[f"{name}_s"] = round(command(folder, "runs")[0], 2)  # the newest are read, the others' last lines alone
            command(folder, "runs", "--json")  # reads all of them
            result[f"{name}_again_s"] = round(command(folder, "runs")[0], 2)
    return {"runs": runs, **result}


def loading(most: int) -> dict[str, Any]:
    """Time the loading of a log by its number of epochs."""
    from profiler import Profiler
    from profiler.config.paths import runs_path
    from profiler.storage.run_log import run_paths
    from profiler.storage.run_reader import load

    result: dict[str, Any] = {}
    for epochs in (most // 8, most):
        with Profiler("epochs", interval=60.0) as prof:
            for _ in prof.epochs(epochs):
                for _ in prof.train(range(2)):
                    with prof.phase("forward"):
                        pass
        path = run_paths(runs_path())[0]
        began = time.perf_counter()
        assert len(load(path).epochs) == epochs
        result[f"{epochs}_epochs_s"] = round(time.perf_counter() - began, 2)
        path.unlink()
    few, many = result.values()
    return {**result, "times": round(many / few, 1)}


def gathering(size: int, epochs: int) -> dict[str, Any]:
    """Let all ranks publish, and the first one gather, through a store in this process."""
    import torch.distributed

    from profiler.measure import ranks
    from profiler.records.run import EpochRecord
    from profiler.records.timing import Timing

    store = torch.distributed.HashStore()
    ends = []
    for rank in range(size):
        ranks._runs.clear()  # each end as if in a process of its own
        ends.append(ranks.Ranks(store, rank, size, "bench"))
    record = EpochRecord(0)
    for phase in ("data_wait", "forward", "backward", "optimizer"):
        record.stage("train").phases[phase,] = timing = Timing()
        timing.steady.add([1_000_000])
    publishing, gathers = [], []
    silent = size // 2
    for epoch in range(epochs):
        began = time.perf_counter()
        for rank, end in enumerate(ends):
            if rank != silent and (epoch < 20 or rank < 100):  # a rank that never says a word; later only some go on
                end.publish(record)
        publishing.append((time.perf_counter() - began) / (size - 1 if epoch < 20 else 100))
        if epoch < 20 or epoch % 100 == 99:
            began = time.perf_counter()
            found = ends[0].gather()
            ranks.notable(found.ranks)
            gathers.append(time.perf_counter() - began)
    return {
        "ranks": size,
        "epochs": epochs,
        "publish_us": round(statistics.median(publishing) * 1e6, 1),
        "gather_first_ms": round(gathers[0] * 1e3, 1),
        "gather_median_ms": round(statistics.median(gathers) * 1e3, 1),
        "gather_last_ms": round(gathers[-1] * 1e3, 1),
        "keys_in_store": store.num_keys(),
    }


STEP = """
import statistics, time
from profiler import Profiler
def steps(prof, number):
    began = time.perf_counter_ns()
    for _ in prof.train(range(number)):
        pass
    return (time.perf_counter_ns() - began) / number
with Profiler("steps") as prof:
    steps(prof, 20_000)
    print(statistics.median(steps(prof, 50_000) for _ in range(9)))
"""


def step() -> dict[str, Any]:
    """Measure one step of ``for x in prof.train(...)`` without phases; the median of five processes."""
    found = []
    for _ in range(5):
        done = subprocess.run([sys.executable, "-c", STEP], capture_output=True, text=True, check=True, env={**os.environ})
        found.append(float(done.stdout))
    return {"ns": round(statistics.median(found))}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a hundredth of everything")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--lists", action="store_true", help="measure the list of runs alone; the rest of FILE stays")
    given = parser.parse_args()
    less = 100 if given.quick else 1
    if given.lists:
        with tempfile.TemporaryDirectory() as home:
            os.environ["EPOCHMETER_HOME"] = home
            day(STEPS // 100, HOURS / 100)
            told = listing(Path(home), RUNS // less)
        print(json.dumps(told, indent=2))
        if given.json:
            known = json.loads(given.json.read_text(encoding="utf-8"))
            given.json.write_text(json.dumps({**known, "list": told}, indent=2) + "\n", encoding="utf-8")
        return
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as home:
        os.environ["EPOCHMETER_HOME"] = home
        result["day"] = day(STEPS // less, HOURS / less)
        for form in ("text", "json"):
            seconds, megabytes = command(home, "report", "--format", form)
            result["day"].update({f"report_{form}_s": round(seconds, 2), f"report_{form}_mb": megabytes})
        result["list"] = listing(Path(home), RUNS // less)
        shutil.rmtree(Path(home) / "runs")
        result["step"] = step()
    with tempfile.TemporaryDirectory() as home:
        os.environ["EPOCHMETER_HOME"] = home
        done = subprocess.run(
            [sys.executable, "-c", PARTS, str(less)],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join((str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")))},
        )
        result.update(json.loads(done.stdout))
    print(json.dumps(result, indent=2))
    if given.json:
        given.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


PARTS = """
import json, sys
import bench_long_runs as bench
less = int(sys.argv[1])
found = {"loading": bench.loading(40_000 // less), "ranks": bench.gathering(bench.RANKS // less, bench.EPOCHS // less)}
print(json.dumps(found))
"""  # in a process of their own, whose clock is the real one


if __name__ == "__main__":
    main()
