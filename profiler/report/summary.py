"""``prof.summary``: a run, printable and as plain data."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, TypeVar

from profiler.errors import ArgumentTypeError
from profiler.report.document import document, epochs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.run import EpochRecord, Run
    from profiler.report.compare import Comparison


T = TypeVar("T")


class RunSummary:
    """A run up to the moment it was requested.

    ``print()`` shows the tables. The attributes hold the parts of `to_dict`, which are made when they are asked for.

    Args:
        run: the run, which nobody changes any more.
        whole: its sums.
        spend: counts the time (ns) that making the parts takes.
        tariff: the setting of that name.
    """

    def __init__(
        self, run: Run, whole: EpochRecord, spend: Callable[[int], None] = lambda ns: None, tariff: str | None = None
    ) -> None:
        self._tariff = tariff
        self._run = run
        self._whole = whole
        self._spend = spend

    @cached_property
    def _document(self) -> dict[str, Any]:
        """Everything but the epochs, whose number may be large."""
        return self._made(lambda: document(self._run, self._whole, with_epochs=False, tariff=self._tariff))

    @cached_property
    def _epochs(self) -> list[dict[str, Any]]:
        return self._made(lambda: epochs(self._run))

    def _made(self, make: Callable[[], T]) -> T:
        began = time.perf_counter_ns()
        made = make()
        self._spend(time.perf_counter_ns() - began)
        return made

    @property
    def run(self) -> Run:
        """The record itself, for a renderer."""
        return self._run

    @property
    def id(self) -> str:
        """The run's id, twelve hexadecimal digits."""
        return self._run.id

    @property
    def name(self) -> str:
        """The run's name."""
        return self._run.name

    @property
    def state(self) -> str:
        """running, finished, interrupted or crashed."""
        return self._run.state

    @property
    def epochs(self) -> list[dict[str, Any]]:
        """The finished epochs, each with its stages."""
        return self._epochs

    @property
    def stages(self) -> dict[str, dict[str, Any]]:
        """The stages ``train``, ``val`` and ``inference`` over the whole run, if they occurred."""
        stages: dict[str, dict[str, Any]] = self._document["stages"]
        return stages

    @property
    def phases(self) -> dict[str, dict[str, dict[str, Any]]]:
        """The phases of each stage over the whole run, in seconds."""
        return {name: stage["phases"] for name, stage in self.stages.items()}

    @property
    def hardware(self) -> dict[str, Any]:
        """The facts of the machine, and its readings."""
        hardware: dict[str, Any] = self._document["hardware"]
        return hardware

    @property
    def verdict(self) -> dict[str, Any]:
        """The bottleneck of the run: ``kind``, ``evidence``, ``findings`` and ``next``; see docs/causes.md."""
        verdict: dict[str, Any] = self._document["verdict"]
        return verdict

    def to_dict(self) -> dict[str, Any]:
        """Return the document of ``epochmeter report --format json``; times in seconds."""
        return copy.deepcopy({**self._document, "epochs": self._epochs})

    def __str__(self) -> str:
        from profiler.report.text import text  # loads rich, which a run that prints nothing does not need

        return text(self._run, tariff=self._tariff)

    def per_epoch(self) -> Iterator[tuple[int, dict[str, float]]]:
        """Yield each epoch's index and its numbers by flat names such as ``train/forward_s``, for an experiment tracker.

        Times are in seconds, memory in bytes, power in watts; see `profiler.report.per_epoch`.
        """
        from profiler.report.per_epoch import per_epoch

        return per_epoch(self._epochs)

    def compare(self, later: RunSummary) -> Comparison:
        """Return a later run beside this one, as ``epochmeter compare`` does: ``print()`` it, or let a notebook show it.

        "slower" means that the later run is slower than this one.

        Raises:
            ArgumentTypeError: it is no summary of a run.
            ArgumentValueError: the runs have no stage with steps in common.
        """
        from profiler.report.compare import compared

        if not isinstance(later, RunSummary):
            raise ArgumentTypeError(f"compare takes the summary of another run, such as prof.summary, not {later!r}")
        return compared(self._run, later.run)

    def _repr_html_(self) -> str:
        """Return the report for a notebook."""
        from profiler.report.web.run_page import run_fragment

        return run_fragment(self._run, self._tariff)

    def __repr__(self) -> str:
        return f"<RunSummary {self.name!r} {self.id} {self.state}: {len(self._run.epochs)} epochs>"
