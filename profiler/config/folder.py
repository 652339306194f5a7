"""The one door to our files: everything below our folders is opened, made, moved and removed here.

The rules it keeps: a folder is entered by descriptors, from the base down, and no link below the base is followed. A folder
or file counts only if it is ours, and nobody else may write it. Only regular files of a bounded size are read. Folders are
made with mode 0700 and files with 0600, under any umask. An entry that breaks a rule is ignored.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from profiler.config.locks import lock
from profiler.config.paths import bases
from profiler.config.place import NO_FOLDER, NO_LINK, POSIX, Place, UntrustedError, check_file, enter, enter_base, is_roots

T = TypeVar("T")
OURS = 0o600
# Without O_NONBLOCK, opening a FIFO waits for another program. O_NOCTTY: a terminal must not become this program's own.
PLAIN = NO_LINK | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_CLOEXEC", 0)
PLAIN |= getattr(os, "O_BINARY", 0)
MAX_BYTES = 256 * 2**20  # of any file, unless the caller says less


class Folder:
    """One of our folders. Nothing is opened or made before a method needs it.

    Args:
        path: the folder. One below a folder of `profiler.config.paths.bases` is entered from there; any other is its own base.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._base = next((base for base in bases() if base == path or base in path.parents), path)
        self._parts = path.relative_to(self._base).parts

    def __str__(self) -> str:
        return str(self.path)

    def sub(self, name: str) -> Folder:
        """Return a folder in this one."""
        return Folder(self.path / name)

    # ---- looking ---------------------------------------------------------------------------------------------------

    def check(self) -> bool:
        """Return True if the folder is there and may be used, False if it is not there.

        Raises:
            OSError: it may not be used.
        """
        with contextlib.suppress(FileNotFoundError), self._entered():
            return True
        return False

    def names(self, form: re.Pattern[str]) -> list[str]:
        """Return the regular files whose whole names have this form, sorted; none if the folder cannot be used."""
        return self._listed(form, _file_name)

    def sizes(self, form: re.Pattern[str]) -> list[tuple[str, int]]:
        """Return the same with each file's size in bytes."""
        return self._listed(form, _file_size)

    def folders(self, form: re.Pattern[str]) -> list[str]:
        """Return the folders whose whole names have this form, sorted; none if this folder cannot be used."""
        return self._listed(form, _folder_name)

    def status(self, name: str) -> os.stat_result:
        """Return the status of one of our files.

        Raises:
            OSError: there is none, or the entry there is not one of ours.
        """
        with self._entered() as place:
            return self._checked(place.look(name), name)

    def has(self, name: str) -> bool:
        """Return True if there is a file of ours with this name."""
        with contextlib.suppress(OSError):
            return bool(self.status(name))
        return False

    # ---- reading ---------------------------------------------------------------------------------------------------

    def read(self, name: str, most: int = MAX_BYTES) -> bytes:
        """Return a file's content.

        Raises:
            OSError: it is not there, cannot be read, is not one of ours, or holds more than ``most`` bytes.
        """
        with self.opened(name) as (descriptor, status, _):
            if status.st_size > most:
                why = f"has {status.st_size} bytes, more than such a file has"
                raise UntrustedError(str(self.path / name), why, "remove it")
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                return file.read(most)

    def first_line(self, name: str, most: int) -> bytes:
        """Return a file's first line, or its first ``most`` bytes; otherwise like `read`."""
        with self.opened(name) as (descriptor, _, _), os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.readline(most)

    @contextlib.contextmanager
    def opened(self, name: str, *, roots_too: bool = False) -> Iterator[tuple[int, os.stat_result, bool]]:
        """Open a file for reading. Yield its descriptor, its status, and True if root has written it.

        Args:
            name: the file.
            roots_too: also open a file or folder that belongs to root.

        Raises:
            OSError: as in `read`.
        """
        with self._entered(roots_too=roots_too) as place:
            target, where = place.at(name)
            if not POSIX:
                self._checked(place.look(name), name)
            with _explained(self.path / name):
                descriptor = os.open(target, os.O_RDONLY | PLAIN, **where)
            try:
                status = self._checked(os.fstat(descriptor), name, roots_too=roots_too)
                yield descriptor, status, place.is_roots or is_roots(status)
            finally:
                os.close(descriptor)

    # ---- writing ---------------------------------------------------------------------------------------------------

    def make(self) -> None:
        """Make the folder, and those above it that are missing.

        Raises:
            OSError: it cannot be made, or may not be used.
        """
        with self._entered(make=True):
            pass

    def create(self, name: str, data: bytes, *, durable: bool = False) -> None:
        """Write a new file.

        Raises:
            OSError: something stands there, or the disk refuses it; then nothing is left of it.
        """
        with self._entered(make=True) as place:
            target, where = place.at(name)
            descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | PLAIN, OURS, **where)
            try:
                try:
                    _write_all(descriptor, data)
                    if durable:
                        os.fsync(descriptor)
                finally:
                    os.close(descriptor)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(target, **where)
                raise

    def replace(self, name: str, data: bytes, *, durable: bool = False, by: Folder | None = None) -> None:
        """Write a whole file: it is made under another name and renamed, so a reader sees the old one or the new one.

        Args:
            name: the file.
            data: its content.
            durable: it survives a power cut when this returns.
            by: the folder of its first name; this one, unless another is given.

        Raises:
            OSError: the disk refuses it, or the entry at the name is not one of ours.
        """
        by, temporary = by or self, f"{secrets.token_hex(8)}.part"
        by.create(temporary, data, durable=durable)
        try:
            self.make()
            by.move(temporary, self, name)
        except BaseException:
            with contextlib.suppress(OSError):
                by.remove(temporary)
            raise
        if durable:
            self.sync()

    def open_append(self, name: str) -> int:
        """Return a descriptor that appends to a file, which is made if it is missing. The caller closes it.

        Raises:
            OSError: the folder or the disk refuses it, or the entry there is not one of ours.
        """
        with self._entered(make=True) as place:
            target, where = place.at(name)
            if not POSIX and os.path.lexists(target):
                self._checked(place.look(name), name)
            with _explained(self.path / name):
                descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_APPEND | PLAIN, OURS, **where)
            try:
                status = self._checked(os.fstat(descriptor), name)
                if POSIX and status.st_mode & OURS != OURS:
                    os.fchmod(descriptor, OURS)  # a umask has taken even our own rights
            except BaseException:
                os.close(descriptor)
                raise
            return descriptor

    def append(self, name: str, data: bytes, *, durable: bool = False) -> None:
        """Append to a file in one piece.

        Raises:
            OSError: as in `open_append`.
        """
        descriptor = self.open_append(name)
        try:
            append_to(descriptor, data)
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def mark(self, name: str) -> None:
        """Make an empty file, or leave the one that is there.

        Raises:
            OSError: as in `open_append`.
        """
        os.close(self.open_append(name))

    def move(self, name: str, into: Folder, new_name: str = "", *, over_anything: bool = False) -> None:
        """Rename a file of ours, also into another folder. A file of ours at the new name is replaced.

        Anything else is replaced only with ``over_anything``: the caller has kept it aside.

        Raises:
            OSError: it is gone, is not one of ours, or the other folder cannot be used.
        """
        new_name = new_name or name
        with self._entered() as here, into._entered(make=True) as there:
            self._checked(here.look(name), name)
            with contextlib.suppress(FileNotFoundError):
                if not over_anything:
                    into._checked(there.look(new_name), new_name)
            (source, where), (target, whereto) = here.at(name, "src_"), there.at(new_name, "dst_")
            os.replace(source, target, **where, **whereto)

    def keep_aside(self, name: str, aside: str) -> None:
        """Give the entry at a name (a file, a link or a folder) a second name, or another one if it can have only one.

        Raises:
            OSError: it is gone, or the folder refuses it.
        """
        with self._entered() as place:
            (source, where), (target, whereto) = place.at(name, "src_"), place.at(aside, "dst_")
            try:
                os.link(source, target, follow_symlinks=False, **where, **whereto)
            except (OSError, NotImplementedError):  # a folder, or a file system without links
                os.replace(source, target, **where, **whereto)

    def move_folder(self, name: str, into: Folder) -> None:
        """Rename a folder in this one into another folder.

        Raises:
            OSError: it is gone, or the other folder cannot be used.
        """
        self.sub(name).check()
        with self._entered() as here, into._entered(make=True) as there:
            (source, where), (target, whereto) = here.at(name, "src_"), there.at(name, "dst_")
            os.replace(source, target, **where, **whereto)

    def remove(self, name: str) -> None:
        """Remove a file of ours.

        Raises:
            OSError: it is gone, or is not one of ours.
        """
        with self._entered() as place:
            self._checked(place.look(name), name)
            target, where = place.at(name)
            os.unlink(target, **where)

    def remove_folder(self, name: str) -> None:
        """Remove an empty folder in this one.

        Raises:
            OSError: it is gone, or holds something.
        """
        with self._entered() as place:
            target, where = place.at(name)
            os.rmdir(target, **where)

    def sync(self) -> None:
        """Put the names of the files on disk, on systems that can."""
        with contextlib.suppress(OSError), self._entered() as place:  # some file systems refuse it for folders
            if place.descriptor is not None:
                os.fsync(place.descriptor)

    def lock(self, name: str) -> Any:
        """Return a ``filelock.FileLock`` on a file of this folder, not yet acquired.

        Raises:
            OSError: the folder cannot be used, or the entry there is not one of ours.
        """
        with self._entered(make=True) as place, contextlib.suppress(FileNotFoundError):
            self._checked(place.look(name), name)
        return lock(self.path / name)

    # ---- the rules -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _entered(self, *, make: bool = False, roots_too: bool = False) -> Iterator[Place]:
        """Enter the folder, step by step from its base."""
        place = enter_base(self._base, make, roots_too)
        try:
            for part in self._parts:
                outer, place = place, enter(place, part, make, roots_too)
                outer.leave()
            yield place
        finally:
            place.leave()

    def _listed(self, form: re.Pattern[str], look: Callable[[os.DirEntry[str]], T | None]) -> list[T]:
        with contextlib.suppress(OSError), self._entered() as place, os.scandir(place.itself) as listed:
            return sorted(_matching(listed, form, look))  # type: ignore[type-var]  # names, which are different
        return []

    def _checked(self, status: os.stat_result, name: str, *, roots_too: bool = False) -> os.stat_result:
        return check_file(status, str(self.path / name), roots_too)


