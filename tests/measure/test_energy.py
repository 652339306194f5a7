"""What the GPUs used in each epoch and stage, from counters that are read beside the loop."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from profiler import Profiler
from profiler.measure.energy_meter import MAX_EDGES, Edges, EnergyMeter
from profiler.records.energy import STEP_NS, Energies, merge_energy
from profiler.records.run import EpochRecord, Run
from profiler.records.timing import StageRecord
from profiler.report.document import document
from profiler.report.text import text
from profiler.storage.run_log import run_paths
from profiler.storage.run_reader import load
from support.documents import near
from support.nvml_library import Machine
from support.processes import wait_for_ticks

S = 1_000_000_000


class Pass:
    def __init__(self, stage: str) -> None:
        self.stage_name = stage


TRAIN, VAL = Pass("train"), Pass("val")


class Bench:
    """A meter, and what it has told."""

    def __init__(self) -> None:
        self.edges = Edges()
        self.told: dict[int | None, Energies] = {}
        self.times = 0
        self.meter = EnergyMeter(self.edges, self.take)

    def take(self, epoch: int | None, energy: Energies) -> None:
        self.times += 1
        merge_energy(self.told.setdefault(epoch, {}), energy)

    def edge(self, at_s: float, epoch: int | None, of: Pass | None) -> None:
        self.edges.epoch = epoch
        self.edges.add(round(at_s * S), of)

    def read(self, at_s: float, **joules: float) -> None:
        self.meter.add(round(at_s * S), joules)

    def used(self, epoch: int | None, stage: str, gpu: str = "a") -> float:
        return self.told[epoch][stage][gpu].joules


def test_energy_goes_where_the_time_went() -> None:
    bench = Bench()
    bench.read(0, a=1000)
    bench.edge(0, 0, TRAIN)
    bench.read(1, a=1100)
    bench.edge(1.5, 0, VAL)
    bench.read(2, a=1200)
    bench.edge(3, None, None)
    bench.read(3, a=1300)
    assert bench.used(0, "train") == 150
    assert bench.used(0, "val") == 150
    uncertain = bench.told[0]["train"]["a"].uncertain
    assert uncertain == pytest.approx(50 + 100 * STEP_NS / S)  # half of the second that both share, and a step


def test_epoch_energy_comes_after_next_reading() -> None:
    bench = Bench()
    bench.read(0, a=0)
    bench.edge(0, 0, TRAIN)
    bench.edge(1, None, None)
    assert bench.told == {}
    bench.read(2, a=200)
    assert bench.used(0, "train") == 100
    bench.meter.finish()
    assert bench.used(None, "") == 100
    bench.read(3, a=300)
    assert sorted(bench.told, key=str) == [0, None]  # nothing after the end


def test_what_a_pass_is_for_may_show_later() -> None:
    bench, undecided = Bench(), Pass("")
    bench.read(0, a=0)
    bench.edge(0, 0, undecided)
    undecided.stage_name = "train"
    bench.read(1, a=100)
    bench.edge(1, None, None)
    bench.read(2, a=200)
    assert bench.used(0, "train") == 100


def test_an_epoch_that_shows_late_when_it_began() -> None:
    bench = Bench()
    bench.read(0, a=0)
    bench.edge(1, None, TRAIN)
    bench.edge(1, 0, TRAIN)  # noted later, of the same moment
    bench.read(2, a=200)
    bench.edge(2, None, None)
    bench.read(3, a=300)
    assert bench.used(0, "train") == 100


def test_reset_counter_and_missing_readings() -> None:
    bench = Bench()
    bench.edge(0, 0, TRAIN)
    bench.read(0, a=5000, b=10)
    bench.read(1, a=5100)
    bench.read(1.5, a=20)  # the 50 J since the reading before are gone
    bench.read(2, a=60, b=40)
    bench.read(4, a=220, b=60)
    bench.edge(4, None, None)
    bench.read(5, a=320, b=60)
    assert bench.used(0, "train", "a") == 100 + 220
    assert bench.used(0, "train", "b") == 30 + 20
    assert bench.told[0]["train"]["a"].uncertain == pytest.approx(50 + 10, rel=0.2)  # what is gone, and a step


@pytest.mark.parametrize("wrong", [(2,), (2, 2.1, 2.5, 3.9)])
def test_low_answers_for_a_moment_are_no_reset(wrong: tuple[float, ...]) -> None:
    bench = Bench()
    bench.edge(0, 0, TRAIN)
    bench.read(0, a=100_000)
    bench.read(1, a=100_100)
    for at in wrong:
        bench.read(at, a=0)
    bench.read(4, a=100_400)
    bench.edge(4, None, None)
    bench.read(5, a=100_500)
    assert bench.used(0, "train") == 400


def test_energy_of_a_long_epoch_comes_meanwhile() -> None:
    bench = Bench()
    bench.edge(0, 0, TRAIN)
    for second in range(61):
        bench.read(second, a=100.0 * second)
        if second == 31:
            assert bench.used(0, "train") == pytest.approx(3000, abs=1001)
    assert bench.times == 6
    bench.edge(61, None, None)
    bench.read(62, a=6200)
    assert bench.used(0, "train") == pytest.approx(6100) and bench.told[0]["train"]["a"].seconds == pytest.approx(61)


def test_lag_error_is_within_uncertainty() -> None:
    """Each edge moves energy the same way: from training's high power to validation's low one."""
    bench, at = Bench(), 0.0
    parts: list[tuple[str, float, float, int]] = []  # stage, begin, end, W

    def joules(moment: float, *stages: str) -> float:
        return sum(max(min(end, moment) - begin, 0) * watts for stage, begin, end, watts in parts if stage in stages)

    bench.read(0, a=0)
    for epoch in range(100):
        for of, watts, seconds in ((TRAIN, 600, 1.23 + epoch % 7 / 50), (VAL, 200, 0.41 + epoch % 5 / 50)):
            bench.edge(at, epoch, of)
            parts.append((of.stage_name, at, at + seconds, watts))
            at += seconds
            bench.read(at + 0.002, a=joules(int(at * 10) / 10, "train", "val"))  # it moves every 100 ms
    bench.edge(at, None, None)
    bench.read(at + 1, a=joules(at, "train", "val"))
    bench.meter.finish()
    run = Run("0a1b", "made", S, "finished", round(at * S))
    for energy in bench.told.values():
        merge_energy(run.outside.energy, energy)
    for stage in ("train", "val"):
        told = run.energy()[stage]["a"]
        assert 0.05 * told.uncertain < abs(told.joules - joules(at, stage)) < told.uncertain < 0.6 * told.joules


def test_step_follows_average_power() -> None:
    """Two readings that lie close together show no step of the counter, or a whole one."""
    for last in (300, 310):  # between 2.999 and 3 s
        bench = Bench()
        bench.read(0, a=0)
        bench.edge(0, 0, TRAIN)
        bench.read(1, a=100)
        bench.read(2, a=200)
        bench.read(2.999, a=300)
        bench.edge(3, None, None)
        bench.read(3, a=last)
        bench.read(3.001, a=last)
        assert bench.told[0]["train"]["a"].uncertain == pytest.approx(100 * STEP_NS / S, rel=0.1)


def test_reading_gap_leaves_epoch_open_not_stage() -> None:
    bench = Bench()
    bench.read(0, a=0)
    for epoch in range(3):
        bench.edge(epoch, epoch, TRAIN)
        bench.edge(epoch + 0.9, epoch, VAL)
    bench.read(0.8, a=80)  # from here on the driver hangs, until the third epoch
    bench.read(2.3, a=230)
    bench.edge(3, None, None)
    bench.read(3.001, a=300)
    bench.meter.finish()
    run = Run("0a1b", "made", S, "finished", 3 * S)
    for index in range(3):
        epoch = EpochRecord(index, duration_ns=S, energy=bench.told[index])
        epoch.stages = {"train": StageRecord("train", 9 * S // 10, 10, 10, 1), "val": StageRecord("val", S // 10, 1, 1, 1)}
        run.epochs.append(epoch)
    found = document(run)
    assert found["energy"]["total_j"] == pytest.approx(300, rel=0.01)
    assert found["energy"]["uncertainty_j"] == pytest.approx(10, rel=0.1)  # a step
    first, second, third = (epoch["energy"] for epoch in found["epochs"])
    assert first["uncertainty_j"] == pytest.approx(20 + 10, rel=0.1)
    assert second == {"below_resolution": True}  # most of it may be another's
    assert third["uncertainty_j"] == pytest.approx(30 + 10, rel=0.1)
    assert found["stages"]["train"]["energy"]["uncertainty_j"] == pytest.approx(30 + 10 * 3, rel=0.1)  # what may be val's


def test_still_counter_is_below_resolution() -> None:
    bench = Bench()
    bench.read(0, a=500)
    bench.edge(0, 0, VAL)
    bench.edge(0.05, None, None)
    bench.read(0.06, a=500)
    assert bench.used(0, "val") == 0
    assert shown(bench.told[0])["stages"]["val"]["energy"] == {"below_resolution": True}


def test_edges_that_were_lost_leave_the_energy_out() -> None:
    bench = Bench()
    bench.read(0, a=0)
    for at in range(MAX_EDGES + 10):
        bench.edge(at / MAX_EDGES, 0, (TRAIN, VAL)[at % 2])
    bench.read(2, a=1000)
    bench.edge(2, None, None)
    bench.read(3, a=1100)
    bench.meter.finish()
    assert {stage: gpus["a"].joules for stage, gpus in bench.told[0].items()} == {"val": 0}  # nobody can share out 1000 J
    assert bench.used(None, "") == 100


def test_where_nothing_is_read_nothing_is_kept() -> None:
    edges = Edges()
    edges.on_edge = lambda: pytest.fail("nobody reads")
    for at in range(10):
        edges.add(at * S, TRAIN)
    assert not edges.noted


def test_a_loop_that_goes_on_already() -> None:
    bench = Bench()
    bench.edge(0, 0, TRAIN)
    bench.read(1, a=0)
    bench.read(2, a=100)
    bench.edge(2, None, None)
    bench.read(3, a=100)
    assert bench.used(0, "train") == 100


def test_many_passes_are_no_surer_together_than_each() -> None:
    bench = Bench()
    bench.read(0, a=0)
    for epoch in range(100):
        bench.edge(epoch, epoch, TRAIN)
        bench.edge(epoch + 0.9, None, None)
        bench.read(epoch + 1, a=100 * (epoch + 1))
    bench.read(101, a=10_000)
    bench.meter.finish()
    run = Run("0a1b", "made", S, "finished", 101 * S)
    run.outside.stages["train"] = StageRecord("train", 90 * S, 100, 100, 100)
    for energy in bench.told.values():
        merge_energy(run.outside.energy, energy)
    found = document(run)["stages"]["train"]["energy"]
    assert found["total_j"] == pytest.approx(9000, rel=0.01)
    assert found["uncertainty_j"] == pytest.approx(100 * (10 + 10), rel=0.1)  # 10 J of each are mixed, and a step is 10 J


def test_unmetered_time_is_not_reported() -> None:
    bench = Bench()
    bench.edge(0, 0, TRAIN)
    bench.read(0, a=0)
    bench.read(0.4, a=40)  # from here on, the driver hangs
    bench.meter.finish()
    epoch = EpochRecord(0, duration_ns=S, energy=bench.told[0])
    epoch.stages["train"] = StageRecord("train", S, 10, 1000, 1)
    run = Run("0a1b", "made", S, "finished", S, epochs=[epoch])
    found = document(run)["stages"]["train"]["energy"]
    assert (found["total_j"], found["mean_w"], found["metered_s"]) == (
        pytest.approx(40),
        pytest.approx(100),
        pytest.approx(0.4),
    )
    assert "samples_per_j" not in found
    assert "metered for 400ms of it" in text(run)


def test_loop_wakes_reader_once_a_step() -> None:
    woken = []
    edges = Edges()
    edges.is_read = True
    edges.on_edge = lambda: woken.append(1)
    for at in range(1000):
        edges.add(at * 1_000_000, None)  # one a millisecond
    assert len(woken) == 9


def shown(energy: Energies, **gpu: Any) -> dict[str, Any]:
    epoch = EpochRecord(0, duration_ns=2 * S, energy=energy)
    for stage in energy:
        if stage:
            epoch.stages[stage] = StageRecord(stage, S, 10, 1000, 1)
    run = Run("0a1b", "made", S, "finished", 2 * S, epochs=[epoch])
    run.hardware.gpus[0] = gpu
    assert text(run)
    return document(run)


def test_joules_watts_and_samples_per_joule() -> None:
    bench = Bench()
    bench.read(0, a=0, b=0)
    bench.edge(0, 0, TRAIN)
    bench.read(1, a=400, b=100)
    bench.edge(1, None, None)
    bench.read(1.01, a=404, b=101)
    stage = shown(bench.told[0])["stages"]["train"]["energy"]
    assert stage["total_j"] == pytest.approx(500)
    assert stage["mean_w"] == pytest.approx(500)
    assert stage["samples_per_j"] == pytest.approx(2)
    assert stage["gpus"] == {"a": pytest.approx(400), "b": pytest.approx(100)}
    assert stage["uncertainty_j"] == pytest.approx(40 + 10, rel=0.1)  # a step of each counter
    lonely = Run(
        "0a1b", "made", S, "finished", 2 * S, epochs=[EpochRecord(0, energy={"train": {"gpu-1": bench.told[0]["train"]["a"]}})]
    )
    lonely.hardware.gpus = {0: {}, 1: {}}
    assert "of gpu-1 alone" in text(lonely)  # the other one was not read
    shared = shown(bench.told[0], mig_instance=1)["stages"]["train"]["energy"]
    assert shared["shared"] is True and "samples_per_j" not in shared


@pytest.mark.slow
def test_run_energy_survives_the_log(machine: Machine, home: Path) -> None:
    machine.plays("gpus=2", "power@0=500000", "power@1=100000")
    with Profiler("energy", interval=0.2) as prof:
        wait_for_ticks(prof, drivers=True)  # the counters are known
        for _ in prof.epochs(2):
            for _ in prof.train(range(10), samples=5):
                time.sleep(0.08)
            for _ in prof.validate(range(5)):
                time.sleep(0.08)
    found = prof.summary.to_dict()
    for stage in (*(stage for epoch in found["epochs"] for stage in epoch["stages"]), *found["stages"].values()):
        energy = stage["energy"]
        assert energy["total_j"] == pytest.approx(600 * stage["duration_s"], abs=energy["uncertainty_j"])
        assert energy["gpus"]["gpu-0"] == pytest.approx(5 * energy["gpus"]["gpu-1"], rel=0.2)
    assert found["stages"]["train"]["energy"]["samples_per_j"] == pytest.approx(50 * 2 / (600 * 1.6), rel=0.25)
    counted = sum(reading["last"] for reading in found["readings"] if reading["metric"] == "hw.energy")
    assert found["energy"]["total_j"] == pytest.approx(counted, rel=0.15)
    (path,) = run_paths(home / "runs")
    assert near(document(load(path)), found)  # joules are added up in another order
