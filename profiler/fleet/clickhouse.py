"""A fleet in ClickHouse, through `clickhouse-connect`, which speaks to a server or to chDB in this process."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

import clickhouse_connect
from clickhouse_connect.driver.exceptions import Error

from profiler.errors import ProfilerError
from profiler.fleet.columns import COLUMNS, STORED, TABLE, clickhouse_schema

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.fleet.rows import Row

logging.getLogger("clickhouse_connect").setLevel(logging.CRITICAL)  # what it logs, our errors say
NAMES = [one.name for one in COLUMNS]


class ClickHouseFleet:
    """The table ``fleet_epoch`` of a server.

    Args:
        address: ``clickhouse://user:password@host:8123/database``, as `clickhouse_connect.get_client` takes it.

    Raises:
        ProfilerError: there is no such server, or it refuses.
    """

    keeps_names = False  # many read it: a run's name stays at home

    def __init__(self, address: str) -> None:
        self._host = urlsplit(address).hostname or "?"  # never the whole address: a password may be in it
        try:
            self._client: Any = clickhouse_connect.get_client(dsn=address)
            for statement in clickhouse_schema():
                self._client.command(statement)
        except (Error, OSError, ValueError) as error:
            raise self._told(error) from None

    def loaded(self) -> dict[str, int]:
        """Return how many bytes of each run's log are loaded, by the run's id; without runs of which a part is missing.

        Raises:
            ProfilerError: the server refuses.
        """
        whole = f"SELECT run, load FROM {TABLE} GROUP BY run, load HAVING count() >= any(log_rows)"  # noqa: S608  # ours
        complete = f"SELECT run, max(load) FROM ({whole}) GROUP BY run"  # noqa: S608
        try:
            return {str(run): int(load) for run, load in self._client.query(complete).result_rows}
        except (Error, OSError) as error:
            raise self._told(error) from None

    def write(self, rows: Iterable[Row]) -> None:
        """Insert rows.

        Raises:
            ProfilerError: the server refuses.
        """
        data = [[row[name] for name in NAMES] for row in rows]
        try:
            if data:
                self._client.insert(STORED, data, column_names=NAMES)
        except (Error, OSError) as error:
            raise self._told(error) from None

    def _told(self, error: Exception) -> ProfilerError:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        return ProfilerError(f"ClickHouse at {self._host} did not take it: {said[:300]}")
