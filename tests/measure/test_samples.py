"""The number of samples: found in any batch, told by the user's function, unknown where nothing shows it, never an error."""

from __future__ import annotations

import collections
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from profiler import Profiler
from profiler.measure.batch_size import batch_size, call_size
from profiler.report.document import document
from profiler.storage.run_log import run_paths
from profiler.storage.run_reader import load


class Raises:
    """An object of which every attribute raises."""

    def __init__(self, error: Exception) -> None:
        self.__dict__["error"] = error

    def __getattr__(self, name: str) -> Any:
        raise self.__dict__["error"]


class AttributeDict(dict):  # type: ignore[type-arg]
    __getattr__ = dict.__getitem__


class BrokenList(list):  # type: ignore[type-arg]
    def __iter__(self) -> Any:
        raise OSError("a closed file")


class BrokenLength(list):  # type: ignore[type-arg]
    def __len__(self) -> int:
        raise OSError("a closed file")


class NoMethods:
    keys = values = 3


class BrokenValues:
    def keys(self) -> list[str]:
        return []

    def values(self) -> Any:
        raise KeyError("v")


class Jagged:
    """As torchrec's KeyedJaggedTensor: its values are those of all samples, one after another."""

    def keys(self) -> list[str]:
        return ["a"]

    def values(self) -> torch.Tensor:
        return torch.ones(20_000)


class Graphs:
    """As a batch of PyTorch Geometric: its tensors are those of all nodes, and it tells the number of graphs."""

    batch_size = 16

    def keys(self) -> list[str]:
        return ["x"]

    def values(self) -> list[torch.Tensor]:
        return [torch.ones(700, 9)]


@dataclass
class Sample:
    x: torch.Tensor


Pair = collections.namedtuple("Pair", "x y")

ODD = [
    *(Raises(error) for error in (AssertionError(), OSError(), KeyError("s"), NotImplementedError(), TypeError())),
    *(AttributeDict(), BrokenList([torch.ones(3)]), BrokenLength(), NoMethods(), BrokenValues()),
    *("text", b"bytes", None, 7, 2.5, (), [], {}, object(), Sample(torch.ones(2))),
    *((3, "text", None), [[[[[[torch.ones(2)]]]]]], torch.tensor(1.0), [[1] * 2048 for _ in range(64)]),
]


def image() -> torch.Tensor:
    return torch.ones(3, 32, 32)


def lines(*lengths: int) -> list[torch.Tensor]:
    return [torch.ones(length) for length in lengths]


FIELDS: list[tuple[Any, int]] = [
    (torch.ones(64, 3), 64),
    (np.ones((5, 2)), 5),
    ([torch.ones(32, 3), torch.ones(32)], 32),
    (Pair(torch.ones(32, 3), torch.ones(7)), 32),
    ([torch.ones(8, 5)], 8),
    ([1, [2, torch.ones(16)]], 16),
    ({"ids": torch.ones(5, 9), "mask": torch.ones(5, 9)}, 5),
    (AttributeDict(x=torch.ones(2, 4)), 2),
    (collections.UserDict(x=torch.ones(6, 4)), 6),
    ([torch.ones(8, 5), torch.ones(8, 5), torch.ones(8, 5)], 8),
    ([[torch.ones(8, 3, 4, 4), torch.ones(8, 3, 4, 4)], torch.ones(8)], 8),
    ([torch.ones(4, 17, 9), torch.ones(4)], 4),
    ([[torch.ones(8, 3), torch.ones(8, 3)], [torch.ones(8), torch.ones(8)]], 8),
    (({"x": torch.ones(8, 3)}, {"y": torch.ones(8)}), 8),
    ((torch.ones(8, 3), torch.ones(8), 0.3), 8),
    ({"path": ["a", "b"], "x": torch.ones(2, 4)}, 2),
    (Graphs(), 16),
    (torch.ones(0, 3), 0),
]

SAMPLES: list[tuple[Any, int]] = [
    ([image() for _ in range(8)], 8),
    (([image() for _ in range(8)], [{"boxes": torch.ones(n, 4)} for n in range(8)]), 8),
    (tuple(zip(*[(image(), {"boxes": torch.ones(n, 4)}) for n in range(8)], strict=True)), 8),
    (lines(3, 9, 4, 4, 7, 2), 6),
    ([(torch.ones(784), 3) for _ in range(10)], 10),
    ([{"image": image(), "label": 3} for _ in range(10)], 10),
]

