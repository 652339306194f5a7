"""Ranks of a distributed run: each tells what its epochs took, and the first one gathers it.

It goes through the store that ``torch.distributed`` has for its own rendezvous, and not by a collective: a collective
makes every rank wait for the slowest at a moment that the loop did not choose, needs a group that all ranks make
together, and never returns where one has died or carries no profiler. A store only keeps what was put in it.

The rules it keeps: nothing here waits for another rank, but for the first one at its very end, and there only for
`PATIENCE_S`; no host is ever named.
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
_runs: dict[str, int] = {}  # how many runs of each name this process has told of: the same in every rank


def place() -> tuple[int, int] | None:
    """This process's rank and the number of ranks, where torch.distributed has been set up for more than one."""
    found = sys.modules.get("torch.distributed")
    if found is None or not hasattr(found, "is_initialized") or not found.is_available() or not found.is_initialized():
        return None
    size = int(found.get_world_size())
    return (int(found.get_rank()), size) if size > 1 else None


def told_by(variables: Mapping[str, str]) -> tuple[int, int] | None:
    """The same from a launcher's variables RANK and WORLD_SIZE, before torch.distributed has been set up."""
    try:
        rank, size = int(variables["RANK"]), int(variables["WORLD_SIZE"])
    except (KeyError, ValueError):
        return None
    return (rank, size) if 0 <= rank < size and size > 1 else None


class Ranks:
    """One rank's end of the exchange.

    Args:
        store: torch's ``Store``.
        rank, size: which rank this is, of how many.
        name: the run's; ranks whose runs are named alike belong together.
    """

    def __init__(self, store: Any, rank: int, size: int, name: str) -> None:
        _runs[name] = _runs.get(name, 0) + 1
        self.rank = rank
        self.size = size
        self._prefix = f"epochmeter/{name}/{_runs[name]}"
        self._store = store
        self._waiting: list[EpochRecord] = []

    def tell(self, epoch: EpochRecord) -> None:
        """Says what an epoch took here: for each stage its time, and that of its top-level phases, in ns.

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
        """In the first rank: the epochs of which all ranks have told by now, with what they said in ``ranks``.

        Args:
            last: the run ends: wait a little for the others, and take what there is.

        Raises:
            RuntimeError: the store is gone.
        """
        deadline = time.monotonic() + (PATIENCE_S if last else 0.0)
        while last and not self._is_complete() and time.monotonic() < deadline:
            time.sleep(POLL_S)
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
    """The exchange of this process's ranks, if there are any and torch has a store for them."""
    found = place()
    if found is None:
        return None
    distributed = sys.modules["torch.distributed"]
    inner = getattr(getattr(distributed, "distributed_c10d", None), "_get_default_store", None)
    return None if inner is None else Ranks(inner(), *found, name)
