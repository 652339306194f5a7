"""Adapters, each with its framework and a small real training: the phases are there, the losses are the same."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from profiler import ArgumentTypeError, ArgumentValueError, Profiler
from profiler.config.paths import runs_path
from profiler.measure.follow.torch_patches import PATCHES
from profiler.storage.run_log import run_paths
from profiler.storage.run_reader import load

pytestmark = pytest.mark.slow
torch = pytest.importorskip("torch")
nn = torch.nn
N = 320
BATCH = 64
STEPS = N // BATCH


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():  # what a framework warns of is not ours
        warnings.simplefilter("ignore")
        yield
    assert PATCHES.listeners == ()


def data() -> tuple[Any, Any]:
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    return torch.tensor(digits.data[:N], dtype=torch.float32) / 16, torch.tensor(digits.target[:N])


def loader(shuffle: bool = True) -> Any:
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data()), batch_size=BATCH, shuffle=shuffle)


def net() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 10))


def counts(stage: dict[str, Any]) -> dict[str, int]:
    return {name: entry["count"] for name, entry in stage["phases"].items() if "count" in entry}


def recorded() -> list[Any]:
    return [load(path) for path in run_paths(runs_path())]


def check(summary: Any, epochs: int, *, forward: bool = True) -> None:
    """Told epochs, whole passes, each phase once a step, and sums that are right."""
    assert [epoch["index"] for epoch in summary.epochs] == list(range(epochs))
    assert not any("inferred" in epoch for epoch in summary.epochs)
    train = summary.stages["train"]
    assert train["steps"] == epochs * STEPS
    assert train["samples"] == epochs * N
    assert not train["partial"]
    assert counts(train)["backward"] == counts(train)["optimizer"] == epochs * STEPS
    assert counts(train)["forward"] == epochs * STEPS
    assert counts(train)["data_wait"] >= epochs * STEPS
    for stage in summary.stages.values():
        parts = [entry["total_s"] for entry in stage["phases"].values()]
        assert sum(parts) == pytest.approx(stage["duration_s"], abs=1e-6)
        assert min(parts) >= 0
    assert "notes" not in summary.to_dict()


class TestLightning:
    @pytest.fixture
    def pl(self) -> Any:
        return pytest.importorskip("lightning.pytorch")

    def module(self, pl: Any, losses: list[float]) -> Any:
        class Digits(pl.LightningModule):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.net = net()

            def forward(self, x: Any) -> Any:
                return self.net(x)

            def training_step(self, batch: Any, index: int) -> Any:
                loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
                losses.append(loss.item())
                return loss

            def validation_step(self, batch: Any, index: int) -> None:
                self(batch[0])

            def predict_step(self, batch: Any, index: int) -> Any:
                return self(batch[0])

            def configure_optimizers(self) -> Any:
                return torch.optim.Adam(self.parameters())

        return Digits()

    def trainer(self, pl: Any, *callbacks: Any, **options: Any) -> Any:
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
        return pl.Trainer(max_epochs=2, accelerator="cpu", callbacks=list(callbacks), **{**quiet, **options})

    def test_fit(self, pl: Any) -> None:
        from profiler.adapters.lightning_callback import ProfilerCallback

        bare: list[float] = []
        torch.manual_seed(0)
        module = self.module(pl, bare)
        self.trainer(pl).fit(module, loader(), loader(shuffle=False))
        measured: list[float] = []
        torch.manual_seed(0)
        module = self.module(pl, measured)
        callback = ProfilerCallback(name="digits")
        self.trainer(pl, callback).fit(module, loader(), loader(shuffle=False))
        assert bare == measured
        check(callback.summary, 2)
        assert callback.summary.name == "digits"
        assert counts(callback.summary.stages["val"])["forward"] == 2 * STEPS + 2  # two batches of its sanity check
        assert "forward" not in callback.summary.stages["train"]["phases"]["optimizer"].get("phases", {})
        assert [run.state for run in recorded()] == ["finished"]

    def test_fit_without_validation(self, pl: Any) -> None:
        from profiler.adapters.lightning_callback import ProfilerCallback

        callback = ProfilerCallback()
        self.trainer(pl, callback).fit(self.module(pl, []), loader())
        check(callback.summary, 2)
        assert callback.summary is not None
        assert callback.summary.stages.keys() == {"train"}
        optimizer = callback.summary.stages["train"]["phases"]["optimizer"]
        assert optimizer["mean_s"] <= optimizer["max_s"]

    def test_predict_and_validate_are_runs_of_their_own(self, pl: Any) -> None:
        from profiler.adapters.lightning_callback import ProfilerCallback

        callback = ProfilerCallback()
        trainer = self.trainer(pl, callback)
        trainer.predict(self.module(pl, []), loader(shuffle=False))
        assert callback.summary is not None
        assert callback.summary.stages["inference"]["steps"] == STEPS
        trainer.validate(self.module(pl, []), loader(shuffle=False), verbose=False)
        assert callback.summary.stages.keys() == {"val"}
        assert len(recorded()) == 2

    def test_gradients_gathered_over_two_batches(self, pl: Any) -> None:
        from profiler.adapters.lightning_callback import ProfilerCallback

        callback = ProfilerCallback()
        self.trainer(pl, callback, accumulate_grad_batches=5).fit(self.module(pl, []), loader())
        found = counts(callback.summary.stages["train"])  # type: ignore[union-attr]
        assert (found["backward"], found["optimizer"]) == (2 * STEPS, 2)

    def test_lightning_exception_passes_and_run_is_crashed(self, pl: Any) -> None:
        from profiler.adapters.lightning_callback import ProfilerCallback

        module = self.module(pl, [])
        module.training_step = lambda *_: 1 / 0
        with pytest.raises(ZeroDivisionError):
            self.trainer(pl, ProfilerCallback()).fit(module, loader())
        assert [run.state for run in recorded()] == ["crashed"]

    def test_a_fault_of_ours_never_reaches_lightning(self, pl: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        from profiler.adapters.lightning_callback import ProfilerCallback

        callback = ProfilerCallback()
        monkeypatch.setattr("profiler.adapters.driver.batch_size", lambda _: 1 / 0)
        self.trainer(pl, callback).fit(self.module(pl, []), loader())
        assert callback.summary is not None
        assert callback.summary.to_dict()["notes"] == {"an adapter failed: ZeroDivisionError": 2 * STEPS}

    def test_a_profiler_of_ones_own_goes_on(self, pl: Any) -> None:
        from profiler.adapters.lightning_callback import ProfilerCallback

        with Profiler("mine") as prof:
            trainer = self.trainer(pl, ProfilerCallback(prof))
            trainer.fit(self.module(pl, []), loader())
            with prof.phase("afterwards"):
                pass
        assert len(prof.summary.epochs) == 2
        assert len(recorded()) == 1

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda callback: pickle.loads(pickle.dumps(callback))])
    def test_a_copy_measures_for_itself(self, pl: Any, copied: Any) -> None:
        from profiler.adapters.lightning_callback import ProfilerCallback

        original = ProfilerCallback(name="copied")
        twin = copied(original)
        self.trainer(pl, twin).fit(self.module(pl, []), loader())
        check(twin.summary, 2)
        assert original.summary is None

    def test_two_spawned_ranks_measure_each(self, pl: Any) -> None:
        from profiler.adapters.lightning_callback import ProfilerCallback

        trainer = self.trainer(pl, ProfilerCallback(name="spawned"), strategy="ddp_fork", devices=2)
        trainer.fit(self.module(pl, []), loader())
        runs = recorded()
        assert sorted(len(run.epochs) for run in runs) == [2, 2]
        assert [run.name for run in runs] == ["spawned", "spawned"]

    def test_arguments_are_checked_at_once(self, pl: Any) -> None:
        from profiler.adapters.lightning_callback import ProfilerCallback

        with pytest.raises(ArgumentValueError, match="interval"):
            ProfilerCallback(interval=0)


class TestTransformers:
    @pytest.fixture
    def transformers(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        return pytest.importorskip("transformers")

    def train(self, transformers: Any, *callbacks: Any, **options: Any) -> list[float]:
        torch.manual_seed(0)
        config = transformers.BertConfig(
            vocab_size=32, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=10
        )
        model = transformers.BertForSequenceClassification(config)
        x, y = data()
        rows = [{"input_ids": (image[:16] * 16).long(), "labels": label} for image, label in zip(x, y, strict=True)]
        arguments = transformers.TrainingArguments(
            output_dir="out", num_train_epochs=2, per_device_train_batch_size=BATCH, per_device_eval_batch_size=BATCH,
            **{"eval_strategy": "epoch", "save_strategy": "no", "logging_steps": 1, "report_to": [], "use_cpu": True,
               "disable_tqdm": True, **options},
        )  # fmt: skip
        trainer = transformers.Trainer(model, arguments, train_dataset=rows, eval_dataset=rows[:128], callbacks=list(callbacks))
        trainer.train()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    def test_a_trainer(self, transformers: Any, capsys: pytest.CaptureFixture[str]) -> None:
        from profiler.adapters.transformers_callback import ProfilerCallback

        callback = ProfilerCallback(name="bert")
        assert self.train(transformers) == self.train(transformers, callback)
        check(callback.summary, 2)
        assert callback.summary is not None
        assert callback.summary.stages["val"]["steps"] == 4
        assert counts(callback.summary.stages["val"])["forward"] == 4
        assert [run.state for run in recorded()] == ["finished"]

    def test_gradients_gathered_over_batches(self, transformers: Any) -> None:
        from profiler.adapters.transformers_callback import ProfilerCallback

        callback = ProfilerCallback()
        self.train(transformers, callback, gradient_accumulation_steps=5, eval_strategy="no")
        found = counts(callback.summary.stages["train"])  # type: ignore[union-attr]
        assert (found["forward"], found["backward"], found["optimizer"]) == (2 * STEPS, 2 * STEPS, 2)

    def test_a_copy_measures_for_itself(self, transformers: Any) -> None:
        from profiler.adapters.transformers_callback import ProfilerCallback

        twin = pickle.loads(pickle.dumps(ProfilerCallback(name="copied")))
        self.train(transformers, copy.deepcopy(twin), twin)
        assert sorted(run.name for run in recorded()) == ["copied", "copied"]


class TestAccelerate:
    @pytest.mark.parametrize("attached", [False, True])
    def test_a_loop_of_ones_own(self, attached: bool) -> None:
        accelerate = pytest.importorskip("accelerate")
        losses: dict[bool, list[float]] = {}
        for profiled in (False, True) if attached else (False,):
            model = net()
            accelerator = accelerate.Accelerator(cpu=True)
            model, optimizer, train = accelerator.prepare(model, torch.optim.Adam(model.parameters()), loader())
            losses[profiled] = []
            with Profiler("accelerate") as prof:
                if profiled:
                    prof.attach(model, optimizer, train)
                for _ in range(2):
                    for x, y in train:
                        optimizer.zero_grad()
                        loss = nn.functional.cross_entropy(model(x), y)
                        accelerator.backward(loss)
                        optimizer.step()
                        losses[profiled].append(loss.item())
        if attached:
            assert losses[False] == losses[True]
            train_stage = prof.summary.stages["train"]
            assert len(prof.summary.epochs) == 2
            done = dict.fromkeys(("forward", "backward", "optimizer"), 2 * STEPS)
            assert counts(train_stage) == {"data_wait": 2 * STEPS + 2, **done}  # and the end of each pass


class TestIgnite:
    @pytest.fixture
    def engine(self) -> Any:
        return pytest.importorskip("ignite.engine")

    def engines(self, engine: Any, losses: list[float]) -> tuple[Any, Any, Any, Any]:
        model = net()
        optimizer = torch.optim.Adam(model.parameters())

        def update(_: Any, batch: Any) -> float:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            return losses[-1]

        def evaluate(_: Any, batch: Any) -> Any:
            model.eval()
            with torch.no_grad():
                result = model(batch[0])
            model.train()
            return result

        trainer, evaluator = engine.Engine(update), engine.Engine(evaluate)
        trainer.add_event_handler(engine.Events.EPOCH_COMPLETED, lambda _: evaluator.run(loader(shuffle=False)))
        return trainer, evaluator, model, optimizer

    def test_a_trainer_and_its_evaluator(self, engine: Any) -> None:
        from profiler.adapters.ignite_handler import attach

        bare: list[float] = []
        trainer, *_ = self.engines(engine, bare)
        trainer.run(loader(), max_epochs=2)
        measured: list[float] = []
        trainer, evaluator, model, optimizer = self.engines(engine, measured)
        driver = attach(
            trainer,
            evaluator,
            model=model,
            optimizer=optimizer,
            name="digits",
            phases={"rest": ("EPOCH_COMPLETED", "completed")},
        )
        trainer.run(loader(), max_epochs=2)
        assert bare == measured
        check(driver.summary, 2)
        assert driver.summary is not None
        assert driver.summary.stages["val"]["steps"] == 2 * STEPS
        assert "phases" not in driver.summary.stages["train"]["phases"]["data_wait"]
        assert [run.state for run in recorded()] == ["finished"]

    def test_ignite_exception_passes_and_run_is_crashed(self, engine: Any) -> None:
        from profiler.adapters.ignite_handler import attach

        trainer = engine.Engine(lambda _, batch: 1 / 0)
        attach(trainer)
        with pytest.raises(ZeroDivisionError):
            trainer.run(loader(), max_epochs=1)
        assert [run.state for run in recorded()] == ["crashed"]

    def test_unknown_events_and_engines_are_said(self, engine: Any) -> None:
        from profiler.adapters.ignite_handler import attach

        trainer = engine.Engine(lambda _, batch: None)
        with pytest.raises(ArgumentValueError, match=r"'EPOCH_COMPLETE' here\. Did you mean 'epoch_completed'"):
            attach(trainer, phases={"x": ("EPOCH_STARTED", "EPOCH_COMPLETE")})
        with pytest.raises(ArgumentTypeError, match="engines"):
            attach(3)
        with pytest.raises(ArgumentTypeError, match="a tuple of two names"):
            attach(trainer, phases={"x": "EPOCH_STARTED"})  # type: ignore[dict-item]


# ultralytics/utils/callbacks/base.py, version 8.4
# fmt: off
ULTRALYTICS_EVENTS = [
    "on_pretrain_routine_start", "on_pretrain_routine_end", "on_train_start", "on_train_epoch_start",
    "on_train_batch_start", "optimizer_step", "on_before_zero_grad", "on_train_batch_end", "on_train_epoch_end",
    "on_fit_epoch_end", "on_model_save", "on_train_end", "on_params_update", "teardown", "on_val_start",
    "on_val_batch_start", "on_val_batch_end", "on_val_end", "on_predict_start", "on_predict_batch_start",
    "on_predict_postprocess_end", "on_predict_batch_end", "on_predict_end", "on_export_start", "on_export_end",
]
# fmt: on


class Contract:
    """Ultralytics' callbacks as it documents them, around a real training: it cannot be installed beside this torch.

    As there, one iterator over the loader lives through all epochs, validation is a part of each epoch, and the trainer
    is its own argument.
    """

    training = True

    def __init__(self, losses: list[float]) -> None:
        self.callbacks: dict[str, list[Any]] = {event: [] for event in ULTRALYTICS_EVENTS}
        self.losses = losses
        self.model = net()
        self.optimizer = torch.optim.Adam(self.model.parameters())
        self.epoch = 0
        self.iterator = self.forever()

    def add_callback(self, event: str, function: Any) -> None:
        self.callbacks.setdefault(event, []).append(function)

    def run_callbacks(self, event: str) -> None:
        for function in self.callbacks[event]:
            function(self)

    def forever(self) -> Iterator[Any]:
        class Repeat:
            def __iter__(self) -> Iterator[list[int]]:
                while True:
                    yield from ([*range(start, start + BATCH)] for start in range(0, N, BATCH))

        dataset = torch.utils.data.TensorDataset(*data())
        return iter(torch.utils.data.DataLoader(dataset, batch_sampler=Repeat()))

    def train(self) -> None:
        self.run_callbacks("on_pretrain_routine_start")
        self.run_callbacks("on_pretrain_routine_end")
        self.run_callbacks("on_train_start")
        for self.epoch in range(2):
            self.run_callbacks("on_train_epoch_start")
            for _ in range(STEPS):
                x, y = next(self.iterator)
                self.run_callbacks("on_train_batch_start")
                loss = nn.functional.cross_entropy(self.model(x), y)
                loss.backward()
                self.optimizer.step()
                self.optimizer.zero_grad()
                self.losses.append(loss.item())
                self.run_callbacks("on_train_batch_end")
            self.run_callbacks("on_train_epoch_end")
            self.validate()
            torch.save(self.model.state_dict(), "last.pt")
            self.run_callbacks("on_model_save")
            self.run_callbacks("on_fit_epoch_end")
        self.run_callbacks("on_train_end")
        self.run_callbacks("teardown")

    def validate(self) -> None:
        self.run_callbacks("on_val_start")
        with torch.no_grad():
            for x, _ in loader(shuffle=False):
                self.run_callbacks("on_val_batch_start")
                self.model(x)
                self.run_callbacks("on_val_batch_end")
        self.run_callbacks("on_val_end")


class TestUltralytics:
    def test_a_training(self) -> None:
        from profiler.adapters.ultralytics_callback import register

        bare: list[float] = []
        Contract(bare).train()
        measured: list[float] = []
        model = Contract(measured)
        driver = register(model, name="digits", phases={"routine": ("on_val_end", "on_model_save")})
        model.train()
        assert bare == measured
        check(driver.summary, 2)
        assert driver.summary is not None
        assert driver.summary.stages["val"]["samples"] == 2 * N
        assert [epoch["phases"]["routine"]["phases"]["checkpoint"]["count"] for epoch in driver.summary.epochs] == [1, 1]
        assert [run.state for run in recorded()] == ["finished"]

    def test_the_real_one_where_it_can_be_installed(self, tmp_path: Path) -> None:
        ultralytics = pytest.importorskip("ultralytics", exc_type=ImportError)
        image = pytest.importorskip("PIL.Image")
        from profiler.adapters.ultralytics_callback import register

        for split in ("train", "val"):
            for label in "ab":
                folder = tmp_path / "images" / split / label
                folder.mkdir(parents=True)
                for index in range(8):
                    image.new("RGB", (32, 32), (index * 20, 100, 50)).save(folder / f"{index}.png")
        losses: dict[bool, list[float]] = {}
        for profiled in (False, True):
            model = ultralytics.YOLO("yolo11n-cls.yaml")
            kept = losses[profiled] = []
            model.add_callback("on_train_batch_end", lambda trainer, kept=kept: kept.append(float(trainer.loss)))
            driver = register(model) if profiled else None
            options = {"epochs": 2, "imgsz": 32, "batch": 4, "workers": 0, "device": "cpu", "plots": False, "verbose": False}
            model.train(data=str(tmp_path / "images"), project=str(tmp_path / "out"), **options)
        assert losses[False] == losses[True]
        assert driver is not None
        assert driver.summary is not None
        assert len(driver.summary.epochs) == 2
        assert counts(driver.summary.stages["train"])["forward"] == 8

    def test_unknown_events_and_models_are_said(self) -> None:
        from profiler.adapters.ultralytics_callback import register

        with pytest.raises(ArgumentValueError, match="Did you mean 'on_train_start'"):
            register(Contract([]), phases={"x": ("on_train_strat", "on_train_end")})
        with pytest.raises(ArgumentTypeError, match="add_callback"):
            register(3)

    def test_an_event_that_this_version_does_not_know(self) -> None:
        from profiler.adapters.ultralytics_callback import register

        model = Contract([])
        model.callbacks["on_train_epoch_begin"] = model.callbacks.pop("on_train_epoch_start")  # as if it had been renamed
        with pytest.raises(ArgumentValueError, match="no event 'on_train_epoch_start' here"):
            register(model)
