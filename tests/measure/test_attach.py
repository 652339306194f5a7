"""Attaching: forward, backward and optimizer of a loop that names no phases; real torch, real data."""

from __future__ import annotations

import collections
import copyreg
import gc
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from profiler import ArgumentTypeError, Profiler
from profiler.measure.follow.torch_patches import PATCHES
from profiler.session.keeper import RunKeeper

torch = pytest.importorskip("torch")
sklearn_datasets = pytest.importorskip("sklearn.datasets")
nn = torch.nn
BATCHES = 4  # of 64 images each


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Not attached means: not one function of torch is wrapped, not one global hook is in place."""
    optimizer = __import__("torch.optim.optimizer", fromlist=["x"])
    yield
    assert PATCHES.listeners == ()
    assert not any(_is_ours(function) for function in _functions_of_torch())
    assert not optimizer._global_optimizer_pre_hooks
    assert not optimizer._global_optimizer_post_hooks
    assert not nn.modules.module._global_forward_hooks
    assert collections.OrderedDict not in copyreg.dispatch_table


def _functions_of_torch() -> list[Any]:
    data = torch.utils.data.dataloader
    return [
        torch.autograd.backward,
        torch.save,
        data.DataLoader.__iter__,
        data._BaseDataLoaderIter.__next__,
        nn.Module.__init__,
        nn.Module.__setstate__,
        nn.Module.train,
    ]


def _is_ours(function: Any) -> bool:
    while function is not None:
        if "torch_patches" in function.__code__.co_filename:
            return True
        function = getattr(function, "__wrapped__", None)
    return False


def hooks_on(module: Any) -> int:
    return len(module._forward_hooks) + len(module._forward_pre_hooks)


def digits(seed: int = 0, **options: Any) -> Any:
    data = sklearn_datasets.load_digits()
    images = torch.tensor(data.data[: 64 * BATCHES], dtype=torch.float32) / 16
    labels = torch.tensor(data.target[: 64 * BATCHES])
    options = {"batch_size": 64, "shuffle": True, "generator": torch.Generator().manual_seed(seed), **options}
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), **options)


def net(*layers: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(*(layers or (nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))))
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def train_step(model: Any, optimizer: Any, x: Any, y: Any) -> float:
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return float(loss.item())


def counts(stage: dict[str, Any]) -> dict[str, int]:
    return {name: entry["count"] for name, entry in stage["phases"].items() if "count" in entry}


def waits(stage: dict[str, Any], **others: int) -> dict[str, int]:
    """Return the counts of a stage's phases as they should be: a wait for each batch, and one that ends each pass."""
    return {"data_wait": stage["steps"] + stage["passes"], **others}


def check_sums(prof: Profiler) -> None:
    """Within a stage, the top-level phases and ``other`` add up to its time, and ``other`` is not negative."""
    document = prof.summary.to_dict()
    for stage in [*document["stages"].values(), *(stage for epoch in document["epochs"] for stage in epoch["stages"])]:
        parts = [entry["total_s"] for entry in stage["phases"].values()]
        assert sum(parts) == pytest.approx(stage.get("call_time_s", stage["duration_s"]), abs=1e-6)
        assert min(parts) >= 0, stage
    assert "notes" not in document


