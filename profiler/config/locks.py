"""Locks between processes, by filelock, which say nothing in the log of the program that we are in."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

_ours: set[str] = set()


def lock(path: Path | str) -> Any:
    """A ``filelock.FileLock`` on this file, readable by its owner alone; made, and not yet acquired."""
    import filelock

    _ours.add(os.fspath(path))
    logging.getLogger("filelock").addFilter(_is_not_ours)
    return filelock.FileLock(path, thread_local=False, mode=0o600)


def _is_not_ours(record: logging.LogRecord) -> bool:
    """Whether a log record is about a lock of the program's own."""
    arguments = record.args if isinstance(record.args, tuple) else ()
    return not any(argument in _ours for argument in arguments if isinstance(argument, str))
