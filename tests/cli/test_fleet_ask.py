"""``epochmeter fleet ask``: a fault in a simulated fleet is found, and nothing in one without, by both engines."""

from __future__ import annotations

import csv
import json
import math
import random
import subprocess
import sys
from collections.abc import Callable, Iterable
from datetime import date, datetime, timedelta, timezone
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from profiler.errors import ArgumentValueError, ProfilerError
from profiler.records.histogram import NS, Histogram
from support.fleets import BEGAN, exact, histogram, machines, near, phases, ranks, row, versions
from support.processes import epochmeter

pytest.importorskip("duckdb")
pytest.importorskip("pyarrow")
from profiler import fleet
from profiler.fleet import dashboard
from profiler.fleet.asking import Asked
from profiler.fleet.parquet import ParquetFleet
from profiler.fleet.questions import QUESTIONS, sql_of

Rows = list[dict[str, Any]]
Made = Callable[[Iterable[dict[str, Any]]], Asked]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """Return what makes a fleet of rows, in a folder of its own."""
    numbers = count()

    def make(rows: Iterable[dict[str, Any]]) -> Asked:
        folder = tmp_path / f"fleet{next(numbers)}"
        ParquetFleet(folder).write(rows)
        return fleet.open(folder)

    return make


def everything() -> Rows:
    """Return a fleet with something for each question."""
    of_steps = [[0.0] * 5, [0.001, 0.002, 0.0], [1e-6, 2000.0] * 50, [0.5 + 0.01 * k for k in range(99)]]
    rows = [*versions(1, 1.03), *ranks("a", 1, slow={5: 1.2}), *machines(1, {"n07": 1.08}, jobs=60)]
    rows += [row(f"h{place}", workload="quo'ted", **histogram(steps)) for place, steps in enumerate(of_steps)]
    rows += [row("zero", workload="zeros", **histogram([0.0] * 3)), row("nothing", None, steps=0, samples=None, duration_s=0.0)]
    return rows


