"""The one way to survive an error of our own: swallow it, count it in the run's notes, log it once.

The rule it keeps: the user's run never fails because of us. Beside the loop's hooks and the sampling tick, which count by hand
because a call costs too much there, everything goes through `Faults`.
"""

from __future__ import annotations

from collections.abc import Callable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import TypeVar

    T = TypeVar("T")

_warned: set[str] = set()


class Faults:
    """The errors of our own in one run, one package or one group of threads.

    Args:
        note: counts a fault under a text; the texts are shown by ``epochmeter doctor``.
        is_logged: also log each kind of fault once in this process, on the logger "epochmeter".
    """

    def __init__(self, note: Callable[[str], None], *, is_logged: bool = False) -> None:
        self.note = note
        self._is_logged = is_logged

    def swallow(self, what: str, action: Callable[[], T]) -> T | None:
        """Return the action's result. If it raises, count that under ``what`` and return None."""
        try:
            return action()
        except Exception as error:
            if is_of_a_signal(error):
                raise
            self.count(what, error)
            return None

    def count(self, what: str, error: BaseException) -> str:
        """Count an error that was caught elsewhere, and return the text it is counted under."""
        text = f"{what}: {reason_of(error)}"
        self.note(text)
        if self._is_logged:
            warn_once(f"{what} ({reason_of(error)}); the run goes on. 'epochmeter doctor' shows the cure.")
        return text


def is_of_a_signal(error: BaseException) -> bool:
    """Return True if the program's handler of a signal has raised this, while our code happened to run: it is not ours."""
    if error.__traceback__ is None or error.__traceback__.tb_next is None:
        return False  # it was raised where it was caught: no handler has run
    import signal  # only an error needs it

    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    codes = {getattr(getattr(handler, "__func__", handler), "__code__", None) for handler in handlers} - {None}
    traceback: TracebackType | None = error.__traceback__
    while traceback is not None and traceback.tb_frame.f_code not in codes:
        traceback = traceback.tb_next
    return traceback is not None


def reason_of(error: BaseException) -> str:
    """Return the reason of an error in words that hold nothing of the user's.

    The system's own text comes first, then the text of one of our own errors, then only the class's name: the text of
    any other error may hold a path or a value of the program.
    """
    is_ours = str(type(error).__module__).startswith(("profiler.", "exporters."))
    return getattr(error, "strerror", None) or (str(error) if is_ours else type(error).__name__)


def warn_once(text: str) -> None:
    """Log a warning once in a process for each kind of trouble."""
    if text not in _warned:
        import logging  # neither is needed by a program that only counts

        from profiler.records.plain_text import printable

        _warned.add(text)
        logging.getLogger("epochmeter").warning("epochmeter: %s", printable(text))


def forget_warnings() -> None:
    """Let every warning be logged again; for tests."""
    _warned.clear()
