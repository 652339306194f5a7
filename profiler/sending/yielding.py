"""Let the loop's thread run between two pieces of our own work."""

from __future__ import annotations

import time

PAUSE_S = 0.0005  # long enough that the loop does not wait for the interpreter's lock


def pause() -> None:
    """Give up the interpreter's lock for a moment."""
    time.sleep(PAUSE_S)


def no_pause() -> None:
    """Go on at once: nobody is waiting."""
