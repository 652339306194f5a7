"""A long run on many GPUs, made by hand: the largest that a report is sized for."""

from __future__ import annotations

import random

from profiler.hardware.gpu import MEMORY_USAGE as GPU_MEMORY
from profiler.hardware.gpu import POWER, TEMPERATURE, UTILIZATION
from profiler.hardware.process import CPU_WHOLE, MEMORY_USAGE
from profiler.records.causes import Line
from profiler.records.histogram import NS
from profiler.records.reading_record import reading_of
from profiler.records.readings import Sample
from profiler.records.run import EpochRecord, RankStage, Run
from profiler.records.slices import add_slice, slice_of
from profiler.records.timing import SlowStep, StageRecord, Timing

PHASES = {
    "data_wait": 0.004,
    "forward": 0.03,
    "loss": 0.002,
    "backward": 0.06,
    "optimizer": 0.01,
    "metrics": 0.003,
    "mine": 0.001,
}
STEPS = 50


def big_run(epochs: int = 1_000, gpus: int = 16, name: str = "a long run", seed: int = 1) -> Run:
    """Return a run with training and validation in each epoch, and readings of every GPU."""
    rng = random.Random(seed)
    run = Run("00aa11bb22cc", name, 1_790_000_000 * NS, "finished", way="script", command="train.py --epochs 1000")
    run.hardware.cpu = {"family": "AMD EPYC", "logical_cores": 128, "available_cores": 64}
    run.hardware.memory = {"total_class_gib": 1024}
    run.hardware.runtime = {"python": "3.11", "torch": "2.13", "cuda": "13.0"}
    run.hardware.gpus = {index: {"name": "NVIDIA H100 80GB HBM3", "memory_class_gib": 80} for index in range(gpus)}
    at = 60 * NS
    for index in range(epochs):
        epoch = EpochRecord(index, started_ns=at)
        for stage, share in (("train", 1.0), ("val", 0.3)):
            epoch.stages[stage] = _stage(rng, stage, share, index)
        epoch.phases["checkpoint",] = Timing()
        epoch.phases["checkpoint",].steady.add([rng.randint(NS // 2, NS)])
        _read(rng, epoch, gpus)
        epoch.duration_ns = sum(stage.duration_ns for stage in epoch.stages.values()) + epoch.phases["checkpoint",].total_ns
        epoch.lines = {Line("train", "forward", "train.py", 40 + index % 12, "forward", "linear"): 3}
        at += epoch.duration_ns
        run.epochs.append(epoch)
        add_slice(run.slices, slice_of(epoch))
    run.outside.ranks = {rank: {"train": RankStage(100 * NS + rank * NS, {"backward": 60 * NS})} for rank in range(gpus)}
    run.outside.rank_epochs, run.rank, run.world_size = epochs, 0, gpus
    run.duration_ns, run.overhead_ns = at + NS, NS
    return run


def _stage(rng: random.Random, name: str, share: float, epoch: int) -> StageRecord:
    stage = StageRecord(name, steps=STEPS, samples=STEPS * 256, passes=1)
    times = {phase: [round(rng.uniform(0.8, 1.3) * s * share * NS) for _ in range(STEPS)] for phase, s in PHASES.items()}
    for phase, spent in times.items():
        stage.phases[phase,] = Timing()
        stage.phases[phase,].steady.add(spent)
    steps = [sum(spent) + 100_000 for spent in zip(*times.values(), strict=True)]
    stage.step.steady.add(steps)
    stage.duration_ns = sum(steps)
    at = (70 + 7 * epoch) * NS
    stage.slowest = [SlowStep(7, epoch * STEPS + 7, at, max(steps), {"forward": max(steps) // 2}, epoch=epoch)]
    return stage


def _read(rng: random.Random, epoch: EpochRecord, gpus: int) -> None:
    def add(spec: object, value: float, **at: str) -> None:
        attributes = {key.replace("_", "."): text for key, text in at.items()}
        record = reading_of(epoch.readings, Sample(spec, value, attributes))  # type: ignore[arg-type]
        for _ in range(3):
            record.add(value * rng.uniform(0.9, 1.1))

    add(CPU_WHOLE, 0.4)
    add(MEMORY_USAGE, 30 * 2**30)
    for gpu in range(gpus):
        at = {"hw_id": f"gpu-{gpu}", "hw_type": "gpu"}
        add(UTILIZATION, 0.8, **at)
        add(GPU_MEMORY, 60 * 2**30, **at)
        add(POWER, 500, **at)
        add(TEMPERATURE, 60, **at)