class TestRegression:
    @pytest.mark.slow
    def test_three_percent_are_found_and_nothing_else(self, made: Made) -> None:
        found = [made(versions(seed, 1.03)).regression("0.2.0", "0.3.0").to_pylist()[0]["verdict"] for seed in range(100)]
        assert found.count("slower") >= 95
        without = [made(versions(seed)).regression("0.2.0", "0.3.0").to_pylist() for seed in range(1_000, 1_100)]
        assert sum(any(one["verdict"] != "no difference found" for one in rows) for rows in without) <= 5

    def test_the_interval_holds_the_truth(self, made: Made) -> None:
        first, *cells = made(versions(1, 1.03)).regression("0.2.0", "0.3.0").to_pylist()
        assert first["scope"] == "all" and first["low"] < 1.03 < first["high"] and first["jobs_old"] == 90
        assert len(cells) == 30 and all(one["low"] < 1.03 < one["high"] for one in cells)

    def test_faster_is_told_as_well(self, made: Made) -> None:
        assert made(versions(1, 0.9)).regression("0.2.0", "0.3.0").to_pylist()[0]["verdict"] == "faster"

    def test_one_cell_is_found_among_many(self, made: Made) -> None:
        rows = [*versions(1)]
        for one in rows:
            if one["workload"] == "net 3" and one["package_version"] == "0.3.0":
                one["duration_s"] *= 1.4
        found = made(rows).regression("0.2.0", "0.3.0").to_pylist()
        assert [one["workload"] for one in found if one["verdict"] == "slower"] == ["net 3"]

    def test_few_jobs_have_no_interval(self, made: Made) -> None:
        rows = [row(f"{version}{job}", package_version=version, **phases(9.0 + job)) for version in "ab" for job in range(2)]
        found = made(rows).regression("a", "b").to_pylist()
        assert [(one["verdict"], one["low"]) for one in found] == [("too few jobs", None)] * 2

    def test_more_epochs_are_no_more_jobs(self, made: Made) -> None:
        """One job that is slow for reasons of its own, with a thousand epochs, does not make a version slow."""
        rows = [row(f"{v}{job}", package_version=v, **phases(10 + 0.1 * job)) for v in "ab" for job in range(4)]
        rows += [row("slow", epoch, package_version="b", **phases(13.0)) for epoch in range(1_000)]
        assert made(rows).regression("a", "b").to_pylist()[0]["verdict"] == "no difference found"

    def test_the_first_epoch_is_not_compared(self, made: Made) -> None:
        """It starts things up, and jobs of one version have fewer epochs that follow it."""
        for seed in range(10):
            rng = random.Random(seed)
            rows = [
                row(f"{v}-{job}", epoch, package_version=v, **phases((14 if epoch == 0 else 10) * rng.lognormvariate(0, 0.02)))
                for v, epochs in (("a", 21), ("b", 3))
                for job in range(12)
                for epoch in range(epochs if job else 1)
            ]
            assert made(rows).regression("a", "b").to_pylist()[0]["verdict"] == "no difference found"

    def test_more_ranks_are_another_cell(self, made: Made) -> None:
        rows = [
            row(
                f"{v}{job}-{rank}",
                job=f"{v}{job}",
                rank=rank,
                world_size=world,
                package_version=v,
                **phases(10.0 * slower + job),
            )
            for v, world, slower in (("a", 2, 1.0), ("b", 4, 1.5))
            for job in range(4)
            for rank in range(world)
        ]
        assert made(rows).regression("a", "b").num_rows == 0

    def test_unknown_workloads_are_not_compared(self, made: Made) -> None:
        """The new version trains larger models, which nobody has told."""
        rows = [
            row(f"{v}{job}", package_version=v, workload="", **phases(s + job))
            for v, s in (("a", 50), ("b", 90))
            for job in range(4)
        ]
        with pytest.raises(ProfilerError, match=r"\(--workload task\)"):
            made(rows).regression("a", "b")

    @pytest.mark.slow
    def test_one_slow_job_condemns_no_cell(self, made: Made) -> None:
        """One in ten jobs takes up to 60 % longer for reasons of its own, whatever its version."""
        alarms = 0
        for seed in range(40):
            rng, rows = random.Random(seed), []
            for workload in range(20):
                for version in "ab":
                    for job in range(rng.randint(1, 6)):
                        of_job = 10 * rng.lognormvariate(0, 0.03) * (1 + (rng.random() < 0.1) * rng.uniform(0.1, 0.6))
                        rows += [
                            row(
                                f"{workload}{version}{job}",
                                epoch,
                                workload=f"w{workload}",
                                package_version=version,
                                **phases(of_job),
                            )
                            for epoch in range(2)
                        ]
            alarms += any(one["verdict"] in ("slower", "faster") for one in made(rows).regression("a", "b").to_pylist())
        assert alarms <= 2

    def test_versions_are_of_labels_too(self, made: Made) -> None:
        rows = [row(f"{v}{job}", labels={"git": v}, **phases(s + job)) for v, s in (("x", 50), ("y", 90)) for job in range(4)]
        assert made(rows).regression("x", "y", by="git").to_pylist()[0]["verdict"] == "slower"
        assert made(rows).regression("x", "y", by="torch").num_rows == 0


