"""A fleet as a folder of Parquet files, by the month in which a run began. A file is written whole, and never changed.

Of a month's small files, one is made now and then.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from profiler.errors import ProfilerError
from profiler.fleet.columns import COLUMNS, FILES, KEY
from profiler.fleet.files import written_whole
from profiler.fleet.loading import Known, first_line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from datetime import datetime

    from profiler.fleet.rows import Row

READ = (*KEY, "log_rows", *Known._fields)  # of each row, to know what is loaded
ORDER = [(name, "ascending") for name in ("gpu", "stage", "run", "epoch", "slice")]
PLACE = KEY[1:]  # of a row within its run
KINDS = {
    "text": pa.string(),
    "word": pa.string(),
    "count": pa.int64(),
    "whole": pa.int64(),
    "number": pa.float64(),
    "unsure": pa.float64(),
    "moment": pa.timestamp("us", tz="UTC"),
    "words": pa.map_(pa.string(), pa.string()),
    "numbers": pa.map_(pa.string(), pa.float32()),
    "names": pa.list_(pa.string()),
    "index": pa.int32(),
    "indexes": pa.list_(pa.int32()),
    "counts": pa.list_(pa.uint32()),
    "histograms": pa.list_(pa.list_(pa.uint32())),
}
LEAVES = {  # where the values of a column are, in Parquet's terms
    **dict.fromkeys(("words", "numbers"), (".key_value.key", ".key_value.value")),
    **dict.fromkeys(("names", "indexes", "counts"), (".list.element",)),
    "histograms": (".list.element.list.element",),
}
NUMBERS = {"number": "", "unsure": "", "numbers": ".key_value.value"}  # kinds of which no two values are alike
SPLIT = {one.name + NUMBERS[one.kind]: "BYTE_STREAM_SPLIT" for one in COLUMNS if one.kind in NUMBERS}
WORDS = [path for one in COLUMNS for leaf in LEAVES.get(one.kind, ("",)) if (path := one.name + leaf) not in SPLIT]
SMALL, MANY = 200_000, 8  # rows of a small file, and as many such files of a month as are put into one
SCHEMA = pa.schema([(one.name, KINDS[one.kind]) for one in COLUMNS])


class ParquetFleet:
    """The folder.

    Args:
        folder: where it is, or will be.
    """

    keeps_names = True  # the files are the user's own: a run's name may stand in them

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def loaded(self) -> dict[str, Known]:
        """Return the loads of runs, by the run's id; without runs of which a part is missing.

        Raises:
            ProfilerError: a file of the folder cannot be read.
        """
        loaded: dict[str, Known] = {}
        parts: dict[tuple[str, Known], set[Any]] = {}  # of loads that are not whole in one file
        for path in sorted(self._folder.glob(FILES)):
            with contextlib.suppress(FileNotFoundError):  # another load has just put it into a larger one
                for run, known, whole, places in _loads_in(_read(path, READ)):
                    found = places if len(places) >= whole else parts.setdefault((run, known), set())
                    found.update(places)
                    if len(found) >= whole and (run not in loaded or known.is_newer(loaded[run])):
                        loaded[run] = known
        return loaded

    def write(self, rows: Iterable[Row]) -> None:
        """Write rows, one file for each month in which a run began. All rows of a run are in one file: all count, or none.

        Raises:
            ProfilerError: the folder cannot be written.
        """
        rows = list(rows)
        begins: dict[str, datetime] = {}
        for row in rows:
            begins[row["run"]] = min(begins.get(row["run"], row["start"]), row["start"])
        months: dict[str, list[Row]] = {}
        for row in rows:
            months.setdefault(f"{begins[row['run']]:%Y-%m}", []).append(row)
        try:
            for month, those in sorted(months.items()):
                table = pa.Table.from_pylist([_as_stored(row) for row in those], schema=SCHEMA)
                self._put(table.sort_by(ORDER), month)
                self._join_small(month)
        except OSError as error:
            raise ProfilerError(f"the fleet's folder {self._folder} cannot be written: {error.strerror or error}") from None

    def _join_small(self, month: str) -> None:
        """Put the small files of a month into one, without rows that a later load has replaced: logs that grow have many.

        The new file is there before the others go, and the view takes each row once: a load that is killed here loses nothing.
        """
        try:
            sizes = {path: pq.read_metadata(path).num_rows for path in self._folder.glob(f"month={month}/*.parquet")}
            small = [path for path, rows in sizes.items() if rows < SMALL]
            if len(small) < MANY:
                return
            tables = [_read(path) for path in small]
        except FileNotFoundError:  # another load has just done it
            return
        self._put(_newest(pa.concat_tables(tables)), month)
        for path in small:
            path.unlink(missing_ok=True)

    def _put(self, table: Any, month: str) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        place = self._folder / f"month={month}"
        place.mkdir(mode=0o700, exist_ok=True)
        with written_whole(place / f"{secrets.token_hex(8)}.parquet") as part:
            pq.write_table(table, part, compression="zstd", compression_level=9, use_dictionary=WORDS, column_encoding=SPLIT)


def _read(path: Path, columns: Iterable[str] = SCHEMA.names) -> pa.Table:
    """Return columns of a file.

    Raises:
        FileNotFoundError: it is gone.
        ProfilerError: it cannot be read.
    """
    try:
        return pq.read_table(path, columns=list(columns), partitioning=None)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise ProfilerError(f"{path.name} of the fleet cannot be read: {first_line(error)}") from None


def _loads_in(table: pa.Table) -> Iterator[tuple[str, Known, int, set[Any]]]:
    """Yield each load of a run in a file, with the rows that it had, and the places of those that are here."""
    load = ["run", *Known._fields]
    together = table.group_by(load).aggregate([("log_rows", "max"), *((name, "list") for name in PLACE)])
    for batch in together.to_batches(max_chunksize=500):
        for row in batch.to_pylist():
            places = set(zip(*(row[f"{name}_list"] for name in PLACE), strict=True))
            yield row["run"], Known(*(row[name] for name in Known._fields)), row["log_rows_max"], places


def _newest(table: pa.Table) -> pa.Table:
    """Return the rows of each run's last load, each once: those that the view reads."""
    is_over = pc.cast(pc.not_equal(table["state"], "running"), pa.int64())
    loads = table.select([*KEY, "log_bytes"]).append_column("load", pc.add(pc.multiply(table["as_of"], 2), is_over))
    last = loads.group_by("run").aggregate([("load", "max")]).select(["run", "load_max"]).rename_columns(["run", "load"])
    kept = loads.append_column("place", pa.array(range(table.num_rows))).join(last, ["run", "load"], join_type="left semi")
    ordered = kept.sort_by([("log_bytes", "descending")])
    once = ordered.group_by(list(KEY), use_threads=False).aggregate([("place", "first")])["place_first"]
    return table.take(once).sort_by(ORDER)


def _as_stored(row: Row) -> Row:
    return {**row, **{name: list(row[name].items()) for name in ("labels", "phases_s", "ledger_s")}}
