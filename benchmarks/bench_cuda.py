"""What the profiler does to a step on a real GPU, and how true its device times are. Needs CUDA; says so where there is none.

    python benchmarks/bench_cuda.py [--json benchmarks/results/cuda.json]

- **A step** with and without the profiler, three nets: a small launch-bound one, ResNet-50, a transformer block.
  Rounds take turns; the difference is told beside the spread of the rounds without. Losses are compared to the last bit.
- **Synchronisations**, counted by torch's own profiler, with and without: the difference is to be 0.
- **Device time** of a phase against the sum of its kernels' times, by torch's own profiler.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROUNDS, STEPS, WARM_UP = 9, 60, 15
GOALS = {"added_synchronisations": 0, "device_time": 0.02}
SYNCHRONISATIONS = ("cudaDeviceSynchronize", "cudaStreamSynchronize", "cudaEventSynchronize")


def small(torch: Any) -> tuple[Any, Any]:
    layers = [layer for _ in range(6) for layer in (torch.nn.Linear(64, 64), torch.nn.ReLU())]
    return torch.nn.Sequential(*layers, torch.nn.Linear(64, 10)), torch.randn(64, 64)


def resnet(torch: Any) -> tuple[Any, Any]:
    from profiler.bench.nets import resnet50

    return resnet50(10), torch.randn(64, 3, 224, 224)


def transformer(torch: Any) -> tuple[Any, Any]:
    """Two blocks of GPT-2's shape (768 wide, 12 heads)."""
    layer = torch.nn.TransformerEncoderLayer(768, 12, 3072, batch_first=True, norm_first=True)
    return torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), torch.randn(16, 512, 768)


NETS: dict[str, Callable[[Any], tuple[Any, Any]]] = {"small": small, "resnet": resnet, "transformer": transformer}


class Loop:
    """A training loop on one batch, with the profiler around it or without."""

    def __init__(self, torch: Any, make: Callable[[Any], tuple[Any, Any]]) -> None:
        torch.manual_seed(3)
        self.torch = torch
        model, batch = make(torch)
        self.model, self.batch = model.cuda(), batch.cuda()
        self.optimizer = torch.optim.SGD(self.model.parameters(), 1e-3)

    def run(self, steps: int, prof: Any = None) -> list[Any]:
        losses = []
        for _ in range(steps) if prof is None else prof.train(range(steps)):
            if prof is None:
                loss = self.model(self.batch).square().mean()
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
            else:
                with prof.phase("forward"):
                    loss = self.model(self.batch).square().mean()
                with prof.phase("backward"):
                    self.optimizer.zero_grad()
                    loss.backward()
                with prof.phase("optimizer"):
                    self.optimizer.step()
            losses.append(loss.detach())
        self.torch.cuda.synchronize()
        return losses


def profiled(loop: Loop, steps: int) -> tuple[list[Any], Any]:
    from profiler import Profiler

    with Profiler("cuda", exporter="none", settings={"local": False}) as prof:
        losses = loop.run(steps, prof)
    return losses, prof


def step_times(torch: Any, make: Any) -> dict[str, Any]:
    bare, ours = Loop(torch, make), Loop(torch, make)
    same = all(bool(a == b) for a, b in zip(bare.run(WARM_UP), profiled(ours, WARM_UP)[0], strict=True))
    rounds: dict[str, list[float]] = {"bare": [], "profiled": []}
    for _ in range(ROUNDS):
        began = time.perf_counter()
        bare.run(STEPS)
        rounds["bare"].append((time.perf_counter() - began) / STEPS)
        from profiler import Profiler

        with Profiler("cuda", exporter="none", settings={"local": False}) as prof:
            prof.start()
            began = time.perf_counter()
            ours.run(STEPS, prof)
            rounds["profiled"].append((time.perf_counter() - began) / STEPS)
    medians = {way: statistics.median(times) for way, times in rounds.items()}
    spread = statistics.quantiles(rounds["bare"], n=4)
    return {
        "bare_ms": medians["bare"] * 1e3,
        "ratio": medians["profiled"] / medians["bare"],
        "bare_spread": (spread[2] - spread[0]) / medians["bare"],
        "losses_identical": same,
    }


def traced(torch: Any, work: Callable[[], Any]) -> Any:
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as trace:
        work()
    return trace


def synchronisations(torch: Any, make: Any) -> int:
    """Those of 20 profiled steps, less those of 20 bare ones."""
    loop = Loop(torch, make)
    loop.run(WARM_UP)
    profiled(loop, WARM_UP)
    counts = []
    for work in (lambda: loop.run(20), lambda: profiled(loop, 20)):
        events = traced(torch, work).events()
        counts.append(sum(event.name in SYNCHRONISATIONS for event in events))
    return counts[1] - counts[0]


def device_time(torch: Any, make: Any) -> float:
    """A forward phase's device time, as a ratio to its kernels' times."""
    from profiler import Profiler

    loop = Loop(torch, make)
    loop.run(WARM_UP)
    found: dict[str, float] = {}

    def work() -> None:
        with Profiler("cuda", exporter="none", settings={"local": False}) as prof:
            for _ in prof.train(range(20)):
                with prof.phase("forward"), torch.profiler.record_function("the forward"):
                    loop.model(loop.batch)
            torch.cuda.synchronize()
        phase = prof.summary.stages["train"]["phases"]["forward"]["device"]
        found["ours"] = phase["total_s"] / phase["count"]

    events = [event for event in traced(torch, work).key_averages() if event.key == "the forward"]
    kernels = sum(event.device_time_total for event in events) / sum(event.count for event in events)
    return found["ours"] / (kernels / 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device here: this benchmark needs an NVIDIA GPU and a CUDA build of torch")
    card = torch.cuda.get_device_name(0)
    where = f"{card}, Python {platform.python_version()}, torch {torch.__version__}, {platform.machine()} {sys.platform}"
    result: dict[str, Any] = {"where": where, "goals": GOALS, "nets": {}}
    for name, make in NETS.items():
        told = step_times(torch, make)
        told["added_synchronisations"] = synchronisations(torch, make)
        told["device_time_ratio"] = device_time(torch, make)
        result["nets"][name] = told
        print(name, json.dumps(told))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
