"""Hugging Face Transformers: ``Trainer(..., callbacks=[ProfilerCallback()])``.

Epochs come from the Trainer. It reports optimizer steps but no batches, and fetches ahead from its loaders, so passes,
batches and phases are inferred. A loop of your own around Accelerate needs no adapter:
``prof.attach(model, optimizer, loader)`` after ``accelerator.prepare``.
"""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from profiler.adapters.driver import FrameworkRun
from profiler.report.summary import RunSummary
from profiler.session.profiler import Profiler


class ProfilerCallback(TrainerCallback):  # type: ignore[misc]  # Transformers', untyped here
    """Measure each ``train()`` of a Trainer as a run, its evaluations included.

    Args:
        profiler: measure as a part of this run instead; it is not ended here.
        name: the run's name; it stays on this machine.
        options: further arguments of `profiler.Profiler`.

    Raises:
        ArgumentTypeError, ArgumentValueError, SettingsError: an argument cannot be used.
    """

    def __init__(self, profiler: Profiler | None = None, *, name: str = "transformers", **options: Any) -> None:
        self._driver = FrameworkRun(profiler, name, options)

    @property
    def summary(self) -> RunSummary | None:
        """The run so far, or None before it begins."""
        return self._driver.summary

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **kwargs: Any
    ) -> None:
        self._driver.begin(model, optimizer)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._driver.begin_epoch(int(state.epoch or 0))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._driver.end()