class TestToldPasses:
    """The loop says what it does; only phases are added."""

    def test_forward_backward_and_optimizer(self) -> None:
        model, optimizer = net()
        with Profiler("told", epochs=2) as prof:
            prof.attach(model, optimizer)
            for _ in prof.epochs():
                for x, y in prof.train(digits()):
                    train_step(model, optimizer, x, y)
                with torch.no_grad():
                    for x, _ in prof.validate(digits()):
                        model(x)
        stages = prof.summary.stages
        assert stages["train"]["steps"] == stages["val"]["steps"] == 2 * BATCHES
        done = dict.fromkeys(("forward", "backward", "optimizer"), 2 * BATCHES)
        assert counts(stages["train"]) == waits(stages["train"], **done)
        assert counts(stages["val"]) == waits(stages["val"], forward=2 * BATCHES)
        assert all("inferred" not in epoch for epoch in prof.summary.epochs)
        check_sums(prof)

    def test_own_phases_nest_and_are_not_doubled(self) -> None:
        with Profiler("own words") as prof:

            class Model(nn.Module):  # type: ignore[misc, name-defined]
                def __init__(self) -> None:
                    super().__init__()
                    self.linear = nn.Linear(64, 10)

                def forward(self, x: Any) -> Any:
                    with prof.phase("attention"):
                        return self.linear(x)

            model = Model()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            prof.attach(model, model.linear, optimizer)
            for x, y in prof.train(digits()):
                with prof.phase("forward"):
                    loss = nn.functional.cross_entropy(model(x), y)
                loss.backward()
                optimizer.step()
        phases = prof.summary.stages["train"]["phases"]
        assert counts(prof.summary.stages["train"])["forward"] == BATCHES
        assert phases["forward"]["phases"].keys() == {"attention"}
        assert "phases" not in phases["forward"]["phases"]["attention"]  # the linear part's call is within the model's
        check_sums(prof)

    def test_in_other_threads_each_has_its_own(self) -> None:
        model, _ = net()
        with Profiler("threads") as prof:
            prof.attach(model)

            @prof.inference
            def predict(x: Any) -> Any:
                with torch.no_grad():
                    return model(x)

            threads = [threading.Thread(target=lambda: [predict(torch.zeros(8, 64)) for _ in range(5)]) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        stage = prof.summary.stages["inference"]
        assert stage["steps"] == counts(stage)["forward"] == 20
        assert stage["batch_size"] == {"count": 20, "mean": 8.0, "min": 8, "max": 8, "p50": 8}
        check_sums(prof)


class TestInferredPasses:
    """The loop says nothing."""

    def test_over_loaders_that_were_named(self) -> None:
        model, optimizer = net()
        train, val = digits(), digits(shuffle=False)
        with Profiler("loaders") as prof:
            prof.attach(model, optimizer, train, val)
            for _ in range(3):
                model.train()
                for x, y in train:
                    train_step(model, optimizer, x, y)
                model.eval()
                with torch.no_grad():
                    for x, _ in val:
                        model(x)
        summary = prof.summary
        assert [epoch["inferred"] for epoch in summary.epochs] == [True] * 3
        for epoch in summary.epochs:
            stages = {stage["stage"]: stage for stage in epoch["stages"]}
            assert stages["train"]["steps"] == stages["val"]["steps"] == BATCHES
            assert stages["train"]["samples"] == 64 * BATCHES
            assert not stages["train"]["partial"]
            done = dict.fromkeys(("forward", "backward", "optimizer"), BATCHES)
            assert counts(stages["train"]) == waits(stages["train"], **done)
        check_sums(prof)

    def test_optimizer_ends_step_without_loader(self) -> None:
        model, optimizer = net()
        batches = list(digits())
        with Profiler("loose") as prof:
            prof.attach(model, optimizer)
            for _ in range(2):
                for x, y in batches:
                    train_step(model, optimizer, x, y)
                model.eval()
                for x, _ in batches[:2]:
                    with torch.no_grad():
                        model(x)
                model.train()
        stages = prof.summary.stages
        assert stages["train"]["steps"] == 2 * BATCHES
        assert stages["train"]["step"]["count"] == 2 * BATCHES
        assert stages["val"]["steps"] == 4
        assert "data_wait" not in counts(stages["train"])
        assert "samples" not in stages["train"]
        assert not any("waiting for data" in reason for reason in prof.summary.verdict["evidence"])
        check_sums(prof)

    def test_peek_at_first_batch_begins_no_epoch(self) -> None:
        model, optimizer = net()
        train = digits()
        with Profiler("peek") as prof:
            prof.attach(model, optimizer, train)
            for _ in range(3):
                assert len(next(iter(train))[0]) == 64
                for x, y in train:
                    train_step(model, optimizer, x, y)
        assert [epoch["stages"][0]["steps"] for epoch in prof.summary.epochs] == [BATCHES] * 3
        check_sums(prof)

    def test_neither_a_loader_nor_an_optimizer(self) -> None:
        model, _ = net()
        batches = list(digits())
        with Profiler("by hand") as prof:
            prof.attach(model)
            for x, y in batches:
                model.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter -= 0.1 * parameter.grad
        stage = prof.summary.stages["train"]
        assert stage["steps"] == stage["step"]["count"] == BATCHES
        check_sums(prof)

    def test_gradients_gathered_without_a_loader_are_one_step(self) -> None:
        model, optimizer = net()
        batches = list(digits())
        with Profiler("gathered") as prof:
            prof.attach(model, optimizer)
            for index, (x, y) in enumerate(batches):
                nn.functional.cross_entropy(model(x), y).backward()
                if index % 2:
                    optimizer.step()
                    optimizer.zero_grad()
        stage = prof.summary.stages["train"]
        assert stage["steps"] == stage["step"]["count"] == BATCHES // 2
        assert stage["step"]["total_s"] <= stage["duration_s"]
        check_sums(prof)

    def test_gradient_accumulation_counts_batches_and_optimizer_steps(self) -> None:
        model, optimizer = net()
        train = digits()
        with Profiler("accumulation") as prof:
            prof.attach(model, optimizer, train)
            for index, (x, y) in enumerate(train):
                (nn.functional.cross_entropy(model(x), y) / 2).backward()
                if index % 2:
                    optimizer.step()
                    optimizer.zero_grad()
        stage = prof.summary.stages["train"]
        assert counts(stage) == waits(stage, forward=4, backward=4, optimizer=2)
        assert stage["steps"] == 4
        check_sums(prof)

    def test_a_scaler_that_skips_steps(self) -> None:
        model, optimizer = net()
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        train = digits()
        with Profiler("amp") as prof:
            prof.attach(model, optimizer, train)
            for index, (x, y) in enumerate(train):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(x), y) * (float("inf") if index == 1 else 1.0)
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
        stage = prof.summary.stages["train"]
        assert counts(stage) == waits(stage, forward=4, backward=4, optimizer=3)
        assert stage["steps"] == 4
        check_sums(prof)

    def test_a_gan_has_two_models_and_two_optimizers(self) -> None:
        maker, maker_optimizer = net(nn.Linear(8, 64), nn.Tanh())
        judge, judge_optimizer = net(nn.Linear(64, 1))
        train = digits()
        loss_of = nn.functional.binary_cross_entropy_with_logits
        with Profiler("gan") as prof:
            prof.attach(maker, judge, maker_optimizer, judge_optimizer, train)
            for real, _ in train:
                judge_optimizer.zero_grad()
                with torch.no_grad():
                    fake = maker(torch.randn(64, 8))
                loss = loss_of(judge(real), torch.ones(64, 1)) + loss_of(judge(fake), torch.zeros(64, 1))
                loss.backward()
                judge_optimizer.step()
                maker_optimizer.zero_grad()
                loss_of(judge(maker(torch.randn(64, 8))), torch.ones(64, 1)).backward()
                maker_optimizer.step()
        stages = prof.summary.stages
        assert stages.keys() == {"train"}  # the generator without gradients is a part of the step, no validation
        assert counts(stages["train"]) == waits(stages["train"], forward=20, backward=8, optimizer=8)
        check_sums(prof)

    def test_teacher_forward_first_is_still_training(self) -> None:
        teacher, _ = net()
        student, optimizer = net()
        teacher.eval()
        train = digits()
        with Profiler("distillation") as prof:
            prof.attach(teacher, student, optimizer, train)
            for x, _ in train:
                with torch.no_grad():
                    wanted = teacher(x)
                nn.functional.mse_loss(student(x), wanted).backward()
                optimizer.step()
        assert prof.summary.stages.keys() == {"train"}
        assert counts(prof.summary.stages["train"])["forward"] == 8
        check_sums(prof)

    def test_evaluation_inside_training_stops_its_clock(self) -> None:
        model, optimizer = net()
        train, val = digits(), digits(shuffle=False)
        with Profiler("middle") as prof:
            prof.attach(model, optimizer, train, val)
            for index, (x, y) in enumerate(train):
                if index % 2 == 0:
                    model.eval()
                    with torch.no_grad():
                        for held_out, _ in val:
                            model(held_out)
                    model.train()
                train_step(model, optimizer, x, y)
        stages = prof.summary.stages
        assert len(prof.summary.epochs) == 1
        assert stages["train"]["steps"] == 4
        assert stages["train"]["passes"] == 1
        assert stages["val"]["steps"] == 8
        assert counts(stages["train"])["forward"] == 4
        check_sums(prof)

    def test_two_loaders_in_a_zip_are_one_pass(self) -> None:
        model, optimizer = net()
        labelled, unlabelled = digits(), digits(seed=1)
        with Profiler("zip") as prof:
            prof.attach(model, optimizer, labelled, unlabelled)
            for _ in range(2):
                for (x, y), _ in zip(labelled, unlabelled, strict=True):
                    train_step(model, optimizer, x, y)
        assert len(prof.summary.epochs) == 2
        stage = prof.summary.stages["train"]
        assert stage["steps"] == 8
        assert counts(stage)["data_wait"] == 16 + 2  # both loaders' batches; the second's end is not asked for
        check_sums(prof)

    def test_broken_off_loop_leaves_partial_pass(self) -> None:
        model, optimizer = net()
        train = digits()
        # A sample of lines that the system interrupts holds the loop's frames, and so the iterator, for some milliseconds.
        with Profiler("break", settings={"lines": False}) as prof:
            prof.attach(model, optimizer, train)
            for _ in range(2):
                for index, (x, y) in enumerate(train):
                    train_step(model, optimizer, x, y)
                    if index == 1:
                        break
        assert [epoch["stages"][0]["steps"] for epoch in prof.summary.epochs] == [2, 2]
        assert prof.summary.stages["train"]["partial"]
        check_sums(prof)

    def test_an_endless_iterator_that_is_made_anew(self) -> None:
        model, optimizer = net()
        train = digits()
        with Profiler("next") as prof:
            prof.attach(model, optimizer, train)
            iterator = iter(train)
            for _ in range(10):
                try:
                    x, y = next(iterator)
                except StopIteration:
                    iterator = iter(train)
                    x, y = next(iterator)
                train_step(model, optimizer, x, y)
        assert [epoch["stages"][0]["steps"] for epoch in prof.summary.epochs] == [4, 4, 2]
        check_sums(prof)

    def test_the_same_loader_inside_of_its_own_pass(self) -> None:
        model, optimizer = net()
        train = digits()
        with Profiler("inside") as prof:
            prof.attach(model, optimizer, train)
            for index, (x, y) in enumerate(train):
                if index == 2:
                    for again, _ in train:
                        with torch.no_grad():
                            model(again)
                train_step(model, optimizer, x, y)
        assert len(prof.summary.epochs) == 1
        stages = prof.summary.stages
        assert list(stages) == ["train", "val"]
        assert (stages["train"]["steps"], stages["train"]["passes"], stages["val"]["steps"]) == (4, 1, 4)
        check_sums(prof)

    def test_end_of_epoch_is_no_phase(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model, optimizer = net()
        train = digits()
        monkeypatch.setattr(RunKeeper, "save", lambda self, *parts: time.sleep(1))
        with Profiler("ours") as prof:
            prof.attach(model, optimizer, train)
            for _ in range(3):
                for x, y in train:
                    train_step(model, optimizer, x, y)
        for epoch in prof.summary.epochs[1:]:  # the first one starts threads of torch
            assert sum(stage["duration_s"] for stage in epoch["stages"]) < 1
        check_sums(prof)

    def test_epochs_that_the_loop_tells_are_kept(self) -> None:
        model, optimizer = net()
        train = digits()
        with Profiler("epochs", epochs=2) as prof:
            prof.attach(model, optimizer, train)
            for _ in prof.epochs():
                for _ in range(2):
                    for x, y in train:
                        train_step(model, optimizer, x, y)
        assert [epoch["stages"][0]["steps"] for epoch in prof.summary.epochs] == [8, 8]
        assert [epoch["stages"][0]["passes"] for epoch in prof.summary.epochs] == [2, 2]
        check_sums(prof)

    def test_one_loader_that_is_trained_and_evaluated_on(self) -> None:
        model, optimizer = net()
        train = digits()
        with Profiler("both") as prof:
            prof.attach(model, optimizer, train)
            for _ in range(3):
                for x, y in train:
                    train_step(model, optimizer, x, y)
                model.eval()
                for x, _ in train:
                    with torch.no_grad():
                        model(x)
                model.train()
        assert len(prof.summary.epochs) == 3
        assert all({stage["stage"] for stage in epoch["stages"]} == {"train", "val"} for epoch in prof.summary.epochs)
        check_sums(prof)

    def test_iterated_loader_without_model_is_no_stage(self) -> None:
        train = digits()
        with Profiler("statistics") as prof:
            prof.attach(train)
            for _ in range(2):
                for _ in train:
                    pass
        document = prof.summary.to_dict()
        assert document["stages"] == {}
        assert document["phases"]["data_wait"]["count"] == 8 + 2  # each time round, the end, too

    def test_a_loader_that_fetches_one_batch_ahead(self) -> None:
        class Ahead(torch.utils.data.DataLoader):  # type: ignore[misc, name-defined]
            def __iter__(self) -> Iterator[Any]:
                iterator = super().__iter__()
                current = next(iterator)
                for following in iterator:
                    yield current
                    current = following
                yield current

        model, optimizer = net()
        train = Ahead(digits().dataset, batch_size=64)
        with Profiler("ahead") as prof:
            prof.attach(model, optimizer, train)
            for _ in range(2):
                for x, y in train:
                    train_step(model, optimizer, x, y)
        for epoch in prof.summary.epochs:
            (stage,) = epoch["stages"]
            assert (stage["steps"], stage["passes"], stage["partial"]) == (4, 1, False)
            assert counts(stage) == waits(stage, forward=4, backward=4, optimizer=4)
        check_sums(prof)

    def test_model_whose_parts_alone_are_called(self) -> None:
        parts = nn.ModuleDict({"first": nn.Linear(64, 32), "second": nn.Linear(32, 10)})
        optimizer = torch.optim.SGD(parts.parameters(), lr=0.1)
        with Profiler("parts") as prof:
            prof.attach(parts, optimizer)
            for x, y in [*digits()] * 3:
                train_step(lambda x: parts["second"](parts["first"](x)), optimizer, x, y)
            assert hooks_on(parts["first"]) == 2
        assert hooks_on(parts["first"]) == 0
        assert counts(prof.summary.stages["train"])["forward"] == 2 * 3 * BATCHES  # found at their first call
        check_sums(prof)

    def test_workers_that_stay_and_those_that_do_not(self) -> None:
        for persistent in (False, True):
            model, optimizer = net()
            train = digits(num_workers=1, persistent_workers=persistent)
            with Profiler("workers") as prof:
                prof.attach(model, optimizer, train)
                for _ in range(2):
                    for x, y in train:
                        train_step(model, optimizer, x, y)
            assert [epoch["stages"][0]["steps"] for epoch in prof.summary.epochs] == [4, 4]
            assert not prof.summary.stages["train"]["partial"]
            check_sums(prof)


class Wrapped(nn.Module):  # type: ignore[misc, name-defined]
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Any) -> Any:
        return self.model(x)


