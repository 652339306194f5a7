"""The columns of the fleet's table ``fleet_epoch``, the one home of their names, types and meanings."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

SCALE = 3  # of all histograms: at most 4.4 % off, and any of them can be added up bucket by bucket
TABLE = "fleet_epoch"  # what questions read: each row once, as of the last load
STORED = "fleet_epoch_loaded"  # in ClickHouse: what was loaded, also rows that a later load has replaced
DAYS, STORED_DAYS = "fleet_day", "fleet_day_loaded"  # in ClickHouse: the sums of each day, which stay when its rows are dropped
COLLECTED = "fleet_epoch_collected"  # in ClickHouse, instead of it: what a collector's tables give
USAGE = "fleet_usage"  # what packages count, from a collector alone
NO_USAGE = (
    "SELECT run AS summary, package, package_version, start AS told, '' AS kind, '' AS name, '' AS outcome, steps AS times"
    " FROM fleet_epoch WHERE 1 = 0"
)
RANKS = "fleet_rank"  # the training of each rank, epoch by epoch
PLACE = re.compile(r"(?:'[^']*'|(?:\w+ AS )?\w+) /\* ([A-Z]+) \*/")  # in a file of SQL
HERE = Path(__file__).with_name("sql")
FILES = "month=*/*.parquet"  # of a fleet's folder
KEY = ("run", "stage", "epoch", "slice")  # one row each, whatever else a later load says of it; a rank is a run of its own

# The types in ClickHouse, by kind; those in Parquet stand in `fleet.parquet`, which alone needs its package.
CLICKHOUSE = {
    "text": "String",
    "word": "LowCardinality(String)",
    "count": "UInt64",
    "whole": "Nullable(Int64)",
    "number": "Float64",
    "unsure": "Nullable(Float64)",
    "moment": "DateTime64(6, 'UTC')",
    "words": "Map(LowCardinality(String), String)",
    "numbers": "Map(LowCardinality(String), Float32)",
    "names": "Array(LowCardinality(String))",
    "index": "Int32",
    "indexes": "Array(Int32)",
    "counts": "Array(UInt32)",
    "histograms": "Array(Array(UInt32))",
}
PACKED = {  # kinds, and how ClickHouse packs them better than by default
    **dict.fromkeys(("counts", "histograms"), "T64, ZSTD(6)"),
    **dict.fromkeys(("numbers", "number", "unsure", "indexes"), "ZSTD(6)"),
    "moment": "Delta, ZSTD(1)",
}


class Column(NamedTuple):
    """A column: its name, its kind (a key of `CLICKHOUSE`), and its meaning."""

    name: str
    kind: str
    meaning: str


COLUMNS = (
    Column("run", "text", "the run's id"),
    Column("job", "text", "the id that all ranks of one distributed run share; empty for one process"),
    Column("rank", "whole", "the rank; null for one process"),
    Column("world_size", "whole", "the number of ranks"),
    Column("node", "whole", "the number of the rank's machine in its job"),
    Column("workload", "text", "what was trained: the run's name in files of one's own, a label that was named elsewhere"),
    Column("labels", "words", "the user's own words for the run (the settings `labels` and `otlp_resource`)"),
    Column("state", "word", "finished, interrupted, crashed or running"),
    Column("package", "word", "the package that embeds Epochmeter"),
    Column("package_version", "word", "its version"),
    Column("torch", "word", "the version of torch"),
    Column("cuda", "word", "the version of CUDA that torch was built for"),
    Column("python", "word", "the version of Python"),
    Column("os", "word", "the system"),
    Column("cpu", "word", "the CPU's family"),
    Column("cores", "whole", "CPU cores that the process may use"),
    Column("memory_gib", "whole", "the class of the machine's memory, GiB"),
    Column("gpu", "word", "the model of the first GPU"),
    Column("gpus", "count", "the number of GPUs"),
    Column("gpu_memory_gib", "whole", "the class of the first GPU's memory, GiB"),
    Column("stage", "word", "train, val or inference; empty for phases outside stages, such as a checkpoint between two"),
    Column("epoch", "whole", "the epoch's index; null outside epochs"),
    Column(
        "slice", "whole", "the hour since 1970, for a part of an epoch (or of time outside) of over two hours; null if whole"
    ),
    Column("start", "moment", "when the epoch or its hour began, or the run where there is none"),
    Column("duration_s", "number", "the stage's time in the epoch, s"),
    Column("steps", "count", "steps"),
    Column("samples", "whole", "samples; null if no batch had a known size"),
    Column("passes", "count", "passes over a loader"),
    Column("partial_passes", "count", "of them, those that were broken off"),
    Column("phases_s", "numbers", "the time of each top-level phase, s (12 binary digits: at most 0.025 % off)"),
    Column("ledger_s", "numbers", "all of the stage's time by its cause, as in a report's ledger, s (as exact)"),
    Column("energy_j", "unsure", "the energy of the GPUs, J; null if none was counted"),
    Column("energy_uncertain_j", "unsure", "of it, what may belong to a neighbour at most, J"),
    Column("step_zeros", "count", "steps that took no time that a clock could see"),
    Column("step_offset", "index", f"the first bucket of the steps' exponential histogram (OpenTelemetry), scale {SCALE}"),
    Column("step_counts", "counts", "its buckets"),
    Column("phase_names", "names", "the phases that have a histogram, in the order of the next three columns"),
    Column("phase_zeros", "indexes", "their values of no time"),
    Column("phase_offsets", "indexes", "their first buckets"),
    Column("phase_counts", "histograms", "their buckets"),
    Column("as_of", "count", "when the run was last heard of, us since 1970: of two loads of a run, the later one counts"),
    Column("log_bytes", "count", "the bytes of the log that were read"),
    Column("log_rows", "count", "the rows that this load of the log has"),
)


class Derived(NamedTuple):
    """A column that the view makes of others: its name, the SQL that makes it in both engines, and its meaning."""

    name: str
    sql: str
    meaning: str


DERIVED = (
    Derived("job_or_run", "coalesce(nullif(job, ''), run)", "the job, or the run of one process: what is counted"),
    Derived(
        *(
            "part",
            "coalesce(-1 - slice, epoch,"
            " -1 - date_diff('hour', CAST('1970-01-01 00:00:00' AS TIMESTAMP), CAST(start AS TIMESTAMP)))",
        ),
        "the epoch; of an epoch in slices, and where there is none, the hour, below 0",
    ),
    Derived("hardware", "CASE WHEN gpu <> '' THEN gpu ELSE cpu END", "the model of the GPU, or the CPU's family without one"),
    Derived(
        *("version", "CASE WHEN package_version <> '' THEN package_version ELSE torch END"),
        "the version of the package that embeds Epochmeter, or of torch without one",
    ),
    Derived(
        "machine",
        "coalesce(nullif(labels['node'], ''), nullif(labels['k8s.node.name'], ''), nullif(labels['host.name'], ''),"
        " CASE WHEN node IS NULL THEN '' ELSE concat('node ', node, ' of its job') END)",
        "the machine: the label `node`, `k8s.node.name` or `host.name`, or else its place in its job",
    ),
)
# What the questions use and only ClickHouse has by that name.
DUCKDB_WORDS = (
    "SET TimeZone = 'UTC'",
    "CREATE OR REPLACE MACRO medianExact(x) AS -quantile_disc(-CAST(x AS DOUBLE), 0.5)",  # of an even number, the upper one
    "CREATE OR REPLACE MACRO arrayJoin(x) AS unnest(x)",
    "CREATE OR REPLACE MACRO mapKeys(x) AS map_keys(x)",
)


def clickhouse_schema(*, keep_days: int | None = None) -> list[str]:
    """Return the statements that make the table and its views in ClickHouse, and the sums by day.

    Args:
        keep_days: rows that began longer ago are dropped; their sums by day stay. None changes nothing: a new table keeps all.
    """
    listed = ",\n".join(f"  {one.name} {CLICKHOUSE[one.kind]}{_codec(one)} COMMENT {_quoted(one.meaning)}" for one in COLUMNS)
    keep = [] if keep_days is None else [f"ALTER TABLE {STORED} MODIFY TTL toDateTime(start) + INTERVAL {keep_days} DAY"]
    return [
        f"CREATE TABLE IF NOT EXISTS {STORED} (\n{listed}\n) ENGINE = ReplacingMergeTree(as_of)\nPARTITION BY toYYYYMM(start)\n"
        f"ORDER BY (stage, run, ifNull(epoch, -1), ifNull(slice, -1))",
        *keep,
        *_views(f"{STORED} FINAL\nWHERE {_of_last_load(STORED)}"),
        f"CREATE TABLE IF NOT EXISTS {STORED_DAYS} ENGINE = MergeTree ORDER BY (day, made)\nEMPTY AS\n{day_sums()}",
        f"CREATE OR REPLACE VIEW {DAYS} AS\n{text_of('day_view')}",
    ]


def day_sums(days: str = "") -> str:
    """Return the query for the sums of days in ClickHouse.

    Args:
        days: the days, as SQL; "" for the file's example.
    """
    return filled(text_of("day_sums"), {"DAYS": days})


def collector_schema(tables: str, label: str) -> list[str]:
    """Return the statements that make the same views over a collector's tables.

    Args:
        tables: the begin of their names.
        label: the user's own label that names the workload.
    """
    text = text_of("collector_view").replace("{tables}", tables).replace("{label}", _quoted(label))
    usage = text_of("usage_view").replace("{tables}", tables)
    return [
        f"CREATE OR REPLACE VIEW {COLLECTED} AS\n{text}",
        *_views(COLLECTED, usage),
    ]


def duckdb_schema(folder: str) -> list[str]:
    """Return the statements that make the views in DuckDB over the Parquet files of a fleet's folder."""
    literal = "".join(f"[{letter}]" if letter in "[*?" else letter for letter in folder)
    where = f"{literal}/{FILES}".replace("'", "''")
    newest = f"row_number() OVER (PARTITION BY {', '.join(KEY)} ORDER BY as_of DESC, state = 'running', log_bytes DESC) = 1"
    files = f"read_parquet('{where}', hive_partitioning=false, union_by_name=true)"
    return [*DUCKDB_WORDS, *_views(f"{files}\nWHERE {_of_last_load(files)}\nQUALIFY {newest}")]


