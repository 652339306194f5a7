"""The ranks of a distributed run: each publishes the sums of its epochs, and the first one gathers them.

They go through the store that ``torch.distributed`` uses for its own rendezvous, not through a collective. A collective
makes every rank wait for the slowest at a moment that the loop did not choose. It needs a group that all ranks make
together, and it never returns if one has died or runs no profiler. A store only keeps values.

Each rank has one key, which holds its sums up to each of its last few epochs. So the store does not grow, and nothing
has to be removed. The first rank reads all keys now and then, and compares the ranks at the last epoch that all have reported.

The rules it keeps: no rank waits for another, except the first one at its end, and only for `PATIENCE_S`. No host is
ever named.
"""

from __future__ import annotations

import json
import secrets
import sys
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from profiler.records.run import MEDIANS, RankStage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.run import EpochRecord


PATIENCE_S = 1.0
POLL_S = 0.02
RING = 4  # epochs whose sums a rank's key holds: ranks of one job are seldom further apart
AT_ONCE = 512  # keys in one request
JOB_DIGITS = 12
SHOWN_RANKS = 64  # of more ranks than that, only the notable ones are kept
EXTREMES = 4  # slowest and fastest ranks that are kept of each phase
_runs: dict[str, int] = {}  # how many runs of each name this process has joined: the same in every rank


def place() -> tuple[int, int] | None:
    """Return this process's rank and the number of ranks, or None if torch.distributed is not set up for several."""
    found = sys.modules.get("torch.distributed")
    if found is None or not hasattr(found, "is_initialized") or not found.is_available() or not found.is_initialized():
        return None
    size = int(found.get_world_size())
    return (int(found.get_rank()), size) if size > 1 else None


def node_from(variables: Mapping[str, str], rank: int) -> int | None:
    """Return the number of this rank's machine, as its launcher counts them; None if the launcher does not say."""
    try:
        if "GROUP_RANK" in variables:
            return int(variables["GROUP_RANK"])
        return rank // int(variables["LOCAL_WORLD_SIZE"])
    except (KeyError, ValueError, ZeroDivisionError):
        return None


def place_from(variables: Mapping[str, str]) -> tuple[int, int] | None:
    """Return the same from a launcher's variables RANK and WORLD_SIZE, before torch.distributed is set up."""
    try:
        rank, size = int(variables["RANK"]), int(variables["WORLD_SIZE"])
    except (KeyError, ValueError):
        return None
    return (rank, size) if 0 <= rank < size and size > 1 else None


Sums = dict[str, "list[Any]"]  # by stage: its time, and the times of its top-level phases, in ns