class TestRanks:
    @pytest.mark.parametrize(("world", "slow"), [(2, 1), (4, 0), (16, 5), (64, 63), (96, 77)])
    def test_a_slow_rank_is_found(self, made: Made, world: int, slow: int) -> None:
        found = made([*ranks("a", 1, world=world, slow={slow: 1.25}), *ranks("b", 2, world=world)]).stragglers().to_pylist()
        assert [(one["job"], one["rank"], one["ranks"], one["waited_in"]) for one in found] == [("a", slow, world, "backward")]
        assert found[0]["slower"] == pytest.approx(1.25, abs=0.05)

    def test_half_a_job_may_be_slow(self, made: Made) -> None:
        found = made(ranks("a", 1, slow=dict.fromkeys(range(8), 1.3))).stragglers().to_pylist()
        assert sorted(one["rank"] for one in found) == list(range(8))

    def test_ranks_that_do_not_wait_are_compared_whole(self, made: Made) -> None:
        rows = [row(f"j-{n % 4}", n // 4, job="j", rank=n % 4, **phases(14.0 if n % 4 == 2 else 10.0)) for n in range(8)]
        assert [one["rank"] for one in made(rows).stragglers().to_pylist()] == [2]

    def test_a_job_that_began_anew_is_one(self, made: Made) -> None:
        """Its second attempt repeats an epoch of the first one; each is compared with its own."""
        rows = list(ranks("a", 1, slow={5: 1.25}))
        for one in ranks("a", 2, slow={5: 1.25}):
            one |= {"run": f"again-{one['run']}", "epoch": one["epoch"] + 2, "start": one["start"] + timedelta(days=1)}
            rows.append(one | {"duration_s": one["duration_s"] * 2, "phases_s": {k: v * 2 for k, v in one["phases_s"].items()}})
        (found,) = made(rows).stragglers().to_pylist()
        assert (found["rank"], found["ranks"], found["epochs"]) == (5, 16, 6)

    def test_each_attempt_is_compared_with_itself(self, made: Made) -> None:
        """The second one is slower, has fewer ranks, and one whose first log is lost: only its own slow rank is named."""
        rows = [one for one in ranks("a", 1, world=10) if one["rank"] != 5]
        for one in ranks("a", 2, world=9, slow={2: 1.3}):
            slower = {"duration_s": one["duration_s"] * 1.5, "phases_s": {k: v * 1.5 for k, v in one["phases_s"].items()}}
            rows.append(one | slower | {"run": f"again-{one['run']}", "start": one["start"] + timedelta(days=1)})
        (found,) = made(rows).stragglers().to_pylist()
        assert (found["rank"], found["ranks"], found["epochs"]) == (2, 9, 3)

    def test_since_is_of_epochs(self, made: Made) -> None:
        """A job that began long ago and goes on is asked for its last days."""
        rows = [one | {"start": BEGAN + timedelta(days=one["epoch"])} for one in ranks("a", 1, slow={5: 1.25}, epochs=40)]
        found = made(rows)
        (late,) = found.stragglers(since=date(2026, 12, 7)).to_pylist()
        assert (late["rank"], late["epochs"]) == (5, 5) and found.stragglers(since=date(2027, 1, 1)).num_rows == 0

    def test_a_little_is_found_among_many_jobs(self, made: Made) -> None:
        """Where ten jobs tell how much ranks differ, 8 % of a rank's work are seen: 3 % of a step outside the backward."""
        rows = [
            one for job in range(12) for one in ranks(f"j{job:02d}", job, slow={3: 1.08} if job == 4 else None, spread=0.004)
        ]
        assert [(one["job"], one["rank"]) for one in made(rows).stragglers().to_pylist()] == [("j04", 3)]

    def test_a_rank_that_is_slow_lately_is_found(self, made: Made) -> None:
        """In the days of --since, whatever the job did before."""
        rows = [one | {"start": BEGAN + timedelta(hours=one["epoch"])} for one in ranks("a", 1, world=8, epochs=240)]
        later = list(ranks("a", 3, world=8, epochs=24, slow={6: 1.3}))
        rows += [one | {"epoch": one["epoch"] + 240, "start": BEGAN + timedelta(days=10, hours=one["epoch"])} for one in later]
        found = made(rows)
        assert [one["rank"] for one in found.stragglers(since=date(2026, 11, 12)).to_pylist()] == [6]
        assert found.stragglers(since=date(2026, 11, 2)).num_rows == 0

    def test_one_epoch_names_nobody(self, made: Made) -> None:
        assert made(ranks("a", 1, slow={5: 1.3}, epochs=1)).stragglers().num_rows == 0

    def test_usual_differences_blame_nobody(self, made: Made) -> None:
        for world, spread in ((8, 0.005), (8, 0.02), (8, 0.04), (4, 0.05)):
            rows = [one for job in range(40) for one in ranks(f"j{job}", job, world=world, spread=spread)]
            assert made(rows).stragglers().num_rows == 0, spread

    def test_ranks_that_died_early_blame_nobody(self, made: Made) -> None:
        """The others' later epochs are slower for reasons of their own: only the first one is compared."""
        rows = [
            row(f"j-{rank}", epoch, job="j", rank=rank, **phases(10.0 * (1 + epoch)))
            for rank in range(5)
            for epoch in range(1 if rank < 3 else 3)
        ]
        assert made(rows).stragglers().num_rows == 0

    def test_fewer_steps_in_equal_time_are_no_fault(self, made: Made) -> None:
        rows = [one | ({"steps": 90} if one["rank"] == 3 else {}) for one in ranks("a", 1)]
        assert made(rows).stragglers().num_rows == 0

    def test_who_waits_longest_is_not_behind(self, made: Made) -> None:
        """Beside a slow rank, one that ends late because it waits is not named."""
        rows = list(ranks("a", 1, slow={5: 1.3}))
        for one in rows:
            if one["rank"] == 9:
                one["duration_s"] *= 1.1
                one["phases_s"]["backward"] += one["duration_s"] * 0.1 / 1.1
        assert [one["rank"] for one in made(rows).stragglers().to_pylist()] == [5]

    def test_nothing_is_found_without_a_fault(self, made: Made) -> None:
        rows = [one for seed in range(20) for one in ranks(f"job{seed}", seed, world=2 ** (seed % 6 + 1))]
        assert made(rows).stragglers().num_rows == 0

    def test_what_all_wait_for_one_is_waste(self, made: Made) -> None:
        rows = list(ranks("a", 1, slow={5: 1.2}))
        causes = {one["cause"]: one for one in made(rows).waste().to_pylist()}
        least = min(sum(one["phases_s"]["backward"] for one in rows if one["rank"] == rank) for rank in range(16))
        waited = sum(one["phases_s"]["backward"] for one in rows) - 16 * least
        assert causes["ranks"]["gpu_hours"] == pytest.approx(waited / 3600, rel=1e-5)
        assert sum(one["hours"] for one in causes.values()) == pytest.approx(
            sum(r["duration_s"] for r in rows) / 3600, rel=1e-4
        )
        assert sum(one["kwh"] for one in causes.values()) == pytest.approx(48 * 5_000 / 3.6e6, rel=1e-4)


class TestNodes:
    @pytest.mark.slow
    def test_a_slow_machine_is_found_and_nothing_else(self, made: Made) -> None:
        names = [[one["node"] for one in made(machines(s, {"n07": 1.08}, jobs=80)).slow_nodes().to_pylist()] for s in range(20)]
        assert names.count(["n07"]) >= 19
        assert [made(machines(seed, jobs=80)).slow_nodes().num_rows for seed in range(100, 120)] == [0] * 20

    def test_jobs_on_one_machine_are_compared(self, made: Made) -> None:
        rows = [
            one
            for job in range(40)
            for one in ranks(f"j{job}", job, world=8, nodes=[f"n{job % 8}"], slow={r: 1.2 for r in range(8) if job % 8 == 3})
        ]
        assert [one["node"] for one in made(rows).slow_nodes().to_pylist()] == ["n3"]

    @pytest.mark.slow
    def test_waits_with_long_tails_name_nobody(self, made: Made) -> None:
        """Jobs on two of twelve machines, in which each rank waits a random while, often short and sometimes long."""
        named = 0
        for seed in range(30):
            rng, rows = random.Random(seed), []
            for job in range(30):
                machines_of = rng.sample(range(12), 2)
                spent = [10 * (1 + rng.betavariate(1.2, 14)) for _ in range(8)]
                rows += [
                    row(
                        f"j{job}-{rank}",
                        epoch,
                        job=f"j{job}",
                        rank=rank,
                        world_size=8,
                        labels={"node": f"n{machines_of[rank // 4]}"},
                        duration_s=max(spent),
                        phases_s={"forward": spent[rank] * 0.4, "backward": max(spent) - spent[rank] * 0.4},
                    )
                    for epoch in range(2)
                    for rank in range(8)
                ]
            named += made(rows).slow_nodes().num_rows > 0
        assert named <= 2

    def test_two_jobs_are_too_few(self, made: Made) -> None:
        rows = [one for job in range(2) for one in ranks(f"j{job}", job, nodes=["n1", "n2"], slow=dict.fromkeys(range(8), 1.5))]
        assert made(rows).slow_nodes().num_rows == 0

    def test_without_labels_a_node_is_a_place(self, made: Made) -> None:
        rows = [one for job in range(5) for one in ranks(f"j{job}", job, slow=dict.fromkeys(range(8, 16), 1.3))]
        assert [one["node"] for one in made(rows).slow_nodes().to_pylist()] == ["node 1 of its job"]
        assert {one["machine"] for one in made(rows).stragglers().to_pylist()} == {"node 1 of its job"}
        with pytest.raises(ProfilerError, match="EPOCHMETER_LABELS=node:n17"):
            made([one | {"node": None} for one in rows]).slow_nodes()

    def test_unknown_workloads_are_not_compared(self, made: Made) -> None:
        """A machine that trains the larger models is not slow."""
        rows = [
            row(f"r{n}", labels={"node": f"n{n % 4}"}, workload="", **phases(30.0 if n % 4 == 3 else 10.0)) for n in range(40)
        ]
        assert made(rows).slow_nodes().num_rows == 0


class TestSteps:
    def test_merged_quantiles_are_within_the_error(self, made: Made) -> None:
        rng, every, rows = random.Random(7), [], []
        for number in range(60):
            spread, size = rng.choice([0.001, 0.05, 0.8, 4.0]), rng.choice([1, 5, 400])
            values = [rng.lognormvariate(math.log(0.003), spread) for _ in range(size)] + [0.0] * rng.choice([0, 0, 30])
            every += values
            rows.append(row(f"r{number}", **histogram(values)))
        (found,) = made(rows).steps().to_pylist()
        assert found["steps"] == len(every)
        for name, share in (("p50_s", 0.5), ("p90_s", 0.9), ("p99_s", 0.99)):
            assert found[name] == pytest.approx(exact(every, share), rel=0.0443)

    def test_a_coarse_histogram_keeps_its_place(self, made: Made) -> None:
        """From a microsecond to half an hour there is no room for the fleet's scale: such a histogram is coarser."""
        coarse = Histogram()
        coarse.add([1_000, 2_000 * NS])
        assert coarse.scale < 3
        (found,) = made([row("r", **histogram([1e-6] + [2000.0] * 9))]).steps().to_pylist()
        assert found["p50_s"] == pytest.approx(2000, rel=0.19)

    def test_steps_of_no_time_are_none(self, made: Made) -> None:
        (found,) = made([row("r", **histogram([0.0] * 9 + [1.0]))]).steps().to_pylist()
        assert (found["steps"], found["p50_s"], found["p90_s"]) == (10, 0, 0)
        assert found["p99_s"] == pytest.approx(1, rel=0.0443)


class TestOthers:
    def test_trend_is_of_jobs_by_week(self, made: Made) -> None:
        rows = [
            row(f"r{n}", epoch, torch=f"2.{n}", samples=1000, **phases(10.0 + epoch)) for n in range(2) for epoch in (0, 1, 2)
        ]
        found = made(rows).trend().to_pylist()
        assert [(one["version"], one["week"], one["jobs"]) for one in found] == [
            ("2.0", date(2026, 11, 2), 1),
            ("2.1", date(2026, 11, 2), 1),
        ]
        assert found[0]["s_per_sample"] == pytest.approx(0.011) and found[0]["samples"] == 3000

    def test_since_leaves_out_older_rows(self, made: Made) -> None:
        found = made(versions(1))
        assert found.trend(since=date(2026, 11, 3)).num_rows == 60 and found.trend(since=date(2026, 12, 1)).num_rows == 0

    def test_energy_is_of_rows_with_a_meter(self, made: Made) -> None:
        rows = [row("a", gpu="H100", energy_j=100.0, energy_uncertain_j=10.0, samples=50), row("b", gpu="H100", samples=10**6)]
        assert made(rows).energy().to_pylist() == [
            {
                "gpu": "H100",
                "workload": "net",
                "stage": "train",
                "jobs": 1,
                "samples": 50,
                "j_per_sample": 2.0,
                "kwh": pytest.approx(100 / 3.6e6),
                "uncertain_share": 0.1,
            }
        ]

    def test_waiting_counts_runs_by_their_share(self, made: Made) -> None:
        rows = [row(f"r{n}", ledger_s={"data_wait": 0.1 * n, "loader_start": 0.9 * n}) for n in range(11)]
        found = made(rows).waiting().to_pylist()
        assert [one["share_from"] for one in found] == [*(n / 10 for n in range(10)), 0.95]
        assert sum(one["runs"] for one in found) == 11

    def test_real_run_logs_are_asked(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from profiler import Profiler

        monkeypatch.setenv("EPOCHMETER_LABELS", "team:vision")
        for _ in range(3):
            with Profiler("mine") as prof:
                for _ in prof.epochs(2):
                    list(prof.train([[1, 2]] * 5))
        assert epochmeter("fleet", "load", "--into", str(tmp_path / "fleet")).code == 0
        found = fleet.open(tmp_path / "fleet")
        assert sum(one["steps"] for one in found.steps().to_pylist()) == 3 * 9
        assert {one["which"] for one in found.waste(by="team").to_pylist()} == {"vision"}


@pytest.mark.slow
class TestClickHouse:
    def test_both_engines_answer_the_same(self, made: Made, clickhouse: str) -> None:
        from profiler.fleet.clickhouse import ClickHouseFleet

        server, rows = ClickHouseFleet(clickhouse), everything()
        server.prepare()
        server.write(rows)
        ours, theirs = made(rows), fleet.open(clickhouse)
        for name in set(QUESTIONS) - {"features"}:
            more = {"old": "0.2.0", "new": "0.3.0"} if name == "regression" else {}
            mine, other = ours.ask(name, **more), theirs.ask(name, **more)
            assert mine.schema == other.schema and mine.num_rows, name
            assert other.to_pylist() == [near(row) for row in mine.to_pylist()], name

    def test_a_query_that_is_none_is_told(self, clickhouse: str) -> None:
        with pytest.raises(ProfilerError, match=r"^ClickHouse at 127\.0\.0\.1 did not take it: [^(]*"):
            fleet.open(clickhouse).sql("SELECT nothing FROM nowhere")


class TestCommand:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> str:
        ParquetFleet(tmp_path / "fleet").write(everything())
        return str(tmp_path / "fleet")

    def test_questions_are_listed(self) -> None:
        told = epochmeter("fleet", "ask").out
        assert [line.split()[0] for line in told.splitlines()] == list(QUESTIONS)
        assert [one["name"] for one in json.loads(epochmeter("fleet", "ask", "--json").out)] == list(QUESTIONS)

    def test_tables_json_and_csv_say_the_same(self, folder: str) -> None:
        ask = ("fleet", "ask", "regression", "0.2.0", "0.3.0", "--from", folder)
        table = epochmeter(*ask).out.splitlines()
        rows = json.loads(epochmeter(*ask, "--json").out)
        in_csv = list(csv.DictReader(epochmeter(*ask, "--csv").out.splitlines()))
        assert len(table) == len(rows) + 1 == len(in_csv) + 1
        assert rows[0]["verdict"] == "slower" and in_csv[0]["verdict"] == "slower" and "slower" in table[1]
        assert f"{rows[0]['ratio'] - 1:+.1%}" in table[1] and float(in_csv[0]["ratio"]) == pytest.approx(rows[0]["ratio"])

    def test_a_query_of_ones_own(self, folder: str, tmp_path: Path) -> None:
        (tmp_path / "q.sql").write_text("-- mine\nSELECT job, max(start) AS last FROM fleet_epoch WHERE job = 'a' GROUP BY job")
        answer = epochmeter("fleet", "ask", "--sql", str(tmp_path / "q.sql"), "--from", folder, "--csv")
        assert answer.out == "job,last\na,2026-11-02T02:00:00+00:00\n"

    def test_the_query_can_be_seen_and_used(self, folder: str, tmp_path: Path) -> None:
        shown = epochmeter("fleet", "ask", "waste", "--by", "team's", "--show-sql").out
        assert "coalesce(labels['team''s'], '')" in shown
        (tmp_path / "q.sql").write_text(shown)
        assert epochmeter("fleet", "ask", "--sql", str(tmp_path / "q.sql"), "--from", folder).code == 0

    @pytest.mark.slow
    @pytest.mark.parametrize("name", [name for name in QUESTIONS if name != "features"])
    def test_pages_are_whole(self, folder: str, tmp_path: Path, name: str) -> None:
        page = tmp_path / "page.html"
        versions = ("0.2.0", "0.3.0") if name == "regression" else ()
        assert epochmeter("fleet", "ask", name, *versions, "--from", folder, "--html", str(page)).code == 0
        text = page.read_text()
        assert "<svg" in text and "<table" in text and "default-src 'none'" in text

    def test_nothing_found_is_told(self, tmp_path: Path) -> None:
        ParquetFleet(tmp_path / "fleet").write(ranks("a", 1))
        answer = epochmeter("fleet", "ask", "stragglers", "--from", str(tmp_path / "fleet"))
        assert (answer.code, answer.out, answer.err) == (0, "", "no rank holds its job back\n")

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (["trends"], "Did you mean 'trend'"),
            (["regression", "1"], "name the old one and the new one"),
            (["trend", "1", "2"], "does not ask for old"),
            (["regression", "1", "1"], "not '1' with itself"),
            (["stragglers", "--by", "team"], "does not ask for by"),
            (["trend", "--since", "then"], "--since is a day such as"),
            (["trend", "--by", "a\\b"], "without a backslash"),
            (["waste", "--by", "teem"], "holds no fleet"),
            (["trend", "--from", "nowhere"], "nowhere holds no fleet"),
            (["trend"], "holds no fleet"),
            (["trend", "--json", "--csv"], "name one of them"),
            (["trend", "--sql", "x"], "leave out 'trend'"),
            (["--sql", "nowhere.sql"], "nowhere.sql cannot be read"),
        ],
    )
    def test_bad_input_is_told(self, arguments: list[str], says: str) -> None:
        answer = epochmeter("fleet", "ask", *arguments)
        assert answer.code == 2 and says in answer.err and len(answer.err.splitlines()) == 1

    def test_a_label_that_no_run_has_is_told(self, folder: str, tmp_path: Path) -> None:
        ParquetFleet(tmp_path / "named").write([row("r", labels={"team": "vision"})])
        for place, says in (("named", "the labels are team. Did you mean 'team'?"), ("fleet", "the labels are node.")):
            answer = epochmeter("fleet", "ask", "waste", "--by", "teem", "--from", str(tmp_path / place))
            assert answer.code == 2 and says in answer.err and len(answer.err.splitlines()) == 1
        out = str(tmp_path / "public")
        answer = epochmeter("fleet", "export", out, "--by", "hardware,verzion", "--from", folder)
        assert answer.code == 2 and "no row has a label 'verzion'" in answer.err
        assert epochmeter("fleet", "export", out, "--by", "hardware,version", "--from", folder).code == 0

    @pytest.mark.parametrize("form", ["--json", "--csv", ""])
    def test_odd_values_are_shown(self, folder: str, tmp_path: Path, form: str) -> None:
        sql = "SELECT 'nan'::FLOAT AS a, 1e308 * 10 AS b, [1, 2] AS c, MAP {'x': 1} AS d, INTERVAL 1 DAY AS e, true AS share"
        (tmp_path / "q.sql").write_text(sql)
        answer = epochmeter("fleet", "ask", "--sql", str(tmp_path / "q.sql"), "--from", folder, *filter(None, [form]))
        assert (answer.code, answer.err) == (0, "")
        if form == "--json":
            assert json.loads(answer.out, parse_constant=pytest.fail)[0]["a"] is None

    @pytest.mark.slow
    def test_a_narrow_place_keeps_the_answer(self, folder: str) -> None:
        for question, head in (
            ("regression", "verdict"),
            ("trend", "per_sample"),
            ("stragglers", "slower"),
            ("waste", "share"),
        ):
            versions = ("0.2.0", "0.3.0") if question == "regression" else ()
            assert head in epochmeter("fleet", "ask", question, *versions, "--from", folder, COLUMNS="60").out.splitlines()[0]

    def test_a_broken_query_is_told(self, folder: str, tmp_path: Path) -> None:
        (tmp_path / "q.sql").write_text("SELEC 1")
        answer = epochmeter("fleet", "ask", "--sql", str(tmp_path / "q.sql"), "--from", folder)
        assert answer.code == 2 and "DuckDB did not take it" in answer.err and len(answer.err.splitlines()) == 1


class TestPlaces:
    def test_each_file_runs_as_it_is(self, made: Made) -> None:
        found = made(everything())
        assert all(found.sql(question.sql) is not None for question in QUESTIONS.values())

    def test_names_cannot_leave_their_quotes(self, made: Made) -> None:
        assert made(everything()).regression("x' OR 1=1 --", "y").num_rows == 0
        with pytest.raises(ArgumentValueError, match="backslash"):
            sql_of("regression", old="\\", new=" OR 1=1 --")

    def test_missing_packages_are_told(self, tmp_path: Path) -> None:
        code = "import sys; sys.modules['pyarrow'] = None\nfrom profiler import fleet\nfleet.open('.')"
        answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert "pip install 'epochmeter[fleet]'" in answer.stderr


class TestDashboard:
    def test_the_files_are_those_of_the_module(self) -> None:
        kit = Path(__file__).parents[2] / "examples" / "pipeline"
        assert json.loads((kit / "fleet_dashboard.json").read_text("utf-8")) == dashboard.dashboard()
        assert json.loads((kit / "fleet_alerts.json").read_text("utf-8")) == dashboard.alerts()

    @pytest.mark.slow
    def test_every_query_is_answered(self, clickhouse: str) -> None:
        from profiler.fleet.clickhouse import ClickHouseFleet

        ClickHouseFleet(clickhouse).command("CREATE DATABASE IF NOT EXISTS panels")
        server = ClickHouseFleet(clickhouse.rpartition("/")[0] + "/panels")
        server.prepare()
        rules = [rule["data"][0]["model"]["rawSql"] for rule in dashboard.alerts()["groups"][0]["rules"]]
        assert [server.ask(sql)["found"].to_pylist() for sql in rules] == [[0], [0]]
        now = datetime.now(timezone.utc) - timedelta(days=1)
        server.write(one | {"start": now} for one in everything())
        assert [server.ask(sql)["found"].to_pylist() for sql in rules] == [[1], [1]]
        for panel in dashboard.dashboard()["panels"]:
            assert server.ask(panel["targets"][0]["rawSql"]).num_rows, panel["title"]