def _of_last_load(table: str) -> str:
    """Return the condition on a row of a run's last load: an earlier one may have other parts of a long epoch.

    A load is known by the time when the run was last heard of, and by whether it was over: see `fleet.loading.Known.is_newer`.
    """
    load = "2 * as_of + CASE WHEN state = 'running' THEN 0 ELSE 1 END"
    return f"(run, {load}) IN (SELECT run, max({load}) FROM {table} GROUP BY run)"  # noqa: S608


def _views(source: str, usage: str = NO_USAGE) -> list[str]:
    """Return the statements that make the views that questions read."""
    derived = ",\n".join(f"  {one.sql} AS {one.name}" for one in DERIVED)
    return [
        f"CREATE OR REPLACE VIEW {TABLE} AS\nSELECT *,\n{derived}\nFROM {source}",
        f"CREATE OR REPLACE VIEW {RANKS} AS\n{text_of('rank_view')}",
        f"CREATE OR REPLACE VIEW {USAGE} AS\n{usage}",
    ]


def filled(text: str, given: Mapping[str, str]) -> str:
    """Return SQL with the given values in their places: the text before a comment such as ``/* OLD */`` is an example.

    An example without anything given, or with "", stays: so each file of ours also runs as it is.
    """
    return PLACE.sub(lambda found: given.get(found[1]) or found[0], text)


def text_of(name: str) -> str:
    """Return the SQL of a file of ours."""
    return (HERE / f"{name}.sql").read_text("utf-8").strip()


def column_facts() -> list[dict[str, str]]:
    """Return name, kind and meaning of each column, those of the view last."""
    made = [{"name": one.name, "kind": str(one.kind), "meaning": one.meaning} for one in COLUMNS]
    return made + [{"name": one.name, "kind": "of the view", "meaning": one.meaning} for one in DERIVED]


def markdown() -> Iterator[str]:
    """Yield the columns as the lines of a table."""
    yield "| column | kind | what it holds |"
    yield "|---|---|---|"
    for one in column_facts():
        yield f"| `{one['name']}` | {one['kind']} | {one['meaning']} |"


def _codec(one: Column) -> str:
    return f" CODEC({PACKED[one.kind]})" if one.kind in PACKED else ""


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"
