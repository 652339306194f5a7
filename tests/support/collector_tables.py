"""The tables that the OpenTelemetry Collector's ClickHouse exporter makes for metrics, in our words (its version 0.140)."""

from __future__ import annotations

from collections.abc import Iterator

TEXTS = "Map(LowCardinality(String), String)"
COMMON = (
    f"ResourceAttributes {TEXTS}, ResourceSchemaUrl String, ScopeName String, ScopeVersion String, ScopeAttributes {TEXTS},"
    " ScopeDroppedAttrCount UInt32, ScopeSchemaUrl String, ServiceName LowCardinality(String), MetricName String,"
    f" MetricDescription String, MetricUnit String, Attributes {TEXTS}, StartTimeUnix DateTime64(9), TimeUnix DateTime64(9)"
)
EXEMPLARS = (
    f"Exemplars Nested (FilteredAttributes {TEXTS}, TimeUnix DateTime64(9), Value Float64, SpanId String, TraceId String)"
)
TABLES = {
    "gauge": f"Value Float64, Flags UInt32, {EXEMPLARS}",
    "sum": f"Value Float64, Flags UInt32, {EXEMPLARS}, AggregationTemporality Int32, IsMonotonic Boolean",
    "exponential_histogram": "Count UInt64, Sum Float64, Scale Int32, ZeroCount UInt64, PositiveOffset Int32,"
    " PositiveBucketCounts Array(UInt64), NegativeOffset Int32, NegativeBucketCounts Array(UInt64),"
    f" {EXEMPLARS}, Flags UInt32, Min Float64, Max Float64, AggregationTemporality Int32",
    "histogram": "Count UInt64, Sum Float64, BucketCounts Array(UInt64), ExplicitBounds Array(Float64),"
    f" {EXEMPLARS}, Flags UInt32, Min Float64, Max Float64, AggregationTemporality Int32",
}


def statements(database: str) -> Iterator[str]:
    """Yield what makes the database and its tables."""
    yield f"CREATE DATABASE IF NOT EXISTS {database}"
    for kind, columns in TABLES.items():
        yield (
            f"CREATE TABLE IF NOT EXISTS {database}.otel_metrics_{kind} ({COMMON}, {columns}) ENGINE = MergeTree()"
            " PARTITION BY toDate(TimeUnix) ORDER BY (ServiceName, MetricName, Attributes, toUnixTimestamp64Nano(TimeUnix))"
        )
