"""Loops of many shapes, followed as ``epochmeter run`` follows an unchanged script."""

from __future__ import annotations

import contextlib
import io
import threading
import time
import warnings
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

from profiler import Profiler  # noqa: E402
from profiler.measure.follow.loader_events import NO_OPTIMIZER  # noqa: E402


def net() -> Any:
    return nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 1))


def loader(rows: int = 80, batch: int = 8, **more: Any) -> Any:
    return DataLoader(TensorDataset(torch.randn(rows, 16), torch.randn(rows, 1)), batch, **more)


def followed(loop: Any, notes: list[str] | None = None) -> dict[str, Any]:
    """Run a loop as an unchanged script, and return what was told; it has these notes."""
    # No lines: on a busy machine a sample may hold the frames of the loop for some milliseconds, and with them its data sets;
    # whether one is "made anew in the place of another that is gone" would then depend on the machine.
    with Profiler("shape", settings={"lines": False}) as prof:
        prof.session.observation.follow_everything()
        loop()
    told: dict[str, Any] = prof.summary.to_dict()
    assert list(told.get("notes", {})) == (notes or [])
    return told


def count(told: dict[str, Any], stage: str, *names: str) -> list[int]:
    found = told["stages"][stage]
    return [found["steps"], found["passes"], *(found["phases"][name]["count"] for name in names)]


def epochs(told: dict[str, Any]) -> list[dict[str, int]]:
    return [{stage["stage"]: stage["steps"] for stage in epoch["stages"]} for epoch in told["epochs"]]


def train_on(model: Any, optimizer: Any, batches: Any) -> None:
    for x, y in batches:
        (model(x) - y).square().mean().backward()
        optimizer.step()


def by_hand(model: Any) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sub_(parameter.grad, alpha=0.01)
    model.zero_grad()


X = torch.ones(4, 16)


