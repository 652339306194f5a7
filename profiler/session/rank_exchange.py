"""This process's rank in a distributed run, and the exchange of epoch times between ranks."""

from __future__ import annotations

import time
from typing import Any

from profiler.config.environment import variables
from profiler.measure import ranks
from profiler.records.run import EpochRecord

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from profiler.config.resolve import Resolved
    from profiler.measure.ranks import Ranks
    from profiler.records.run import Run


FIRST_GATHER_S = 10.0
GATHER_TIMES = 2.0  # the age of the run at the last gathering: a run of a day gathers some fourteen times
LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK")


class RankExchange:
    """The ranks of one run.

    Args:
        run: gets its rank, the number of ranks, its node, and the id of the job.
        is_wanted: False if ranks are to know nothing of each other.
        resolve: gives the settings in force.
    """

    def __init__(self, run: Run, is_wanted: bool, resolve: Callable[[], Resolved]) -> None:
        self._run = run
        self._is_wanted = is_wanted
        self._resolve = resolve
        self._ranks: Ranks | None = None
        self._beside: Any = None  # the store, for the sampling thread
        self._began = time.monotonic()
        self._next_s = FIRST_GATHER_S

    def find(self) -> None:
        """Set the run's rank and node, as soon as torch.distributed or a launcher's variables give it."""
        if not self._is_wanted:
            return
        told = variables(LAUNCHERS)
        found = ranks.place() or ranks.place_from(told)
        if found is not None:
            self._run.rank, self._run.world_size = found
            self._run.node = ranks.node_from(told, found[0])

    def join(self) -> None:
        """Join the other ranks, as soon as torch.distributed is set up; called by the loop when an epoch begins or ends.

        Raises:
            RuntimeError: the store is gone.
        """
        if self._ranks is None and self._is_wanted and ranks.place() is not None and self._may_publish():
            self._ranks = ranks.join(self._run.name)
            if self._ranks is not None:
                self._run.job = self._ranks.job
                self._beside = self._ranks.store_beside() if self._ranks.rank == 0 else None

    def publish(self, epoch: EpochRecord) -> None:
        """Publish an epoch's times to the other ranks.

        Raises:
            RuntimeError: the store is gone.
        """
        self.join()
        if self._ranks is not None:
            self._ranks.publish(epoch)

    def look(self) -> EpochRecord | None:
        """Return the times of all ranks now and then, in the first rank; called by the sampling thread.

        Raises:
            RuntimeError: the store is gone.
        """
        age = time.monotonic() - self._began
        if self._ranks is None or self._beside is None or age < self._next_s:
            return None
        self._next_s = age * GATHER_TIMES
        return self._record(self._beside)

    def finish(self) -> EpochRecord | None:
        """Return the times of all ranks at the end, in the first one. It waits a moment for the others' last word.

        Raises:
            RuntimeError: the store is gone.
        """
        if self._ranks is None:
            return None
        self._ranks.finish()
        return self._record(None) if self._ranks.rank == 0 else None

    def _record(self, store: Any) -> EpochRecord | None:
        if self._ranks is None:
            return None
        epochs, missing, told = self._ranks.gather(store)
        if not epochs:
            return None
        return EpochRecord(None, ranks=ranks.notable(told), rank_epochs=epochs, rank_missing=missing)

    def _may_publish(self) -> bool:
        """Return True unless ``sync`` is off and some rank is on another machine: "nothing leaves" holds there, too."""
        local = variables(("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
        on_one_machine = len(local) == 2 and len(set(local.values())) == 1
        return self._resolve().values["sync"].value is True or on_one_machine