UNKNOWN: list[Any] = [
    [image(), image()],
    ([image(), image()], [{"boxes": torch.ones(2, 4)}] * 2),
    lines(3, 9),
    lines(*[784] * 64),
    [(torch.ones(784), 3), (torch.ones(784), 4)],
    (image(), 3),
    torch.nn.utils.rnn.pack_sequence([torch.ones(5, 2), torch.ones(3, 2)]),
    Jagged(),
]


@pytest.mark.parametrize("index", range(len(ODD)))  # by index, because pytest asks a value for its name
def test_odd_batches_are_unknown(index: int) -> None:
    assert batch_size(ODD[index]) is None


@pytest.mark.parametrize(("batch", "size"), FIELDS, ids=lambda value: type(value).__name__)
def test_fields_show_their_first_dimension(batch: Any, size: int) -> None:
    assert batch_size(batch) == size


@pytest.mark.parametrize(("batch", "size"), SAMPLES)
def test_a_list_of_samples_is_counted(batch: Any, size: int) -> None:
    assert batch_size(batch) == size


@pytest.mark.parametrize("batch", UNKNOWN, ids=lambda batch: type(batch).__name__)
def test_what_may_be_either_is_unknown(batch: Any) -> None:
    assert batch_size(batch) is None


def test_a_wide_batch_is_looked_at_briefly() -> None:
    looked_at = []

    class Row(list):  # type: ignore[type-arg]
        def __getattribute__(self, name: str) -> Any:
            looked_at.append(name)
            return super().__getattribute__(name)

    assert batch_size([Row([Row([1] * 100)] * 100)] * 2048) is None
    assert 0 < len(looked_at) < 200


def test_a_call_shows_its_first_argument() -> None:
    assert call_size((torch.ones(1, 4), torch.ones(900, 4)), {}) == 1
    assert call_size((Raises(OSError()), "text"), {"x": torch.ones(3, 2)}) == 3
    assert call_size((), {}) is None


@pytest.mark.parametrize("index", range(len(ODD)))
def test_odd_batches_pass_through_every_loop(home: Path, index: int) -> None:
    batch = ODD[index]
    loader = torch.utils.data.DataLoader([0, 1], batch_size=1, collate_fn=lambda _: batch)
    with Profiler("odd") as prof:
        assert all(item is batch for item in prof.train([batch, batch]))
        assert prof.inference(lambda item: item)(batch) is batch
        model = torch.nn.Linear(1, 1)
        prof.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), loader)
        assert all(item is batch for item in loader)
    (log,) = run_paths(home / "runs")
    stages = document(load(log))["stages"]
    assert stages["train"]["steps"] == 2
    assert "samples" not in stages["train"] and "samples" not in stages["inference"]


TOLD: dict[str, tuple[Any, int | None, int]] = {  # a user's function, the samples of four batches, and the notes
    "tensor": (lambda batch: torch.tensor(2), 8, 0),
    "numpy": (lambda batch: np.int64(2), 8, 0),
    "array": (lambda batch: np.array(2), 8, 0),
    "whole float": (lambda batch: 2.0, 8, 0),
    "unknown": (lambda batch: None, None, 0),
    "part": (lambda batch: 2.5, None, 4),
    "nan": (lambda batch: float("nan"), None, 4),
    "negative": (lambda batch: -3, None, 4),
    "bool": (lambda batch: True, None, 4),
    "text": (lambda batch: "2", None, 4),
    "wide tensor": (lambda batch: torch.ones(2), None, 4),
    "other device": (lambda batch: torch.ones((), dtype=torch.int64, device="meta"), None, 4),
    "raises": (lambda batch: 1 / 0, None, 4),
    "odd": (lambda batch: Raises(OSError()), None, 4),
}


@pytest.mark.parametrize(("function", "samples", "notes"), TOLD.values(), ids=list(TOLD))
def test_told_samples_are_whole_or_unknown(home: Path, function: Any, samples: int | None, notes: int) -> None:
    with Profiler("told") as prof:
        assert list(prof.train(range(4), samples=function)) == [0, 1, 2, 3]
    (log,) = run_paths(home / "runs")
    for told in (document(load(log)), prof.summary.to_dict()):
        assert told["stages"]["train"].get("samples") == samples
        assert sum(told.get("notes", {}).values()) == notes
        assert all(note.startswith("samples= ") for note in told.get("notes", {}))


def test_interrupts_of_told_samples_reach_the_loop(home: Path) -> None:
    def interrupted(batch: Any) -> int:
        raise KeyboardInterrupt

    with Profiler("told") as prof, pytest.raises(KeyboardInterrupt):
        list(prof.train(range(4), samples=interrupted))
