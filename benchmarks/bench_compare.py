"""How often ``epochmeter compare`` finds a difference that is there, and one that is not.

Each run is a process of its own that trains a net on scikit-learn's digits for some seconds. Equal runs follow each other, and
each is compared with the one before. Then runs whose forward pass works 5 % more are each compared with an equal one. Told are
the alarms of equal pairs (any phase or step said to be slower or faster), the planted differences that were found, and the
spread between restarts, which the intervals contain. The benchmark writes ``results/compare.json``. It takes a quarter of an
hour, alone on a machine: ``python benchmarks/bench_compare.py [PAIRS PLANTED]``.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median, pstdev
from typing import Any

RESULT = Path(__file__).parent / "results" / "compare.json"
EPOCHS, STEPS = 12, 15
WORK, PLANTED = 40, 42  # products of matrices in a forward pass: 5 % more
LIMIT = 0.05


def train(products: int) -> None:
    """Train, measured."""
    import torch
    from sklearn.datasets import load_digits

    from profiler import Profiler

    torch.set_num_threads(1)
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    labels = torch.tensor(digits.target)
    net = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10))
    optimizer = torch.optim.Adam(net.parameters())
    square = torch.rand(192, 192)
    with Profiler("compared") as prof:
        for _ in prof.epochs(EPOCHS):
            for start in prof.train(range(0, STEPS * 64, 64)):
                x, y = images[start : start + 64], labels[start : start + 64]
                with prof.phase("forward"):
                    for _ in range(products):
                        square @ square
                    loss = torch.nn.functional.cross_entropy(net(x), y)
                with prof.phase("backward"):
                    for _ in range(WORK // 2):
                        square @ square
                    loss.backward()
                with prof.phase("optimizer"):
                    optimizer.step()
                    optimizer.zero_grad()


def recorded(products: int) -> Any:
    """Return a run of a process of its own."""
    from profiler.storage.run_log import run_paths
    from profiler.storage.run_reader import load

    with tempfile.TemporaryDirectory() as home:
        command = [sys.executable, __file__, "--train", str(products)]
        subprocess.run(command, env={**os.environ, "EPOCHMETER_HOME": home}, check=True)
        (path,) = run_paths(Path(home) / "runs")
        return load(path)


def main(pairs: int, planted: int) -> None:
    """Compare equal and planted pairs."""
    from profiler.report.blocks import WHOLE
    from profiler.report.compare import compared

    runs = [recorded(WORK) for _ in range(pairs + 1)]
    equal = [compared(before, after) for before, after in itertools.pairwise(runs)]
    alarms = [[row.to_dict() for row in made.changes if row.verdict in ("slower", "faster")] for made in equal]
    changed = [compared(before, recorded(PLANTED)) for before in runs[:planted]]
    forwards = [next(row for row in made.changes if row.phase == "forward") for made in changed]
    spread: dict[str, float] = {}
    for name in [row.phase for row in equal[0].changes]:
        logs = [
            math.log1p(row.change) for made in equal for row in made.changes if row.phase == name and row.change is not None
        ]
        spread[name or "step"] = pstdev(logs) / math.sqrt(2)
    result = {
        "equal_pairs": pairs,
        "pairs_with_an_alarm": sum(map(bool, alarms)),
        "alarms": [found for found in alarms if found],
        "planted_pairs": planted,
        "planted": LIMIT,
        "found": sum(row.verdict == "slower" for row in forwards),
        "told_median": median(row.change for row in forwards),  # type: ignore[type-var]
        "step_told_slower": sum(row.verdict == "slower" for made in changed for row in made.changes if row.phase == WHOLE),
        "spread_of_a_restart": spread,
        "half_interval_median": {
            row.phase or "step": median(
                (other.high - other.low) / 2
                for made in equal
                for other in made.changes
                if other.phase == row.phase and other.high is not None and other.low is not None
            )
            for row in equal[0].changes
        },
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "alarms"}, indent=2))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--train"]:
        train(int(sys.argv[2]))
    else:
        main(*(int(word) for word in sys.argv[1:3] or ("100", "20")))