class TestTorchsOwnWays:
    @pytest.mark.parametrize("how", ["outside", "in place"])
    def test_compiled(self, how: str) -> None:
        counters = __import__("torch._dynamo.utils", fromlist=["x"]).counters
        found = []
        for attached in (False, True):
            torch._dynamo.reset()
            counters.clear()
            model, optimizer = net()
            model = Wrapped(model)
            called = model
            if how == "in place":
                model.compile(backend="eager")
            else:
                called = torch.compile(model, backend="eager", fullgraph=True)
            with Profiler("compiled", settings={"local": False}) as prof:
                if attached:
                    prof.attach(called, optimizer)
                losses = [train_step(called, optimizer, x, y) for x, y in prof.train(digits())]
            found.append((losses, dict(counters["stats"]), dict(counters["graph_break"])))
        assert found[0] == found[1]  # the same graphs, no break more, the same losses
        assert counts(prof.summary.stages["train"])["forward"] == BATCHES
        check_sums(prof)
        torch._dynamo.reset()

    def test_hooks_compile_to_nothing(self) -> None:
        torch._dynamo.reset()
        model, optimizer = net()
        with Profiler("inside", settings={"local": False}) as prof:
            prof.attach(model, optimizer)
            step = torch.compile(lambda x: model(x).sum(), backend="eager", fullgraph=True)
            for x, _ in prof.train(digits()):
                step(x).backward()
                optimizer.step()
        stage = prof.summary.stages["train"]
        assert counts(stage) == waits(stage, backward=4, optimizer=4)
        torch._dynamo.reset()

    @pytest.mark.parametrize("reentrant", [False, True])
    def test_checkpointed_parts_run_again_within_the_backward(self, reentrant: bool) -> None:
        checkpoint = __import__("torch.utils.checkpoint", fromlist=["x"]).checkpoint
        model, optimizer = net()
        with Profiler("checkpointing") as prof:
            prof.attach(model, optimizer)
            for x, y in prof.train(digits()):
                output = checkpoint(model, x.requires_grad_(), use_reentrant=reentrant)
                nn.functional.cross_entropy(output, y).backward()
                optimizer.step()
        phases = prof.summary.stages["train"]["phases"]
        assert counts(prof.summary.stages["train"])["forward"] == BATCHES
        assert "phases" not in phases["backward"]
        check_sums(prof)

    def test_closure_is_not_part_of_optimizer_time(self) -> None:
        model, _ = net()
        optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2)
        batches = list(digits())
        with Profiler("lbfgs") as prof:
            prof.attach(model, optimizer)
            for x, y in batches:

                def closure(x: Any = x, y: Any = y) -> Any:
                    optimizer.zero_grad()
                    loss = nn.functional.cross_entropy(model(x), y)
                    loss.backward()
                    return loss

                optimizer.step(closure)
        stage = prof.summary.stages["train"]
        assert stage["steps"] == counts(stage)["optimizer"] == BATCHES
        assert counts(stage)["forward"] == counts(stage)["backward"] > BATCHES
        assert not any("phases" in entry for entry in stage["phases"].values())
        check_sums(prof)

    def test_a_closure_that_raises(self) -> None:
        model, optimizer = net()
        with Profiler("raises") as prof:
            prof.attach(model, optimizer)
            for x, y in digits():
                nn.functional.cross_entropy(model(x), y).backward()
                with pytest.raises(ZeroDivisionError):
                    optimizer.step(lambda: 1 / 0)
        check_sums(prof)

    def test_closure_step_is_one_measurement(self) -> None:
        model, optimizer = net()
        with Profiler("closure") as prof:
            prof.attach(model, optimizer)
            for x, y in prof.train(digits()):

                def closure(x: Any = x, y: Any = y) -> Any:
                    optimizer.zero_grad()
                    loss = nn.functional.cross_entropy(model(x), y)
                    loss.backward()
                    return loss

                optimizer.step(closure)
        entry = prof.summary.stages["train"]["phases"]["optimizer"]
        assert entry["count"] == BATCHES
        assert entry["mean_s"] <= entry["max_s"]
        assert entry["total_s"] <= BATCHES * entry["max_s"]
        check_sums(prof)

    def test_scripting_a_model_leaves_the_hooks_out(self) -> None:
        model, optimizer = net()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, of scripting
            with Profiler("script") as prof:
                prof.attach(model, optimizer)
                scripted = torch.jit.script(model)
                assert torch.equal(scripted(torch.ones(1, 64)), model(torch.ones(1, 64)))
                assert hooks_on(model) == 2

    @pytest.mark.skipif(sys.version_info < (3, 11), reason="there a frame cannot be left out")
    def test_an_exception_shows_no_frame_of_ours(self) -> None:
        class Broken(torch.utils.data.Dataset):  # type: ignore[misc, name-defined]
            def __len__(self) -> int:
                return 8

            def __getitem__(self, index: int) -> Any:
                raise KeyError(index)

        model, optimizer = net()
        broken = torch.utils.data.DataLoader(Broken())
        with Profiler("frames") as prof:
            prof.attach(model, optimizer, broken)
            prof.session.observation.follow_loaders()
            loss = model(torch.ones(1, 64)).sum()
            loss.backward()
            for action in (loss.backward, lambda: next(iter(broken)), lambda: torch.save(model, "/nowhere/at/all.pt")):
                with pytest.raises((RuntimeError, KeyError)) as raised:
                    action()
                names = [frame.filename for frame in traceback.extract_tb(raised.value.__traceback__)]
                assert not any("torch_patches" in name for name in names), names

    def test_exception_in_forward_passes_and_ends_phase(self) -> None:
        model, optimizer = net()
        with Profiler("exception") as prof:
            prof.attach(model, optimizer)
            for index, (x, y) in enumerate(prof.train(digits())):
                if index == 1:
                    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
                        model(torch.zeros(1, 3))
                train_step(model, optimizer, x, y)
        assert counts(prof.summary.stages["train"])["forward"] == BATCHES + 1
        assert "phases" not in prof.summary.stages["train"]["phases"]["forward"]
        check_sums(prof)

    def test_losses_and_random_numbers_stay_the_same(self) -> None:
        found = []
        for attach in (None, "told", "inferred"):
            torch.manual_seed(1)
            model, optimizer = net(nn.Linear(64, 32), nn.Dropout(0.5), nn.Linear(32, 10))
            train = digits(num_workers=0, generator=None)
            with Profiler("same") as prof:
                if attach:
                    prof.attach(model, optimizer, train)
                losses = [
                    train_step(model, optimizer, x, y)
                    for _ in range(2)
                    for x, y in (prof.train(train) if attach == "told" else train)
                ]
            found.append((losses, torch.rand(1).item()))
        assert found[0] == found[1] == found[2]


