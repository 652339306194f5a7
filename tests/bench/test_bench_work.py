"""The operations that a benchmark times, against what is known of them: papers' parameter counts, torch's counter, time."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest

from support.processes import python

torch = pytest.importorskip("torch")

from profiler.bench import counting, limits, loader, models, nets, plan, work, worker  # noqa: E402
from profiler.bench.plan import QUICK, Case, Machine  # noqa: E402
from profiler.errors import ArgumentValueError  # noqa: E402

pytestmark = pytest.mark.slow  # torch and its compiler are imported
MACHINE = Machine({"cpu": ("float32",)}, {"cpu": 2 * plan.GIB}, threads=2)


def case_of(name: str, stage: str = "train", dtype: str = "float32", batch: int = 2) -> Case:
    (case,) = (c for c in plan.models(MACHINE, "cpu", [name], [dtype], True, batch) if c.stage == stage)
    return case


def test_forked_process_with_torch_can_use_cuda() -> None:
    """It could not if importing had asked CUDA for anything (torch: "Poison fork in multiprocessing")."""
    code = """
import sys
import torch
asked = []
def watch(frame, event, argument):
    if event == "call" and frame.f_code.co_name in ("is_available", "device_count", "_lazy_init"):
        asked.append((frame.f_code.co_filename, frame.f_code.co_name))
sys.setprofile(watch)
import profiler.bench.worker
sys.setprofile(None)
print([entry for entry in asked if "cuda" in entry[0]], "torch._dynamo" in sys.modules)
"""
    assert python("-c", code).out == "[] True\n"


@pytest.mark.parametrize(
    ("make", "parameters"),
    [
        (nets.lenet5, 61_706),
        (nets.resnet50, 25_557_032),
        (lambda: nets.VisionTransformer(768, 12), 86_567_656),
        (lambda: nets.VisionTransformer(384, 6), 22_050_664),
        (lambda: nets.VisionTransformer(192, 3), 5_717_416),
        (lambda: nets.Block(768, 12, causal=True), 7_087_872),
    ],
    ids=["LeNet-5", "ResNet-50", "ViT-B/16", "ViT-S/16", "ViT-Ti/16", "GPT-2 block"],
)
def test_nets_have_the_parameters_of_their_papers(make: Any, parameters: int) -> None:
    assert sum(parameter.numel() for parameter in make().parameters()) == parameters


class TestCounting:
    def test_a_matrix_product_is_what_the_formula_says(self) -> None:
        built = limits.build(plan.matmul(MACHINE, "cpu", "float32"))
        assert counting.flops(built.call) == built.flops == 2 * 1024**3

    def test_resnet_50_makes_4_gflops_of_multiply_adds(self) -> None:
        flops = counting.flops(models.build(case_of("resnet50", "inference", batch=1)).call)
        assert flops == pytest.approx(2 * 4.09e9, rel=0.01)  # torchvision's documentation of resnet50 tells 4.09

    def test_attention_counts(self) -> None:
        tokens, width = 256, 768
        linear = 2 * tokens * 12 * width**2
        attention = 2 * 2 * tokens**2 * width
        assert counting.flops(models.build(case_of("gpt", "inference", batch=1)).call) == linear + attention

    def test_training_is_three_times_the_forward(self) -> None:
        forward, step = (counting.flops(models.build(case_of("gpt", stage)).call) for stage in ("val", "train"))
        assert step == 3 * forward

    def test_what_has_no_matrix_products_has_no_count(self) -> None:
        x = torch.ones(8)
        assert counting.flops(lambda: x + 1) is None

    @pytest.mark.parametrize(
        ("operation", "tensors"),
        [
            (lambda x, y: x + y, 3),
            (lambda x, y: x.add_(y), 3),
            (lambda x, y: x.view(10, 100), 0),
            (lambda x, y: torch.empty_like(x), 0),
            (lambda x, y: x + y[:1].expand(1000), 2),
            (lambda x, y: torch.cat((x, y)), 4),
            (lambda x, y: torch.zeros_like(x), 1),
            (lambda x, y: torch._foreach_add_([x], [y]), 3),
            (lambda x, y: torch.embedding(torch.ones(50_000, 10), torch.arange(100)), 2.2),
        ],
        ids=["sum", "in place", "view", "empty", "expanded", "list", "zeros", "foreach", "of a table"],
    )
    def test_bytes_moved(self, operation: Any, tensors: int) -> None:
        x, y = torch.ones(1000), torch.ones(1000)
        made = counting.moved(lambda: (torch.ones(50_000, 10), torch.arange(100))) if tensors == 2.2 else None
        found = (counting.moved(lambda: operation(x, y)) or 0) - (made or 0)
        assert found == pytest.approx(4000 * tensors, abs=4 if tensors == 2 else 0)


class TestClocks:
    def test_a_block_takes_what_its_calls_take(self) -> None:
        clock = work.clock_for("cpu")
        assert 0.04 <= clock.block(lambda: time.sleep(0.01), 4) < 0.4
        each = clock.each(lambda: time.sleep(0.01), 3)
        assert len(each) == 3 and min(each) >= 0.01

    def test_loader_blocks_begin_and_end_equally_prepared(self) -> None:
        """Items take 10 ms: with two workers a batch of 4 takes 20 ms, however many were ready when the clock started."""

        class Slow(torch.utils.data.Dataset):
            def __getitem__(self, index: int) -> int:
                time.sleep(0.01)
                return index

        for workers, least in ((0, 0.04), (2, 0.02)):
            batches = loader.Batches(4)
            more: dict[str, Any] = {"persistent_workers": True, "prefetch_factor": 2} if workers else {}
            made = torch.utils.data.DataLoader(Slow(), batch_sampler=batches, num_workers=workers, **more)
            clock = loader.Passes(made, batches, 2 * workers)
            clock.first()
            took = clock.block(clock.first, 6) / 6
            assert took >= 0.9 * least  # what was ready before the clock started does not count as made in no time

    def test_the_loader_case_hands_out_images(self) -> None:
        built = loader.build(replace(plan.loader(MACHINE, True, 4)[0], workers=0))
        assert built.samples == 4 and not built.children
        built.call()
        assert built.clock.block(built.call, 2) > 0


class TestStation:
    """What a case's process does, in this one."""

    def test_a_case_from_first_call_to_count(self) -> None:
        station = worker.Station(case_of("convnet", "inference", batch=1), QUICK)
        told = station.prepare()
        assert told["samples"] == 1 and told["cold"] > 0
        block = station.block()
        assert len(block["each"]) == told["times"] and block["seconds"] == pytest.approx(sum(block["each"]) / told["times"])
        assert station.energy() is None  # a CPU's is not counted
        assert station.count()["flops"] == 833_040
        station.close()

    def test_nothing_prepared(self) -> None:
        known, text = worker._answer(worker.Station(case_of("convnet"), QUICK).block)
        assert (known, text) == (False, "nothing has been prepared")

    @pytest.mark.parametrize("stage", plan.STAGES)
    @pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
    def test_types(self, stage: str, dtype: str) -> None:
        built = models.build(case_of("convnet", stage, dtype))
        built.call()

    @pytest.mark.parametrize("name", ["memory", "launch"])
    def test_limits(self, name: str) -> None:
        case = {"memory": plan.memory(MACHINE, "cpu"), "launch": plan.limits(MACHINE, "cpu", [], True, 1)[-1]}[name]
        built = limits.build(case)
        assert built.clock.block(built.call, 2) > 0
        assert built.moved == (3 * 64 * plan.MIB if name == "memory" else None)

    def test_this_machine(self) -> None:
        found = worker.machine()
        assert {"float64", "float32"} <= set(found.dtypes["cpu"]) and "tf32" not in found.dtypes["cpu"]
        assert found.threads == torch.get_num_threads() and found.memory["cpu"] > plan.GIB


