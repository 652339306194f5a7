"""What the profiler does to a step on a real GPU, and how true its device times are. Needs CUDA; says so where there is none.

    python benchmarks/bench_cuda.py [--json benchmarks/results/cuda.json]

- **A step** with and without the profiler, three nets: a small launch-bound one, ResNet-50, a transformer block. Rounds take
  turns, and turns in who is first; the ratio is told with its 95 % interval, beside the spread of the rounds without.
- **Losses**, to the last bit, with torch's deterministic algorithms; a control without the profiler stands beside.
- **Synchronisations**, counted by torch's own profiler, with and without: the difference is to be 0.
- **Device time** of a phase against its kernels' times by torch's own profiler: from the first one's begin to the last one's
  end, and their sum. The GPU sleeps before each phase, so that its kernels wait in line, and no gap is the host's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROUNDS, STEPS, WARM_UP = 9, 60, 15
GOALS = {"added_synchronisations": 0, "device_time": 0.02}
SYNCHRONISATIONS = tuple(
    call for of in ("Device", "Stream", "Event", "Ctx") for call in (f"cuda{of}Synchronize", f"cu{of}Synchronize")
)
SLEEP = 20_000_000  # cycles: about 10 ms
SLEEPER = "spin_kernel"  # what torch.cuda._sleep runs


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


def same_losses(torch: Any, make: Any) -> dict[str, bool]:
    """Whether a profiled loop's losses are those of a bare one, and a second bare one's as well."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:  # making a loop seeds the random numbers, so each runs before the next is made
        bare = Loop(torch, make).run(WARM_UP)
        ours = profiled(Loop(torch, make), WARM_UP)[0]
        control = Loop(torch, make).run(WARM_UP)
    finally:
        torch.use_deterministic_algorithms(False)
    same = [all(bool(a == b) for a, b in zip(bare, other, strict=True)) for other in (ours, control)]
    return dict(zip(("losses_identical", "losses_of_control_identical"), same, strict=True))


def step_times(torch: Any, make: Any) -> dict[str, Any]:
    from profiler import Profiler
    from profiler.bench.estimate import interval

    loops = {"bare": Loop(torch, make), "profiled": Loop(torch, make)}
    rounds: dict[str, list[float]] = {"bare": [], "profiled": []}

    def bare() -> float:
        began = time.perf_counter()
        loops["bare"].run(STEPS)
        return (time.perf_counter() - began) / STEPS

    def ours() -> float:
        with Profiler("cuda", exporter="none", settings={"local": False}) as prof:
            prof.start()
            began = time.perf_counter()
            loops["profiled"].run(STEPS, prof)
            return (time.perf_counter() - began) / STEPS

    ways = {"bare": bare, "profiled": ours}
    for turn in range(-1, ROUNDS):  # the first is to warm up
        for way in ways if turn % 2 else reversed(ways):
            took = ways[way]()
            if turn >= 0:
                rounds[way].append(took)
    ratios = [ours / bare for ours, bare in zip(rounds["profiled"], rounds["bare"], strict=True)]
    low, high = interval(ratios)
    spread = statistics.quantiles(rounds["bare"], n=4)
    return {
        "bare_ms": statistics.median(rounds["bare"]) * 1e3,
        "ratio": statistics.median(ratios),
        "low": low,
        "high": high,
        "bare_spread": (spread[2] - spread[0]) / statistics.median(rounds["bare"]),
    }


def traced(torch: Any, work: Callable[[], Any]) -> Any:
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as trace:
        work()
    return trace


def synchronisations(torch: Any, make: Any) -> int:
    """Those of 20 profiled steps, less those of 20 bare ones; of three turns, the one that differs most."""
    loop = Loop(torch, make)
    ways = (lambda: loop.run(20), lambda: profiled(loop, 20))
    for work in ways:
        traced(torch, work)  # the first trace has synchronisations of its own
    differences = []
    for _ in range(3):
        bare, ours = (sum(event.name in SYNCHRONISATIONS for event in traced(torch, work).events()) for work in ways)
        differences.append(ours - bare)
    return max(differences, key=abs)


def device_time(torch: Any, make: Any) -> dict[str, float]:
    """Return a forward phase's device time, as ratios to its kernels' span and to the sum of their times."""
    from profiler import Profiler

    loop = Loop(torch, make)
    loop.run(WARM_UP)
    steps = 20
    found: dict[str, float] = {}

    def work() -> None:
        with Profiler("cuda", exporter="none", settings={"local": False}) as prof:
            for _ in prof.train(range(steps)):
                torch.cuda._sleep(SLEEP)
                with prof.phase("forward"):
                    loop.model(loop.batch)
                torch.cuda.synchronize()
        phase = prof.summary.stages["train"]["phases"]["forward"]["device"]
        found["ours"] = phase["total_s"] / phase["count"] * 1e6

    spans, sums = kernel_times(torch, traced(torch, work).events())
    if len(spans) != steps:
        raise SystemExit(f"torch's profiler shows {len(spans)} of {steps} phases")
    # Without the first: the run tells it apart.
    return {
        "device_time_to_kernels_span": found["ours"] / statistics.mean(spans[1:]),
        "device_time_to_kernels_sum": found["ours"] / statistics.mean(sums[1:]),
    }


def kernel_times(torch: Any, events: Any) -> tuple[list[float], list[float]]:
    """Of the kernels after each sleep, in us: from the first one's begin to the last one's end, and their sum."""
    on_device = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
    spans, sums = [], []
    kernels: list[Any] = []
    for event in [*sorted(on_device, key=lambda event: event.time_range.start), None]:
        if event is None or SLEEPER in event.name:
            if kernels:
                spans.append(max(kernel.time_range.end for kernel in kernels) - kernels[0].time_range.start)
                sums.append(sum(kernel.time_range.elapsed_us() for kernel in kernels))
            kernels = []
        elif not getattr(event, "is_user_annotation", False):
            kernels.append(event)
    return spans, sums


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it, cuBLAS is not deterministic
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device here: this benchmark needs an NVIDIA GPU and a CUDA build of torch")
    card = torch.cuda.get_device_name(0)
    where = f"{card}, Python {platform.python_version()}, torch {torch.__version__}, {platform.machine()} {sys.platform}"
    result: dict[str, Any] = {"where": where, "goals": GOALS, "nets": {}}
    for name, make in NETS.items():
        told = step_times(torch, make) | same_losses(torch, make) | device_time(torch, make)
        told["added_synchronisations"] = synchronisations(torch, make)
        result["nets"][name] = told
        print(name, json.dumps(told))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