def _matching(
    listed: Iterable[os.DirEntry[str]], form: re.Pattern[str], look: Callable[[os.DirEntry[str]], T | None]
) -> Iterator[T]:
    """Yield the wanted part of each entry of this form."""
    for entry in listed:
        if form.fullmatch(entry.name):
            with contextlib.suppress(OSError):  # another process has just taken it
                found = look(entry)
                if found is not None:
                    yield found


# A link is none of these. The kind is known from the folder; only the size takes a look at each file.


def _file_name(entry: os.DirEntry[str]) -> str | None:
    return entry.name if entry.is_file(follow_symlinks=False) else None


def _file_size(entry: os.DirEntry[str]) -> tuple[str, int] | None:
    return (entry.name, entry.stat(follow_symlinks=False).st_size) if entry.is_file(follow_symlinks=False) else None


def _folder_name(entry: os.DirEntry[str]) -> str | None:
    return entry.name if entry.is_dir(follow_symlinks=False) else None


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Say in words that a link, a FIFO or a folder stands where a file was to be opened."""
    try:
        yield
    except OSError as error:
        if error.errno not in (*NO_FOLDER, errno.ENXIO, errno.EISDIR):
            raise
        raise UntrustedError(str(path), "is not a plain file", "remove it") from None


def append_to(descriptor: int, data: bytes) -> None:
    """Append a line in one piece. A line that a full disk has cut off is taken back, or at least does not spoil the next one.

    Raises:
        OSError: the disk refuses it.
    """
    before = os.fstat(descriptor).st_size
    if before and hasattr(os, "pread") and os.pread(descriptor, 1, before - 1) != b"\n":
        data = b"\n" + data
    written = os.write(descriptor, data)
    if written == len(data):
        return
    with contextlib.suppress(OSError):
        if os.fstat(descriptor).st_size == before + written:  # else another process has appended meanwhile
            os.ftruncate(descriptor, before)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _write_all(descriptor: int, data: bytes) -> None:
    if POSIX:
        os.fchmod(descriptor, OURS)  # a umask may have taken even our own rights
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
