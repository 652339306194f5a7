"""A fleet from a real collector: what it writes into its ClickHouse tables gives the rows that the run log gives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from profiler.config.paths import runs_path
from profiler.errors import ProfilerError
from support.collector import collector_with, to_clickhouse
from support.collector_tables import statements
from support.fleets import near
from support.processes import epochmeter, python, wait_for

pytest.importorskip("rotel", reason="the collector's package has no build for this system")
pytest.importorskip("duckdb")
pytest.importorskip("clickhouse_connect")
from profiler import fleet
from profiler.fleet.clickhouse import ClickHouseFleet
from profiler.fleet.loading import load_logs, logs_in
from profiler.fleet.parquet import ParquetFleet

pytestmark = pytest.mark.slow
TRAIN = """
import sys, time
from profiler import Profiler
with Profiler("canary-name", exporter="otlp", interval=0.02) as prof:
    time.sleep(0.5)  # until the CPU's family is known
    for _ in prof.epochs(3):
        for _ in prof.train([[1, 2]] * 30, samples=2):
            with prof.phase("forward"):
                time.sleep(0.001)
            with prof.phase("canary-phase"):
                time.sleep(0.0005)
        for _ in prof.validate([[1, 2]] * 5, samples=2):
            pass
"""
LATER = """
INSERT INTO otel_metrics_{kind} SELECT * REPLACE (TimeUnix + INTERVAL {hours} HOUR AS TimeUnix, {values})
FROM (SELECT * FROM otel_metrics_{kind} WHERE TimeUnix < toDateTime('{until}') + 600)
"""
STAGES = """
INSERT INTO otel_metrics_sum
  (ResourceAttributes, MetricName, Attributes, StartTimeUnix, TimeUnix, Value, AggregationTemporality)
SELECT map('service.instance.id', 'r'), 'epochmeter.stage.' || m, map('epochmeter.stage', 'train'),
  toDateTime64('2026-11-02 10:00:00', 9), toDateTime64('2026-11-02 10:30:00', 9) + INTERVAL h HOUR, v * (h + 1), 2
FROM (SELECT arrayJoin([('time', 60), ('steps', 6)]) AS x, x.1 AS m, x.2 AS v) AS a
CROSS JOIN (SELECT arrayJoin([0, 1]) AS h) AS b
"""
DURATIONS = """
INSERT INTO otel_metrics_exponential_histogram
  (ResourceAttributes, MetricName, Attributes, StartTimeUnix, TimeUnix, Count, Sum, Scale,
   ZeroCount, PositiveOffset, PositiveBucketCounts, AggregationTemporality)
SELECT map('service.instance.id', 'r'), 'epochmeter.step.duration',
  map('epochmeter.stage', 'train', 'epochmeter.cold', 'false'),
  toDateTime64('2026-11-02 10:00:00', 9), toDateTime64('2026-11-02 10:30:00', 9) + INTERVAL h HOUR, 0, 0, s, 1, o, c, 2
FROM (SELECT arrayJoin([(0, 4, -65, [5]), (1, 1, -9, arrayConcat([5], arrayWithConstant(15, 0), [5]))]) AS x,
  x.1 AS h, x.2 AS s, x.3 AS o, x.4 AS c)
"""  # 5 steps of 1/16 s, then 5 steps of 16 s more: at scale 4 the bucket below 1/16 s is -65, at scale 1 it is -9
TOTALS = """
SELECT stage, sum(steps) AS steps, sum(samples) AS samples, sum(passes) AS passes, sum(duration_s) AS spent,
  sum(coalesce(phases_s['forward'], 0)) AS forward, sum(coalesce(phases_s['data_wait'], 0)) AS waited
FROM fleet_epoch GROUP BY stage ORDER BY stage
"""


@pytest.fixture
def database(clickhouse: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """Return the address of a database of its own with a collector's tables."""
    name = f"d{abs(hash(request.node.name)):x}"
    server = ClickHouseFleet(clickhouse)
    server.command(*statements(name))
    yield clickhouse.rpartition("/")[0] + f"/{name}"
    server.command(f"DROP DATABASE {name}")


@pytest.fixture
def collector(database: str, tmp_path: Path) -> Iterator[str]:
    """Run a real collector that writes into the tables, and return its address."""
    with collector_with(tmp_path, *to_clickhouse(database)) as (http, _):
        yield f"http://127.0.0.1:{http}"


