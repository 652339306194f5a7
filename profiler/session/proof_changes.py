"""Run a script for a few steps with one cause taken away: the part of ``epochmeter whatif --prove`` in the script's process.

The rule it keeps: only a process that the command has started for this is changed, and only if its user asked for it.
"""

from __future__ import annotations

import builtins
import functools
import gc
import importlib
import io
import logging
import math
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

CHANGES = ("none", "data_wait", "collection", "checkpoint", "logging")


def install(request: Mapping[str, Any]) -> None:
    """Make one change, and end the script when it begins an optimizer's step beyond so many.

    So the last epoch ends as each other one, with the checkpoint that is saved after it.

    Args:
        request: ``change``, a word of `CHANGES`, and ``steps``.
    """
    {
        "none": lambda: None,
        "data_wait": _cache_batches,
        "collection": _freeze_collections,
        "checkpoint": _skip_checkpoints,
        "logging": _silence,
    }[request["change"]]()
    _end_after(int(request["steps"]))


def _end_after(steps: int) -> None:
    optimizers = importlib.import_module("torch.optim.optimizer")
    made = 0

    def count(*_: object) -> None:
        nonlocal made
        made += 1
        if made > steps:
            raise SystemExit(0)

    optimizers.register_optimizer_step_pre_hook(count)


def _cache_batches() -> None:
    """Let each loader make its first batch, and hand out that one again and again, as many times as it has batches.

    No workers are started: they would make batches that nobody waits for, and be waited for at a pass's end.
    """
    loaders = importlib.import_module("torch.utils.data.dataloader")
    iterate, original = loaders.DataLoader.__iter__, loaders._BaseDataLoaderIter.__next__
    first: dict[int, tuple[Any, Any]] = {}  # by the data set's id, with the data set: a forgotten one's id may be used again

    @functools.wraps(iterate)
    def __iter__(self: Any) -> Any:
        told = {name: self.__dict__[name] for name in ("num_workers", "timeout")}
        self.__dict__.update(num_workers=0, timeout=0)
        try:
            return iterate(self)
        finally:
            self.__dict__.update(told)

    @functools.wraps(original)
    def __next__(self: Any) -> Any:
        data, handed = self.__dict__["_dataset"], self.__dict__.get("_epochmeter_handed", 0)
        if handed >= _length(self):
            raise StopIteration
        self.__dict__["_epochmeter_handed"] = handed + 1
        if id(data) not in first:
            first[id(data)] = original(self), data
        return first[id(data)][0]

    loaders.DataLoader.__iter__ = __iter__
    loaders._BaseDataLoaderIter.__next__ = __next__


def _length(batches: Any) -> float:
    """Return how many batches an iterator hands out; one that does not know goes on until the script is ended."""
    try:
        return len(batches)
    except TypeError:
        return math.inf


def _freeze_collections() -> None:
    gc.disable()
    for name, answer in (("collect", 0), ("enable", None), ("set_threshold", None)):
        setattr(gc, name, _answering(answer))


def _skip_checkpoints() -> None:
    vars(importlib.import_module("torch"))["save"] = _answering(None)


def _silence() -> None:
    """Let nothing be printed, logged or synced. Text files of the script are written into memory."""
    logging.disable(logging.CRITICAL)
    vars(builtins)["print"] = vars(os)["fsync"] = _answering(None)
    sys.stdout = io.StringIO()
    original = builtins.open

    @functools.wraps(original)
    def opened(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if any(letter in mode for letter in "wax") and "b" not in mode:
            return _Unwritten()
        return original(file, mode, *args, **kwargs)

    vars(builtins)["open"] = opened


class _Unwritten(io.StringIO):
    """A file for text that keeps nothing."""

    def write(self, text: str) -> int:
        return len(text)

    def fileno(self) -> int:
        return 1


def _answering(answer: Any) -> Callable[..., Any]:
    def answering(*_: Any, **__: Any) -> Any:
        return answer

    return answering
