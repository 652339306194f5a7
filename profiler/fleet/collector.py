"""A fleet from the tables that the OpenTelemetry Collector's ClickHouse exporter makes.

The view is written for the tables of the exporter's version 0.140. They are checked first, so that another version is told
instead of answered from.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from profiler.errors import ArgumentValueError, ProfilerError
from profiler.fleet.clickhouse import ClickHouseFleet
from profiler.fleet.columns import STORED, collector_schema

VERSION = "0.140"
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,100}")
WORDS, TEXT, MOMENT = r"Map\(LowCardinality\(String\), String\)", r"String|LowCardinality\(String\)", r"DateTime(64\(9\))?"
COMMON = {"ResourceAttributes": WORDS, "MetricName": TEXT, "Attributes": WORDS, "StartTimeUnix": MOMENT, "TimeUnix": MOMENT}
NEEDED = {
    "gauge": {**COMMON, "Value": "Float64"},
    "sum": {**COMMON, "Value": "Float64", "AggregationTemporality": "Int32"},
    "exponential_histogram": {
        **COMMON,
        "Sum": "Float64",
        "Scale": "Int32",
        "ZeroCount": "UInt64",
        "PositiveOffset": "Int32",
        "PositiveBucketCounts": r"Array\(UInt64\)",
        "AggregationTemporality": "Int32",
    },
}


def make_views(fleet: ClickHouseFleet, tables: str, label: str) -> None:
    """Make ``fleet_epoch`` and ``fleet_rank`` over a collector's tables, in their database.

    Args:
        fleet: the database.
        tables: the begin of the tables' names, as the exporter has it: ``otel_metrics``.
        label: the user's own label that names the workload.

    Raises:
        ArgumentValueError: the name is none.
        ProfilerError: the tables are not there, or differ; or a fleet was loaded into this database.
    """
    if not NAME.fullmatch(tables):
        raise ArgumentValueError(f"{tables!r} is no begin of a table's name, such as otel_metrics")
    found = fleet.tables()
    if STORED in found:
        raise ProfilerError("a fleet was loaded into this database: its rows would be hidden; use the collector's own database")
    differs = list(_differences(found, tables))
    if differs:
        raise ProfilerError(
            f"the tables are not those of the collector's ClickHouse exporter {VERSION}: {'; '.join(differs[:3])}"
            + (f"; and {len(differs) - 3} more" if len(differs) > 3 else "")
        )
    fleet.command(*collector_schema(tables, label))


def _differences(found: dict[str, dict[str, str]], tables: str) -> Iterator[str]:
    for kind, columns in NEEDED.items():
        table = f"{tables}_{kind}"
        if table not in found:
            yield f"there is no table {table}"
            continue
        for name, form in columns.items():
            if name not in found[table]:
                yield f"{table} has no column {name}"
            elif not re.fullmatch(form, found[table][name]):
                yield f"{table}.{name} is of type {found[table][name]}"
