"""Count references: programs of the hot path, repeated, may leave none behind. Run it with a debug build of Python.

    python3-dbg hot_path_refs.py < programs     # one a line, as for two_paths.py

Prints, for each program and each misuse of the compiled classes, how many references twenty repeats have left.
"""

from __future__ import annotations

import contextlib
import gc
import json
import sys
from collections.abc import Callable, Iterator

from profiler.measure import compiled, hot_path  # type: ignore[attr-defined]
from profiler.measure.hot_path import FastPath, HotFeed, HotPass, HotTree, Place, phase_ends
from profiler.measure.timer import Timer
from profiler.records.vocabulary import Stage
from support.two_paths import Raised, measured

REPEATS = 20


# ---- misuse, and errors in the middle ---------------------------------------------------------------------------------


def wrong_links() -> None:
    span = Timer().phase("a")
    for thing, name in ((span, "state"), (span, "parent"), (span, "tree"), (HotTree(), "root"), (HotPass(), "wait")):
        with contextlib.suppress(TypeError):
            setattr(thing, name, object())
    with contextlib.suppress(TypeError):
        FastPath().add(span, object(), None)
    with contextlib.suppress(TypeError):
        FastPath().add(span)
    with contextlib.suppress(ValueError):
        span.n = 3
    with contextlib.suppress(ValueError):
        span.taken = True
    with contextlib.suppress(TypeError):
        span.record("x")


def empty_objects() -> None:
    """Use objects that nothing was set on: they may refuse, but not crash."""
    uses: tuple[Callable[[], object], ...] = (
        lambda: compiled.HotSpan.__new__(compiled.HotSpan).__enter__(),
        lambda: compiled.HotSpan.__new__(compiled.HotSpan).__exit__(None, None, None),
        lambda: HotPass().begin_wait(),
        lambda: HotFeed().fetch_begins(),
        lambda: HotFeed().fetch_ends(1, 2),
        lambda: HotPass().end_wait(len, ()),
        lambda: Place(is_owner=True).phase("a"),
        lambda: compiled.Hook.__new__(compiled.Hook).begins(),
        lambda: compiled.Hook.__new__(compiled.Hook).forward_begins(None),
        lambda: compiled.Hook.__new__(compiled.Hook).ends(),
    )
    for use in uses:
        with contextlib.suppress(Exception):
            use()


def failing_clock() -> None:
    def fail() -> int:
        raise Raised

    timer = Timer()
    phase = timer.phase("a")
    hook = phase_ends(FastPath(), timer.owner, lambda fast: None)
    segment = timer.begin(Stage.TRAIN)
    hot_path.use_clock(fail)
    for use in (phase.__enter__, phase.__exit__, hook, segment.begin_wait, lambda: segment.end_wait(len, ())):
        with contextlib.suppress(Raised):
            use()
    hot_path.use_clock(None)


def failing_size() -> None:
    def fail(item: object) -> int:
        raise Raised

    timer = Timer()
    for _ in range(2):
        with contextlib.suppress(Raised):
            for _ in timer.iterate(Stage.TRAIN, [1, 2, 3], fail):
                pass


class Refusing:
    """A name that cannot be looked up."""

    def __hash__(self) -> int:
        raise Raised


def odd_names() -> None:
    with contextlib.suppress(Raised):
        Timer().owner.phase(Refusing())
    for name in ([], None, 3, ""):
        with contextlib.suppress(Exception):
            Timer().owner.phase(name)


def broken_off() -> None:
    timer = Timer()
    for _ in timer.iterate(Stage.TRAIN, range(9), lambda item: 1):
        with timer.phase("a"):
            break


def left_behind(action: Callable[[], object]) -> int:
    for _ in range(3):
        action()
    gc.collect()
    before = sys.gettotalrefcount()  # type: ignore[attr-defined]
    for _ in range(REPEATS):
        action()
    gc.collect()
    return sys.gettotalrefcount() - before  # type: ignore[attr-defined,no-any-return]


def found() -> Iterator[tuple[str, int]]:
    for misuse in (wrong_links, empty_objects, failing_clock, failing_size, odd_names, broken_off):
        yield misuse.__name__, left_behind(misuse)
    for line in sys.stdin:
        program = json.loads(line)
        yield line.strip(), left_behind(lambda: measured(program))  # noqa: B023


if __name__ == "__main__":
    for name, references in found():
        print(json.dumps([name, references]), flush=True)
