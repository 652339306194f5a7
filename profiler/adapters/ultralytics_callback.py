"""Ultralytics: ``register(model)`` before ``model.train(...)``, ``model.val(...)`` or ``model.predict(...)``.

Ultralytics fires callbacks by name, so the names are checked against those of the installed version. The processes that
it starts for more than one GPU get no callbacks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from profiler.adapters.driver import FrameworkRun
from profiler.adapters.events import Phases, check_event, check_phases
from profiler.errors import ArgumentTypeError
from profiler.records.vocabulary import Stage
from profiler.session.profiler import Profiler


def register(
    model: Any, profiler: Profiler | None = None, *, name: str = "ultralytics", phases: Phases | None = None, **options: Any
) -> FrameworkRun:
    """Measure each training, validation and prediction of the model as a run, from now on.

    Args:
        model: a ``YOLO`` or another model, trainer, validator or predictor with ``add_callback`` and ``callbacks``.
        profiler: measure as parts of this run instead; it is not ended here.
        name: the run's name; it stays on this machine.
        phases: phases of your own, from one event to another, as ``{"routine": ("on_pretrain_routine_start",
            "on_pretrain_routine_end")}``.
        options: further arguments of `profiler.Profiler`.

    Returns:
        an object with a ``summary``.

    Raises:
        ArgumentTypeError: the model takes no callbacks.
        ArgumentValueError: this version of Ultralytics does not have an event; close matches are suggested.
    """
    known: Any = getattr(model, "callbacks", None)
    if not callable(getattr(model, "add_callback", None)) or not hasattr(known, "keys"):
        raise ArgumentTypeError(f"register takes a model with add_callback, such as YOLO('yolo11n.yaml'), not {model!r}")
    wanted = check_phases(phases, known)
    driver = FrameworkRun(profiler, name, options)
    for event, react in _reactions(driver):
        model.add_callback(check_event(event, known), react)
    for phase, (begin, end) in wanted.items():
        model.add_callback(begin, _reporting(driver.begin_phase, phase))
        model.add_callback(end, _reporting(driver.end_phase, phase))
    return driver


def _reporting(report: Callable[[str], None], phase: str) -> Callable[[Any], None]:
    return lambda _: report(phase)


def _reactions(driver: FrameworkRun) -> list[tuple[str, Callable[[Any], None]]]:
    def train_start(trainer: Any) -> None:
        average = getattr(getattr(trainer, "ema", None), "ema", None)  # what it validates with
        driver.begin(trainer.model, average, trainer.optimizer)

    def train_epoch_start(trainer: Any) -> None:
        driver.begin_epoch(trainer.epoch)
        driver.begin_pass(Stage.TRAIN)

    def val_start(validator: Any) -> None:
        driver.begin()
        driver.begin_pass(Stage.VAL)

    def val_end(validator: Any) -> None:
        driver.end_pass(Stage.VAL)
        if not getattr(validator, "training", True):  # a validation of its own, after which no more events come
            driver.end()

    def predict_start(predictor: Any) -> None:
        driver.begin()
        driver.begin_pass(Stage.INFERENCE)

    def predict_end(predictor: Any) -> None:
        driver.end_pass(Stage.INFERENCE)
        driver.end()

    def begin_batch(_: Any) -> None:
        driver.begin_batch()

    def end_batch(_: Any) -> None:
        driver.end_batch()

    return [
        ("on_train_start", train_start),
        ("on_train_epoch_start", train_epoch_start),
        ("on_train_batch_start", begin_batch),
        ("on_train_batch_end", end_batch),
        ("on_train_epoch_end", lambda _: driver.end_pass(Stage.TRAIN)),
        ("on_fit_epoch_end", lambda _: driver.end_epoch()),
        ("on_train_end", lambda _: driver.end_epoch()),
        ("teardown", lambda _: driver.end()),
        ("on_val_start", val_start),
        ("on_val_batch_start", begin_batch),
        ("on_val_batch_end", end_batch),
        ("on_val_end", val_end),
        ("on_predict_start", predict_start),
        ("on_predict_batch_start", begin_batch),
        ("on_predict_batch_end", end_batch),
        ("on_predict_end", predict_end),
    ]
