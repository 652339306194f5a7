"""Find the line of the run's own code that the loop's thread is at, and the function it calls, from another thread.

Read of each frame: the file's name without its folder, the line's number, the function's name. No source, no variable.
"""

from __future__ import annotations

import gc
import operator
import os
import site
import sys
import sysconfig
from itertools import islice
from opcode import opname
from pathlib import Path, PurePath
from types import CodeType, FrameType
from typing import NamedTuple

from profiler.measure.frames import OURS
from profiler.records.plain_text import printable

MAX_KNOWN = 20_000  # code objects and calls whose answer is kept
COMPILED = "torchinductor"  # in the path of code that torch.compile has written
OWN, FOREIGN, PROFILER = range(3)  # whose code it is: the run's, a library's, ours
IMPORT_SYSTEM = "<frozen importlib"
CALLS = ("CALL", "PRECALL", "CALL_KW", "CALL_FUNCTION_EX")
NAMED = ("LOAD_METHOD", "LOAD_ATTR", "LOAD_GLOBAL", "LOAD_NAME")
LOCAL = ("LOAD_FAST", "LOAD_FAST_BORROW", "LOAD_FAST_CHECK", "LOAD_DEREF")
FARTHEST = 200  # instructions before a call


class Busy(NamedTuple):
    """A line of the run's own code that is busy; see `profiler.records.causes.Line`."""

    file: str
    line: int
    function: str
    called: str


# What a sample has found, as cheaply as can be (`LineFinder.busy` makes words of it later): the code, the offset of its
# instruction, the line, and the code that it was calling, with the name of that one's module.
Found = tuple[CodeType, int, "int | None", "CodeType | None", str]


if sys.version_info[:2] == (3, 11):
    # That version may collect garbage inside `sys._current_frames`, under a lock of the interpreter. Threads that begin or
    # end need the lock, and so does a `threading.local` that is collected: the program would stop for good
    # (python/cpython#106883). `map` runs the four in C, so that no other thread sees the collector off.
    _WITHOUT_COLLECTING = (gc.isenabled, gc.disable, sys._current_frames, gc.enable)

    def frames_of_threads() -> dict[int, FrameType]:
        """Return the innermost frame of each thread, by the thread's identifier."""
        if not gc.isenabled():
            return sys._current_frames()
        try:
            was_on, _, frames, _ = map(operator.call, _WITHOUT_COLLECTING)
        except BaseException:
            gc.enable()
            raise
        if not was_on:  # the program has switched it off since we asked
            gc.disable()
        return frames
else:
    frames_of_threads = sys._current_frames


class LineFinder:
    """Find the line of a thread. It keeps the facts of each code object.

    A sample comes when the processor's caches hold the program's things and none of ours, so every look-up counts: a code
    object is known by its identity, because its hash goes over all of its bytecode, and the walk calls no function of ours.
    """

    def __init__(self) -> None:
        self._foreign = _folders()
        self._whose: dict[int, int] = {}  # by the identity of a code object
        self._held: list[CodeType] = []  # those, so that no other can take their identity
        self._words: dict[tuple[int, int, int | None], Busy] = {}

    def find(self, thread: int) -> Found | None:
        """Return where a thread is in the run's own code, or None if it is nowhere in it.

        Args:
            thread: its identifier, as of `threading.get_ident`.
        """
        frame = innermost = frames_of_threads().get(thread)
        below: FrameType | None = None  # the frame that the one we look at has called
        whose = self._whose
        while frame is not None:
            code = frame.f_code
            kind = whose.get(id(code))
            if kind is None:
                kind = self._classify(code)
            if kind == OWN:
                if below is None:
                    return code, frame.f_lasti, frame.f_lineno, None, ""
                return code, frame.f_lasti, frame.f_lineno, below.f_code, below.f_globals.get("__name__") or ""
            if kind != PROFILER:
                below = frame
            frame = frame.f_back
        return self._in_main(innermost)

    def is_importing(self, thread: int) -> bool:
        """Return True if a thread is importing a module, wherever in its stack."""
        frame = frames_of_threads().get(thread)
        while frame is not None:
            if frame.f_code.co_filename.startswith(IMPORT_SYSTEM):
                return True
            frame = frame.f_back
        return False

    def busy(self, found: Found) -> Busy:
        """Return a sample in words."""
        code, at, line, below, module = found
        key = (id(code), at, None if below is None else id(below))
        known = self._words.get(key)
        if known is None:
            if len(self._words) >= MAX_KNOWN:
                self._forget()
            called = called_at(code, at)  # by the name that the line gives it, not that of a decorator inside
            if below is not None:
                called = f"{module}.{called or below.co_name}".lstrip(".")
            words = (PurePath(code.co_filename).name, code.co_name, called)
            file, function, called = map(printable, words)
            known = Busy(file, line or code.co_firstlineno, function, called)
            self._words[key] = known
            self._held += [code] if below is None else [code, below]
        return known

    def _in_main(self, frame: FrameType | None) -> Found | None:
        """Return where a thread is in the program's main module: of an installed program, nothing is the run's own code."""
        below = None
        while frame is not None:
            if frame.f_globals.get("__name__") == "__main__":
                called = (None, "") if below is None else (below.f_code, below.f_globals.get("__name__") or "")
                return frame.f_code, frame.f_lasti, frame.f_lineno, *called
            below, frame = frame, frame.f_back
        return None

    def _forget(self) -> None:
        """Forget all code objects, and hold none any more: a program may make new ones without end."""
        self._whose.clear()
        self._words.clear()
        self._held.clear()

    def _classify(self, code: CodeType) -> int:
        if len(self._whose) >= MAX_KNOWN:
            self._forget()
        name = code.co_filename
        if name.startswith(OURS):
            kind = PROFILER
        elif (name.startswith(("<", *self._foreign)) and not name.startswith("<ipython-input")) or COMPILED in name:
            kind = FOREIGN
        else:
            kind = OWN
        self._held.append(code)
        self._whose[id(code)] = kind
        return kind


