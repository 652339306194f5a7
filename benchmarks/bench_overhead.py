"""What the profiler costs the loop: nanoseconds a phase and a step, beside two bare clock readings in the same process.

    python benchmarks/bench_overhead.py [--json benchmarks/results/overhead.json]
    EPOCHMETER_PURE=1 python benchmarks/bench_overhead.py [--json benchmarks/results/overhead_pure.json]

Machines are noisy, so each row is measured in many short rounds that take turns, and the ratios matter, not the
nanoseconds. A phase's cost is told twice. In Python the two differ: with room in its buffer, as in a loop that runs fewer
than 2,048 steps between epochs, and with the folding of full buffers into histograms included.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter_ns

from profiler import Profiler
from profiler.measure import hot_path
from profiler.measure.spans import BUFFER_SIZE

ROUNDS = 200
SHORT = 1_500  # less than a buffer
LONG = 5 * BUFFER_SIZE
STARTS = 5
GOALS = {"compiled": {"phase": 2.0, "step": 5.0}, "in Python": {"phase": 4.0, "step": 20.0}}  # x floor


def floor(n: int) -> None:
    """Two bare clock readings."""
    for _ in range(n):
        perf_counter_ns()
        perf_counter_ns()


def bare_loop(n: int) -> None:
    for _ in range(n):
        pass


def phases(prof: Profiler) -> Callable[[int], None]:
    def run(n: int) -> None:
        for _ in range(n):
            with prof.phase("forward"):
                pass

    return run


def steps(prof: Profiler, batch: object) -> Callable[[int], None]:
    def run(n: int) -> None:
        for _ in prof.train([batch] * n):
            pass

    return run


START = """
import time
{torch}
from profiler import Profiler
prof = Profiler("start", exporter="none")
began = time.perf_counter()
prof.start()
print(time.perf_counter() - began)
"""


def start_seconds(with_torch: bool) -> float:
    """How long the first ``start()`` of a process takes: the imports that must not disturb the loop later."""
    with tempfile.TemporaryDirectory() as home:
        script = START.format(torch="import torch" if with_torch else "")
        run = [sys.executable, "-c", script]
        environment = {**os.environ, "EPOCHMETER_HOME": home}
        found = [float(subprocess.run(run, capture_output=True, check=True, env=environment).stdout) for _ in range(STARTS)]
    return statistics.median(found)


def timed(function: Callable[[int], None], n: int) -> float:
    began = perf_counter_ns()
    function(n)
    return (perf_counter_ns() - began) / n


def measure(prof: Profiler, batch: object) -> dict[str, float]:
    """Median nanoseconds of each row over rounds that take turns."""
    rows: dict[str, tuple[Callable[[int], None], int]] = {
        "two bare perf_counter_ns()": (floor, SHORT),
        "with prof.phase(name)": (phases(prof), SHORT),
        "with prof.phase(name), folding included": (phases(prof), LONG),
        "for x in loader (bare)": (bare_loop, SHORT),
        "for x in prof.train(loader)": (steps(prof, batch), SHORT),
    }
    found: dict[str, list[float]] = {name: [] for name in rows}
    iterator = iter(prof.train(range(2)))  # phases are timed inside a pass, past its first step
    next(iterator)
    next(iterator)
    for _ in range(ROUNDS):
        for name, (function, n) in rows.items():
            if n == SHORT and "phase" in name:
                prof.phase("forward").fold()
            found[name].append(timed(function, n))
    return {name: statistics.median(values) for name, values in found.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help="also write the figures to this file")
    parser.add_argument("--no-torch", action="store_true", help="a batch without tensors, numpy not loaded")
    arguments = parser.parse_args()
    batch: object = (0, 1)
    if not arguments.no_torch:
        import torch

        batch = (torch.zeros(64, 1, 8, 8), torch.zeros(64))
    prof = Profiler("overhead", settings={"local": False}, exporter="none", interval=3600)
    with prof:
        rows = measure(prof, batch)
    base = rows["two bare perf_counter_ns()"]
    where = (
        f"Python {platform.python_version()}, {platform.machine()} {sys.platform}, torch {'not ' * arguments.no_torch}loaded"
    )
    print(f"{where}; medians of {ROUNDS} rounds")
    for name, ns in rows.items():
        print(f"{name:42} {ns:8.0f} ns  {ns / base:6.2f} x floor")
    ratio = rows["with prof.phase(name)"] / base
    step = rows["for x in prof.train(loader)"] / base
    path = "in Python" if hot_path.COMPILED is None else "compiled"
    goals = GOALS[path]
    print(f"the hot path is {path}: a phase costs {ratio:.2f} times the floor (goal: at most {goals['phase']:g}),")
    print(f"a step of prof.train {step:.2f} times (goal: at most {goals['step']:g})")
    start = start_seconds(with_torch=not arguments.no_torch)
    print(f"the first start() of a process takes {start * 1e3:.0f} ms (median of {STARTS})")
    if arguments.json:
        data = {
            "where": where,
            "rounds": ROUNDS,
            "ns": rows,
            "hot_path": path,
            "phase_over_floor": ratio,
            "step_over_floor": step,
            "start_s": start,
        }
        Path(arguments.json).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    return 0 if ratio <= goals["phase"] and step <= goals["step"] else 1


if __name__ == "__main__":
    sys.exit(main())
