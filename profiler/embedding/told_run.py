"""Report one run of an embedding package: facts in words that it has declared, and how the run ended.

The rules it keeps: a value that is none of the declared words is left out, and never leaves. Nothing is raised into the
package's run, and no exception of it is held back.
"""

from __future__ import annotations

import math
import os
import re
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping
from itertools import pairwise

from profiler.errors import ArgumentTypeError, ArgumentValueError
from profiler.records.faults import is_of_a_signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


FACT = re.compile(r"[a-z][a-z0-9_]{0,19}")
WORD = re.compile(r"[A-Za-z0-9-][A-Za-z0-9_.-]{0,18}")
MOST = 20  # facts, and words of each
MORE = "more"  # above the largest limit
BUILT_IN: dict[str, tuple[Any, ...]] = {
    "duration": (60, 600, 3_600, 21_600, 86_400, 604_800),  # s
    "epochs": (1, 3, 10, 30, 100, 300, 1_000),
}
SIGNALLED = 128  # exit codes above it are those of signals
now = time.monotonic


class DeclaredFacts:
    """The facts of a package's runs.

    Args:
        facts: for each fact its words, the rising limits of its classes, or ``bool``.

    Raises:
        ArgumentTypeError, ArgumentValueError: they cannot be declared.
    """

    def __init__(self, facts: Mapping[str, Any]) -> None:
        if not isinstance(facts, Mapping):
            raise ArgumentTypeError(f"facts is a mapping such as {{'task': ('detect', 'segment')}}, not {facts!r}")
        if len(facts) > MOST:
            raise ArgumentValueError(f"a package declares at most {MOST} facts of its runs")
        own = {name: _values_of(name, values) for name, values in facts.items()}
        self._values = {**own, **BUILT_IN} if own else {}

    @property
    def words(self) -> list[str]:
        """Every word that can be reported: ``fact.value``."""
        return [f"{name}.{word}" for name, values in self._values.items() for word in _words(values)]

    def word(self, name: str, value: Any) -> str | None:
        """Return the word for a fact's value, or None if it is none of the declared ones."""
        values = self._values.get(name, ())
        if values is bool:
            found = _flag(value) if isinstance(value, bool) else None
        elif isinstance(value, str):
            plain = str.__str__(value)  # of a class of the program's own, which may say that it equals all words
            found = plain if plain in values and not _is_limits(values) else None
        else:
            found = _class_of(value, values) if _is_limits(values) else None
        return None if found is None else f"{name}.{found}"


class ToldRun:
    """A run that is reported: ``with telemetry.run(task="detect") as run: ... run.tell(map50=0.61)``.

    Args:
        facts: the declared ones.
        count: counts a word with an outcome: finished, crashed or interrupted.
        missed: called with the name of a fact that is not declared.
        told: the first facts.
    """

    def __init__(
        self,
        facts: DeclaredFacts,
        count: Callable[[str, str], None],
        missed: Callable[[Any], None],
        told: Mapping[str, Any],
    ) -> None:
        self._declared, self._count, self._missed = facts, count, missed
        self._told: dict[str, str] = {}
        self._began = now()
        self._is_over = False
        self._process = os.getpid()
        self.tell(**told)

    def tell(self, /, **facts: Any) -> None:
        """Report facts of the run, also ``epochs``, its number of epochs. The last value of each counts."""
        for name, value in facts.items():
            try:
                word = self._declared.word(name, value)
            except Exception as error:  # of a value's own class, anything
                if is_of_a_signal(error):
                    raise
                word = None
            if word is None:
                self._missed(name)
            else:
                self._told[name] = word

    def __enter__(self) -> ToldRun:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        if self._is_over or os.getpid() != self._process:  # a child that was forked inside is not the run
            return
        self._is_over = True
        spent = self._declared.word("duration", now() - self._began)
        for word in (*self._told.values(), *([spent] if spent else [])):
            self._count(word, _outcome(error))


def _outcome(error: BaseException | None) -> str:
    if error is None:
        return "finished"
    if not isinstance(error, SystemExit):
        return "crashed" if isinstance(error, Exception) else "interrupted"
    try:
        code = 0 if error.code is None else int.__int__(error.code)  # type: ignore[arg-type]  # TypeError of anything else
    except Exception as odd:  # of a program's own class, anything
        if is_of_a_signal(odd):
            raise
        return "crashed"
    return "interrupted" if code > SIGNALLED else "crashed" if code else "finished"


def _values_of(name: Any, values: Any) -> Any:
    """Return the values of a fact, checked.

    Raises:
        ArgumentTypeError, ArgumentValueError: they cannot be declared.
    """
    if not isinstance(name, str) or not FACT.fullmatch(name):
        raise ArgumentValueError(f"a fact's name has 1 to 20 lower-case letters, digits and '_', unlike {name!r}")
    if name in BUILT_IN:
        raise ArgumentValueError(f"the fact {name!r} is told of every run: it has classes of its own")
    if values is bool:
        return bool
    if isinstance(values, str) or not isinstance(values, (tuple, list)) or not 1 <= len(values) <= MOST:
        raise ArgumentTypeError(f"the fact {name!r} takes 1 to {MOST} words, rising numbers, or bool, not {values!r}")
    if not _is_limits(values) and not all(isinstance(word, str) and WORD.fullmatch(word) for word in values):
        raise ArgumentValueError(f"the words of the fact {name!r} have 1 to 19 letters, digits, '-', '_' and '.': {values!r}")
    if _is_limits(values) and not (all(map(_is_finite, values)) and all(low < high for low, high in pairwise(values))):
        raise ArgumentValueError(f"the limits of the fact {name!r} are finite and rise, unlike {values!r}")
    if len(set(_words(values))) < len(_words(values)) or not all(map(WORD.fullmatch, _words(values))):
        raise ArgumentValueError(f"the values of the fact {name!r} are not told apart by six digits: {values!r}")
    return tuple(values)


def _is_finite(limit: float) -> bool:
    try:
        return math.isfinite(limit)
    except OverflowError:
        return False


def _is_limits(values: Any) -> bool:
    return values is not bool and all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in values)


def _words(values: Any) -> list[str]:
    if values is bool:
        return [_flag(False), _flag(True)]
    return [*(f"{limit:g}" for limit in values), MORE] if _is_limits(values) else list(values)


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _class_of(value: Any, limits: tuple[Any, ...]) -> str | None:
    """Return the class of a number: the first limit that is not below it."""
    number = float(value)
    if number != number or isinstance(value, bool) or not limits:
        return None
    place = bisect_left(limits, number)
    return f"{limits[place]:g}" if place < len(limits) else MORE
