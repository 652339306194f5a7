"""A run with secrets in it, and consent that answers from a list."""

from __future__ import annotations

import copy
from collections.abc import Callable

from exporters.measurements import Snapshot
from profiler import Phase, Profiler
from profiler.records.run import Run
from profiler.sending.snapshot import run_snapshot

SECRETS = ("secret-run", "secret-phase", "secret-host", "NVIDIA Secret 9000", "GPU-1234")


def a_run() -> Run:
    with Profiler("secret-run", settings={"local": False}, interval=0.02) as prof:
        for _ in prof.epochs(2):
            for _ in prof.train(range(10), samples=4):
                with prof.phase(Phase.FORWARD), prof.phase("secret-phase"):
                    pass
                with prof.phase("secret-phase"), prof.phase(Phase.LOSS):
                    pass
    run = copy.deepcopy(prof.session.run)
    run.hardware.gpus = {0: {"name": "NVIDIA Secret 9000", "memory_class_gb": 80}}
    run.hardware.runtime["host"] = "secret-host"
    return run


def data(run: Run) -> Snapshot:
    return run_snapshot(run, run.started_unix_ns + run.duration_ns)


def answers(*given: bool) -> Callable[[], bool]:
    remaining = list(given)
    return lambda: remaining.pop(0)