def called_at(code: CodeType, at: int) -> str:
    """Return the name of the function that the instruction at this offset calls, "" if it calls nothing or cannot be known.

    A call and the look-up of its function begin at the same place in the source (PEP 657, from Python 3.11 on). `dis` would
    say the same, and takes milliseconds for a long function: here only the instructions just before the call are read.
    """
    if sys.version_info < (3, 11):
        return ""
    bytecode, position = code.co_code, at // 2
    while 0 < position < len(bytecode) // 2 and opname[bytecode[2 * position]] == "CACHE":  # of a call that is going on
        position -= 1
    if not 0 <= position * 2 < len(bytecode) or opname[bytecode[2 * position]] not in CALLS:
        return ""
    first = max(position - FARTHEST, 0)
    places = list(islice(code.co_positions(), first, position + 1))
    line, end_line, column, end_column = places[-1]
    if line is None or column is None:
        return ""
    name, farthest = "", (0, 0)
    for offset, place in enumerate(places[:-1], first):
        end = place[1] or 0, place[3] or 0
        if (place[0], place[2]) == (line, column) and farthest <= end < (end_line or 0, end_column or 0):
            loaded = _name_loaded(code, bytecode, offset)
            if loaded:
                name, farthest = loaded, end
    return name


def _name_loaded(code: CodeType, bytecode: bytes, position: int) -> str:
    """Return the name that an instruction loads, or "" if it loads none."""
    kind, argument = opname[bytecode[2 * position]], bytecode[2 * position + 1]
    if position and opname[bytecode[2 * position - 2]] == "EXTENDED_ARG":
        argument |= bytecode[2 * position - 1] << 8
    if kind in NAMED:
        argument >>= kind == "LOAD_GLOBAL" or (kind == "LOAD_ATTR" and sys.version_info >= (3, 12))
        return code.co_names[argument] if argument < len(code.co_names) else ""
    if kind in LOCAL:
        try:
            return str(code._varname_from_oparg(argument))  # type: ignore[attr-defined]
        except (AttributeError, IndexError):
            return ""
    return ""


def _folders() -> tuple[str, ...]:
    """Return the folders of code that is not the run's own: the standard library, installed packages, and ours."""
    found = {*sysconfig.get_paths().values(), *getattr(site, "getsitepackages", list)(), OURS}
    found |= {site.getusersitepackages()} if hasattr(site, "getusersitepackages") else set()
    found.add(str(Path(os.__file__).parent))
    # An editable install of a package of the user's is the run's own code; a prefix such as / or the home folder is too wide.
    wide = {sysconfig.get_path("data"), sysconfig.get_path("scripts")}
    kept = [path.rstrip(os.sep) + os.sep for path in found if path and path not in wide]
    return tuple(dict.fromkeys([*kept, *(str(Path(path).resolve()) + os.sep for path in kept)]))
