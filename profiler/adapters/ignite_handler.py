"""PyTorch Ignite: ``attach(trainer, evaluator, model=model, optimizer=optimizer)`` before ``trainer.run(loader)``.

Epochs, passes, batches and the waits for them come from Ignite's events. Forward, backward and optimizer come from the
named model and optimizer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ignite.engine import Engine, Events

from profiler.adapters.driver import FrameworkRun
from profiler.adapters.events import Phases, check_phases
from profiler.errors import ArgumentTypeError
from profiler.records.vocabulary import Stage
from profiler.session.profiler import Profiler


def attach(
    trainer: Engine,
    evaluator: Engine | None = None,
    profiler: Profiler | None = None,
    *,
    model: Any = None,
    optimizer: Any = None,
    name: str = "ignite",
    phases: Phases | None = None,
    **options: Any,
) -> FrameworkRun:
    """Measure each run of the trainer as a run, with the evaluator's runs inside it as validation.

    Args:
        trainer: Ignite's engine that trains.
        evaluator: Ignite's engine that validates, or None.
        profiler: measure as parts of this run instead; it is not ended here.
        model: the model whose forward and backward are timed, or a list of models.
        optimizer: the optimizer whose step is timed, or a list of optimizers.
        name: the run's name; it stays on this machine.
        phases: phases of your own, from one event of the trainer to another, by their names or those of your own
            registered events, as ``{"gather": ("EPOCH_COMPLETED", "my_event")}``.
        options: further arguments of `profiler.Profiler`.

    Returns:
        an object with a ``summary``.

    Raises:
        ArgumentTypeError: an engine is no Ignite engine.
        ArgumentValueError: the trainer does not have an event; close matches are suggested.
    """
    for engine in (trainer, evaluator):
        if engine is not None and not isinstance(engine, Engine):
            raise ArgumentTypeError(f"attach takes Ignite's engines, not {engine!r}")
    events = _events(trainer)
    wanted = check_phases(phases, events)
    driver = FrameworkRun(profiler, name, options)
    things = [*_several(model), *_several(optimizer)]

    def started(engine: Any) -> None:
        driver.begin(*things)

    def epoch_started(engine: Any) -> None:
        driver.begin_epoch(engine.state.epoch - 1)  # Ignite counts from 1
        driver.begin_pass(Stage.TRAIN)

    trainer.add_event_handler(Events.STARTED, started)
    trainer.add_event_handler(Events.EPOCH_STARTED, epoch_started)
    _add_batches(trainer, driver)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda _: driver.end_pass(Stage.TRAIN))
    trainer.add_event_handler(Events.COMPLETED, lambda _: driver.end())
    trainer.add_event_handler(Events.EXCEPTION_RAISED, _raised(driver))
    if evaluator is not None:
        evaluator.add_event_handler(Events.STARTED, lambda _: driver.begin_pass(Stage.VAL))
        _add_batches(evaluator, driver)
        evaluator.add_event_handler(Events.COMPLETED, lambda _: driver.end_pass(Stage.VAL))
    for phase, (begin, end) in wanted.items():
        trainer.add_event_handler(events[begin], _reporting(driver.begin_phase, phase))
        trainer.add_event_handler(events[end], _reporting(driver.end_phase, phase))
    return driver


def _raised(driver: FrameworkRun) -> Callable[[Any, BaseException], None]:
    def raised(engine: Any, error: BaseException) -> None:
        driver.end(error)
        raise error  # with a handler for it, Ignite would swallow it

    return raised


def _add_batches(engine: Engine, driver: FrameworkRun) -> None:
    engine.add_event_handler(Events.GET_BATCH_STARTED, lambda _: driver.begin_wait())
    engine.add_event_handler(Events.GET_BATCH_COMPLETED, lambda _: driver.end_wait())
    engine.add_event_handler(Events.ITERATION_STARTED, lambda engine: driver.begin_batch(engine.state.batch))
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda _: driver.end_batch())


def _reporting(report: Callable[[str], None], phase: str) -> Callable[[Any], None]:
    return lambda _: report(phase)


def _several(things: Any) -> list[Any]:
    return list(things) if isinstance(things, (list, tuple)) else [things]


def _events(engine: Engine) -> dict[str, Any]:
    """Return the engine's events by name, including the user's own."""
    return {name: event for event in engine._allowed_events for name in (event.name, event.value)}
