"""Locks between processes: by filelock, quietly, or on a descriptor that the caller has open anyway.

A run holds a lock for days, in a program that may close every descriptor and fork at any moment. filelock would then
unlock or close a file that is no longer its own. So that lock lies on the log's own descriptor, which its writer checks.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
from pathlib import Path
from typing import Any

FAR_AWAY = 2**40
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


def hold(descriptor: int) -> bool:
    """Lock an open file until its descriptor is closed. Return False if another holds it, or the file system knows no locks."""
    try:
        _lock_descriptor(descriptor, shared=False)
    except OSError:
        return False
    return True


def is_held(descriptor: int) -> bool:
    """Return True if another process, or another descriptor, holds an open file's lock."""
    try:
        _lock_descriptor(descriptor, shared=True)
    except OSError as error:
        return error.errno in (errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK, errno.EDEADLK)
    return False


def _lock_descriptor(descriptor: int, *, shared: bool) -> None:
    if sys.platform == "win32":
        import msvcrt

        os.lseek(descriptor, FAR_AWAY, os.SEEK_SET)  # a locked byte cannot be read, and this one is never there
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
