"""A fleet's folder of Parquet files, read by DuckDB in this process."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow as pa

from profiler.errors import ProfilerError
from profiler.fleet.columns import FILES, duckdb_schema
from profiler.fleet.loading import first_line


class DuckFleet:
    """The folder, to be asked.

    Args:
        folder: where `fleet load` has put the files.

    Raises:
        ProfilerError: there are none.
    """

    def __init__(self, folder: Path) -> None:
        if next(folder.glob(FILES), None) is None:
            raise ProfilerError(f"{folder} holds no fleet; 'epochmeter fleet load PATH --into {folder}' makes one")
        self._connection = duckdb.connect()
        try:
            for statement in duckdb_schema(str(folder.absolute())):
                self._connection.execute(statement)
        except duckdb.Error as error:
            raise _told(error) from None

    def ask(self, sql: str) -> pa.Table:
        """Return the answer to a query.

        Raises:
            ProfilerError: DuckDB refuses.
        """
        try:
            told = self._connection.sql(sql)
            found = pa.table({}) if told is None else told.to_arrow_table()  # None: no query, but a statement
        except duckdb.Error as error:
            raise _told(error) from None
        return pa.table({name: _plain(column) for name, column in zip(found.column_names, found.columns, strict=True)})


def _told(error: Exception) -> ProfilerError:
    return ProfilerError(f"DuckDB did not take it: {first_line(error)[:300]}")


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column of sums, which DuckDB has as decimals, as whole numbers or floats."""
    if not pa.types.is_decimal(column.type):
        return column
    return column.cast(pa.int64() if column.type.scale == 0 else pa.float64(), safe=False)
