"""The ranks of a distributed run: each publishes the times of its epochs, and the first one gathers them.

They go through the store that ``torch.distributed`` uses for its own rendezvous, not through a collective. A collective
makes every rank wait for the slowest at a moment that the loop did not choose. It needs a group that all ranks make
together, and it never returns if one has died or runs no profiler. A store only keeps values.

The rules it keeps: no rank waits for another, except the first one at its end, and only for `PATIENCE_S`. No host is
ever named.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from typing import Any

from profiler.records.run import RankStage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.run import EpochRecord


PATIENCE_S = 1.0
POLL_S = 0.02
_runs: dict[str, int] = {}  # how many runs of each name this process has joined: the same in every rank


def place() -> tuple[int, int] | None:
    """Return this process's rank and the number of ranks, or None if torch.distributed is not set up for several."""
    found = sys.modules.get("torch.distributed")
    if found is None or not hasattr(found, "is_initialized") or not found.is_available() or not found.is_initialized():
        return None
    size = int(found.get_world_size())
    return (int(found.get_rank()), size) if size > 1 else None


def place_from(variables: Mapping[str, str]) -> tuple[int, int] | None:
    """Return the same from a launcher's variables RANK and WORLD_SIZE, before torch.distributed is set up."""
    try:
        rank, size = int(variables["RANK"]), int(variables["WORLD_SIZE"])
    except (KeyError, ValueError):
        return None
    return (rank, size) if 0 <= rank < size and size > 1 else None


class Ranks:
    """One rank's end of the exchange.

    Args:
        store: torch's ``Store``.
        rank: this process's rank.
        size: the number of ranks.
        name: the run's name; ranks whose runs have the same name belong together.
    """

    def __init__(self, store: Any, rank: int, size: int, name: str) -> None:
        _runs[name] = _runs.get(name, 0) + 1
        self.rank = rank
        self.size = size
        self._prefix = f"epochmeter/{name}/{_runs[name]}"
        self._store = store
        self._waiting: list[EpochRecord] = []

    def publish(self, epoch: EpochRecord) -> None:
        """Publish an epoch: for each stage its time, and the times of its top-level phases, in ns.

        Raises:
            RuntimeError: the store is gone.
        """
        stages = {
            name: [stage.duration_ns, {path[0]: timing.total_ns for path, timing in stage.phases.items() if len(path) == 1}]
            for name, stage in epoch.stages.items()
        }
        self._store.set(self._key(epoch, self.rank), json.dumps(stages))
        if self.rank == 0:
            self._waiting.append(epoch)

    def gather(self, *, last: bool = False) -> list[EpochRecord]:
        """Return, in the first rank, the epochs that all ranks have published by now, with their times in ``ranks``.

        Args:
            last: the run ends: wait a moment for the others, and take the times that are there.

        Raises:
            RuntimeError: the store is gone.
        """
        deadline = time.monotonic() + (PATIENCE_S if last else 0.0)
        while last and not self._is_complete() and time.monotonic() < deadline:
            time.sleep(POLL_S)
        # `check` answers at once, where `get` waits for a key that is missing, up to the store's timeout of minutes.
        done = []
        for epoch in list(self._waiting):
            there = [rank for rank in range(self.size) if self._store.check([self._key(epoch, rank)])]
            if len(there) == self.size or last:
                epoch.ranks = {rank: self._read(epoch, rank) for rank in there}
                self._waiting.remove(epoch)
                done.append(epoch)
        return done

    def _is_complete(self) -> bool:
        keys = [self._key(epoch, rank) for epoch in self._waiting for rank in range(self.size)]
        return not keys or bool(self._store.check(keys))

    def _read(self, epoch: EpochRecord, rank: int) -> dict[str, RankStage]:
        content = json.loads(self._store.get(self._key(epoch, rank)))
        return {name: RankStage(duration, dict(phases)) for name, (duration, phases) in content.items()}

    def _key(self, epoch: EpochRecord, rank: int) -> str:
        return f"{self._prefix}/{epoch.index}/{rank}"


def join(name: str) -> Ranks | None:
    """Return this process's end of the exchange, or None if there are no ranks or torch has no store for them."""
    found = place()
    if found is None:
        return None
    distributed = sys.modules["torch.distributed"]
    inner = getattr(getattr(distributed, "distributed_c10d", None), "_get_default_store", None)
    return None if inner is None else Ranks(inner(), *found, name)
