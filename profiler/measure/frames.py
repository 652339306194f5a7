"""Keep our frames out of the program's tracebacks."""

from __future__ import annotations


def drop_own_frame(error: BaseException) -> None:
    """Remove our frame, so that the script prints the same traceback as without us (not before Python 3.11)."""
    if error.__traceback__ is not None:
        error.__traceback__ = error.__traceback__.tb_next
