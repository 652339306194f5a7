"""A run with secrets in it, and consent that answers from a list."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

from exporters import payload
from exporters.measurements import Snapshot
from exporters.rebuild import rebuild
from exporters.rules import Declared
from profiler import Phase, Profiler
from profiler.records.run import Run
from profiler.sending.snapshot import run_snapshot, usage_snapshot
from profiler.storage.usage_ledger import Counts

SECRETS = ("secret-run", "secret-phase", "secret-host", "NVIDIA Secret 9000", "GPU-1234")


def a_run() -> Run:
    with Profiler("secret-run", settings={"local": False}, interval=0.02) as prof:
        for _ in prof.epochs(2):
            for _ in prof.train(range(10), samples=4):
                with prof.phase(Phase.FORWARD), prof.phase("secret-phase"):
                    pass
                with prof.phase("secret-phase"), prof.phase(Phase.LOSS):
                    pass
        time.sleep(0.1)  # a share of CPU time is of 50 ms at least
    run = copy.deepcopy(prof.session.run)
    run.hardware.gpus = {0: {"name": "NVIDIA Secret 9000", "memory_class_gb": 80}}
    run.hardware.runtime["host"] = "secret-host"
    return run


def data(run: Run) -> Snapshot:
    return run_snapshot(run, run.started_unix_ns + run.duration_ns)


def answers(*given: bool) -> Callable[[], bool]:
    remaining = list(given)
    return lambda: remaining.pop(0)


def a_body() -> bytes:
    """Return a run's payload for a collector."""
    (body,) = payload.bodies(rebuild(data(a_run()), "otlp"), True)
    return body


def a_usage_body(declared: Declared) -> bytes:
    """Return a payload with one use of a package's first feature."""
    counts = Counts({declared.features[0]: 1})
    facts = {"epochmeter.app.name": declared.app, "epochmeter.app.version": "1.0"}
    (body,) = payload.bodies(
        rebuild(usage_snapshot("a" * 12, facts, counts, time.time_ns() - 10**9, time.time_ns()), "otlp", declared), True
    )
    return body