class Ranks:
    """One rank's end of the exchange.

    Args:
        store: torch's ``Store``.
        rank: this process's rank.
        size: the number of ranks.
        name: the run's name; ranks whose runs have the same name belong together.

    Attributes:
        job: a random id that all ranks of this run share.

    Raises:
        RuntimeError: the store is gone.
    """

    def __init__(self, store: Any, rank: int, size: int, name: str) -> None:
        _runs[name] = _runs.get(name, 0) + 1
        self.rank = rank
        self.size = size
        self._prefix = f"epochmeter/{name}/{_runs[name]}"
        self._store = store
        self._sums: Sums = {}
        self._ring: dict[int, Sums] = {}
        self._epochs = 0
        self._present: list[int] = []  # the other ranks that have published
        self._joined = 0
        self.job = bytes(store.compare_set(f"{self._prefix}/job", "", secrets.token_hex(JOB_DIGITS // 2))).decode()

    def store_beside(self) -> Any:
        """Return the same store for another thread, or None if it cannot be shared: a call may hold it for minutes."""
        try:
            return self._store.clone()
        except (AttributeError, RuntimeError, NotImplementedError):
            return None

    def publish(self, epoch: EpochRecord) -> None:
        """Publish an epoch: add its times to the sums that this rank's key holds.

        Raises:
            RuntimeError: the store is gone.
        """
        for name, stage in epoch.stages.items():
            mine = self._sums.setdefault(name, [0, {}])
            mine[0] += stage.duration_ns
            for path, timing in stage.phases.items():
                if len(path) == 1:
                    mine[1][path[0]] = mine[1].get(path[0], 0) + timing.total_ns
        self._epochs += 1
        self._ring[self._epochs] = json.loads(json.dumps(self._sums))
        self._ring.pop(self._epochs - RING, None)
        if self.rank:
            self._store.set(self._key(self.rank), json.dumps(self._ring))
            if self._epochs == 1:
                self._store.add(f"{self._prefix}/joined", 1)

    def finish(self) -> None:
        """Say that this rank will publish no more; the first one waits a moment until all have said so.

        Raises:
            RuntimeError: the store is gone.
        """
        if self.rank:
            self._store.add(f"{self._prefix}/done", 1)
            return
        deadline = time.monotonic() + PATIENCE_S
        while self._store.add(f"{self._prefix}/done", 0) < self.size - 1 and time.monotonic() < deadline:
            time.sleep(POLL_S)

    def gather(self, store: Any = None) -> Gathered:
        """Return, in the first rank, the reports of all ranks so far.

        Args:
            store: the same store, for another thread; this one's, unless it is given.

        Raises:
            RuntimeError: the store is gone.
        """
        store = self._store if store is None else store
        self._find_present(store)
        told: dict[int, dict[int, Sums]] = {0: dict(self._ring)}
        for begin in range(0, len(self._present), AT_ONCE):
            ranks = self._present[begin : begin + AT_ONCE]
            values = store.multi_get([self._key(rank) for rank in ranks])
            for rank, value in zip(ranks, values, strict=True):
                told[rank] = {int(epoch): sums for epoch, sums in json.loads(value).items()}
        return gathered(told, self.size)

    def _find_present(self, store: Any) -> None:
        """Look for ranks that have published for the first time. One that never does costs nothing later."""
        joined = store.add(f"{self._prefix}/joined", 0)
        if joined == self._joined:
            return
        self._joined = joined
        unknown = sorted(set(range(1, self.size)) - set(self._present))
        self._present = sorted([*self._present, *self._existing(store, unknown)])

    def _existing(self, store: Any, ranks: list[int]) -> list[int]:
        """Return those of these ranks whose keys exist; ``check`` says only whether all of them do."""
        # `check` answers at once, where `get` waits for a key that is missing, up to the store's timeout of minutes.
        if not ranks or store.check([self._key(rank) for rank in ranks]):
            return ranks
        if len(ranks) == 1:
            return []
        middle = len(ranks) // 2
        return [*self._existing(store, ranks[:middle]), *self._existing(store, ranks[middle:])]

    def _key(self, rank: int) -> str:
        return f"{self._prefix}/{rank}"


class Gathered(NamedTuple):
    """The ranks at the last epoch that all of them have reported.

    Attributes:
        epochs: how many epochs are in it.
        missing: ranks that have not reported the first rank's last epoch.
        ranks: their sums, by rank and stage.
    """

    epochs: int
    missing: list[int]
    ranks: dict[int, dict[str, RankStage]]


def gathered(told: Mapping[int, Mapping[int, Sums]], size: int) -> Gathered:
    """Return the sums of ranks at their last common epoch: of all ranks, or else of those that reported the last one.

    Args:
        told: by rank, the sums up to each of its last epochs.
        size: the number of ranks.
    """
    last = max(told.get(0, {}), default=0)
    missing = [rank for rank in range(size) if last not in told.get(rank, {})]
    common = set.intersection(*(set(ring) for ring in told.values())) if len(told) == size else set()
    epochs = max(common, default=last)
    ranks = {rank: _stages(ring[epochs]) for rank, ring in sorted(told.items()) if epochs in ring}
    return Gathered(epochs, missing, ranks)


def _stages(sums: Sums) -> dict[str, RankStage]:
    return {name: RankStage(duration, dict(phases)) for name, (duration, phases) in sums.items()}


def notable(ranks: Mapping[int, dict[str, RankStage]], most: int = SHOWN_RANKS) -> dict[int, dict[str, RankStage]]:
    """Return all of a few ranks, or of many the slowest and the fastest in each stage and phase, and `MEDIANS`."""
    found = dict(ranks)
    if len(ranks) > most:
        kept: set[int] = set()
        for times in _all_times(ranks).values():
            ordered = sorted(times, key=lambda rank: times[rank])
            kept.update((*ordered[:EXTREMES], *ordered[-EXTREMES:]))
        found = {rank: stages for rank, stages in ranks.items() if rank in kept}
        found[MEDIANS] = _medians(ranks)
    return found


def _all_times(ranks: Mapping[int, dict[str, RankStage]]) -> dict[tuple[str, str], dict[int, int]]:
    times: dict[tuple[str, str], dict[int, int]] = {}
    for rank, stages in ranks.items():
        for name, stage in stages.items():
            times.setdefault((name, ""), {})[rank] = stage.duration_ns
            for phase, spent in stage.phases.items():
                times.setdefault((name, phase), {})[rank] = spent
    return times


def _medians(ranks: Mapping[int, dict[str, RankStage]]) -> dict[str, RankStage]:
    from statistics import median  # few runs have so many ranks

    found: dict[str, RankStage] = {}
    for (name, phase), times in _all_times(ranks).items():
        stage, middle = found.setdefault(name, RankStage()), round(median(times.values()))
        if phase:
            stage.phases[phase] = middle
        else:
            stage.duration_ns = middle
    return found


def join(name: str) -> Ranks | None:
    """Return this process's end of the exchange, or None if there are no ranks or torch has no store for them.

    Raises:
        RuntimeError: the store is gone.
    """
    found = place()
    if found is None:
        return None
    distributed = sys.modules["torch.distributed"]
    inner = getattr(getattr(distributed, "distributed_c10d", None), "_get_default_store", None)
    return None if inner is None else Ranks(inner(), *found, name)
