"""Count the processor's instructions of the hot path with callgrind: they do not depend on the load of the machine.

    python benchmarks/count_instructions.py [--json benchmarks/results/instructions.json]

Each case runs in two processes, few times and many times. The difference is what the repeats took, the interpreter's own
instructions included. `tests/measure/test_instructions.py` fails where a case takes more than 5 % above the figures of
the file. If a change is wanted, write the file anew, and commit it with the change.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

FEW, MANY = 1_000, 31_000  # a start takes some hundred thousand instructions more or fewer
CASE = """
import gc, sys
from profiler.measure.batch_size import batch_size
from profiler.measure.clocks import host_clock
from profiler.measure.follow.phases import ObservedPhases
from profiler.measure.hot_path import phase_begins, phase_ends
from profiler.measure.timer import Timer
from profiler.records.vocabulary import Stage

class Shaped:
    def __init__(self, *shape):
        self.shape = shape

gc.disable()
times, timer = int(sys.argv[1]), Timer("cpu")
batches = [(Shaped(8, 3), Shaped(8))] * (times + 100)
steps = timer.iterate(Stage.TRAIN, batches, batch_size)
for _ in range(50):
    next(steps)
phase = timer.owner.phase
begins = ends = None
with phase("forward"):
    root, span = timer.owner.current.parent, timer.owner.current
if sys.argv[2] == "hooks":
    before, after = [ObservedPhases(timer, gaps=True).fast_path() for _ in range(2)]
    before.add(root, span, None)
    after.add(span, root, None)
    begins = phase_begins(before, timer.owner, print)
    ends = phase_ends(after, timer.owner, print)

def floor():
    for _ in range(times):
        host_clock()
        host_clock()

def a_phase():
    for _ in range(times):
        with phase("forward"):
            pass

def step():
    for _ in range(times):
        next(steps)

def hooks():
    for _ in range(times):
        begins(None, None)
        ends(None, None)

{"floor": floor, "phase": a_phase, "step": step, "hooks": hooks}[sys.argv[2]]()
"""
CASES = {
    "two clock readings": ("floor", "0"),
    "a phase": ("phase", "0"),
    "a step of a named pass": ("step", "0"),
    "a hook before and one after": ("hooks", "0"),
    "a phase, in Python": ("phase", "1"),
    "a step of a named pass, in Python": ("step", "1"),
    "a hook before and one after, in Python": ("hooks", "1"),
}


def where() -> str:
    """Return the versions that the figures depend on."""
    compiler = subprocess.run([shutil.which("gcc") or "gcc", "-dumpfullversion"], capture_output=True, text=True).stdout.strip()
    return f"Python {platform.python_version()}, gcc {compiler}, {platform.machine()} {sys.platform}"


def instructions(case: str, pure: str, times: int, folder: Path) -> int:
    out = folder / "callgrind.out"
    command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", sys.executable, "-c", CASE, str(times), case]
    environment = {**os.environ, "EPOCHMETER_PURE": pure, "PYTHONHASHSEED": "0", "EPOCHMETER_HOME": str(folder)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr)
    return int(re.findall(r"Collected : (\d+)", done.stderr)[-1])


def counted() -> dict[str, float]:
    """Instructions of one repeat of each case."""
    with tempfile.TemporaryDirectory() as folder:
        few_and_many = {
            name: [instructions(case, pure, times, Path(folder)) for times in (FEW, MANY)]
            for name, (case, pure) in CASES.items()
        }
    return {name: round((many - few) / (MANY - FEW), 1) for name, (few, many) in few_and_many.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help="also write the figures to this file, which makes them the limit")
    arguments = parser.parse_args()
    found = counted()
    print(where())
    for name, number in found.items():
        print(f"{name:40} {number:8.0f} instructions  {number / found['two clock readings']:6.2f} x two clock readings")
    if arguments.json:
        content = {"where": where(), "instructions": found}
        Path(arguments.json).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