class TestHandles:
    def test_removed_means_gone(self) -> None:
        model, optimizer = net()
        with Profiler("removed") as prof:
            handle = prof.attach(model, optimizer)
            assert hooks_on(model) == 2
            handle.remove()
            handle.remove()
            assert hooks_on(model) == 0
            assert not optimizer._optimizer_step_pre_hooks
            assert PATCHES.listeners == ()
            for x, y in prof.train(digits()):
                train_step(model, optimizer, x, y)
        assert counts(prof.summary.stages["train"]) == waits(prof.summary.stages["train"])

    def test_a_with_block_ends_it(self) -> None:
        model, optimizer = net()
        with Profiler("block") as prof:
            for index, (x, y) in enumerate(prof.train(digits())):
                if index == 0:
                    with prof.attach(model, optimizer):
                        train_step(model, optimizer, x, y)
        stage = prof.summary.stages["train"]
        assert counts(stage) == waits(stage, forward=1, backward=1, optimizer=1)

    def test_twice_is_once_until_both_are_removed(self) -> None:
        model, optimizer = net()
        with Profiler("twice") as prof:
            first, second = prof.attach(model, optimizer), prof.attach(model)
            assert hooks_on(model) == 2
            first.remove()
            assert hooks_on(model) == 2
            for x, y in prof.train(digits()):
                train_step(model, optimizer, x, y)
            second.remove()
            assert hooks_on(model) == 0
        assert counts(prof.summary.stages["train"])["forward"] == BATCHES

    def test_the_end_of_the_run_takes_all_hooks(self) -> None:
        model, optimizer = net()
        prof = Profiler("end").start()
        prof.attach(model, optimizer)
        prof.stop()
        assert hooks_on(model) == 0
        prof.attach(model)
        assert hooks_on(model) == 0  # afterwards nothing is put in place

    def test_two_profilers_on_one_model(self) -> None:
        model, optimizer = net()
        with Profiler("one") as one, Profiler("two") as two:
            one.attach(model, optimizer)
            two.attach(model, optimizer)
            for x, y in one.train(two.train(digits())):
                train_step(model, optimizer, x, y)
        for prof in (one, two):
            assert counts(prof.summary.stages["train"])["forward"] == BATCHES

    @pytest.mark.parametrize("thing", [3, "model", None, [1], nn.functional.relu])
    def test_unsupported_thing_raises_and_leaves_no_hook(self, thing: Any) -> None:
        model, _ = net()
        with Profiler("wrong") as prof:
            with pytest.raises(ArgumentTypeError, match="modules, optimizers and DataLoaders"):
                prof.attach(model, thing)
            assert hooks_on(model) == 0
            with pytest.raises(ArgumentTypeError, match="attach what"):
                prof.attach()

    def test_loader_freed_before_run_ends(self, caplog: pytest.LogCaptureFixture) -> None:
        with Profiler("freed") as prof:
            train = digits()
            prof.attach(train)
            del train
            gc.collect()
        assert not caplog.records
        assert "notes" not in prof.summary.to_dict()

    def test_own_fault_is_counted_and_loop_continues(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model, optimizer = net()
        with Profiler("fault") as prof:
            prof.attach(model, optimizer)
            observer = prof.session.observation.hooks.observer  # type: ignore[union-attr]
            monkeypatch.setattr(observer.phases, "begin", lambda *_: 1 / 0)
            losses = [train_step(model, optimizer, x, y) for x, y in prof.train(digits())]
        assert len(losses) == BATCHES
        assert prof.summary.to_dict()["notes"] == {"a loop could not be followed: ZeroDivisionError": 5}