def trained(collector: str, database: str, runs: int = 1, **more: str) -> None:
    """Run trainings that send to the collector, and wait until all have arrived."""
    for _ in range(runs):
        answer = python("-c", TRAIN, EPOCHMETER_OTLP_ENDPOINT=collector, EPOCHMETER_LABELS="team:vision,node:n7", **more)
        assert answer.code == 0, answer.err
    server = ClickHouseFleet(database)
    sql = "SELECT uniqExact(ResourceAttributes['service.instance.id']) AS n FROM otel_metrics_{}"
    tables = ("sum", "exponential_histogram")
    wait_for(lambda: all(server.ask(sql.format(table))["n"].to_pylist() == [runs] for table in tables))


def test_it_gives_what_the_run_log_gives(collector: str, database: str, tmp_path: Path) -> None:
    trained(collector, database, 2)
    answer = epochmeter("fleet", "collector", "--to", database, "--workload", "team")
    assert (answer.code, answer.err) == (0, "")
    load_logs(logs_in([runs_path()]), ParquetFleet(tmp_path / "fleet"), "team")
    ours, theirs = fleet.open(tmp_path / "fleet"), fleet.open(database)
    for mine, other in zip(ours.sql(TOTALS).to_pylist(), theirs.sql(TOTALS).to_pylist(), strict=True):
        assert other == near(mine, 2**-12)  # as many binary digits are kept of a log
    for one, two in zip(ours.steps().to_pylist(), theirs.steps().to_pylist(), strict=True):
        assert two == near(one, 0.1)
    assert theirs.trend().to_pylist() == [near(row, 0.2) for row in ours.trend().to_pylist()]
    causes = {row["cause"]: row for row in theirs.waste(by="team").to_pylist()}
    assert {row["which"] for row in causes.values()} == {"vision"} and 0.2 < causes["useful"]["share"] < 0.9
    (machine,) = {row["machine"] for row in theirs.sql("SELECT machine FROM fleet_rank").to_pylist()}
    assert machine == "n7"
    assert "canary" not in str(theirs.sql("SELECT * FROM fleet_epoch").to_pylist())


def test_what_cannot_be_answered_says_what_to_send(collector: str, database: str) -> None:
    trained(collector, database)
    epochmeter("fleet", "collector", "--to", database)
    for name, says in (
        ("energy", "epochmeter.gpu.energy.used"),
        ("stragglers", "epochmeter.distributed.job"),
        ("regression", "name it where the fleet is made (--workload task)"),
    ):
        versions = ("1", "2") if name == "regression" else ()
        answer = epochmeter("fleet", "ask", name, *versions, "--from", database)
        assert answer.code == 2 and says in answer.err
    ClickHouseFleet(database).command("TRUNCATE TABLE otel_metrics_exponential_histogram")
    for name, metric in (("steps", "epochmeter.step.duration"), ("waiting", "epochmeter.phase.duration")):
        with pytest.raises(ProfilerError, match=f"{name} cannot be answered: .* keep {metric}"):
            fleet.open(database).ask(name)


def test_hours_add_up_and_retries_count_once(collector: str, database: str) -> None:
    """A run that goes on: its later points are made of the real ones, and each arrives twice."""
    trained(collector, database)
    epochmeter("fleet", "collector", "--to", database)
    found = fleet.open(database)
    (first, _), steps = found.sql(TOTALS).to_pylist(), found.steps().to_pylist()
    server = ClickHouseFleet(database)
    (began,) = server.ask("SELECT min(TimeUnix) AS at FROM otel_metrics_sum")["at"].to_pylist()
    grown = {
        "sum": "Value * {} AS Value",
        "exponential_histogram": "Sum * {0} AS Sum, arrayMap(n -> n * {0}, PositiveBucketCounts) AS PositiveBucketCounts",
    }
    for hours, factor in ((1, 3), (1, 3), (3, 7)):
        for kind, values in grown.items():
            server.command(LATER.format(kind=kind, hours=hours, values=values.format(factor), until=f"{began:%F %T}"))
    server.command("INSERT INTO otel_metrics_sum SELECT * FROM otel_metrics_sum")
    hours = found.sql("SELECT start, steps, duration_s FROM fleet_epoch WHERE stage = 'train' ORDER BY start").to_pylist()
    assert [row["steps"] for row in hours] == [90, 180, 360]
    (last, _), more = found.sql(TOTALS).to_pylist(), found.steps().to_pylist()
    grew = last["steps"] / first["steps"]
    assert last["spent"] == pytest.approx(first["spent"] * grew) and last["forward"] == pytest.approx(
        first["forward"] * grew, rel=1e-5
    )
    assert sum(row["steps"] for row in more) == pytest.approx(sum(row["steps"] for row in steps) * grew)
    assert [row["p50_s"] for row in more] == [row["p50_s"] for row in steps]


