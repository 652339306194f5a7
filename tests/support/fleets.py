"""Fleets that are simulated, row by row, with faults that were put into them: what the questions are to find."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from profiler.fleet.columns import COLUMNS
from profiler.records.histogram import NS, Histogram

BEGAN = datetime(2026, 11, 2, tzinfo=timezone.utc)  # a Monday
EMPTY: dict[str, Any] = {"text": "", "word": "", "count": 0, "whole": None, "number": 0.0, "unsure": None, "moment": BEGAN}
PHASES = {"data_wait": 0.1, "forward": 0.3, "backward": 0.45, "optimizer": 0.1}  # shares of a step; the rest is in no phase


def row(run: str, epoch: int | None = 0, **values: Any) -> dict[str, Any]:
    """Return a row of training with what is given, and all else empty."""
    made = {one.name: EMPTY.get(one.kind, {} if one.kind in ("words", "numbers") else []) for one in COLUMNS}
    made |= {
        "step_zeros": 0,
        "step_offset": 0,
        "run": run,
        "epoch": epoch,
        "stage": "train",
        "workload": "net",
        "state": "finished",
        "log_rows": 1,
    }
    return made | {"steps": 100, "samples": 6400, "passes": 1, "duration_s": 10.0, "torch": "2.13", "cpu": "Xeon"} | values


def phases(seconds: float) -> dict[str, Any]:
    """Return the phases of that time, and its causes."""
    spent = {name: share * seconds for name, share in PHASES.items()}
    useful = spent["forward"] + spent["backward"] + spent["optimizer"]
    ledger = {"useful": useful, "data_wait": spent["data_wait"], "host": seconds - useful - spent["data_wait"]}
    return {"duration_s": seconds, "phases_s": spent, "ledger_s": ledger}


def histogram(seconds: list[float]) -> dict[str, Any]:
    """Return the columns of a histogram of steps."""
    from profiler.fleet.rows import buckets_of

    made = Histogram()
    made.add([round(one * NS) for one in seconds])
    zeros, offset, counts = buckets_of([made])
    return {"step_zeros": zeros, "step_offset": offset, "step_counts": counts, "steps": len(seconds)}


def versions(seed: int, slower: float = 1.0, *, workloads: int = 30, jobs: int = 3) -> Iterator[dict[str, Any]]:
    """Yield jobs of two versions of a package: jobs of one workload differ by 3 %, epochs of one job by 2 %."""
    rng = random.Random(seed)
    for workload in range(workloads):
        usual = rng.lognormvariate(0, 0.8) * 10
        for version, factor in (("0.2.0", 1.0), ("0.3.0", slower)):
            for job in range(jobs):
                of_job = usual * factor * rng.lognormvariate(0, 0.03)
                for epoch in range(4):
                    yield row(
                        f"{workload}-{version}-{job}",
                        epoch,
                        workload=f"net {workload}",
                        package_version=version,
                        gpu=("L4", "H100")[workload % 2],
                        start=BEGAN + timedelta(hours=job * 60 + epoch),
                        **phases(of_job * rng.lognormvariate(0, 0.02)),
                    )


def ranks(
    job: str,
    seed: int,
    *,
    world: int = 16,
    slow: dict[int, float] | None = None,
    of_node: int = 8,
    nodes: list[str] | None = None,
    epochs: int = 3,
    spread: float = 0.01,
    **values: Any,
) -> Iterator[dict[str, Any]]:
    """Yield the ranks of a job that exchange gradients: all take equally long, and wait in the backward for the slowest.

    ``slow`` says how many times longer some ranks take for their own work, ``spread`` how much the others differ.
    """
    rng = random.Random(seed)
    own = {rank: (slow or {}).get(rank, 1.0) * rng.lognormvariate(0, spread) for rank in range(world)}
    for epoch in range(epochs):
        parts = {
            rank: {name: share * 10 * own[rank] * rng.lognormvariate(0, 0.005) for name, share in PHASES.items()}
            for rank in range(world)
        }
        whole = max(sum(spent.values()) + 0.5 * own[rank] for rank, spent in parts.items())
        for rank, spent in parts.items():
            spent["backward"] += whole - sum(spent.values()) - 0.5 * own[rank]
            useful = spent["forward"] + spent["backward"] + spent["optimizer"]
            yield row(
                f"{job}-{rank:05d}",
                epoch,
                **{
                    "job": job,
                    "rank": rank,
                    "world_size": world,
                    "node": rank // of_node,
                    "labels": {"node": nodes[rank // of_node]} if nodes else {},
                    "workload": "net",
                    "gpu": "H100",
                    "gpus": 1,
                    "start": BEGAN + timedelta(hours=epoch),
                    "duration_s": whole,
                    "energy_j": 5_000.0,
                    "energy_uncertain_j": 50.0,
                    "phases_s": spent,
                    "ledger_s": {
                        "useful": useful,
                        "data_wait": spent["data_wait"],
                        "host": whole - useful - spent["data_wait"],
                    },
                    **values,
                },
            )


def machines(seed: int, slow: dict[str, float] | None = None, *, nodes: int = 20, jobs: int = 24) -> Iterator[dict[str, Any]]:
    """Yield jobs of 16 ranks, each on two machines out of some."""
    rng = random.Random(seed)
    for job in range(jobs):
        names = [f"n{number:02d}" for number in rng.sample(range(nodes), 2)]
        slowness = {rank: (slow or {}).get(names[rank // 8], 1.0) for rank in range(16)}
        yield from ranks(f"job{job:02d}", rng.randrange(10**9), slow=slowness, nodes=names)


def near(row: dict[str, Any], rel: float = 1e-5) -> dict[str, Any]:
    """Return a row that equals one whose numbers are near: engines add up in different orders."""
    return {name: pytest.approx(value, rel=rel, abs=1e-9) if isinstance(value, float) else value for name, value in row.items()}


def exact(values: list[float], share: float) -> float:
    """Return the quantile by nearest rank."""
    return sorted(values)[max(1, math.ceil(share * len(values))) - 1]
