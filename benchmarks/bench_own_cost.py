"""Compare the overhead that a run tells of itself with an A/B: the same loop without and with the profiler, in turns.

    python benchmarks/bench_own_cost.py [--rounds 40] [--json benchmarks/results/own_cost.json]

The loop: a net of two layers on scikit-learn's digits, batches of 64, one thread. Epochs without and with the profiler
take turns in one process, and of each the lower tenth of the step times is compared: what other programs take
from a step is in the rest. Ways: three phases and `prof.train`; `attach`; the loader followed, too, as by
`epochmeter run`; and a pair of torch's forward hooks that do nothing.

Told for each: the time that a step takes longer, and the cost of steps and phases by the run's own `overhead`.
Goal: the two within a factor of 1.5.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

FACTOR = 1.5
COPIES = 6  # of the data: an epoch of 174 steps
FIRST = 40  # steps of an epoch that are left out: a loader starts in them
SHARE = 0.1


class Bench:
    """The loop, and the ways to measure it."""

    def __init__(self) -> None:
        import torch
        from sklearn.datasets import load_digits
        from torch import nn

        from profiler import Profiler

        torch.manual_seed(0)
        torch.set_num_threads(1)
        digits = load_digits()
        images = torch.tensor(digits.data, dtype=torch.float32) / 16
        data = torch.utils.data.TensorDataset(images.repeat(COPIES, 1), torch.tensor(digits.target).repeat(COPIES))
        self.loss = nn.functional.cross_entropy
        self.loader = torch.utils.data.DataLoader(data, batch_size=64, shuffle=True)
        self.model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
        self.optimizer = torch.optim.Adam(self.model.parameters())
        self.prof = Profiler("own cost", exporter="none", settings={"local": False})
        self.prof.start()

    def steps(self, batches: Any) -> Iterator[None]:
        for x, y in batches:
            self.optimizer.zero_grad()
            loss = self.loss(self.model(x), y)
            loss.backward()
            self.optimizer.step()
            yield

    def steps_with_phases(self, batches: Any) -> Iterator[None]:
        phase = self.prof.phase
        for x, y in batches:
            self.optimizer.zero_grad()
            with phase("forward"):
                loss = self.loss(self.model(x), y)
            with phase("backward"):
                loss.backward()
            with phase("optimizer"):
                self.optimizer.step()
            yield

    def bare(self) -> Iterator[Callable[[], Iterator[None]]]:
        yield lambda: self.steps(self.loader)

    def named(self) -> Iterator[Callable[[], Iterator[None]]]:
        yield lambda: self.steps_with_phases(self.prof.train(self.loader))

    def attach(self) -> Iterator[Callable[[], Iterator[None]]]:
        with self.prof.attach(self.model, self.optimizer):
            yield lambda: self.steps(self.loader)

    def follow(self) -> Iterator[Callable[[], Iterator[None]]]:
        with self.prof.attach(self.model, self.optimizer, self.loader):
            yield lambda: self.steps(self.loader)

    def hooks(self) -> Iterator[Callable[[], Iterator[None]]]:
        before = self.model.register_forward_pre_hook(lambda module, args: None)
        after = self.model.register_forward_hook(lambda module, args, result: None, always_call=True)
        yield lambda: self.steps(self.loader)
        before.remove()
        after.remove()


def times_of(block: Iterator[Callable[[], Iterator[None]]]) -> list[int]:
    """Step times (ns) of one epoch."""
    found: list[int] = []
    for epoch_of in block:
        times, at = [], time.perf_counter_ns()
        for _ in epoch_of():
            times.append(time.perf_counter_ns() - at)
            at = time.perf_counter_ns()
        found += times[FIRST:]
    return found


def low(times: list[int]) -> float:
    return sorted(times)[int(len(times) * SHARE)] / 1e3


def measure(way: str, rounds: int) -> dict[str, float]:
    """Microseconds a step, by A/B and as told."""
    from profiler.session.overhead import hot_path_ns

    bench = Bench()
    bare, measured = [], []
    for _ in range(rounds):
        bare += times_of(bench.bare())
        measured += times_of(getattr(bench, way)())
    is_hooked = bench.prof.session.observation.is_in_place
    bench.prof.stop()
    whole = bench.prof.session.record_so_far()[1]
    steps = sum(stage.steps for stage in whole.stages.values())
    found = {"step_us": low(bare), "added_us": low(measured) - low(bare)}
    if steps:
        found["told_us"] = hot_path_ns(whole, are_modules_hooked=is_hooked) / steps / 1e3
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help="also write the figures to this file")
    parser.add_argument("--rounds", type=int, default=40)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ["EPOCHMETER_HOME"] = home
        rows = {way: measure(way, arguments.rounds) for way in ("named", "attach", "follow", "hooks")}
    where = f"Python {platform.python_version()}, {platform.machine()} {sys.platform}"
    print(f"{where}; {arguments.rounds} rounds")
    good = True
    for way, row in rows.items():
        told = f"{row['told_us']:7.1f} us by the run's own account" if "told_us" in row else ""
        print(f"{way:8} step {row['step_us']:6.0f} us, {row['added_us']:+6.1f} us with the profiler {told}")
        if "told_us" in row:
            good &= 1 / FACTOR <= row["told_us"] / row["added_us"] <= FACTOR
    print(f"goal: the two within a factor of {FACTOR}: {'met' if good else 'MISSED'}")
    if arguments.json:
        content = {"where": where, "rounds": arguments.rounds, "ways": rows}
        Path(arguments.json).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
