"""A fleet that is asked: the questions as methods, of a folder of Parquet files or of a ClickHouse server."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from profiler.errors import ProfilerError, did_you_mean
from profiler.fleet.columns import TABLE
from profiler.fleet.questions import GROUPS, grouped, question, sql_of


class Engine(Protocol):
    """The engine that answers queries."""

    def ask(self, sql: str) -> pa.Table:
        """Return the answer to a query."""


class Asked:
    """A fleet. Each question returns an Arrow table; ``epochmeter fleet ask`` explains its columns.

    All raise `ProfilerError` if the engine refuses.

    Args:
        engine: answers.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def trend(self, *, by: str = "", since: date | None = None) -> pa.Table:
        """Return the time of a sample by week, workload, hardware and version, or the group that ``by`` names."""
        return self.ask("trend", by=by, since=since)

    def regression(self, old: str, new: str, *, by: str = "", since: date | None = None) -> pa.Table:
        """Return the ratios of the new version's times of a sample to the old one's, with 95 % intervals."""
        return self.ask("regression", by=by, old=old, new=new, since=since)

    def stragglers(self, *, since: date | None = None) -> pa.Table:
        """Return the ranks that hold their job back."""
        return self.ask("stragglers", since=since)

    def slow_nodes(self, *, by: str = "", since: date | None = None) -> pa.Table:
        """Return the machines that are slower than the others, or the groups that ``by`` names."""
        return self.ask("slow-nodes", by=by, since=since)

    def waste(self, *, by: str = "", since: date | None = None) -> pa.Table:
        """Return hours, GPU-hours and kWh by cause, for each workload, or each group that ``by`` names."""
        return self.ask("waste", by=by, since=since)

    def energy(self, *, since: date | None = None) -> pa.Table:
        """Return the GPUs' joules for a sample, by GPU class, workload and stage."""
        return self.ask("energy", since=since)

    def waiting(self, *, since: date | None = None) -> pa.Table:
        """Return how many runs wait how much for data."""
        return self.ask("waiting", since=since)

    def steps(self, *, since: date | None = None) -> pa.Table:
        """Return quantiles of the durations of steps, in seconds."""
        return self.ask("steps", since=since)

    def features(self, *, since: date | None = None) -> pa.Table:
        """Return the counts of packages' features, commands, options and facts of runs, by week; from a collector alone."""
        return self.ask("features", since=since)

    def ask(self, name: str, *, by: str = "", old: str = "", new: str = "", since: date | None = None) -> pa.Table:
        """Return the answer to a question by its name.

        Raises:
            ArgumentValueError: there is no such question, or it does not ask for one of these.
            ProfilerError: no row has enough in it; the text says which metrics to send. Or no row has the label ``by``.
        """
        self.check_labels(by)
        answer = self.sql(sql_of(name, by=by, old=old, new=new, since=since))
        asked = question(name)
        if not answer.num_rows and not self._has_any(asked.needs, asked.table):
            raise ProfilerError(f"{name} cannot be answered: {asked.lacks}")
        return answer

    def check_labels(self, *names: str) -> None:
        """Check that each name to group by is a column or a label of some row.

        Raises:
            ArgumentValueError: it cannot be a name.
            ProfilerError: no row has it.
        """
        for name in names:
            if name and name not in GROUPS and not self._has_any(f"{grouped(name)} <> ''"):
                known = self.sql(f"SELECT DISTINCT arrayJoin(mapKeys(labels)) AS name FROM {TABLE} ORDER BY name")  # noqa: S608
                found = known["name"].to_pylist()
                labels = f"the labels are {', '.join(found)}" if found else "no run has a label"
                raise ProfilerError(f"no row has a label {name!r}: {labels}.{did_you_mean(name, [*found, *GROUPS])}")

    def _has_any(self, needs: str, table: str = TABLE) -> bool:
        return bool(self.sql(f"SELECT 1 AS found FROM {table} WHERE {needs} LIMIT 1").num_rows)  # noqa: S608

    def sql(self, text: str) -> pa.Table:
        """Return the answer to a query of one's own, over ``fleet_epoch`` and ``fleet_rank``."""
        return self._engine.ask(text)


def open_fleet(place: str | Path) -> Asked:
    """Return the fleet in a folder, or on a server (``clickhouse://...``).

    Raises:
        ArgumentValueError: the address is none.
        ProfilerError: there is no fleet.
    """
    if isinstance(place, str) and "://" in place:
        from profiler.fleet.clickhouse import ClickHouseFleet

        return Asked(ClickHouseFleet(place))
    from profiler.fleet.duck import DuckFleet

    return Asked(DuckFleet(Path(place)))
