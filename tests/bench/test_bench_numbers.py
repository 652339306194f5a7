"""What a benchmark concludes from times: intervals, differences, remarks, joules; and which cases it plans."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import pytest

from profiler.bench import plan
from profiler.bench.estimate import Estimate, difference, estimate, interval, is_stable, percentile
from profiler.bench.plan import GIB, Machine
from profiler.bench.watch import Watch, joules_per_call, remarks
from profiler.errors import ArgumentValueError
from support.nvml_library import Machine as FakeMachine

CPU = Machine({"cpu": ("float64", "float32", "bfloat16")}, {"cpu": 16 * GIB}, threads=2)
H100 = Machine(
    {"cpu": ("float32",), "cuda:0": ("float32", "tf32", "bfloat16", "float16"), "cuda:1": ("float32",)},
    {"cpu": 128 * GIB, "cuda:0": 79 * GIB, "cuda:1": 8 * GIB},
    threads=16,
)


class TestEstimate:
    @pytest.mark.parametrize(
        ("n", "low", "high"), [(1, 1, 1), (5, 1, 5), (6, 1, 6), (9, 2, 8), (12, 3, 10), (15, 4, 12), (30, 10, 21)]
    )
    def test_the_interval_is_that_of_the_tables(self, n: int, low: int, high: int) -> None:
        """Order statistics for the median at 95 %: Conover, Practical Nonparametric Statistics, table A3."""
        values = list(range(1, n + 1))
        random.Random(n).shuffle(values)
        assert interval(values) == (low, high)

    def test_interval_covers_the_median_as_stated(self) -> None:
        draw = random.Random(7)
        held = 0
        for _ in range(500):
            low, high = interval([draw.lognormvariate(0, 0.3) for _ in range(15)])
            held += low <= 1 <= high
        assert held >= 0.93 * 500

    def test_launches_that_differ_widen_it(self) -> None:
        blocks = [1.00, 1.01, 0.99, 1.00, 1.01]
        alike = estimate([blocks, blocks, blocks])
        apart = estimate([blocks, [b * 1.1 for b in blocks], [b * 0.9 for b in blocks]])
        assert alike.middle == apart.middle == 1.0
        assert alike.uncertainty < 0.02
        # three medians 10 % apart: 4.303 x 0.1 / sqrt(3) = 25 % either way, from the launches alone
        assert 0.24 < apart.uncertainty < 0.30

    def test_between_launches_it_holds_as_well(self) -> None:
        draw = random.Random(3)
        held = 0
        for _ in range(400):
            launches = [
                [draw.lognormvariate(0, 0.01) * shift for _ in range(5)]
                for shift in (draw.lognormvariate(0, 0.05) for _ in range(3))
            ]
            _, low, high = estimate(launches)
            held += low <= 1 <= high
        assert held >= 0.93 * 400

    def test_no_times_are_no_estimate(self) -> None:
        with pytest.raises(ValueError, match="no median"):
            estimate([[]])

    def test_a_difference_has_both_uncertainties(self) -> None:
        before, after = Estimate(1.0, 0.97, 1.03), Estimate(1.05, 1.01, 1.09)
        change = difference(before, after)
        assert change.change == pytest.approx(0.05)
        assert change.low == pytest.approx(math.exp(math.log(1.05) - math.hypot(math.log(1.05 / 1.01), math.log(1.03))) - 1)
        assert change.is_noise
        assert not difference(Estimate(1.0, 0.99, 1.01), after).is_noise
        assert difference(after, after).change == 0 and difference(after, after).is_noise

    def test_equal_machines_differ_once_in_twenty(self) -> None:
        draw = random.Random(11)

        def measured() -> Estimate:
            return estimate(
                [
                    [draw.lognormvariate(0, 0.02) * shift for _ in range(5)]
                    for shift in (draw.lognormvariate(0, 0.02) for _ in range(3))
                ]
            )

        called = sum(not difference(measured(), measured()).is_noise for _ in range(400))
        assert called <= 0.05 * 400

    def test_percentiles_are_times_that_were_measured(self) -> None:
        assert [percentile(range(1, 101), share) for share in (0.5, 0.9, 0.99, 1.0)] == [50, 90, 99, 100]
        assert percentile([3.0], 0.99) == 3.0

    def test_stable_is_three_alike(self) -> None:
        assert not is_stable([1.0, 1.0], 0.05)
        assert not is_stable([1.0, 1.0, 1.2], 0.05)
        assert is_stable([9.0, 1.0, 1.04, 1.02], 0.05)


class TestPlan:
    def test_all_suites_are_the_default(self) -> None:
        assert plan.chosen(()) == (["limits", "models", "loader"], [])
        assert plan.chosen(("resnet50", "shop.nets:make")) == (["resnet50"], ["shop.nets:make"])
        with pytest.raises(ArgumentValueError, match="Did you mean 'models'"):
            plan.chosen(("model",))

    def test_devices(self) -> None:
        assert (CPU.best, H100.best) == ("cpu", "cuda:0")
        assert [plan.device_of(H100, wanted) for wanted in (None, "cuda", "cuda:1", "cpu")] == [
            "cuda:0",
            "cuda:0",
            "cuda:1",
            "cpu",
        ]
        for wanted in ("cuda", "cuda:0", "tpu", ""):
            with pytest.raises(ArgumentValueError, match="There is cpu"):
                plan.device_of(CPU, wanted)

    def test_dtypes(self) -> None:
        plan.check_dtypes(H100, "cuda:0", ["tf32", "float32"])
        with pytest.raises(ArgumentValueError, match="cpu has no tf32"):
            plan.check_dtypes(CPU, "cpu", ["tf32"])
        with pytest.raises(ArgumentValueError, match="Did you mean 'bfloat16'"):
            plan.check_names(["bflaot16"])

    def test_narrow_types_are_used_if_faster(self) -> None:
        assert plan.model_dtypes({"float32": 50e12, "tf32": 380e12, "bfloat16": 700e12, "float64": 60e12}) == [
            "float32",
            "tf32",
            "bfloat16",
        ]
        assert plan.model_dtypes({"float32": 300e9, "bfloat16": 160e9, "float16": 310e9}) == ["float32"]
        assert plan.model_dtypes({}) == ["float32"]

    def test_limits_of_a_gpu_and_of_its_host(self) -> None:
        cases = plan.limits(H100, "cuda:0", [], quick=False, ranks=1)
        assert [(case.name, case.device) for case in cases] == [
            *[("matmul", "cuda:0")] * 4,
            *(("memory", "cuda:0"), ("memory", "cpu")),
            *(("h2d_pinned", "cuda:0"), ("h2d_pageable", "cuda:0"), ("d2h_pinned", "cuda:0"), ("launch", "cuda:0")),
        ]
        assert [case.name for case in plan.limits(CPU, "cpu", [], quick=True, ranks=2)] == [
            "matmul",
            "memory",
            "launch",
            "all_reduce",
        ]

    def test_sizes_follow_the_device(self) -> None:
        def batches(machine: Machine, device: str, quick: bool = False) -> dict[str, Any]:
            cases = plan.models(machine, device, plan.NETS, ["float32"], quick, None)
            return {case.name: (case.batch, case.shape.split(",")[0]) for case in cases if case.stage == "train"}

        assert batches(H100, "cuda:0")["vit"] == (64, "ViT-B/16")
        assert batches(H100, "cuda:1")["vit"] == (8, "ViT-B/16")
        assert batches(CPU, "cpu")["vit"] == (8, "ViT-S/16")
        assert batches(CPU, "cpu", quick=True)["vit"] == (2, "ViT-Ti/16")
        assert {
            case.batch for case in plan.models(CPU, "cpu", plan.NETS, ["float32"], True, None) if case.stage == "inference"
        } == {1}
        assert {case.batch for case in plan.models(CPU, "cpu", plan.NETS, ["float32"], True, 4)} == {4}

    def test_every_model_has_its_limits_beside_it(self) -> None:
        cases = plan.models(H100, "cuda:0", ["vit", "gpt"], ["float32", "bfloat16"], False, None)
        for group in plan.groups(plan.with_references(H100, cases)):
            assert [(case.name, case.device) for case in group[:2]] == [("matmul", "cuda:0"), ("memory", "cuda:0")]
            assert group[0].dtype == group[2].dtype == group[-1].dtype
            assert [case.stage for case in group[2:]] == ["train", "val", "inference"]

    def test_what_is_not_here_is_said(self) -> None:
        plan.check_there("cuda:0", ["h2d_pinned", "all_reduce"], 2)
        with pytest.raises(ArgumentValueError, match="h2d_pinned copies between a GPU and its host"):
            plan.check_there("cpu", ["memory", "h2d_pinned"], 1)
        with pytest.raises(ArgumentValueError, match="all_reduce needs ranks: torchrun"):
            plan.check_there("cpu", ["all_reduce"], 1)
        assert [plan.rank_device(H100, wanted, 1) for wanted in (None, "cuda", "cpu")] == ["cuda:1", "cuda:1", "cpu"]

    def test_half_a_batch(self) -> None:
        case = plan.yours("cpu", "a:b", [], None)[0]
        sizes = []
        while case is not None and (smaller := plan.halved(case)) is not None:
            sizes.append(smaller.batch)
            case = smaller
        assert sizes == [4, 2, 1]
        assert plan.halved(replace(plan.limits(CPU, "cpu", [], True, 1)[0])) is None


BLOCK = {"wall": 1.0, "busy": 1.02, "idle": 0.98, "stolen": 0.0, "own": 1.0}  # two cores


class TestWatch:
    def test_nothing_out_of_the_ordinary(self) -> None:
        assert remarks([BLOCK] * 3) == []
        assert remarks([]) == []

    def test_other_programs_a_hypervisor_and_a_quota(self) -> None:
        assert "other programs used" in remarks([{**BLOCK, "busy": 1.6, "idle": 0.4}])[0]
        assert remarks([{**BLOCK, "idle": 0.78, "stolen": 0.2}]) == ["the hypervisor took 10% of the CPU time"]
        assert remarks([{**BLOCK, "stopped": 0.25}]) == ["the CPU quota stopped it for 25% of the time"]

    def test_clocks_of_a_gpu(self) -> None:
        held = [{**BLOCK, "held power_cap": 0.5, "clock": 1.98e9}, {**BLOCK, "held power_cap": 0.1, "clock": 1.41e9}]
        assert remarks(held) == ["clocks held down for 30% of the time: power cap", "SM clock between 1410 and 1980 MHz"]

    def test_a_block_here(self) -> None:
        watch = Watch("cpu")
        watch.before()
        assert sum(number * number for number in range(200_000)) > 0
        told = watch.after()
        assert told["wall"] > 0 and told["own"] >= 0 and told["busy"] >= 0
        assert watch.energy is None

    def test_a_gpu_tells_clocks_throttling_and_energy(self, machine: FakeMachine) -> None:
        machine.plays("gpus=2", "power=300000")
        watch = Watch("cuda:1")
        watch.before()
        told = watch.after()
        assert told["clock"] > 1e8
        assert any(name.startswith("held ") for name in told)
        assert watch.energy is not None and list(watch.energy.energy()) == ["gpu-1"]

    def test_no_gpu_no_readings(self, machine: FakeMachine) -> None:
        machine.plays("gpus=0")
        watch = Watch("cuda:0")
        watch.before()
        assert "clock" not in watch.after() and watch.energy is None


class Meter:
    """A counter of a device that draws ``watts`` while calls of ``call_s`` seconds are made, and moves every 0.1 s."""

    def __init__(self, watts: float, call_s: float) -> None:
        self.watts, self.call_s, self.now = watts, call_s, 0.037

    def counter(self) -> float:
        return math.floor(self.now / 0.1) * 0.1 * self.watts

    def block(self, times: int) -> float:
        self.now += times * self.call_s
        return times * self.call_s


def test_joules_a_call_are_power_times_time() -> None:
    meter = Meter(400.0, 0.002)
    found = joules_per_call(meter.counter, meter.block, 5, 2.0)
    assert found == pytest.approx(400.0 * 0.002, rel=0.02)


def test_a_counter_that_stands_still_tells_nothing() -> None:
    meter = Meter(0.0, 0.002)
    assert joules_per_call(meter.counter, meter.block, 5, 2.0) is None
    assert meter.now < 1.2
