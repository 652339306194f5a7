"""Locks between processes, by filelock, that write nothing to the log of the user's program."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

_ours: set[str] = set()


def lock(path: Path | str) -> Any:
    """Return a ``filelock.FileLock`` on this file, not yet acquired. Only the owner can read the file."""
    import filelock

    _ours.add(os.fspath(path))
    logging.getLogger("filelock").addFilter(_is_not_ours)
    return filelock.FileLock(path, thread_local=False, mode=0o600)


def _is_not_ours(record: logging.LogRecord) -> bool:
    """Return True if a log record is about a lock of the user's program."""
    arguments = record.args if isinstance(record.args, tuple) else ()
    return not any(argument in _ours for argument in arguments if isinstance(argument, str))
