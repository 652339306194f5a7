"""Our own frames: keep them out of the program's tracebacks, and know when the collector strikes in them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

OURS = str(Path(__file__).parents[1]) + os.sep


def drop_own_frame(error: BaseException) -> None:
    """Remove our frame, so that the script prints the same traceback as without us (not before Python 3.11)."""
    if error.__traceback__ is not None:
        error.__traceback__ = error.__traceback__.tb_next


def is_closed_within_us() -> bool:
    """Return True if the generator that asks is being closed while code of ours is at work.

    The collector closes a loop that was left and forgotten, and it may come anywhere: also between two lines of ours that
    belong together. The loop's end must change nothing then.
    """
    closer = sys._getframe(1).f_back
    return closer is not None and closer.f_code.co_filename.startswith(OURS)
