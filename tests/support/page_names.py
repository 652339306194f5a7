"""The things that pages take for given: a model, loaders, a framework's parts. Each is made when a block needs it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from profiler import Profiler, Telemetry


def loader() -> DataLoader[Any]:
    torch.manual_seed(0)
    return DataLoader(TensorDataset(torch.randn(64, 8), torch.randint(0, 3, (64,))), batch_size=8)


class Made(dict[str, Any]):
    """A namespace that makes such a thing at its first use; ``exec`` looks global names up here."""

    def __init__(self) -> None:
        super().__init__()
        self["model"] = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
        self["optimizer"] = torch.optim.SGD(self["model"].parameters(), 0.1)
        self["criterion"] = nn.CrossEntropyLoss()
        self.update(train_loader=loader(), val_loader=loader(), test_loader=loader())
        self.update(augment=lambda x: x, save=lambda model: None, train_one_epoch=self.train)

    def train(self, model: Any, optimizer: Any, batches: Any) -> None:
        for x, y in batches:
            self["criterion"](model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()

    def make_for(self, code: str) -> None:
        """Make what this block of code speaks of, and costs time to make."""
        for name in ("lightning_module", "hf_model", "prof", "telemetry", "app", "fleet.open"):
            if name in code and name not in self:
                getattr(self, f"_make_{name.replace('.', '_')}")()

    def _make_lightning_module(self) -> None:
        import lightning.pytorch as pl

        class Module(pl.LightningModule):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.net = nn.Linear(8, 3)

            def training_step(self, batch: Any, number: int) -> Any:
                return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

            def configure_optimizers(self) -> Any:
                return torch.optim.SGD(self.parameters(), 0.1)

        self["lightning_module"] = Module()

    def _make_hf_model(self) -> None:
        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = nn.Linear(8, 3)

            def forward(self, x: Any, labels: Any) -> Any:
                scores = self.net(x)
                return {"loss": nn.functional.cross_entropy(scores, labels), "logits": scores}

        self["hf_model"] = Model()
        self["hf_dataset"] = [{"x": torch.randn(8), "labels": torch.tensor(n % 3)} for n in range(32)]

    def _make_prof(self) -> None:
        prof = self["prof"] = Profiler("page")
        prof.start()
        for _ in prof.epochs(6):
            self.train(self["model"], self["optimizer"], prof.train(self["train_loader"]))

    def _make_telemetry(self) -> None:
        self["telemetry"] = Telemetry("mypackage", "1.2.3", features=("export", "augment"))

    def _make_app(self) -> None:
        import typer

        self["app"] = typer.Typer()

    def _make_fleet_open(self) -> None:
        from support.processes import epochmeter

        self._make_prof()
        self["prof"].stop()
        assert epochmeter("fleet", "load", "--into", "fleet").code == 0
