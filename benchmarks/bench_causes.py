"""The cost of looking for causes: samples of a loop's lines, and reading the scheduler's times of its thread.

One process, a small net on scikit-learn's digits. Blocks of steps with and without the samples take turns, so that the
machine's mood is in both. Told are the ratio of the mean steps, and the time that the samples held the interpreter's lock,
which ``overhead`` counts. How long an operation takes in small and in large nets is told as well: the limit of "launch-bound"
lies between. The benchmark writes ``results/causes.json``.
"""

from __future__ import annotations

import json
import math
import sys
import threading
import time
from pathlib import Path
from statistics import mean, median, stdev

import torch
from sklearn.datasets import load_digits
from torch import nn

from profiler import Profiler
from profiler.measure.cause_book import CauseBook
from profiler.measure.loop_watch import LoopWatch
from profiler.measure.passes import gradient_nodes
from profiler.measure.timer import Timer
from profiler.records.vocabulary import Stage

BLOCK_S = 0.2
BLOCKS = 300  # of each kind
REPEATS = 100
NETS = {  # layers between the first and the last one, their width, and the batch
    "60 layers of 64, batch 4": (60, 64, 4),
    "1 layer of 256, batch 2": (1, 256, 2),
    "1 layer of 256, batch 64": (1, 256, 64),
    "1 layer of 1400, batch 64": (1, 1400, 64),
}
RESULT = Path(__file__).parent / "results" / "causes.json"


def main() -> None:
    blocks = int(sys.argv[1]) if len(sys.argv) > 1 else BLOCKS
    torch.manual_seed(0)
    torch.set_num_threads(1)
    digits = load_digits()
    x, y = torch.tensor(digits.data[:64], dtype=torch.float32) / 16, torch.tensor(digits.target[:64])
    net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    timer = Timer()
    segment = timer.begin(Stage.TRAIN)

    def train(step_count: list[int]) -> float:
        began = time.perf_counter()
        steps = 0
        while time.perf_counter() - began < BLOCK_S:
            with timer.phase("forward"):
                loss = nn.functional.cross_entropy(net(x), y)
            with timer.phase("backward"):
                optimizer.zero_grad()
                loss.backward()
            with timer.phase("optimizer"):
                optimizer.step()
            steps += 1
        step_count[0] += steps
        return (time.perf_counter() - began) / steps

    watch = LoopWatch(timer, CauseBook())
    watch.start(samples_lines=True)
    count = [0]
    train(count)
    ratios, held, watched = [], 0, 0.0
    for block in range(blocks):
        times = {}
        for samples in (True, False) if block % 2 else (False, True):
            stop, before = threading.Event(), watch.spent_ns
            thread = threading.Thread(target=_sample, args=(watch, stop), daemon=True)
            if samples:
                thread.start()
            times[samples] = train(count)
            stop.set()
            if samples:
                thread.join()
                held, watched = held + watch.spent_ns - before, watched + BLOCK_S
        ratios.append(times[True] / times[False])
    segment.close(partial=False)
    error = 1.96 * stdev(ratios) / math.sqrt(len(ratios))
    found = {
        "blocks": blocks,
        "block_s": BLOCK_S,
        "step_us": BLOCK_S * 2 * blocks / count[0] * 1e6,
        "step_ratio": mean(ratios),
        "step_ratio_interval": [mean(ratios) - error, mean(ratios) + error],
        "held_share": held / 1e9 / watched,
        "samples_per_s": _rate(),
        "operation_us": {name: _operation_us(*shape) for name, shape in NETS.items()},
    }
    RESULT.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


def _sample(watch: LoopWatch, stop: threading.Event) -> None:
    while not watch.rest(stop, 1.0):
        pass


def _operation_us(layers: int, width: int, batch: int) -> float:
    """Return how long (us) forward and loss take for each operation that autograd records; the median of many steps."""
    hidden = [part for _ in range(layers) for part in (nn.Linear(width, width), nn.ReLU())]
    net = nn.Sequential(nn.Linear(64, width), nn.ReLU(), *hidden, nn.Linear(width, 10))
    x, y = torch.randn(batch, 64), torch.randint(0, 10, (batch,))
    times = []
    for _ in range(REPEATS):
        before, began = gradient_nodes(), time.perf_counter()
        loss = nn.functional.cross_entropy(net(x), y)
        took, after = time.perf_counter() - began, gradient_nodes()
        loss.backward()
        if before is None or after is None:
            raise SystemExit("this torch does not count what autograd records")
        times.append(took / (after - before) * 1e6)
    return round(median(times), 1)


def _rate() -> float:
    """Return how many samples a second a real run takes."""
    with Profiler("rate", settings={"local": False}) as prof:
        for _ in prof.train(range(30)):
            time.sleep(0.1)
    lines = prof.session.run.whole().lines
    return sum(lines.values()) / 3.0


if __name__ == "__main__":
    main()
