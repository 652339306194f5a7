"""How a run ends: its state, and the exit code that its program asks for, so that the report can show ``sys.exit(7)``.

The interpreter gives the code of a SystemExit to nobody. So `sys.exit` is wrapped while a script is measured, and the wrapper
notes the code and the instruction at which the script's outermost frame stands.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import types
from threading import get_ident, main_thread
from typing import Any, NamedTuple, NoReturn

from profiler.measure.frames import drop_own_frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from profiler.records.run import State


class Ending(NamedTuple):
    """The state of a run that has ended, and its program's exit code, None for 0 or an unknown one."""

    state: State
    exit_code: int | None = None


class AskedExit:
    """The last call of `sys.exit` in the main thread."""

    def __init__(self) -> None:
        self._code = 0
        self._frame: types.FrameType | None = None
        self._at = -1

    def watch(self) -> None:
        """Wrap `sys.exit` from now on."""
        original = sys.exit

        @functools.wraps(original)
        def asked(status: Any = None, /) -> NoReturn:
            self._note(status)
            try:
                original(status)
            except SystemExit as error:
                drop_own_frame(error)
                raise

        vars(sys)["exit"] = asked

    def code(self) -> int | None:
        """Return the code with which the program ends now, or None if no call of `sys.exit` is known to end it."""
        # A caught SystemExit ends nothing. Then the outermost frame goes on to another instruction, or has done so.
        return self._code if self._frame is not None and self._frame.f_lasti == self._at else None

    def _note(self, status: Any) -> None:
        if get_ident() != main_thread().ident:  # of another thread, which ends that one alone
            return
        frame: types.FrameType | None = sys._getframe(2)
        outermost = None
        while frame is not None:  # under ``-m``, runpy's frames are further out than the script's
            if frame.f_globals.get("__name__") == "__main__" and frame.f_code.co_name == "<module>":
                outermost = frame
            frame = frame.f_back
        self._code, self._frame, self._at = code_of(status), outermost, -1 if outermost is None else outermost.f_lasti


def code_of(status: Any) -> int:
    """Return the exit code that the interpreter makes of the argument of SystemExit: a text is shown, and is 1."""
    if status is None:
        return 0
    return status & 0xFF if isinstance(status, int) else 1


def ending(error: BaseException | None) -> Ending:
    """Return how a run ends with this exception, or with none."""
    if isinstance(error, SystemExit):
        code = code_of(error.code)
        return Ending("crashed", code) if code else Ending("finished")
    if error is None:
        return Ending("finished")
    return Ending("interrupted" if isinstance(error, (KeyboardInterrupt, GeneratorExit)) else "crashed")


def ending_of_program() -> Ending:
    """Return how a run ends with its program: by the error that the interpreter has shown, or by `sys.exit`."""
    shown = getattr(sys, "last_value", None)
    code = None if shown is not None else asked_exit.code()
    return ending(shown) if not code else Ending("crashed", code)


def end_with_program(finish: Callable[[State, int | None], None]) -> None:
    """End a run at the interpreter's end."""
    finish(*ending_of_program())
    keep_interrupt()


def keep_interrupt() -> None:
    """Let the interpreter end by SIGINT after an uncaught KeyboardInterrupt, as it does without us."""
    # CPython notes the interrupt, and forgets it when a text is executed at its end: a dataclass or a named tuple that is
    # imported then does that (pythonrun.c, run_eval_code_obj). Raising one in such a text notes it again.
    if isinstance(getattr(sys, "last_value", None), KeyboardInterrupt):
        with contextlib.suppress(KeyboardInterrupt):
            exec("raise KeyboardInterrupt")  # noqa: S102  # a text of ours


asked_exit = AskedExit()
