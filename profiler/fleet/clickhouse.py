"""A fleet in ClickHouse, through `clickhouse-connect`, which speaks to a server or to chDB in this process."""

from __future__ import annotations

import contextlib
import datetime
import logging
import re
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import unquote, urlsplit

import clickhouse_connect
import pyarrow as pa
from clickhouse_connect.driver.exceptions import Error

from profiler.errors import ArgumentValueError, ProfilerError
from profiler.fleet.columns import COLLECTED, COLUMNS, STORED, STORED_DAYS, TABLE, clickhouse_schema, day_sums
from profiler.fleet.loading import Known, first_line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.fleet.rows import Row

logging.getLogger("clickhouse_connect").setLevel(logging.CRITICAL)  # what it logs, our errors say
NAMES = [one.name for one in COLUMNS]
ARROW = {
    int: pa.int64(),
    float: pa.float64(),
    str: pa.string(),
    bool: pa.bool_(),
    datetime.date: pa.date32(),
    datetime.datetime: pa.timestamp("us", tz="UTC"),
}
NOISE = re.compile(r"^.*?DB::Exception: | \(for url .*")
SECURE = "clickhouses"
FORM = (
    "a server has an address such as clickhouse://user:password@host:8123/database, or clickhouses:// for TLS; in a user's"
    " name or a password, write / as %2F, @ as %40, : as %3A, # as %23, ? as %3F, [ as %5B and % as %25"
)


class ClickHouseFleet:
    """The table ``fleet_epoch`` of a server.

    Args:
        address: ``clickhouse://user:password@host:8123/database``; ``clickhouses://`` for TLS.

    Raises:
        ArgumentValueError: the address is none.
        ProfilerError: there is no such server, or it refuses.
    """

    keeps_names = False  # many read it: names of the user's own stay at home

    def __init__(self, address: str) -> None:
        place = _place(address)
        self._host = place["host"]  # never the address: a password may be in it
        try:
            self._client: Any = clickhouse_connect.get_client(**place)
        except (Error, OSError, ValueError) as error:
            raise self._told(error) from None

    def prepare(self) -> None:
        """Make the table and its views, where they are not there yet.

        Raises:
            ProfilerError: the server refuses, or the database has a view over a collector's tables.
        """
        if COLLECTED in self.tables():
            raise ProfilerError("this database shows a collector's tables as a fleet: load into another one")
        self.command(*clickhouse_schema())

    def tables(self) -> dict[str, dict[str, str]]:
        """Return the columns of each table of the database, with their types.

        Raises:
            ProfilerError: the server refuses.
        """
        found: dict[str, dict[str, str]] = {}
        for row in self.ask("SELECT table, name, type FROM system.columns WHERE database = currentDatabase()").to_pylist():
            found.setdefault(row["table"], {})[row["name"]] = row["type"]
        return found

    def command(self, *statements: str) -> None:
        """Run statements that have no answer.

        Raises:
            ProfilerError: the server refuses.
        """
        with self._refusals():
            for statement in statements:
                self._client.command(statement)

    def loaded(self) -> dict[str, Known]:
        """Return the loads of runs, by the run's id; without runs of which a part is missing.

        Raises:
            ProfilerError: the server refuses.
        """
        told = ", ".join(Known._fields)
        sql = f"SELECT run, {told} FROM {TABLE} GROUP BY run, {told} HAVING count() >= any(log_rows) ORDER BY as_of"  # noqa: S608
        with self._refusals():
            return {str(run): Known(*told) for run, *told in self._client.query(sql).result_rows}

    def ask(self, sql: str) -> pa.Table:
        """Return the answer to a query.

        Raises:
            ProfilerError: the server refuses.
        """
        with self._refusals():
            found = self._client.query(sql)
        columns = found.result_columns or [[] for _ in found.column_names]
        listed = zip(found.column_names, columns, found.column_types, strict=True)
        return pa.table({name: _arrow(column, kind) for name, column, kind in listed})

    def write(self, rows: Iterable[Row]) -> None:
        """Insert rows, and add up their days anew.

        Raises:
            ProfilerError: the server refuses.
        """
        added = list(rows)
        if added:
            days = ", ".join(f"'{day}'" for day in sorted({row["start"].date().isoformat() for row in added}))
            with self._refusals():
                self._client.insert(STORED, [[row[name] for name in NAMES] for row in added], column_names=NAMES)
            self.command(f"INSERT INTO {STORED_DAYS}\n{day_sums(days)}")

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except (Error, OSError) as error:
            raise self._told(error) from None

    def _told(self, error: Exception) -> ProfilerError:
        if "Max retries exceeded" in str(error) or isinstance(error, OSError):
            return ProfilerError(f"no ClickHouse server answers at {self._host}")
        what = NOISE.sub("", first_line(error))
        return ProfilerError(f"ClickHouse at {self._host} did not take it: {what[:300]}")


def _arrow(column: Any, kind: Any) -> pa.Array:
    if kind.python_type is dict:
        of = pa.string() if kind.name.endswith("String)") else pa.float64()
        return pa.array([None if value is None else list(value.items()) for value in column], pa.map_(pa.string(), of))
    return pa.array(column, ARROW.get(kind.python_type))


def _place(address: str) -> dict[str, Any]:
    """Return the parts of an address, by the names that `clickhouse_connect.get_client` has for them.

    Raises:
        ArgumentValueError: it is none. The text does not show it.
    """
    try:
        parts = urlsplit(address)
        port, host = parts.port, parts.hostname
    except ValueError:
        raise ArgumentValueError(FORM) from None
    if parts.scheme not in ("clickhouse", SECURE) or not host or parts.query or parts.fragment:
        raise ArgumentValueError(FORM)
    place: dict[str, Any] = {"host": host, "secure": parts.scheme == SECURE}
    place |= {} if port is None else {"port": port}
    place |= {"username": unquote(parts.username)} if parts.username else {}
    place |= {"password": unquote(parts.password)} if parts.password else {}
    place |= {"database": parts.path.strip("/")} if parts.path.strip("/") else {}
    return place