def test_scales_may_change_on_the_way(database: str) -> None:
    """A series becomes coarser when its range grows: the hours still add up, and no bucket is negative."""
    server = ClickHouseFleet(database)
    server.command(STAGES, DURATIONS)
    epochmeter("fleet", "collector", "--to", database)
    rows = fleet.open(database).sql("SELECT start, step_zeros, step_counts FROM fleet_epoch ORDER BY start").to_pylist()
    assert [(row["step_zeros"], sum(row["step_counts"])) for row in rows] == [(1, 5), (0, 5)]
    (found,) = fleet.open(database).steps().to_pylist()
    assert (
        found["steps"] == 11
        and found["p99_s"] == pytest.approx(16, rel=0.45)
        and found["p50_s"] == pytest.approx(1 / 16, rel=0.45)
    )


def test_odd_series_are_told_as_they_are(database: str) -> None:
    """A point of no run, a counter that begins anew, energy that comes after the last step, zeros that become fewer."""
    server = ClickHouseFleet(database)
    columns = "(ResourceAttributes, MetricName, Attributes, StartTimeUnix, TimeUnix, Value, AggregationTemporality)"
    for run, metric, values in (
        ("", "stage.time", (50, 60)),
        ("", "stage.steps", (5, 6)),
        ("r", "stage.time", (500, 20)),
        ("r", "stage.steps", (50, 2)),
        ("e", "stage.time", (60, 60)),
        ("e", "stage.steps", (6, 6)),
        ("e", "stage.samples", (60, 60)),
        ("e", "gpu.energy.used", (10, 400)),
    ):
        for hour, value in enumerate(values):
            at = f"toDateTime64('2026-11-02 1{hour}:30:00', 9)"
            server.command(
                f"INSERT INTO otel_metrics_sum {columns} SELECT map('service.instance.id', '{run}'), 'epochmeter.{metric}',"
                f" map('epochmeter.stage', 'train'), toDateTime64('2026-11-02 10:00:00', 9), {at}, {value}, 2"
            )
    server.command(
        DURATIONS, DURATIONS.replace("s, 1, o, c, 2", "s, 0, o, c, 2").replace("INTERVAL h HOUR", "INTERVAL 2 + h HOUR")
    )
    epochmeter("fleet", "collector", "--to", database)
    found = fleet.open(database)
    sql = "SELECT run, sum(duration_s) AS s, sum(steps) AS steps, sum(energy_j) AS j FROM fleet_epoch GROUP BY run ORDER BY run"
    assert [tuple(row.values()) for row in found.sql(sql).to_pylist()] == [("e", 60, 6, 400), ("r", 520, 52, None)]
    assert found.energy().to_pylist()[0]["j_per_sample"] == pytest.approx(400 / 60)
    assert max(found.sql("SELECT step_zeros FROM fleet_epoch")["step_zeros"].to_pylist()) < 10


class TestChecks:
    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ("DROP TABLE otel_metrics_gauge", "there is no table otel_metrics_gauge"),
            ("ALTER TABLE otel_metrics_sum DROP COLUMN AggregationTemporality", "has no column AggregationTemporality"),
            ("ALTER TABLE otel_metrics_sum MODIFY COLUMN Value Float32", "otel_metrics_sum.Value is of type Float32"),
        ],
    )
    def test_another_version_is_told(self, database: str, change: str, says: str) -> None:
        ClickHouseFleet(database).command(change)
        answer = epochmeter("fleet", "collector", "--to", database)
        assert answer.code == 2 and "exporter 0.140" in answer.err and says in answer.err and len(answer.err.splitlines()) == 1

    def test_loaded_rows_are_not_hidden(self, database: str, clickhouse: str) -> None:
        ClickHouseFleet(database).prepare()
        answer = epochmeter("fleet", "collector", "--to", database)
        assert answer.code == 2 and "a fleet was loaded into this database" in answer.err

    def test_a_load_does_not_take_its_place(self, database: str) -> None:
        epochmeter("fleet", "collector", "--to", database)
        answer = epochmeter("fleet", "load", str(runs_path().parent), "--to", database)
        assert answer.code == 2 and "load into another one" in answer.err

    def test_names_are_no_sql(self, database: str) -> None:
        answer = epochmeter("fleet", "collector", "--to", database, "--tables", "x; DROP TABLE y")
        assert answer.code == 2 and "no begin of a table's name" in answer.err
