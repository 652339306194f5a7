"""The compilations of ``torch.compile``: how many, how long, and in which phase.

torch calls back at both ends of each (``torch._dynamo.callback``, from torch 2.4 on). It is looked up once the program has
imported it; nothing is imported for it.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import Any

from profiler.measure import hot_path
from profiler.measure.whereabouts import place_of
from profiler.records.causes import COMPILATION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.measure.cause_book import CauseBook
    from profiler.measure.passes import ThreadState


class CompileWatch:
    """The compilations of this process while a run watches them.

    Args:
        state: the place of the loop's thread.
        has_begun: returns True once a pass has begun.
        book: receives their time, by phase.
    """

    def __init__(self, state: ThreadState, has_begun: Callable[[], bool], book: CauseBook) -> None:
        self._state = state
        self._has_begun = has_begun
        self._handler: Any = None
        self._is_over = False
        self._began = 0
        self._place = ("", "")
        self._book = book

    def look(self) -> None:
        """Register the callbacks once torch has them, and again if ``torch._dynamo.reset`` has removed them."""
        handler = getattr(sys.modules.get("torch._dynamo.callback"), "callback_handler", None)
        starts = getattr(handler, "start_callbacks", None)
        if self._is_over or handler is None or not isinstance(starts, list) or self._begins in starts:
            return
        self._handler = handler
        handler.register_start_callback(self._begins)
        handler.register_end_callback(self._ends)

    def stop(self) -> None:
        """Remove the callbacks for good. A second call does nothing."""
        self._is_over = True
        handler, self._handler = self._handler, None
        if handler is not None:
            with contextlib.suppress(ValueError, AttributeError):
                handler.start_callbacks.remove(self._begins)
            with contextlib.suppress(ValueError, AttributeError):
                handler.end_callbacks.remove(self._ends)

    def _begins(self, *_: object) -> None:
        self._place = place_of(self._state.current, has_begun=self._has_begun())
        self._began = hot_path.now()

    def _ends(self, *_: object) -> None:
        began, self._began = self._began, 0
        if began:
            self._book.add_cost(COMPILATION, self._place, hot_path.now() - began)
