"""Whether `epochmeter bench` tells the same times as torch's own `torch.utils.benchmark`, on the same operations.

    python benchmarks/bench_agreement.py [--json benchmarks/results/agreement.json] [--device cuda]

One process; for each operation both time blocks of as many calls, in turns, which of them is first changing with each
round. The ratio is that of the medians; its interval is from the rounds, as both see the same machine in each.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
from pathlib import Path
from statistics import median

import torch
from torch.utils.benchmark import Timer

from profiler.bench import plan, worker
from profiler.bench.estimate import interval
from profiler.bench.plan import Case, Machine
from profiler.bench.work import Work, set_precision

ROUNDS = 30
BLOCK_S = 0.1
GOAL = 0.02


def cases(machine: Machine, device: str) -> list[Case]:
    dtypes = [dtype for dtype in machine.dtypes[device] if device != "cpu" or dtype == "float32"]
    found = [case for case in plan.limits(machine, device, dtypes, quick=False, ranks=1) if case.device == device]
    nets = plan.models(machine, device, plan.NETS, ["float32"], quick=True, batch=None)
    return [*found, *(case for case in nets if case.stage != "inference")]


def ours_block(work: Work, calls: int) -> float:
    """Torch's makes some calls before each block; what comes right after them is faster here as well."""
    work.clock.block(work.call, max(calls // 100, 2))
    return work.clock.block(work.call, calls) / calls


def agreement(case: Case) -> dict[str, float | str]:
    set_precision(case.dtype)
    work: Work = worker.BUILDERS[case.suite](case)
    timer = Timer("call()", globals={"call": work.call}, num_threads=torch.get_num_threads())
    calls = 1
    while (took := work.clock.block(work.call, calls)) < BLOCK_S:
        calls = math.ceil(calls * min(10.0, 1.2 * BLOCK_S / max(took, 1e-9)))
    ratios, ours, theirs = [], [], []
    for turn in range(ROUNDS):
        ways = {"ours": lambda: ours_block(work, calls), "theirs": lambda: timer.timeit(calls).mean}
        times = {name: ways[name]() for name in (ways if turn % 2 else reversed(ways))}
        ours.append(times["ours"])
        theirs.append(times["theirs"])
        ratios.append(times["ours"] / times["theirs"])
    low, high = interval(ratios)
    return {
        "case": str(case),
        "shape": case.shape,
        "epochmeter_s": median(ours),
        "torch_s": median(theirs),
        "ratio": median(ratios),
        "low": low,
        "high": high,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--device")
    arguments = parser.parse_args()
    machine = worker.machine()
    device = plan.device_of(machine, arguments.device)
    rows = []
    for case in cases(machine, device):
        row = agreement(case)
        rows.append(row)
        inside = abs(float(row["ratio"]) - 1) <= GOAL
        verdict = "agrees" if inside else "not told apart" if row["low"] <= 1 <= row["high"] else "DIFFERS"
        print(f"{row['case']:28} {row['ratio']:.3f} x torch's ({row['low']:.3f} to {row['high']:.3f}) {verdict}", flush=True)
    if arguments.json is not None:
        name = torch.cuda.get_device_name(device) if device.startswith("cuda") else f"{machine.threads} threads"
        where = f"Python {platform.python_version()}, torch {torch.__version__}, {platform.machine()}, {device}, {name}"
        arguments.json.write_text(json.dumps({"where": where, "rounds": ROUNDS, "goal": GOAL, "cases": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
