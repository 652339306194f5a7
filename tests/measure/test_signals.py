"""What the program's handler of a signal raises while our code asks an object of the program."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from profiler.measure.batch_size import batch_size, told_size
from profiler.measure.follow.torch_loaders import LoaderKeys
from profiler.measure.lengths import known_length
from profiler.measure.loaders import facts_of

pytest.importorskip("torch")
from torch.utils.data import DataLoader


class Struck:
    """Whatever is asked of it, a signal arrives meanwhile."""

    device = "cpu"

    def __len__(self) -> int:
        signal.raise_signal(signal.SIGTERM)
        return 3

    def __index__(self) -> int:
        return len(self)

    def __getattr__(self, name: str) -> int:
        return len(self)

    def __call__(self, *_: Any) -> int:
        return len(self)


class StruckLoader(DataLoader[int]):
    """A loader whose settings a signal strikes."""

    num_workers = property(lambda _: len(Struck()))  # type: ignore[assignment]

    def __init__(self) -> None:
        self.dataset = []  # type: ignore[assignment]

    def __len__(self) -> int:
        return len(Struck())


class StruckError(Exception):
    pass


@pytest.mark.parametrize(
    "asks",
    [
        lambda: facts_of(StruckLoader()),
        lambda: known_length(StruckLoader()),
        lambda: batch_size(Struck()),
        lambda: told_size(Struck(), print)(0),
        lambda: told_size(lambda _: Struck(), print)(0),
        lambda: LoaderKeys().key(SimpleNamespace(dataset=Struck())),
    ],
)
def test_what_strikes_a_question_comes_through(asks: Callable[[], object]) -> None:
    """Objects of the program may raise when they are asked. What a signal's handler raises meanwhile is no answer."""

    def raises(*_: object) -> None:
        raise StruckError

    before = signal.signal(signal.SIGTERM, raises)
    try:
        with pytest.raises(StruckError):
            asks()
    finally:
        signal.signal(signal.SIGTERM, before)
