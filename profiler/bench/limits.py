"""The limits of the machine: operations with a known amount of work, each large enough to reach the limit.

Rates are decimal: 1 GB/s is 1e9 bytes a second.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from profiler.bench.plan import Case
from profiler.bench.work import HostClock, Work, clock_for, dtype_of


def build(case: Case) -> Work:
    """Build the case of a limit."""
    return BUILDERS[case.name](case)


def _matmul(case: Case) -> Work:
    """Build ``C = A B`` of n x n matrices: 2 n³ operations, as torch's counter counts them."""
    (side,) = case.size
    a, b, c = (torch.randn(side, side, device=case.device).to(dtype_of(case.dtype)) for _ in range(3))
    return Work(lambda: torch.mm(a, b, out=c), clock_for(case.device), flops=2.0 * side**3)


def _memory(case: Case) -> Work:
    """Build STREAM's triad, ``a = b + s c``: three arrays moved. McCalpin, https://www.cs.virginia.edu/stream/ref.html."""
    (size,) = case.size
    a, b, c = (torch.full((size // 4,), 1.0, device=case.device) for _ in range(3))
    return Work(lambda: torch.add(b, c, alpha=0.5, out=a), clock_for(case.device), moved=3.0 * size)


def _copy(case: Case) -> Work:
    """Build a copy between the host's and the device's memory. Page-locked ("pinned") memory needs no extra copy."""
    (size,) = case.size
    host = torch.ones(size // 4, pin_memory=case.name.endswith("pinned"))
    there = torch.empty_like(host, device=case.device)
    source, target = (there, host) if case.name.startswith("d2h") else (host, there)
    return Work(lambda: target.copy_(source, non_blocking=True), clock_for(case.device), moved=float(size))


def _launch(case: Case) -> Work:
    """Build the smallest possible operation: its time is the cost of a launch."""
    x = torch.zeros(case.size, device=case.device)
    return Work(lambda: x.add_(1.0), HostClock(case.device))


def _all_reduce(case: Case) -> Work:
    """Build an all-reduce. Bus bandwidth: ``2 (n - 1) / n`` of the data crosses each rank's link.

    https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md. The first rank decides how often, the others follow.
    """
    size, ranks = case.size
    distributed = torch.distributed
    distributed.init_process_group("nccl" if case.device.startswith("cuda") else "gloo")
    data = torch.ones(size // 4, device=case.device)
    clock = Together(case.device)
    return Work(
        lambda: distributed.all_reduce(data),
        clock,
        moved=2.0 * (ranks - 1) / ranks * size,
        close=clock.end,
    )


class Together(HostClock):
    """Blocks that all ranks begin at once. The other ranks meanwhile run `follow`."""

    def __init__(self, device: str) -> None:
        super().__init__(device)
        self._device = device

    def block(self, call: Callable[[], object], times: int) -> float:
        self._tell(times)
        return super().block(call, times)

    def end(self) -> None:
        self._tell(0)
        torch.distributed.destroy_process_group()

    def follow(self, call: Callable[[], object]) -> None:
        """Take part in each block until the first rank has no more."""
        while times := self._tell(0):
            super().block(call, times)
        torch.distributed.destroy_process_group()

    def _tell(self, times: int) -> int:
        shared = torch.tensor([times], device=self._device)
        torch.distributed.broadcast(shared, 0)
        return int(shared.item())


BUILDERS: dict[str, Callable[[Case], Work]] = {
    "matmul": _matmul,
    "memory": _memory,
    "h2d_pinned": _copy,
    "h2d_pageable": _copy,
    "d2h_pinned": _copy,
    "launch": _launch,
    "all_reduce": _all_reduce,
}