class TestYours:
    def build(self, made: Any, monkeypatch: pytest.MonkeyPatch, stage: str = "train") -> work.Work:
        monkeypatch.setattr(models, "factory", lambda name: lambda: made)
        (case,) = (c for c in plan.yours("cpu", "shop.nets:make", [], 3) if c.stage == stage)
        return models.build(case)

    def test_inputs_may_be_tensor_list_or_dictionary(self, monkeypatch: pytest.MonkeyPatch) -> None:
        net = torch.nn.Bilinear(2, 3, 4)
        for inputs in (
            lambda batch: (torch.ones(batch, 2), torch.ones(batch, 3)),
            lambda batch: {"input1": torch.ones(batch, 2), "input2": torch.ones(batch, 3)},
        ):
            before = net.weight.detach().clone()
            self.build((net, inputs), monkeypatch).call()
            assert not torch.equal(before, net.weight)
        self.build((torch.nn.Linear(2, 1), lambda batch: torch.ones(batch, 2)), monkeypatch, "inference").call()

    def test_a_loss_of_its_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen = []

        def loss(output: Any) -> Any:
            seen.append(output.shape)
            return output.sum()

        self.build((torch.nn.Linear(2, 1), lambda batch: torch.ones(batch, 2), loss), monkeypatch).call()
        assert seen == [(3, 1)]

    @pytest.mark.parametrize(
        ("made", "says"),
        [
            (torch.nn.Linear(2, 1), "returned Linear; it returns"),
            ((torch.nn.Linear(2, 1), 3), "returned Linear, int; it returns"),
            ((torch.nn.Linear(2, 1), lambda batch: batch), r"inputs\(3\) of shop.nets:make is int, not tensors"),
        ],
    )
    def test_what_cannot_be_measured(self, made: Any, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ArgumentValueError, match=says):
            self.build(made, monkeypatch)

    def test_a_model_without_parameters_is_not_trained(self, monkeypatch: pytest.MonkeyPatch) -> None:
        made = (torch.nn.ReLU(), lambda batch: torch.ones(batch, 2))
        self.build(made, monkeypatch, "val").call()
        known, why = worker._answer(lambda: self.build(made, monkeypatch))
        assert known is None and why == "the model has no parameters to train"

    def test_a_factory_that_is_not_there(self) -> None:
        with pytest.raises(ArgumentValueError, match="there is no module 'nowhere'"):
            models.factory("nowhere.nets:make")
        with pytest.raises(ArgumentValueError, match="has no function 'make'"):
            models.factory("json:make")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.cuda.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_out_of_memory_is_known_by_its_errors(error: BaseException) -> None:
    assert work.is_out_of_memory(error)
    assert not work.is_out_of_memory(ValueError("out of memory"))
