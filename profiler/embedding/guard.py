"""The guard of `Telemetry`: note an error that passes, around a block or a function."""

from __future__ import annotations

from profiler.errors import ArgumentTypeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from profiler.embedding.telemetry import Telemetry


class Guard:
    """A context manager and decorator that notes errors and lets them pass."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    def __enter__(self) -> Telemetry:
        return self._telemetry

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is not None:
            self._telemetry.capture_exception(error)

    def __call__(self, function: Any) -> Any:
        """Return a function, coroutine function or generator function with each call guarded.

        Raises:
            ArgumentTypeError: it is an asynchronous generator function, or no function.
        """
        import functools
        import inspect

        if inspect.isasyncgenfunction(function) or not callable(function):
            raise ArgumentTypeError(f"a guard decorates a function, coroutine function or generator function, not {function!r}")
        within = _around
        if inspect.iscoroutinefunction(function):
            within = _around_coroutine
        elif inspect.isgeneratorfunction(function):
            within = _around_generator
        return functools.wraps(function)(within(self, function))


def _around(guard: Guard, function: Any) -> Any:
    def guarded(*arguments: Any, **more: Any) -> Any:
        with guard:
            return function(*arguments, **more)

    return guarded


def _around_coroutine(guard: Guard, function: Any) -> Any:
    async def guarded(*arguments: Any, **more: Any) -> Any:
        with guard:
            return await function(*arguments, **more)

    return guarded


def _around_generator(guard: Guard, function: Any) -> Any:
    def guarded(*arguments: Any, **more: Any) -> Any:
        with guard:
            return (yield from function(*arguments, **more))

    return guarded
