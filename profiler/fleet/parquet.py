"""A fleet as a folder of Parquet files, by month. Each file is written whole or not at all, and never changed."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from profiler.errors import ProfilerError
from profiler.fleet.columns import COLUMNS, FILES
from profiler.fleet.files import written_whole
from profiler.fleet.loading import Known, first_line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.fleet.rows import Row

READ = ("run", "stage", "epoch", "log_rows", *Known._fields)  # of each row, to know what is loaded
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
        """Return what is loaded of each run, by its id; without runs of which a part is missing.

        Raises:
            ProfilerError: a file of the folder cannot be read.
        """
        places: dict[tuple[str, Known], set[tuple[str, int | None]]] = {}
        wholes: dict[tuple[str, Known], int] = {}
        for path in sorted(self._folder.glob(FILES)):
            try:
                table = pq.read_table(path, columns=list(READ), partitioning=None)
            except (pa.ArrowException, OSError) as error:
                raise ProfilerError(f"{path.name} of the fleet cannot be read: {first_line(error)}") from None
            for run, stage, epoch, whole, *told in zip(*(table[name].to_pylist() for name in READ), strict=True):
                load = run, Known(*told)
                places.setdefault(load, set()).add((stage, epoch))
                wholes[load] = whole
        loaded: dict[str, Known] = {}
        for load, found in places.items():
            run, known = load
            if len(found) >= wholes[load] and (run not in loaded or known.is_newer(loaded[run])):
                loaded[run] = known
        return loaded

    def write(self, rows: Iterable[Row]) -> None:
        """Write rows, one file a month.

        Raises:
            ProfilerError: the folder cannot be written.
        """
        months: dict[str, list[Row]] = {}
        for row in rows:
            months.setdefault(f"{row['start']:%Y-%m}", []).append(row)
        for month, those in sorted(months.items()):
            those.sort(key=lambda row: (row["gpu"], row["stage"], row["run"], -1 if row["epoch"] is None else row["epoch"]))
            table = pa.Table.from_pylist([_as_stored(row) for row in those], schema=SCHEMA)
            try:
                self._put(table, month)
            except OSError as error:
                raise ProfilerError(f"the fleet's folder {self._folder} cannot be written: {error.strerror or error}") from None

    def _put(self, table: Any, month: str) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        place = self._folder / f"month={month}"
        place.mkdir(mode=0o700, exist_ok=True)
        with written_whole(place / f"{secrets.token_hex(8)}.parquet") as part:
            pq.write_table(table, part, compression="zstd", compression_level=9, use_dictionary=WORDS, column_encoding=SPLIT)


def _as_stored(row: Row) -> Row:
    return {**row, **{name: list(row[name].items()) for name in ("labels", "phases_s", "ledger_s")}}
