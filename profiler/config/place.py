"""Enter a folder of ours, step by step from its base, by descriptors; the checks of owner and mode.

On Windows, which has neither such descriptors nor these modes, paths are used, and links are refused all the same.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from pathlib import Path
from typing import Any, NamedTuple

POSIX = sys.platform != "win32"
NO_LINK = getattr(os, "O_NOFOLLOW", 0)
INTO_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
OTHER_FOLDER = "name a folder of your own in EPOCHMETER_HOME, or make that one yours (chown)"
NO_FOLDER = (errno.ELOOP, errno.ENOTDIR, errno.EMLINK)  # the answers of the systems to a link that is not followed


class UntrustedError(OSError):
    """A file or folder at one of our names breaks the rules. ``cure`` is the step that helps."""

    def __init__(self, path: str, why: str, cure: str) -> None:
        super().__init__(errno.EPERM, why, path)
        self.cure = cure


class Place(NamedTuple):
    """An entered folder.

    Attributes:
        path: its path.
        descriptor: its descriptor; None on Windows.
        is_roots: True if it, or a folder above it, belongs to root, and this program is not root's.
    """

    path: str
    descriptor: int | None
    is_roots: bool = False

    @property
    def itself(self) -> Any:
        """The folder, as `os.scandir` takes it."""
        return self.path if self.descriptor is None else self.descriptor

    def at(self, name: str, prefix: str = "") -> tuple[str, dict[str, Any]]:
        """Return a file's name and the argument that makes a function of `os` look for it in this folder."""
        if self.descriptor is None:
            return os.path.join(self.path, name), {}
        return name, {f"{prefix}dir_fd": self.descriptor}

    def look(self, name: str) -> os.stat_result:
        """Return the status of the entry at a name, without following a link."""
        target, where = self.at(name)
        return os.stat(target, follow_symlinks=False, **where)

    def leave(self) -> None:
        """Close the descriptor."""
        if self.descriptor is not None:
            os.close(self.descriptor)


def enter_base(base: Path, make: bool, roots_too: bool) -> Place:
    """Enter a base: it may be a link, if we (or root) have made it, and its target is ours.

    Args:
        base: the folder.
        make: make it, and those above it, if they are missing.
        roots_too: enter it although it belongs to root.

    Raises:
        OSError: it is not there, or may not be used.
    """
    path = str(base)
    if make:
        _make_with_parents(base)
    if not POSIX:
        return Place(path, None) if os.path.isdir(path) else _missing(path)
    try:
        descriptor = os.open(path, INTO_FOLDER | NO_LINK)
    except OSError as error:
        if error.errno not in NO_FOLDER:
            raise
        link = os.lstat(path)
        if not stat.S_ISLNK(link.st_mode):
            raise
        if link.st_uid not in (os.geteuid(), 0):
            raise UntrustedError(path, "is a link of another user", OTHER_FOLDER) from None
        try:
            descriptor = os.open(path, INTO_FOLDER)
        except FileNotFoundError:  # a disk that is not mounted: what its user has chosen there is not known
            raise UntrustedError(path, "is a link that leads nowhere", OTHER_FOLDER) from None
    return _checked_place(path, descriptor, False, roots_too)


def enter(outer: Place, name: str, make: bool, roots_too: bool) -> Place:
    """Enter a folder in an entered one, never through a link; otherwise like `enter_base`."""
    path = os.path.join(outer.path, name)
    target, where = outer.at(name)
    if make:
        _mkdir(target, **where)
    if outer.descriptor is None:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            raise UntrustedError(path, "is not a folder, or a link to one", "remove it")
        return Place(path, None)
    try:
        descriptor = os.open(target, INTO_FOLDER | NO_LINK, **where)
    except OSError as error:
        if error.errno not in NO_FOLDER:
            raise
        raise UntrustedError(path, "is not a folder, or a link to one", "remove it") from None
    return _checked_place(path, descriptor, outer.is_roots, roots_too)


def _checked_place(path: str, descriptor: int, is_below_roots: bool, roots_too: bool) -> Place:
    try:
        status = os.fstat(descriptor)
        check(status, path, roots_too)
        return Place(path, descriptor, is_below_roots or is_roots(status))
    except BaseException:
        os.close(descriptor)
        raise


def check(status: os.stat_result, path: str, roots_too: bool) -> None:
    """Check the owner and the mode of a file or folder.

    Raises:
        UntrustedError: another user owns it, or may write it.
    """
    if not POSIX:
        return
    if status.st_uid != os.geteuid() and not (roots_too and status.st_uid == 0):
        raise UntrustedError(path, "belongs to another user", OTHER_FOLDER)
    if status.st_mode & WRITABLE_BY_OTHERS:
        raise UntrustedError(path, "can be written by other users", f"chmod go-w '{path}'")


def check_file(status: os.stat_result, path: str, roots_too: bool) -> os.stat_result:
    """Return the status of a regular file of ours.

    Raises:
        UntrustedError: it is something else, another user owns it, or may write it.
    """
    if not stat.S_ISREG(status.st_mode):
        raise UntrustedError(path, "is not a plain file", "remove it")
    check(status, path, roots_too)
    return status


def is_roots(status: os.stat_result) -> bool:
    """Return True if a file or folder belongs to root, and this program is not root's."""
    return POSIX and status.st_uid == 0 and os.geteuid() != 0


def _make_with_parents(base: Path) -> None:
    """Make a base, and the folders above it that are missing; but none in the home of another user (``sudo`` keeps HOME).

    Raises:
        OSError: it cannot be made, or is in such a home.
    """
    missing = []
    home = Path(os.path.expanduser("~"))
    if POSIX and home in base.parents and os.path.isdir(home) and os.stat(home).st_uid != os.geteuid():
        raise UntrustedError(str(home), "is the home of another user", OTHER_FOLDER)
    while not os.path.lexists(base):
        missing.append(base)
        base = base.parent
    for path in reversed(missing):
        _mkdir(str(path))


def _mkdir(target: str, **where: Any) -> None:
    """Make a folder for its owner alone, if it is not there."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(target, 0o700, **where)
        if POSIX:
            os.chmod(target, 0o700, **where)  # a umask may have taken even our own rights


def _missing(path: str) -> Place:
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
