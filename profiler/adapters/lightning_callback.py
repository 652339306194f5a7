"""PyTorch Lightning: ``Trainer(callbacks=[ProfilerCallback()])``, of ``lightning`` or of ``pytorch_lightning``.

Epochs, passes and batches come from Lightning. Within a batch, forward, backward, optimizer and the wait for data come
from torch. Lightning's own work between them is ``other``.
"""

from __future__ import annotations

import sys
from typing import Any

from profiler.adapters.driver import FrameworkRun
from profiler.records.vocabulary import Stage
from profiler.report.summary import RunSummary
from profiler.session.profiler import Profiler

if "pytorch_lightning" in sys.modules and "lightning" not in sys.modules:
    from pytorch_lightning import Callback
else:
    from lightning.pytorch import Callback


class ProfilerCallback(Callback):  # type: ignore[misc]  # Lightning's, untyped here
    """Measure each ``fit``, ``validate``, ``test`` and ``predict`` of a Trainer as a run.

    Args:
        profiler: measure as a part of this run instead; it is not ended here.
        name: the run's name; it stays on this machine.
        options: further arguments of `profiler.Profiler`.

    Raises:
        ArgumentTypeError, ArgumentValueError, SettingsError: an argument cannot be used.
    """

    def __init__(self, profiler: Profiler | None = None, *, name: str = "lightning", **options: Any) -> None:
        self._driver = FrameworkRun(profiler, name, options)

    @property
    def summary(self) -> RunSummary | None:
        """The run so far, or None before it begins."""
        return self._driver.summary

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._driver.begin(pl_module)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._driver.end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._driver.end(exception)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._driver.begin(pl_module, *trainer.optimizers)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self._driver.begin_epoch(trainer.current_epoch)
        self._driver.begin_pass(Stage.TRAIN)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._driver.begin_batch(batch)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._driver.end_batch()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._driver.end_pass(Stage.TRAIN)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._driver.end_epoch()

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self._driver.begin_pass(Stage.VAL)

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._driver.begin_batch(batch)

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._driver.end_batch()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self._driver.end_pass(Stage.VAL)

    on_test_start = on_validation_start
    on_test_batch_start = on_validation_batch_start
    on_test_batch_end = on_validation_batch_end
    on_test_end = on_validation_end

    def on_predict_start(self, trainer: Any, pl_module: Any) -> None:
        self._driver.begin_pass(Stage.INFERENCE)

    on_predict_batch_start = on_validation_batch_start
    on_predict_batch_end = on_validation_batch_end

    def on_predict_end(self, trainer: Any, pl_module: Any) -> None:
        self._driver.end_pass(Stage.INFERENCE)
