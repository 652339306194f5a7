"""The rate of a DataLoader: images as bytes, cropped, flipped and normalised one by one in torch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from profiler.bench.plan import Case
from profiler.bench.work import Call, Work

AHEAD = 2  # batches that each worker prepares in advance, as is the DataLoader's default
IMAGES = 64


class Images(Dataset):
    """Random images of ``3 x stored x stored`` bytes, returned as ``3 x shown x shown`` floats."""

    def __init__(self, stored: int, shown: int) -> None:
        self._images = torch.randint(0, 256, (IMAGES, 3, stored, stored), dtype=torch.uint8)
        self._room, self._shown = stored - shown + 1, shown

    def __getitem__(self, index: int) -> Any:
        top, left, flipped = torch.randint(0, self._room, (3,)).tolist()
        image = self._images[index % IMAGES, :, top : top + self._shown, left : left + self._shown]
        if flipped % 2:
            image = image.flip(-1)
        return image.to(torch.float32).div_(255).sub_(0.45).div_(0.225), index


class Batches(Sampler):
    """A sampler with as many batches as the next pass is to have."""

    def __init__(self, size: int) -> None:
        self.size, self.count = size, 1

    def __iter__(self) -> Iterator[list[int]]:
        for batch in range(self.count):
            yield list(range(batch * self.size, (batch + 1) * self.size))


class Passes:
    """A clock whose blocks are whole passes, with as many batches prepared in advance at the end as at the start.

    Otherwise batches that the workers had ready before the clock started would count as made in no time. After a pass the
    workers are idle, so that the next case has the machine to itself.
    """

    def __init__(self, loader: Any, batches: Batches, ahead: int) -> None:
        self._loader, self._batches, self._ahead = loader, batches, ahead

    def block(self, call: Call, times: int) -> float:
        self._batches.count = 2 * self._ahead + times
        passed = iter(self._loader)
        for _ in range(self._ahead):
            next(passed)
        began = time.perf_counter_ns()
        for _ in range(times):
            next(passed)
        took = (time.perf_counter_ns() - began) / 1e9
        for _ in passed:
            pass
        return took

    def each(self, call: Call, times: int) -> list[float]:
        return [self.block(call, 1) for _ in range(times)]

    def first(self) -> None:
        """Fetch one batch from a new loader, which starts its workers."""
        self._batches.count = 1
        for _ in self._loader:
            pass


def build(case: Case) -> Work:
    """Build the case of a DataLoader."""
    workers, size = case.workers or 0, case.batch or 1
    batches = Batches(size)
    more: dict[str, Any] = {"persistent_workers": True, "prefetch_factor": AHEAD} if workers else {}
    loader: Any = DataLoader(Images(*case.size), batch_sampler=batches, num_workers=workers, **more)
    clock = Passes(loader, batches, AHEAD * workers)
    return Work(clock.first, clock, samples=size, children=workers > 0)
