"""An open file of ours in a program that may close any descriptor, and get its number for a file of its own.

The rule it keeps: nothing is written to, and nothing closed, that is not ours any more.
"""

from __future__ import annotations

import contextlib
import errno
import os

from profiler.config.folder import append_to
from profiler.config.locks import hold


class OwnFile:
    """A file that is open for appending. The caller serialises the calls.

    Args:
        descriptor: its descriptor.

    Attributes:
        identity: its device and inode.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.identity = identity_of(os.fstat(descriptor))
        self._is_locked = False

    @property
    def descriptor(self) -> int | None:
        """The descriptor, or None if it is closed, or another file's by now."""
        with contextlib.suppress(OSError):
            if identity_of(os.fstat(self._descriptor)) == self.identity:
                return self._descriptor
        return None

    def append(self, data: bytes) -> None:
        """Append in one piece.

        Raises:
            OSError: the disk refuses it, or the program has closed the file.
        """
        append_to(self._known(), data)

    def empty(self) -> None:
        """Remove the content of the file.

        Raises:
            OSError: as in `append`.
        """
        os.ftruncate(self._known(), 0)

    def lock(self) -> None:
        """Lock the file until it is closed, if nobody else does and the file system can."""
        descriptor = self.descriptor
        if descriptor is not None and not self._is_locked:
            self._is_locked = hold(descriptor)

    def sync(self) -> None:
        """Wait until the disk has all written data.

        Raises:
            OSError: as in `append`.
        """
        os.fsync(self._known())

    def close(self) -> None:
        """Close the file, which releases its lock. A second call does nothing."""
        descriptor, self._descriptor = self.descriptor, -1
        if descriptor is not None:
            os.close(descriptor)

    def _known(self) -> int:
        descriptor = self.descriptor
        if descriptor is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return descriptor


def identity_of(status: os.stat_result) -> tuple[int, int]:
    """Return a file's device and inode."""
    return status.st_dev, status.st_ino
