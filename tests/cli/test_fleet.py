"""``epochmeter fleet load``: every log gives its rows once, whatever happens, and both engines read the same."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from profiler import Profiler
from profiler.config.paths import runs_path
from profiler.errors import ProfilerError
from profiler.fleet.columns import COLUMNS, SCALE, clickhouse_schema, duckdb_schema
from profiler.fleet.loading import Known, load_logs, logs_in
from profiler.fleet.rows import rows_of
from profiler.records.causes import STARVED, CausePlace, Cost
from profiler.records.energy import Energy
from profiler.records.histogram import NS
from profiler.records.run import Run
from profiler.records.timing import Timing
from profiler.storage.run_log import RunLog, run_id, run_paths
from profiler.storage.run_reader import load
from support.big_run import big_run
from support.processes import epochmeter, python

duckdb = pytest.importorskip("duckdb")
pytest.importorskip("pyarrow")
from profiler import fleet  # noqa: E402  # needs pyarrow
from profiler.fleet.parquet import ParquetFleet  # noqa: E402  # needs pyarrow

SUMS = "SELECT count(*), count(DISTINCT run), sum(steps), sum(samples), round(sum(duration_s), 6) FROM fleet_epoch"


def written(folder: Path, run: Run) -> Path:
    """Write a run that was made by hand as the run log does."""
    log = RunLog(folder, run)
    for part in run.parts():
        log.append(run, part)
    log.close()
    return log.path


def made(number: int, epochs: int = 3, **more: Any) -> Run:
    run = big_run(epochs, gpus=2, name=f"workload {number % 2}", seed=number)
    run.id, run.started_unix_ns = f"{number:012x}", run.started_unix_ns + number * 3_600 * NS
    run.outside.ranks, run.outside.rank_epochs, run.rank, run.world_size = {}, 0, None, None
    for name, value in more.items():
        setattr(run, name, value)
    return run


def by_slices(whole: Run, folder: Path) -> Iterator[int]:
    """Write the epochs of a run as slices of ten minutes of one epoch. Yield how many are in the log, after each."""
    run = made(1, epochs=0)
    log = RunLog(folder, run)
    for number, part in enumerate(whole.epochs):
        part.index, part.slice, part.started_ns, part.duration_ns = 0, number, number * 600 * NS, 600 * NS
        run.duration_ns = part.ended_ns
        log.append(run, part)
        yield number + 1
    log.close()


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """Return a folder that many wrote to: the logs of ranks in folders of their own, one packed, one torn."""
    folder = tmp_path / "shared"
    for number in range(6):
        path = written(
            folder / f"node{number % 2}", made(number, job="abc" if number < 2 else "", rank=number % 2, world_size=2)
        )
        if number == 4:
            with gzip.open(path.with_name(path.name + ".gz"), "wb") as packed:
                packed.write(path.read_bytes())
            path.unlink()
        if number == 5:
            *whole, torn, _ = path.read_bytes().splitlines(keepends=True)
            path.write_bytes(b"".join(whole) + torn[: len(torn) // 2])
    return folder


def asked(folder: Path, sql: str = SUMS) -> list[tuple[Any, ...]]:
    connection = duckdb.connect()
    for statement in duckdb_schema(str(folder)):
        connection.execute(statement)
    found: list[tuple[Any, ...]] = connection.sql(sql).fetchall()
    return found


def as_rounded(rows: list[tuple[Any, ...]]) -> list[list[Any]]:
    """Return rows without the last digits of floats: engines add up in different orders."""
    return [[float(f"{value:.9g}") if isinstance(value, float) else value for value in row] for row in rows]


class TestRows:
    def test_a_row_is_what_the_run_says(self) -> None:
        run = made(1, said={"team": "vision"}, app={"name": "digits", "version": "1.2"})
        rows = rows_of(run, 77, "w")
        assert [set(row) for row in rows] == [{column.name for column in COLUMNS}] * len(rows)
        assert len(rows) == 9 and {row["log_rows"] for row in rows} == {9}
        first, stage = rows[0], run.epochs[0].stages["train"]
        assert (first["run"], first["stage"], first["epoch"], first["log_bytes"], first["workload"]) == (
            run.id,
            "train",
            0,
            77,
            "w",
        )
        assert (first["steps"], first["samples"], first["duration_s"]) == (
            stage.steps,
            stage.samples,
            pytest.approx(stage.elapsed_ns / NS, rel=2**-24),
        )
        assert first["start"].timestamp() == pytest.approx((run.started_unix_ns + run.epochs[0].started_ns) / NS)
        assert first["phases_s"] == pytest.approx(
            {path[0]: timing.total_ns / NS for path, timing in stage.phases.items()}, rel=2**-12
        )
        assert (first["labels"], first["package"], first["package_version"]) == ({"team": "vision"}, "digits", "1.2")
        assert (first["gpu"], first["gpus"], first["cores"]) == ("NVIDIA H100 80GB HBM3", 2, 64)
        assert first["energy_j"] is None and first["rank"] is None  # absent is absent

    def test_reading_sums_alone_gives_the_same_rows(self, tmp_path: Path) -> None:
        run, path = made(3), ("forward", "attention")
        coarse, fine = run.epochs[1].stages["train"], run.epochs[2].stages["val"]
        coarse.step.steady.add([1_000, 3_600 * NS])  # so far apart that the buckets are wider than the fleet's
        coarse.step.cold.add([NS])
        fine.phases[path] = Timing()
        fine.phases[path].steady.add([0, 5, 2_000_000])
        fine.phases["forward",].device.add([4_000_000] * 50)
        run.outside.costs[CausePlace(STARVED, "train", "forward")] = Cost(NS, 3)
        run.outside.energy = {"train": {"gpu-0": Energy(10.0, 5.0, 1.0)}}
        assert coarse.step.steady.scale < SCALE < fine.step.steady.scale
        log = written(tmp_path, run)
        whole, sums = load(log), load(log, sums_at=SCALE)
        assert rows_of(sums, 1, "w") == rows_of(whole, 1, "w")
        assert whole.slices and whole.epochs[0].readings and not sums.slices and not sums.epochs[0].readings

    def test_histograms_are_at_one_scale(self) -> None:
        run = made(2)
        (row, *_), stage = rows_of(run, 1, ""), run.epochs[0].stages["train"]
        before = stage.step.steady.scale
        assert sum(row["step_counts"]) + row["step_zeros"] == stage.step.steady.count
        low = 2 ** (row["step_offset"] / 2**SCALE)
        high = 2 ** ((row["step_offset"] + len(row["step_counts"])) / 2**SCALE)
        assert stage.step.steady.min_ns is not None and stage.step.steady.max_ns is not None
        assert low * NS < stage.step.steady.min_ns and stage.step.steady.max_ns <= high * NS + 1
        for name, zeros, counts in zip(row["phase_names"], row["phase_zeros"], row["phase_counts"], strict=True):
            assert zeros + sum(counts) == stage.phases[name,].steady.count
        assert stage.step.steady.scale == before  # the run is not changed


class TestParquet:
    def test_all_is_loaded_once(self, logs: Path, tmp_path: Path) -> None:
        fleet = tmp_path / "fleet"
        answer = epochmeter("fleet", "load", str(logs), "--into", str(fleet))
        assert (answer.code, answer.err) == (0, "")
        assert answer.out == "51 rows of 6 logs loaded; 0 had nothing new, 0 could not be read\n"
        (sums,) = asked(fleet)
        runs = [load(path) for path in logs.rglob("*.jsonl")]
        whole = sum(run.whole().stages["train"].steps + run.whole().stages["val"].steps for run in runs)
        packed = 3 * 2 * 50
        assert sums[:3] == (51, 6, whole + packed)
        files = sorted(fleet.rglob("*"))
        again = epochmeter("fleet", "load", str(logs), "--into", str(fleet))
        assert again.out == "0 rows of 0 logs loaded; 6 had nothing new, 0 could not be read\n"
        assert sorted(fleet.rglob("*")) == files and asked(fleet) == [sums]

    def test_a_log_that_grows_replaces_its_rows(self, tmp_path: Path) -> None:
        run, folder, fleet = made(7, epochs=4), tmp_path / "runs", ParquetFleet(tmp_path / "fleet")
        log = RunLog(folder, run)
        sums = []
        for epoch in run.epochs:
            run.duration_ns = epoch.ended_ns
            log.append(run, epoch)
            told = load_logs(logs_in([folder]), fleet)
            assert told.rows == 3 * (epoch.index or 0) + 3
            sums += asked(tmp_path / "fleet", "SELECT count(*), max(epoch), sum(steps) FROM fleet_epoch")
        log.close()
        assert sums == [(3, 0, 100), (6, 1, 200), (9, 2, 300), (12, 3, 400)]

    @pytest.mark.slow
    def test_a_growing_log_leaves_few_files(self, tmp_path: Path) -> None:
        """Loaded thirty times as it grows, it is not stored thirty times. A join that was killed loses and doubles nothing."""
        from profiler.fleet import parquet

        folder, fleet, run = tmp_path / "runs", ParquetFleet(tmp_path / "fleet"), made(1, epochs=30)
        log = RunLog(folder, run)
        for epoch in run.epochs:
            run.duration_ns = epoch.ended_ns
            log.append(run, epoch)
            load_logs(logs_in([folder]), fleet)
            place = tmp_path / "fleet"
            assert len(list(place.rglob("*.parquet"))) < parquet.MANY
            assert asked(place, "SELECT count(*), max(epoch) FROM fleet_epoch") == [(3 * (epoch.index + 1), epoch.index)]
        log.close()
        stored = sum(parquet.pq.read_metadata(path).num_rows for path in place.rglob("*.parquet"))
        assert stored < 8 * 90 and load_logs(logs_in([folder]), fleet).rows == 0
        for path in list(place.rglob("*.parquet")):  # as if the old files had not been removed yet
            shutil.copy(path, path.with_name(f"copy-{path.name}"))
        assert asked(place, "SELECT count(*) FROM fleet_epoch") == [(90,)] and fleet.loaded().keys() == {run.id}

    def test_a_long_epoch_has_rows_by_the_hour(self, tmp_path: Path) -> None:
        """A run of one epoch of nine hours, in slices of ten minutes, is of the hours in which it was."""
        whole = made(1, epochs=54)
        for _ in by_slices(whole, tmp_path / "runs"):
            pass
        assert load_logs(logs_in([tmp_path / "runs"]), ParquetFleet(tmp_path / "fleet")).rows == 3 * 10
        hours = asked(
            tmp_path / "fleet",
            "SELECT slice, min(start), sum(steps) FROM fleet_epoch WHERE stage = 'train' GROUP BY 1 ORDER BY 1",
        )
        began = whole.started_unix_ns // NS
        assert [hour for hour, *_ in hours] == list(range(began // 3600, (began + 32_400) // 3600 + 1))
        assert (
            all(start.timestamp() // 3600 == hour for hour, start, _ in hours) and sum(steps for *_, steps in hours) == 54 * 50
        )
        ((seconds, phases, ledger, counted),) = asked(
            tmp_path / "fleet",
            "SELECT sum(duration_s), sum(phases_s['forward']), sum(list_sum(map_values(ledger_s))), sum(list_sum(step_counts))"
            " FROM fleet_epoch WHERE stage = 'train'",
        )
        stages = [part.stages["train"] for part in whole.epochs]
        assert seconds == pytest.approx(sum(stage.elapsed_ns for stage in stages) / NS) == pytest.approx(ledger, rel=1e-4)
        assert phases == pytest.approx(sum(stage.phases["forward",].total_ns for stage in stages) / NS, rel=1e-4)
        assert counted == 54 * 50
        late = fleet.open(tmp_path / "fleet").trend(since=date(2026, 9, 22)).to_pylist()
        assert sum(one["samples"] for one in late) < 54 * 50 * 256 and late

    def test_an_epoch_that_becomes_long_counts_once(self, tmp_path: Path) -> None:
        """Its first load has a row of the whole epoch, the later ones have rows of its hours."""
        query = "SELECT sum(steps), count(*) FROM fleet_epoch WHERE stage = 'train'"
        found = []
        for number in by_slices(made(1, epochs=54), tmp_path / "runs"):
            if number in (6, 11, 31, 54):
                load_logs(logs_in([tmp_path / "runs"]), ParquetFleet(tmp_path / "fleet"))
                found += asked(tmp_path / "fleet", query)
        assert found == [(300, 1), (550, 1), (1550, 6), (2700, 10)]

    def test_the_load_that_knew_the_end_counts(self, tmp_path: Path) -> None:
        """A log may be written anew in other slices, and its process killed before it writes another line."""
        run, target = made(1), ParquetFleet(tmp_path / "fleet")
        rows = rows_of(run, 100, "")
        target.write(one | {"state": "running", "slice": 1 + number} for number, one in enumerate(rows))
        target.write(one | {"state": "interrupted", "slice": 100 + number} for number, one in enumerate(rows))
        assert asked(tmp_path / "fleet", "SELECT count(*), min(slice), max(state) FROM fleet_epoch") == [
            (9, 100, "interrupted")
        ]

    def test_a_repaired_log_is_completed(self, tmp_path: Path) -> None:
        log = written(tmp_path / "runs", made(1))
        whole = log.read_bytes()
        first, second, *others = whole.splitlines(keepends=True)
        for content, steps in ((b"".join([first, second[:100] + b"\n", *others]), 100), (whole, 150)):
            log.write_bytes(content)
            load_logs([log], ParquetFleet(tmp_path / "fleet"))
            assert asked(tmp_path / "fleet", "SELECT sum(steps) FROM fleet_epoch WHERE stage = 'train'") == [(steps,)]

    def test_what_a_killed_load_left_is_removed(self, logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        old, new, other = (tmp_path / name for name in ("epochmeter-fleet-old", "epochmeter-fleet-new", "other-fleet"))
        for folder in (old, new, other):
            folder.mkdir()
            (folder / "copy.jsonl").touch()
        for folder in (old, other):
            os.utime(folder, (0, 0))
        load_logs(logs_in([logs]), ParquetFleet(tmp_path / "fleet"))
        assert [folder.exists() for folder in (old, new, other)] == [False, True, True]

    def test_months_have_folders_of_their_own(self, tmp_path: Path) -> None:
        for number in (0, 24 * 40):
            written(tmp_path / "runs", made(number))
        load_logs(logs_in([tmp_path / "runs"]), ParquetFleet(tmp_path / "fleet"))
        assert sorted(path.name for path in (tmp_path / "fleet").iterdir()) == ["month=2026-09", "month=2026-10"]

    def test_run_of_two_months_is_one_file(self, tmp_path: Path) -> None:
        run = made(0)
        run.epochs[-1].started_ns += 40 * 86_400 * NS
        load_logs([written(tmp_path / "runs", run)], ParquetFleet(tmp_path / "fleet"))
        assert len(list((tmp_path / "fleet").rglob("*.parquet"))) == 1
        (row,) = asked(tmp_path / "fleet", "SELECT count(*), count(DISTINCT date_trunc('month', start)) FROM fleet_epoch")
        assert row == (9, 2)

    def test_bad_logs_are_told_others_loaded(self, logs: Path, tmp_path: Path) -> None:
        (logs / "node0" / "20260101T000000.000000Z-dddddddddddd.otlp.jsonl").write_text("not a log\n")
        (logs / "node0" / "20260101T000000.000000Z-eeeeeeeeeeee.otlp.jsonl.gz").write_bytes(b"not packed")
        (logs / "node0" / "20260101T000000.000000Z-ffffffffffff.otlp.jsonl").touch()
        answer = epochmeter("fleet", "load", str(logs), "--into", str(tmp_path / "fleet"))
        assert answer.code == 3 and len(answer.err.splitlines()) == 3
        assert all(f"not loaded: {logs}/node0/20260101T" in line for line in answer.err.splitlines())
        assert answer.out == "51 rows of 6 logs loaded; 0 had nothing new, 3 could not be read\n"

    def test_what_is_torn_is_loaded_in_part(self, tmp_path: Path) -> None:
        """A packed log that was cut off has its begin; a log with a spoilt line amid others has the others. Both are named."""
        cut, spoilt, last = (written(tmp_path / "runs", made(number)) for number in range(3))
        text = cut.read_bytes()
        cut.unlink()
        cut = cut.with_name(f"{cut.name}.gz")
        cut.write_bytes(gzip.compress(text)[: -len(gzip.compress(text)) // 4])
        first, second, *others = spoilt.read_bytes().splitlines(keepends=True)
        spoilt.write_bytes(b"".join([first, second[:100] + b"\n", *others]))
        last.write_bytes(last.read_bytes()[:-40])
        answer = epochmeter("fleet", "load", str(tmp_path / "runs"), "--into", str(tmp_path / "fleet"))
        assert answer.code == 0 and answer.out.startswith("18 rows of 3 logs loaded")
        assert sorted(line.split(": ")[2] for line in answer.err.splitlines()) == sorted(map(str, (cut, spoilt)))
        again = epochmeter("fleet", "load", str(tmp_path / "runs"), "--into", str(tmp_path / "fleet"))
        assert again.out.startswith("0 rows of 0 logs loaded; 3 had nothing new") and str(cut) in again.err

    def test_a_real_run_and_the_default_places(self, home: Path) -> None:
        with Profiler("mine") as prof:
            for _ in prof.epochs(2):
                list(prof.train([[1, 2]] * 5))
        assert epochmeter("fleet", "load").out.startswith("2 rows of 1 logs loaded")
        (row,) = asked(
            runs_path().with_name("fleet"), "SELECT DISTINCT run, workload, state, sum(steps) OVER () FROM fleet_epoch"
        )
        assert row == (prof.summary.id, "mine", "finished", 10)
        assert os.name == "nt" or (runs_path().with_name("fleet").stat().st_mode & 0o777) == 0o700

    def test_part_of_a_load_is_loaded_again(self, logs: Path, tmp_path: Path) -> None:
        """A load that was killed between two files leaves whole files only, and the next one completes them."""
        target = tmp_path / "fleet"
        rows = rows_of(load(next(logs.rglob("*.jsonl"))), 10**6, "")
        for some in (rows[:5], rows[:5], rows[2:6]):  # killed again and again: no row counts twice
            ParquetFleet(target).write(some)
            assert ParquetFleet(target).loaded() == {}
        ParquetFleet(target).write(rows)
        assert ParquetFleet(target).loaded() == {rows[0]["run"]: Known(10**6, rows[0]["as_of"], "finished")}
        assert asked(target, "SELECT count(*) FROM fleet_epoch") == [(len(rows),)]

    @pytest.mark.slow
    @pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
    def test_a_killed_load_leaves_nothing_half(self, tmp_path: Path) -> None:
        for number in range(30):
            written(tmp_path / "runs", made(number, epochs=10))
        fleet = tmp_path / "fleet"
        command = [sys.executable, "-m", "profiler.cli", "fleet", "load", str(tmp_path / "runs"), "--into", str(fleet)]
        began = time.monotonic()
        subprocess.run(command, check=True, capture_output=True)
        took, sums = time.monotonic() - began, asked(fleet)
        shutil.rmtree(fleet)
        for share in (0.5, 0.7, 0.8, 0.9, 0.95):
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(share * took)
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert fleet.exists() is False or ParquetFleet(fleet).loaded() is not None
        subprocess.run(command, check=True, capture_output=True)
        assert asked(fleet) == sums

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (["load", "nowhere"], "nowhere is neither a run log nor a folder of them"),
            (["load", "--to", "http://x"], "a server has an address such as clickhouse://"),
            (["load", "--to", "clickhouse://"], "a server has an address such as clickhouse://"),
            (["load", "--to", "clickhouse://u:ca/nary@h"], "write / as %2F"),
            (["load", "--to", "clickhouse://u:ca[nary@h"], "[ as %5B"),
            (["load", "--to", "clickhouse://h/?foo=bar"], "a server has an address such as clickhouse://"),
            (["load", "--to", "clickhouse://x", "--into", "y"], "name one of them"),
        ],
    )
    def test_bad_input_is_told(self, arguments: list[str], says: str) -> None:
        answer = epochmeter("fleet", *arguments)
        assert answer.code == 2 and says in answer.err and len(answer.err.splitlines()) == 1 and "nary" not in answer.err

    def test_a_foreign_file_is_told(self, logs: Path, tmp_path: Path) -> None:
        (tmp_path / "fleet" / "month=2026-01").mkdir(parents=True)
        (tmp_path / "fleet" / "month=2026-01" / "x.parquet").write_text("no")
        answer = epochmeter("fleet", "load", str(logs), "--into", str(tmp_path / "fleet"))
        assert answer.code == 2 and "x.parquet of the fleet cannot be read" in answer.err

    def test_a_log_that_shrinks_is_no_older_one(self, tmp_path: Path) -> None:
        """A long run's log is written anew in fewer lines; then the run ends."""
        folder, fleet = tmp_path / "runs", tmp_path / "fleet"
        path = written(folder, made(1, epochs=6, state="running", duration_ns=10 * NS))
        long = path.read_bytes()
        assert load_logs([path], ParquetFleet(fleet)).rows == 18
        path.unlink()
        written(folder, made(1, epochs=4, state="finished"))
        assert path.stat().st_size < len(long) and load_logs([path], ParquetFleet(fleet)).rows == 12
        assert asked(fleet, "SELECT state, count(*) FROM fleet_epoch WHERE epoch < 4 GROUP BY state") == [("finished", 12)]
        path.write_bytes(long + b"garbage" * 10**6)  # an older copy, which is larger
        assert load_logs([path], ParquetFleet(fleet)).known == 1

    def test_a_run_that_was_killed_is_not_running(self, tmp_path: Path) -> None:
        run = made(1, state="running")
        fleet = ParquetFleet(tmp_path / "fleet")
        rows = rows_of(run, 10, "")
        fleet.write(rows)
        path = written(tmp_path / "runs", run)
        fleet.write(rows_of(run, path.stat().st_size, ""))
        assert load_logs([path], fleet).rows == 9 and load_logs([path], fleet).rows == 0
        assert asked(tmp_path / "fleet", "SELECT DISTINCT state FROM fleet_epoch") == [("interrupted",)]

    @pytest.mark.parametrize(("before", "after"), [('"1"', '"9999999999"'), ('"asInt":"50"', '"asInt":"9223372036854775807"')])
    def test_numbers_that_nobody_measured_spoil_one_log(self, tmp_path: Path, before: str, after: str) -> None:
        bad, good = (written(tmp_path / "runs", made(number)) for number in (1, 2))
        bad.write_text(bad.read_text().replace(before, after))
        told = load_logs([bad, good], ParquetFleet(tmp_path / "fleet"))
        assert (told.logs, told.rows) in ((1, 9), (2, 18)) and len(told.bad) == 2 - told.logs
        assert asked(tmp_path / "fleet", f"SELECT count(*) FROM fleet_epoch WHERE run = '{run_id(good)}'") == [(9,)]  # noqa: S608

    def test_costs_without_their_stage_are_kept(self) -> None:
        run = made(1)
        run.outside.costs[CausePlace(STARVED, "val", "")] = Cost(NS // 1000)
        rows = [row for row in rows_of(run, 1, "") if row["stage"] == "val"]
        assert [row["ledger_s"].get(STARVED) for row in rows] == [None, None, pytest.approx(0.001, rel=2**-12)]

    def test_time_outside_stages_has_rows(self) -> None:
        run = made(1)
        rows = [row for row in rows_of(run, 1, "") if row["stage"] == ""]
        spent = [epoch.phases["checkpoint",].total_ns / NS for epoch in run.epochs]
        assert [row["phases_s"]["checkpoint"] for row in rows] == pytest.approx(spent, rel=2**-12)
        assert [row["duration_s"] for row in rows] == pytest.approx(spent, rel=2**-24)


class TestSchema:
    def test_columns_are_told(self) -> None:
        told = epochmeter("fleet", "schema").out
        assert all(f"| `{column.name}` |" in told for column in COLUMNS)
        assert (
            "read_parquet('/data/f''leet/month=*/*.parquet'"
            in epochmeter("fleet", "schema", "--for", "duckdb", "--into", "/data/f'leet").out
        )

    def test_old_rows_may_be_dropped(self) -> None:
        assert any("MODIFY TTL toDateTime(start) + INTERVAL 400 DAY" in one for one in clickhouse_schema(keep_days=400))
        assert not any("TTL" in one for one in clickhouse_schema())


def ready(address: str) -> Any:
    """Return a fleet on a server, with its table."""
    from profiler.fleet.clickhouse import ClickHouseFleet

    fleet = ClickHouseFleet(address)
    fleet.prepare()
    return fleet


@pytest.mark.slow
class TestClickHouse:
    def test_both_engines_answer_the_same(self, clickhouse: str, logs: Path, tmp_path: Path) -> None:
        import clickhouse_connect

        for _ in range(2):
            answer = epochmeter("fleet", "load", str(logs), "--to", clickhouse, "--workload", "team")
            assert answer.code == 0
        assert answer.out == "0 rows of 0 logs loaded; 6 had nothing new, 0 could not be read\n"
        epochmeter("fleet", "load", str(logs), "--into", str(tmp_path / "fleet"), "--workload", "team")
        client = clickhouse_connect.get_client(dsn=clickhouse)
        for sql in (
            SUMS,
            "SELECT stage, epoch, sum(steps) FROM fleet_epoch GROUP BY stage, epoch ORDER BY stage, epoch",
            "SELECT run, rank, job, gpu, cores, python FROM fleet_epoch WHERE stage = 'val' AND epoch = 1 ORDER BY run",
            "SELECT run, step_offset, step_counts, phase_offsets, phase_counts FROM fleet_epoch"
            " WHERE stage = 'train' AND epoch = 0 ORDER BY run",
            *re.findall(r"```sql\n(.*?)```", (Path(__file__).parents[2] / "docs" / "fleet.md").read_text("utf-8"), re.DOTALL),
        ):
            theirs = [tuple(row) for row in client.query(sql).result_rows]
            ours = asked(tmp_path / "fleet", sql)
            assert (theirs and json.dumps(theirs) == json.dumps(ours)) or as_rounded(theirs) == as_rounded(ours), sql

    def test_a_log_that_grows_counts_once(self, clickhouse: str, tmp_path: Path) -> None:
        import clickhouse_connect

        run, fleet = made(99, epochs=3), ready(clickhouse)
        log = RunLog(tmp_path, run)
        for epoch in run.epochs:
            run.duration_ns = epoch.ended_ns
            log.append(run, epoch)
            load_logs(logs_in([tmp_path]), fleet)
        log.close()
        client = clickhouse_connect.get_client(dsn=clickhouse)
        sums = client.query(f"SELECT count(), sum(steps) FROM fleet_epoch WHERE run = '{run.id}'").result_rows  # noqa: S608
        assert sums == [(9, 300)]

    def test_a_fact_that_comes_late_counts_nothing_twice(self, clickhouse: str) -> None:
        import clickhouse_connect

        run, fleet = made(90), ready(clickhouse)
        gpus, run.hardware.gpus = run.hardware.gpus, {}
        for run.hardware.gpus in ({}, gpus):  # the driver answers after the first load
            fleet.write(rows_of(run, 1, ""))
        client = clickhouse_connect.get_client(dsn=clickhouse)
        sums = client.query(f"SELECT gpus, count(), sum(steps) FROM fleet_epoch WHERE run = '{run.id}' GROUP BY gpus")  # noqa: S608
        assert sums.result_rows == [(2, 9, 300)]

    def test_an_epoch_that_becomes_long_counts_once(self, clickhouse: str, tmp_path: Path) -> None:
        fleet, sums = ready(clickhouse), []
        for number in by_slices(made(1, epochs=54), tmp_path / "runs"):
            if number in (11, 31, 54):
                load_logs(logs_in([tmp_path / "runs"]), fleet)
                for table in ("fleet_epoch", "fleet_day"):
                    where = "run = '000000000001'" if table == "fleet_epoch" else "day >= '2026-09-21' AND rows < 30"
                    sums += fleet.ask(f"SELECT sum(steps) AS n FROM {table} WHERE stage = 'train' AND {where}")["n"].to_pylist()  # noqa: S608
        assert sums[::2] == [550, 1550, 2700], sums

    def test_names_stay_at_home(self, clickhouse: str, tmp_path: Path) -> None:
        import clickhouse_connect

        for number, said in ((50, {}), (51, {"team": "vision"})):
            written(tmp_path, made(number, said=said, command="train.py --secret canary", name="canary-name"))
        load_logs(logs_in([tmp_path]), ready(clickhouse), "team")
        client = clickhouse_connect.get_client(dsn=clickhouse)
        found = client.query("SELECT * FROM fleet_epoch WHERE run IN ('000000000032', '000000000033')").result_rows
        assert len(found) == 18 and "canary" not in str(found)
        workloads = client.query(
            "SELECT DISTINCT run, workload FROM fleet_epoch WHERE run IN ('000000000032', '000000000033') ORDER BY run"
        )
        assert [workload for _, workload in workloads.result_rows] == ["", "vision"]

    def test_names_of_phases_stay_at_home(self) -> None:
        (row, *_) = rows_of(made(1), 1, "", keeps_names=False)
        known = {name: spent for name, spent in rows_of(made(1), 1, "")[0]["phases_s"].items() if name != "mine"}
        assert row["phases_s"].keys() == {*known, "own"} and row["phase_names"].count("own") == 1

    def test_a_rollup_by_day_adds_up(self, clickhouse: str, tmp_path: Path) -> None:
        import clickhouse_connect

        load_logs([written(tmp_path, made(70, said={"team": "rollup"}))], ready(clickhouse), "team")
        client = clickhouse_connect.get_client(dsn=clickhouse)
        ((steps, buckets),) = client.query(
            "SELECT steps, step_buckets FROM fleet_day WHERE workload = 'rollup' AND stage = 'train'"
        ).result_rows
        assert steps == 150 and sum(buckets[1]) == 150

    def test_sums_of_days_outlive_their_rows(self, clickhouse: str, tmp_path: Path) -> None:
        """Rows are dropped after their time, and a log that comes later takes nothing from the sums. A late GPU counts once."""
        from profiler.fleet.columns import clickhouse_schema

        run, fleet = made(71, gpus=2, said={"team": "kept"}), ready(clickhouse)
        gpus, run.hardware.gpus = run.hardware.gpus, {}
        for run.hardware.gpus in ({}, gpus):
            fleet.write(rows_of(run, 1, "kept"))
        query = "SELECT sum(steps) AS steps FROM fleet_day WHERE workload = 'kept' AND stage = 'train'"
        assert fleet.ask(query).to_pylist() == [{"steps": 150}]
        fleet.command("ALTER TABLE fleet_epoch_loaded DELETE WHERE workload = 'kept' SETTINGS mutations_sync = 1")
        late = made(72, epochs=1, said={"team": "kept"})
        fleet.write(rows_of(late, 1, "late"))
        assert fleet.ask(query).to_pylist() == [{"steps": 150}]
        fleet.command(*clickhouse_schema(keep_days=40))
        assert "TTL" in fleet.ask("SHOW CREATE TABLE fleet_epoch_loaded").to_pylist()[0]["statement"]
        fleet.command("ALTER TABLE fleet_epoch_loaded REMOVE TTL")

    def test_off_wins(self, clickhouse: str) -> None:
        answer = epochmeter("fleet", "load", "--to", clickhouse, DO_NOT_TRACK="1")
        assert answer.code == 2 and "sync is off, so nothing leaves this machine" in answer.err

    def test_errors_hold_no_password(self) -> None:
        answer = epochmeter("fleet", "load", "--to", "clickhouse://me:canary-word@127.0.0.1:9/default")
        assert answer.code == 2 and len(answer.err.splitlines()) == 1
        assert "no ClickHouse server answers at 127.0.0.1" in answer.err and "canary-word" not in answer.err


def test_a_run_loads_none_of_it() -> None:
    code = """
import sys
from profiler import Profiler
with Profiler("x", interval=0.02) as prof:
    for _ in prof.epochs(2):
        list(prof.train(range(3)))
str(prof.summary)
found = {"duckdb", "chdb", "clickhouse_connect", "pyarrow", "profiler.fleet"} & set(sys.modules)
print(sorted(found))
"""
    answer = python("-c", code)
    assert (answer.code, answer.out, answer.err) == (0, "[]\n", "")


def test_missing_packages_are_told(tmp_path: Path) -> None:
    (tmp_path / "pyarrow.py").write_text("raise ImportError\n")
    answer = epochmeter("fleet", "load", PYTHONPATH=str(tmp_path))
    assert answer.code == 2 and "pip install 'epochmeter[fleet]'" in answer.err


def test_a_folder_that_is_none_is_told() -> None:
    with pytest.raises(ProfilerError, match="neither a run log nor a folder"):
        logs_in([Path("nowhere")])


def test_links_to_folders_above_end(tmp_path: Path) -> None:
    path = written(tmp_path / "a", made(1))
    (tmp_path / "a" / "up").symlink_to(tmp_path, target_is_directory=True)
    assert logs_in([tmp_path]) == [path] and run_paths(tmp_path / "a") == [path]


def test_rows_have_the_ledger_of_the_report() -> None:
    """Also where samples decide what a phase stands for, and costs are inside phases."""
    from profiler.records.causes import COLLECTION, Line
    from profiler.report.document import document
    from profiler.report.ledger import WORDS

    run = made(3, epochs=4)
    for epoch in run.epochs:
        epoch.lines = {Line("train", "mine", "t.py", 7, "step", "torch.nn.functional.linear"): 9}
        epoch.costs[CausePlace(COLLECTION, "train", "forward")] = Cost(10**7)
    told = document(run)["ledger"]
    rows = rows_of(run, 1, "")
    for word in set(WORDS.values()) - {"outside", "start_up", "host"}:
        assert sum(row["ledger_s"].get(word, 0.0) for row in rows) == pytest.approx(told.get(f"{word}_s", 0.0), rel=2**-12), (
            word
        )
    assert all(sum(row["ledger_s"].values()) == pytest.approx(row["duration_s"], rel=2**-12) for row in rows)
    assert told["collections_s"] == pytest.approx(0.04) and told["useful_s"] > 0
