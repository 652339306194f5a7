"""This process's rank in a distributed run, and the exchange of epoch times between ranks."""

from __future__ import annotations

from profiler.config.environment import variables
from profiler.measure import ranks
from profiler.records.run import EpochRecord

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from profiler.config.resolve import Resolved
    from profiler.measure.ranks import Ranks
    from profiler.records.run import Run


class RankExchange:
    """The ranks of one run.

    Args:
        run: gets its rank and the number of ranks.
        is_wanted: False if ranks are to know nothing of each other.
        resolve: gives the settings in force.
    """

    def __init__(self, run: Run, is_wanted: bool, resolve: Callable[[], Resolved]) -> None:
        self._run = run
        self._is_wanted = is_wanted
        self._resolve = resolve
        self._ranks: Ranks | None = None

    def find(self) -> None:
        """Set the run's rank, as soon as torch.distributed or a launcher's variables give it."""
        found = None if not self._is_wanted else ranks.place() or ranks.place_from(variables(("RANK", "WORLD_SIZE")))
        if found is not None:
            self._run.rank, self._run.world_size = found

    def publish(self, epoch: EpochRecord) -> list[EpochRecord]:
        """Publish an epoch's times to the other ranks, and return the epochs that are complete by now."""
        if self._ranks is None and self._is_wanted and ranks.place() is not None and self._may_publish():
            self._ranks = ranks.join(self._run.name)
        if self._ranks is not None:
            self._ranks.publish(epoch)
        return self.gather(last=False)

    def gather(self, *, last: bool) -> list[EpochRecord]:
        """Return the epochs of which all ranks have published their times; in other ranks than the first, none.

        Args:
            last: the run ends: wait a moment for the others, and take the times that are there.
        """
        if self._ranks is None or self._ranks.rank != 0:
            return []
        gathered = self._ranks.gather(last=last)
        return [EpochRecord(epoch.index, started_ns=epoch.started_ns, ranks=epoch.ranks) for epoch in gathered]

    def _may_publish(self) -> bool:
        """Return True unless ``sync`` is off and some rank is on another machine: "nothing leaves" holds there, too."""
        local = variables(("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
        on_one_machine = len(local) == 2 and len(set(local.values())) == 1
        return self._resolve().values["sync"].value is True or on_one_machine