class TestLoopsWithoutLoader:
    def test_first_forward_is_seen(self) -> None:
        def loop() -> None:
            model = net()
            optimizer = torch.optim.SGD(model.parameters(), 0.1)
            for _ in range(7):
                optimizer.zero_grad()
                model(X).sum().backward()
                optimizer.step()

        assert count(followed(loop), "train", "forward", "backward", "optimizer") == [7, 1, 7, 7, 7]

    @pytest.mark.parametrize("calls_train", [False, True])
    def test_without_optimizer(self, calls_train: bool) -> None:
        def loop() -> None:
            model = net()
            if calls_train:
                model.train()
            for _ in range(9):
                model(X).sum().backward()
                by_hand(model)

        assert count(followed(loop, [NO_OPTIMIZER]), "train", "forward", "backward") == [9, 1, 9, 9]

    def test_no_step_is_lost_at_an_evaluation(self) -> None:
        def loop() -> None:
            model = net()
            for _ in range(3):
                model.train()
                for _ in range(5):
                    model(X).sum().backward()
                    by_hand(model)
                model.eval()
                with torch.no_grad():
                    for _ in range(2):
                        model(X)

        told = followed(loop, [NO_OPTIMIZER])
        assert count(told, "train", "forward") == [15, 1, 15]
        assert count(told, "val", "forward") == [6, 3, 6]

    def test_grad_is_the_only_backward(self) -> None:
        def loop() -> None:
            model = net()
            for _ in range(6):
                grads = torch.autograd.grad(model(X).sum(), list(model.parameters()))
                with torch.no_grad():
                    for parameter, grad in zip(model.parameters(), grads, strict=True):
                        parameter.sub_(grad, alpha=0.01)

        assert count(followed(loop, [NO_OPTIMIZER]), "train", "forward", "backward") == [6, 1, 6, 6]

    def test_grad_within_a_loss_is_no_backward(self) -> None:
        """A gradient penalty. The first one comes before the loop's first backward, and counts as one."""

        def loop() -> None:
            model = net()
            optimizer = torch.optim.SGD(model.parameters(), 0.1)
            for _ in range(6):
                x = X.clone().requires_grad_()
                (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
                slope.square().sum().backward()
                optimizer.step()

        told = followed(loop)
        assert count(told, "train", "backward", "optimizer") == [6, 1, 7, 6]

    def test_grad_of_an_evaluation_trains_nothing(self) -> None:
        """A saliency map, or forces that a model of physics derives."""

        def loop() -> None:
            model = net().eval()
            for _ in range(4):
                x = X.clone().requires_grad_()
                torch.autograd.grad(model(x).sum(), x)

        told = followed(loop)
        assert list(told["stages"]) == ["val"] and told["stages"]["val"]["steps"] == 4

    def test_first_step_holds_all_its_batches(self) -> None:
        def loop() -> None:
            model = net().train()
            optimizer = torch.optim.SGD(model.parameters(), 0.1)
            for _ in range(5):
                for _ in range(3):
                    model(X).sum().backward()
                optimizer.step()

        train = followed(loop)["stages"]["train"]
        assert (train["steps"], train["step"]["cold"]["count"], train["phases"]["forward"]["cold"]["count"]) == (5, 1, 3)

    def test_optimizer_that_is_not_torchs(self) -> None:
        """As fastai's is: no hook of torch reports it, and the report says where its time is."""

        def loop() -> None:
            model = net()
            for _ in range(2):
                for x, y in loader():
                    (model(x) - y).square().mean().backward()
                    by_hand(model)

        assert count(followed(loop, [NO_OPTIMIZER]), "train", "backward", "after backward") == [20, 2, 20, 20]


class TestModels:
    def test_second_model_is_found(self) -> None:
        """An averaged model inside a wrapper that is never called, as many training programs have it."""

        class Averaged(nn.Module):  # type: ignore[misc,name-defined]
            def __init__(self, inner: Any) -> None:
                super().__init__()
                self.module = inner

        def loop() -> None:
            model, averaged = net(), Averaged(net().eval())
            optimizer = torch.optim.SGD(model.parameters(), 0.1)
            for _ in range(2):
                model.train()
                train_on(model, optimizer, loader())
                for either in (model.eval(), averaged.module):
                    with torch.no_grad():
                        for x, _ in loader(40):
                            either(x)

        told = followed(loop)
        assert count(told, "train", "forward") == [20, 2, 20]
        assert count(told, "val", "forward") == [20, 4, 20]
        assert "phases" not in told  # nothing is outside

    def test_parts_called_by_another_method(self) -> None:
        """A policy of reinforcement learning: ``act`` calls its parts, and the policy itself is never called."""

        class Policy(nn.Module):  # type: ignore[misc,name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.body, self.head = nn.Linear(16, 8), nn.Linear(8, 1)

            def act(self, x: Any) -> Any:
                return self.head(torch.relu(self.body(x)))

        def loop() -> None:
            policy = Policy()
            optimizer = torch.optim.SGD(policy.parameters(), 0.1)
            for _ in range(4):
                with torch.no_grad():
                    for _ in range(3):
                        policy.act(X)
                policy.act(X).sum().backward()
                optimizer.step()

        told = followed(loop)
        assert count(told, "train", "backward", "optimizer") == [4, 1, 4, 4]
        forwards = told["stages"]["train"]["phases"]["forward"]["count"] + told["stages"]["val"]["phases"]["forward"]["count"]
        assert forwards == 2 * 4 * 4

    def test_part_of_a_called_model_is_found(self) -> None:
        def loop() -> None:
            model = net()
            optimizer = torch.optim.SGD(model.parameters(), 0.1)
            for _ in range(2):
                model.train()
                train_on(model, optimizer, loader())
                model.eval()
                with torch.no_grad():
                    for x, _ in loader(40):
                        model[0](x)

        told = followed(loop)
        assert count(told, "train", "forward") == [20, 2, 20]
        assert count(told, "val", "forward") == [10, 2, 10]


class TestEndsOfPasses:
    def test_pass_that_counts_its_batches(self) -> None:
        """It asks for no batch too many, so no event says that it has ended; its iterator lives on."""
        held = []

        def loop() -> None:
            model = net()
            optimizer = torch.optim.SGD(model.parameters(), 0.1)
            train, val = loader(), loader(40)
            for _ in range(3):
                model.train()
                train_on(model, optimizer, train)
                model.eval()
                batches = iter(val)
                held.append(batches)
                time.sleep(0.05)
                with torch.no_grad():
                    for _ in range(len(val)):
                        model(next(batches)[0])
                torch.save({}, io.BytesIO())
                time.sleep(0.4)

        told = followed(loop)
        val = told["stages"]["val"]
        assert count(told, "val", "forward", "data_wait", "after loader_start") == [15, 3, 15, 15, 3]
        assert val["phases"]["after loader_start"]["total_s"] > 0.15 and not val["partial"]
        assert val["duration_s"] < 0.15 + 0.4
        assert "checkpoint" not in val["phases"] and told["phases"]["checkpoint"]["count"] == 3
        assert val["step"]["count"] == 15

    def test_what_follows_the_last_batch(self) -> None:
        """Statistics are renewed in training mode, while the exhausted iterator is still held."""

        held = []

        def loop() -> None:
            model = net()
            optimizer = torch.optim.SGD(model.parameters(), 0.1)
            batches = iter(loader())
            train_on(model, optimizer, batches)
            time.sleep(0.5)
            with torch.no_grad():
                model(X)
            held.append(batches)

        told = followed(loop)
        assert told["stages"]["train"]["steps"] == 10 and told["stages"]["train"]["duration_s"] < 0.5

    def test_optimizer_that_raises(self) -> None:
        """A step that is skipped by an exception, which the loop catches, does not swallow what follows."""

        class Fails(torch.optim.SGD):  # type: ignore[misc,name-defined]
            def step(self, closure: Any = None) -> Any:
                raise ValueError("not finite")

        def loop() -> None:
            model = net()
            optimizer = Fails(model.parameters(), 0.1)
            for x, y in loader(16):
                (model(x) - y).square().mean().backward()
                with contextlib.suppress(ValueError):
                    optimizer.step()
                if x.sum() > 1e9:
                    torch.save({}, io.BytesIO())
                time.sleep(0.05)

        phases = followed(loop, [NO_OPTIMIZER])["stages"]["train"]["phases"]
        assert "optimizer" not in phases

    def test_batch_fetched_ahead_and_never_used(self) -> None:
        def ahead(batches: Any) -> Any:
            iterator = iter(batches)
            batch = next(iterator)
            for following in iterator:
                yield batch
                batch = following
            yield batch

        def loop() -> None:
            model = net()
            optimizer = torch.optim.SGD(model.parameters(), 0.1)
            done = 0
            for _ in range(2):
                for x, y in ahead(loader()):
                    (model(x) - y).square().mean().backward()
                    optimizer.step()
                    done += 1
                    if done == 14:
                        break

        told = followed(loop)
        assert epochs(told) == [{"train": 10}, {"train": 4}]
        assert told["stages"]["train"]["samples"] == 14 * 8

    def test_evaluation_before_the_first_step(self) -> None:
        def loop() -> None:
            model = net()
            optimizer = torch.optim.SGD(model.parameters(), 0.1)
            model.eval()
            with torch.no_grad():
                for x, _ in loader(16):
                    model(x)
            for _ in range(2):
                model.train()
                train_on(model, optimizer, loader())

        assert epochs(followed(loop)) == [{"train": 10, "val": 2}, {"train": 10}]

    def test_trial_before_the_loop_is_no_training(self) -> None:
        def loop() -> None:
            model = net()
            optimizer = torch.optim.SGD(model.parameters(), 0.1)
            batches = loader()
            model(next(iter(batches))[0])  # to see a shape
            for _ in range(3):
                train_on(model, optimizer, batches)

        told = followed(loop)
        assert epochs(told) == [{"train": 10}] * 3
        assert told["stages"]["train"]["passes"] == 3

    def test_evaluation_that_goes_on_in_the_next_epoch(self) -> None:
        """One iterator for all epochs, which takes a few batches each time."""

        def loop() -> None:
            model = net()
            optimizer = torch.optim.SGD(model.parameters(), 0.1)
            batches = iter(loader(160))
            for _ in range(4):
                model.train()
                train_on(model, optimizer, loader(24))
                model.eval()
                with torch.no_grad():
                    for _ in range(3):
                        model(next(batches)[0])

        assert epochs(followed(loop)) == [{"train": 3, "val": 3}] * 4

    def test_training_inside_an_evaluation(self) -> None:
        """It adapts the model to each task of an evaluation, and begins no epoch."""

        def loop() -> None:
            model = net()
            optimizer = torch.optim.SGD(model.parameters(), 0.1)
            train, val = loader(), loader(24)
            for epoch in range(2):
                model.train()
                train_on(model, optimizer, train)
                for task, _ in val if epoch else ():
                    model.eval()
                    model(task)
                    model.train()
                    train_on(model, optimizer, train)

        told = followed(loop)
        assert [set(epoch) for epoch in epochs(told)] == [{"train"}, {"train", "val"}]
        assert told["stages"]["val"]["passes"] == 1
        assert told["stages"]["train"]["steps"] == 50

    def test_data_sets_made_anew_are_freed(self) -> None:
        alive = []

        class Row:
            def __init__(self) -> None:
                alive.append(self)

            def __del__(self) -> None:
                deaths.append(1)

        deaths: list[int] = []

        def loop() -> None:
            model = net()
            optimizer = torch.optim.SGD(model.parameters(), 0.1)
            for _ in range(5):
                rows = [Row() for _ in range(10)]
                alive.clear()
                for x in DataLoader(rows, 5, collate_fn=lambda found: torch.ones(len(found), 16)):
                    model(x).sum().backward()
                    optimizer.step()
            del rows

        told = followed(loop)
        assert len(deaths) == 50
        assert epochs(told) == [{"train": 2}] * 5


def test_threads_that_train_share_the_epochs_of_one() -> None:
    together = threading.Barrier(3)

    def train() -> None:
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        batches = loader(160)
        for _ in range(2):
            together.wait()
            train_on(model, optimizer, batches)

    def loop() -> None:
        threads = [threading.Thread(target=train) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    told = followed(loop)
    assert len(told["epochs"]) == 2 and told["stages"]["train"]["steps"] == 120


def test_compiled_modules_meet_no_hook_of_all() -> None:
    """``torch.compile`` warns of hooks on all modules, and a warning would be printed into the run."""

    def loop() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", "Guards may run slower", RuntimeWarning)  # Python 3.13.0 alone
            compiled = torch.compile(net().eval(), backend="eager")
            with torch.no_grad():
                compiled(X)

    assert followed(loop)["stages"]["val"]["steps"] == 1
