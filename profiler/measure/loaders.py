"""The DataLoaders of a loop: their settings, their workers, and how long those take to start."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from profiler.measure import hot_path
from profiler.measure.frames import drop_own_frame
from profiler.measure.lengths import is_data_loader
from profiler.measure.scheduling import read_scheduled
from profiler.records.causes import LOADER_START
from profiler.records.faults import is_of_a_signal
from profiler.records.loader import LoaderFacts
from profiler.records.readings import MetricSpec, Reading, Sample
from profiler.records.vocabulary import Phase

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.measure.cause_book import CauseBook
    from profiler.measure.passes import Segment
    from profiler.measure.spans import Tree

T = TypeVar("T")
WORKER_CPU = MetricSpec(
    *("epochmeter.loader.worker.cpu.utilization", "1", "gauge"),
    "Share of a CPU that a loader's worker has taken since its start; the mean of all.",
)
WORKER_DEMAND = MetricSpec(
    *("epochmeter.loader.worker.cpu.demand", "1", "gauge"),
    "Share of the time in which a worker's own thread was on a CPU or ready for one; the mean of all.",
)
WORKER_MEMORY = MetricSpec(
    "epochmeter.loader.worker.memory.usage", "By", "updowncounter", "Physical memory of a loader's workers together."
)


YOUNGEST_S = 0.3  # a younger worker has not shown how busy it is


class LoaderWatch:
    """The loaders of one run, as far as they are DataLoaders of torch.

    Args:
        book: receives the time that their workers took to start.
    """

    def __init__(self, book: CauseBook) -> None:
        self._book = book
        self._facts: dict[Tree, LoaderFacts] = {}  # of passes whose stage may not be known yet
        self._known: dict[str, LoaderFacts] = {}
        self._workers: tuple[int, ...] = ()  # the system's numbers of the newest loader's worker processes

    def first(self, segment: Segment, loader: Iterable[T], iterator: Iterator[T]) -> T:
        """Return the first batch of a loader, and note the loader."""
        try:
            item = next(iterator)
        except BaseException as error:
            drop_own_frame(error)
            raise
        self.note(segment, loader, iterator, hot_path.now() - segment.wait.t0)
        return item

    def note(self, segment: Segment, loader: Any, iterator: Any, waited_ns: int) -> None:
        """Note a loader that has handed out its first batch.

        Args:
            segment: the pass that it feeds.
            loader: the loader; anything but a DataLoader is ignored.
            iterator: its iterator.
            waited_ns: how long the first batch took, with the loader's start.
        """
        facts = facts_of(loader)
        if facts is None:
            return
        self._facts[segment.tree] = facts
        workers = getattr(iterator, "_workers", None)
        if facts.workers and isinstance(workers, list):
            self._workers = tuple(number for number in (getattr(one, "pid", None) for one in workers) if number)
            self._book.add_cost(LOADER_START, (segment.tree.stage_name, Phase.DATA_WAIT.value), waited_ns)

    def facts(self) -> dict[str, LoaderFacts]:
        """Return the settings of each stage's loader."""
        found = {tree.stage_name: facts for tree, facts in list(self._facts.items()) if tree.stage_name}
        self._known.update(found)
        return dict(self._known)

    def settle(self) -> None:
        """Keep the settings of passes whose stage is known: later, another stage may get their tree."""
        self.facts()
        self._facts = {tree: facts for tree, facts in list(self._facts.items()) if not tree.stage_name}

    def reading(self) -> Reading:
        """Return the workers' use of CPUs and memory as a row for the sampler."""

        def read() -> Iterator[Sample]:
            if not self._workers:
                return
            import psutil  # few runs have workers

            shares, demands, memory = [], [], 0
            for number in self._workers:
                try:
                    process = psutil.Process(number)
                    times, age = process.cpu_times(), time.time() - process.create_time()
                    memory += process.memory_info().rss
                except psutil.Error:  # it has ended
                    continue
                if age >= YOUNGEST_S:
                    shares.append((times.user + times.system) / age)
                    scheduled = read_scheduled(number, number)
                    demands += [] if scheduled is None else [min(sum(scheduled) / 1e9 / age, 1.0)]
            if memory:
                yield Sample(WORKER_MEMORY, memory)
            if shares:
                yield Sample(WORKER_CPU, sum(shares) / len(shares))
            if demands:
                yield Sample(WORKER_DEMAND, sum(demands) / len(demands))

        return Reading((WORKER_CPU, WORKER_DEMAND, WORKER_MEMORY), read)


def facts_of(loader: Any) -> LoaderFacts | None:
    """Return the settings of a DataLoader, or None if the object is none."""
    try:
        if not is_data_loader(loader):
            return None
        workers, batch_size, prefetch = loader.num_workers, loader.batch_size, loader.prefetch_factor
        return LoaderFacts(
            workers=workers if type(workers) is int else 0,
            batch_size=batch_size if type(batch_size) is int else None,
            pin_memory=bool(loader.pin_memory),
            prefetch_factor=prefetch if type(prefetch) is int else None,
            persistent_workers=bool(loader.persistent_workers),
        )
    except Exception as error:  # the program's own class
        if is_of_a_signal(error):
            raise
        return None
