"""The lines of a run log, from its begin or from its end, without reading more of it than is needed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from profiler.config.folder import Folder
from profiler.errors import RunLogError

MAX_LINE = 64 * 2**20
MAX_BYTES = 4 * 2**30  # of a log: a run of 100,000 epochs has 1 GiB, and is read line by line
FIRST_BLOCK = 2**14
BUFFER = 2**18  # bytes: a line has some 30,000


def lines(path: Path, upto: int | None = None) -> Iterator[bytes]:
    """Yield the lines of a log, or of its first ``upto`` bytes, one at a time: a log of days is large."""
    with _opened(path) as file:
        left = MAX_BYTES if upto is None else upto
        while left > 0 and (line := file.readline(min(MAX_LINE, left))):
            left -= len(line)
            if line != b"\n":
                yield line


def lines_from(path: Path, begin: int) -> Iterator[bytes]:
    """Yield the lines of a log from this byte on."""
    with _opened(path) as file:
        file.seek(begin)
        yield from iter(lambda: file.readline(MAX_LINE), b"")


def last_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a log from its end, reading no more of it than is asked for."""
    with _opened(path) as file:
        end, rest, block = file.seek(0, os.SEEK_END), b"", FIRST_BLOCK
        while end:
            begin = max(end - block, 0)
            file.seek(begin)
            first, *whole = (file.read(end - begin) + rest).split(b"\n")
            yield from (line for line in reversed(whole) if line)
            end, rest, block = begin, first[:MAX_LINE], 2 * block
        if rest:
            yield rest


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with (
            Folder(path.parent).opened(path.name) as (descriptor, status, _),
            os.fdopen(descriptor, "rb", BUFFER, closefd=False) as file,
        ):
            if status.st_size > MAX_BYTES:
                raise RunLogError(f"the run log {path.name} has {status.st_size} bytes, more than any run's.")
            yield file
    except OSError as error:
        raise RunLogError(f"the run log {path.name} cannot be read: {error.strerror}.") from None
