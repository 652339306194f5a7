"""What following a loop costs, beside its peers: the same small net on the same data, each way in a process of its own.

    python benchmarks/bench_attach.py [--rounds 7] [--json benchmarks/results/attach.json]

The loop: a net of two layers on scikit-learn's digits, batches of 64, one thread, 29 steps an epoch. Ways:

- **bare**: nothing but the loop.
- **attach**: ``prof.attach(model, optimizer)`` and the same loop.
- **attach + train**: with ``prof.epochs()`` and ``prof.train(loader)`` as well, so that each epoch of about 20 ms is
  written to the disk before the next begins.
- **run**: the bare script under ``epochmeter run``.
- **SimpleProfiler** (Lightning's): its ``profile(...)`` around the four phases of a step.
- **TraceML**: ``traceml run --mode summary`` with its ``init`` and ``trace_step``.
- **torch.profiler**: CPU activities, over the whole loop.

Told for each: the time of a step (that of the fastest tenth of the epochs: what other programs take is in the rest), of the
whole loop, both as ratios to the bare loop of the same round, medians over rounds that take turns; and by how much the
whole process takes longer. The losses have to be those of the bare loop, to the last digit.
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
import time
from pathlib import Path
from typing import Any

EPOCHS = 100
GOALS = {"attach": 1.015, "run": 1.04}
SCRIPT = """
import json, sys, time
import torch
from torch import nn
from sklearn.datasets import load_digits
{imports}
torch.manual_seed(0)
torch.set_num_threads(1)
digits = load_digits()
data = torch.utils.data.TensorDataset(torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target))
loader = torch.utils.data.DataLoader(data, batch_size=64, shuffle=True)
model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
optimizer = torch.optim.Adam(model.parameters())

def epoch(batches):
    for x, y in batches:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
    return loss

times, began = [], time.perf_counter()
{loop}
loop = time.perf_counter() - began
{after}
print("RESULT" + json.dumps({{"step": sorted(times)[{tenth}] / 29, "loop": loop, "loss": loss.item()}}))
"""
TIMED = """
    start = time.perf_counter()
    loss = {epoch}
    times.append(time.perf_counter() - start)
"""
PLAIN = f"for _ in range({EPOCHS}):" + TIMED.format(epoch="epoch(loader)")
PROFILER = "from profiler import Profiler\nprof = Profiler('bench', exporter='none')\nprof.start()"
SIMPLE = """
def epoch(batches):
    batches = iter(batches)
    while True:
        try:
            with simple.profile("data_wait"):
                x, y = next(batches)
        except StopIteration:
            return loss
        optimizer.zero_grad()
        with simple.profile("forward"):
            loss = nn.functional.cross_entropy(model(x), y)
        with simple.profile("backward"):
            loss.backward()
        with simple.profile("optimizer"):
            optimizer.step()
"""
TRACEML = """
def epoch(batches):
    for x, y in batches:
        with traceml.trace_step(model):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
    return loss
"""
LIGHTNING = "from lightning.pytorch.profilers import SimpleProfiler\nsimple = SimpleProfiler()"
TORCH = "with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):\n"
Way = dict[str, str]
WAYS: dict[str, Way] = {
    "bare": {"loop": PLAIN},
    "attach": {"imports": PROFILER, "loop": "prof.attach(model, optimizer)\n" + PLAIN, "after": "prof.stop()"},
    "attach + train": {
        "imports": PROFILER,
        "loop": f"prof.attach(model, optimizer)\nfor _ in prof.epochs({EPOCHS}):"
        + TIMED.format(epoch="epoch(prof.train(loader))"),
        "after": "prof.stop()",
    },
    "run": {"loop": PLAIN, "command": "run"},
    "SimpleProfiler": {"imports": LIGHTNING, "loop": SIMPLE + PLAIN},
    "TraceML": {"imports": "import traceml_ai as traceml\ntraceml.init()", "loop": TRACEML + PLAIN, "command": "traceml"},
    "torch.profiler": {"loop": TORCH + "\n".join(f"    {line}" for line in PLAIN.splitlines())},
}


def command(way: Way, script: Path) -> list[str]:
    if way.get("command") == "run":
        return [sys.executable, "-m", "profiler.cli", "run", "-q", str(script)]
    if way.get("command") == "traceml":
        return [str(Path(sys.executable).with_name("traceml")), "run", "--mode", "summary", str(script)]
    return [sys.executable, str(script)]


def measure(name: str, folder: Path) -> dict[str, float]:
    """One process: seconds of a step, of the loop and of the whole process, and the last loss."""
    way = WAYS[name]
    script = folder / "train.py"
    parts = {"imports": way.get("imports", ""), "loop": way["loop"], "after": way.get("after", "")}
    script.write_text(SCRIPT.format(tenth=EPOCHS // 10, **parts))
    environment = {**os.environ, "EPOCHMETER_HOME": str(folder / "home")}
    began = time.perf_counter()
    done = subprocess.run(command(way, script), capture_output=True, text=True, env=environment, cwd=folder)
    wall = time.perf_counter() - began
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    if done.returncode or not lines:
        raise SystemExit(f"{name} failed:\n{done.stdout}{done.stderr}")
    return {**json.loads(lines[0].removeprefix("RESULT")), "wall": wall}


def compared(found: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Medians over the rounds, against the bare loop of the same round."""
    bare = found["bare"]

    def over(name: str, key: str, against: Any) -> float:
        return statistics.median(against(mine[key], base[key]) for mine, base in zip(found[name], bare, strict=True))

    return {
        name: {
            "step_us": statistics.median(entry["step"] for entry in found[name]) * 1e6,
            "step_ratio": over(name, "step", lambda mine, base: mine / base),
            "loop_ratio": over(name, "loop", lambda mine, base: mine / base),
            "wall_added_s": over(name, "wall", lambda mine, base: mine - base),
        }
        for name in found
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help="also write the figures to this file")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(arguments.rounds):
            for name in WAYS:
                found[name].append(measure(name, Path(folder)))
    rows = compared(found)
    same = {name: len({entry["loss"] for entry in [*entries, *found["bare"]]}) == 1 for name, entries in found.items()}
    where = f"Python {platform.python_version()}, {platform.machine()} {sys.platform}"
    print(f"{where}; medians of {arguments.rounds} rounds of {EPOCHS} epochs of 29 steps")
    print(f"{'':16} {'step, us':>9} {'x bare':>8} {'loop, x bare':>13} {'process, +s':>12}  same losses")
    for name, row in rows.items():
        figures = f"{row['step_us']:9.0f} {row['step_ratio']:8.3f} {row['loop_ratio']:13.3f} {row['wall_added_s']:12.2f}"
        print(f"{name:16} {figures}  {'yes' if same[name] else 'NO'}")
    met = rows["attach"]["step_ratio"] <= GOALS["attach"] and rows["run"]["loop_ratio"] <= GOALS["run"]
    print(f"goals: a step with attach at most {GOALS['attach']} times bare, the whole loop under run at most {GOALS['run']}")
    if arguments.json:
        content = {"where": where, "rounds": arguments.rounds, "epochs": EPOCHS, "ways": rows, "same_losses": same}
        Path(arguments.json).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return 0 if met and same["attach"] and same["run"] else 1


if __name__ == "__main__":
    sys.exit(main())
