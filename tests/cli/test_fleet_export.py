"""``epochmeter fleet export``: no small cell can be found in what is published, whatever is subtracted from what."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from datetime import date, timedelta
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from profiler.errors import ArgumentValueError, ProfilerError
from support.fleets import BEGAN, phases, row
from support.processes import epochmeter

pytest.importorskip("duckdb")
pytest.importorskip("pyarrow")
from profiler import fleet
from profiler.fleet.asking import Asked
from profiler.fleet.export import BEHIND, DIGITS, Rules, export, weeks_in
from profiler.fleet.parquet import ParquetFleet

K20 = Rules(20, ("hardware", "version"), "")
LATE = date(2026, 12, 4)  # the weeks of November 2, 9 and 16 are settled


def jobs(seed: int, sizes: dict[tuple[str, str], int], weeks: int = 3, **values: Any) -> Iterator[dict[str, Any]]:
    """Yield so many jobs of each GPU and version in each week, with an epoch of each of four ranks."""
    rng = random.Random(seed)
    for week in range(weeks):
        for (gpu, version), size in sizes.items():
            for job in range(size):
                name = f"{seed}-{week}-{gpu}-{version}-{job}"
                spent = rng.lognormvariate(1, 1)
                for rank in range(4):
                    yield row(
                        f"{name}-{rank}",
                        **{"job": name, "rank": rank, "gpu": gpu, "torch": version, **phases(spent), "energy_j": 70 * spent},
                        **{"start": BEGAN + timedelta(days=7 * week, hours=job % 150), **values},
                    )


def opened(folder: Path, rows: Iterable[dict[str, Any]]) -> Asked:
    ParquetFleet(folder).write(rows)
    return fleet.open(folder)


def numbers(content: Any) -> Iterator[float]:
    """Yield every number in what is published, the rules' own k left out."""
    if isinstance(content, dict):
        yield from chain.from_iterable(numbers(value) for key, value in content.items() if key != "k")
    elif isinstance(content, list):
        yield from chain.from_iterable(map(numbers, content))
    elif isinstance(content, (int, float)):
        yield content


SIZES = {("H100", "2.1"): 25, ("H100", "2.2"): 3, ("L4", "2.1"): 64, ("L4", "2.2"): 20, ("A100", "2.1"): 19, ("A100", "2.2"): 1}
LARGE = {key for key, size in SIZES.items() if size >= 20}


class TestCells:
    def test_a_cell_has_k_jobs(self, tmp_path: Path) -> None:
        """Four ranks a job: of 76 runs, 19 are jobs, which is too few."""
        told = export(opened(tmp_path / "fleet", jobs(1, SIZES)), tmp_path / "out", K20, LATE)
        weeks = list(weeks_in(tmp_path / "out"))
        assert [{(cell["hardware"], cell["version"]) for cell in week["cells"]} for week in weeks] == [LARGE] * 3
        assert {(cell["hardware"], cell["version"]): cell["jobs"] for cell in weeks[0]["cells"]} == {
            ("H100", "2.1"): 20,
            ("L4", "2.1"): 60,
            ("L4", "2.2"): 20,
        }
        assert set(map(tuple, told.suppressed.values())) == {(1, 3, 19)} and told.cells == 9

    def test_a_label_may_be_what_is_counted(self, tmp_path: Path) -> None:
        rows = list(jobs(1, {("L4", "2.1"): 64}, labels={"team": "one"})) + list(jobs(2, {("H100", "2.1"): 30}))
        for place, one in enumerate(one for one in rows if one["gpu"] == "H100"):
            one["labels"] = {"team": f"team {place // 4 % 30}"}
        export(opened(tmp_path / "fleet", rows), tmp_path / "out", Rules(20, ("hardware",), "team"), LATE)
        assert [[cell["hardware"] for cell in week["cells"]] for week in weeks_in(tmp_path / "out")] == [["H100"]] * 3

    def test_percentiles_stand_on_several_jobs(self, tmp_path: Path) -> None:
        rows = list(jobs(1, {("L4", "2.1"): 40}, weeks=1))
        export(opened(tmp_path / "fleet", rows), tmp_path / "out", K20, LATE)
        ((cell,),) = (week["cells"] for week in weeks_in(tmp_path / "out") if week["cells"])
        speeds = sorted({one["duration_s"] / one["samples"] for one in rows})
        assert len(speeds) == 40  # a tenth of which are four: too few
        assert BEHIND == 5 and cell["s_per_sample"].keys() == {"p25", "p50", "p75"}
        assert cell["s_per_sample"]["p50"] == float(f"{speeds[19]:.{DIGITS}g}") and cell["waiting"]["p50"] == 0.1
        assert cell["j_per_sample"]["p50"] == float(f"{70 * speeds[19]:.{DIGITS}g}")

    @pytest.mark.parametrize("ten", [20, 40, 50, 80, 100, 120])
    def test_no_percentile_tells_the_exact_number(self, tmp_path: Path, ten: int) -> None:
        found = []
        for more in (0, 1, 9):
            rows = jobs(1, {("L4", "2.1"): ten + more}, weeks=1)
            export(opened(tmp_path / f"fleet{more}", rows), tmp_path / f"out{more}", K20, LATE)
            cell = next(weeks_in(tmp_path / f"out{more}"))["cells"][0]
            found.append((cell["jobs"], *cell["waiting"], *cell["s_per_sample"], *cell["j_per_sample"]))
        assert found[0] == found[1] == found[2]

    def test_what_was_not_measured_is_left_out(self, tmp_path: Path) -> None:
        rows = [one | {"energy_j": None, "ledger_s": {}} for one in jobs(1, {("L4", "2.1"): 40}, weeks=1)]
        export(opened(tmp_path / "fleet", rows), tmp_path / "out", K20, LATE)
        ((cell,),) = (week["cells"] for week in weeks_in(tmp_path / "out") if week["cells"])
        assert cell.keys() == {"hardware", "version", "jobs", "s_per_sample"}


class TestAttacks:
    """An attacker has all that was ever published, and knows which cells there may be."""

    def test_two_exports_differ_by_whole_weeks(self, tmp_path: Path) -> None:
        """One job more, which arrives late, changes nothing that is out: it cannot be found by subtraction."""
        rows, out = list(jobs(1, SIZES)), tmp_path / "out"
        export(opened(tmp_path / "first", rows), out, K20, BEGAN.date() + timedelta(days=21))
        before = {path: path.read_bytes() for path in out.glob("weeks/*.json")}
        assert len(before) == 2  # the third week is over, and not yet for seven days
        late = [*rows, *jobs(2, {("H100", "2.1"): 1, ("A100", "2.1"): 1})]
        export(opened(tmp_path / "second", late), out, K20, LATE)
        after = {path: path.read_bytes() for path in out.glob("weeks/*.json")}
        assert len(after) == 3 and before.items() <= after.items()

    @pytest.mark.parametrize("seed", range(5))
    def test_totals_from_elsewhere_do_not_help(self, tmp_path: Path, seed: int) -> None:
        """Even with the true number of a GPU's or a version's jobs, a hidden cell has ten sizes that it could be, or more."""
        rng = random.Random(seed)
        sizes = {(gpu, version): rng.choice([1, 3, 7, 12, 19, 20, 21, 33, 58]) for gpu in "ABC" for version in "123"}
        export(opened(tmp_path / "fleet", jobs(seed, sizes, weeks=1)), tmp_path / "out", K20, LATE)
        week = next(weeks_in(tmp_path / "out"))
        shown = {(cell["hardware"], cell["version"]): cell["jobs"] for cell in week["cells"]}
        assert shown.keys() == {key for key, size in sizes.items() if size >= 20}
        for place, name in [(0, gpu) for gpu in "ABC"] + [(1, version) for version in "123"]:
            margin = [key for key in sizes if key[place] == name]
            total, told = sum(sizes[key] for key in margin), [shown[key] for key in margin if key in shown]
            possible = {total - sum(told) - more for more in range(9 * len(told) + 1)}
            assert not told or len(possible) >= 10

    def test_there_are_no_totals_and_margins(self, tmp_path: Path) -> None:
        export(opened(tmp_path / "fleet", jobs(1, SIZES)), tmp_path / "out", K20, LATE)
        published = [json.loads(path.read_text()) for path in sorted((tmp_path / "out").rglob("*.json"))]
        in_cells = {number for week in published for cell in week.get("cells", ()) for number in numbers(cell)}
        assert {number for content in published for number in numbers(content)} == in_cells
        assert all("A100" not in path.read_text() for path in (tmp_path / "out").rglob("*.*"))

    def test_no_file_tells_of_a_job(self, tmp_path: Path) -> None:
        """Weeks with a job, without one, and before the first cell look alike; what comes late to one of them stays out."""
        rows = [one for one in jobs(1, {("L4", "2.1"): 30}, weeks=6) if one["start"] < BEGAN + timedelta(days=7)]
        rows += [one for one in jobs(2, {("L4", "2.1"): 3}, weeks=3) if one["start"] > BEGAN + timedelta(days=14)]
        rows += [row("early", job="early", start=BEGAN - timedelta(days=30), **phases(1.0))]
        out, day = tmp_path / "out", BEGAN.date() + timedelta(days=40)
        export(opened(tmp_path / "fleet", rows), out, K20, day)
        weeks = list(weeks_in(out))
        assert [bool(week["cells"]) for week in weeks] == [True, False, False, False]
        rows += [one | {"start": BEGAN - timedelta(days=30)} for one in jobs(3, {("L4", "2.1"): 30}, weeks=1)]
        told = export(opened(tmp_path / "later", rows), out, K20, day)
        assert list(weeks_in(out)) == weeks and not told.weeks

    def test_a_clock_that_was_set_changes_nothing(self, tmp_path: Path) -> None:
        rows, out = list(jobs(1, SIZES)), tmp_path / "out"
        export(opened(tmp_path / "fleet", rows), out, K20, LATE)
        before = {path: path.read_bytes() for path in out.rglob("*.json")}
        more = opened(tmp_path / "more", [*rows, *jobs(2, {("L4", "2.1"): 40})])
        for day in (LATE - timedelta(days=14), LATE):
            export(more, out, K20, day)
        assert {path: path.read_bytes() for path in out.rglob("*.json")} == before

    def test_an_export_that_was_killed_goes_on(self, tmp_path: Path) -> None:
        """Its weeks are out, though its list is not: they stay as they are."""
        rows, out = list(jobs(1, SIZES)), tmp_path / "out"
        export(opened(tmp_path / "fleet", rows), out, K20, BEGAN.date() + timedelta(days=14))
        empty = (out / "index.json").read_bytes()
        export(opened(tmp_path / "again", rows), out, K20, LATE)
        before = {path: path.read_bytes() for path in out.rglob("weeks/*.json")}
        (out / "index.json").write_bytes(empty)
        export(opened(tmp_path / "more", [*rows, *jobs(2, {("L4", "2.1"): 40})]), out, K20, LATE)
        assert {path: path.read_bytes() for path in out.rglob("weeks/*.json")} == before
        assert len(list(weeks_in(out))) == 3

    def test_a_clock_far_ahead_is_told(self, tmp_path: Path) -> None:
        found = opened(tmp_path / "fleet", jobs(1, SIZES))
        with pytest.raises(ProfilerError, match="is it right"):
            export(found, tmp_path / "out", K20, BEGAN.date() + timedelta(days=400))
        assert export(found, tmp_path / "out", K20, LATE).cells == 9

    def test_weeks_follow_each_other_without_a_gap(self, tmp_path: Path) -> None:
        """Also if the fleet has forgotten its old rows, or is empty for a while."""
        out, first = tmp_path / "out", list(jobs(1, {("L4", "2.1"): 30}, weeks=1))
        export(opened(tmp_path / "fleet", first), out, K20, BEGAN.date() + timedelta(days=21))
        late = [one | {"start": BEGAN + timedelta(days=49)} for one in jobs(2, {("L4", "2.1"): 1}, weeks=1)]
        export(opened(tmp_path / "later", late), out, K20, BEGAN.date() + timedelta(days=70))
        weeks = [date.fromisoformat(week["week"]) for week in weeks_in(out)]
        assert weeks == [BEGAN.date() + timedelta(days=7 * number) for number in range(9)]

    def test_one_job_is_one_whatever_its_labels(self, tmp_path: Path) -> None:
        rows = [
            row(f"r{rank}", job="j", rank=rank, start=BEGAN, labels={"team": f"t{rank}"}, **phases(1.0)) for rank in range(25)
        ]
        told = export(opened(tmp_path / "fleet", rows), tmp_path / "out", Rules(20, ("hardware",), "team"), LATE)
        assert told.cells == 0

    @pytest.mark.parametrize(
        "text",
        [
            "[]",
            "[" * 10**5,
            '{"form": "epochmeter fleet export 1", "k": 1e999, "unit": ""}',
            "{}",
            '{"form": "epochmeter fleet export 1", "by": 3}',
            "{",
        ],
    )
    def test_a_spoilt_list_is_told(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "index.json").write_text(text)
        with pytest.raises(ProfilerError, match=r"is no list of an export|cannot be read"):
            export(opened(tmp_path / "fleet", jobs(1, SIZES)), tmp_path / "out", K20, LATE)

    def test_another_division_beside_it_is_refused(self, tmp_path: Path) -> None:
        found, out = opened(tmp_path / "fleet", jobs(1, SIZES)), tmp_path / "out"
        export(found, out, K20, LATE)
        for rules in (Rules(10, K20.by, ""), Rules(20, ("hardware",), ""), Rules(20, K20.by, "team")):
            with pytest.raises(ArgumentValueError, match="others would give small cells away"):
                export(found, out, rules, LATE)

    def test_small_k_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ArgumentValueError, match="multiple of 5"):
            export(opened(tmp_path / "fleet", jobs(1, SIZES)), tmp_path / "out", Rules(4, ("hardware",), ""), LATE)


class TestCommand:
    def test_it_writes_files_and_a_page(self, tmp_path: Path) -> None:
        ParquetFleet(tmp_path / "fleet").write(jobs(1, SIZES))
        ask = ("fleet", "export", str(tmp_path / "out"), "--from", str(tmp_path / "fleet"), "--k", "20")
        answer = epochmeter(*ask)
        assert answer.code == 0
        assert "weeks written" in answer.out
        assert "1, 3, 19" in answer.err and "for you alone" in answer.err
        assert "0 weeks written" in epochmeter(*ask).out
        page = (tmp_path / "out" / "index.html").read_text()
        assert "<svg" in page and "H100, 2.1" in page and "A100" not in page

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (["--by", "hardware,,x"], "--by takes different columns"),
            (["--by", "gpu,gpu"], "--by takes different columns"),
            (["--k", "1"], "multiple of 5"),
            (["--k", "29"], "multiple of 5"),
            (["--by", "hardware,jobs"], "each cell has that of its own"),
            (["--from", "nowhere"], "nowhere holds no fleet"),
        ],
    )
    def test_bad_input_is_told(self, tmp_path: Path, arguments: list[str], says: str) -> None:
        ParquetFleet(tmp_path / "fleet").write(jobs(1, {("L4", "1"): 1}))
        place = [] if "--from" in arguments else ["--from", str(tmp_path / "fleet")]
        answer = epochmeter("fleet", "export", str(tmp_path / "out"), *place, *arguments)
        assert answer.code == 2 and says in answer.err and len(answer.err.splitlines()) == 1


@pytest.mark.slow
def test_both_engines_export_the_same(tmp_path: Path, clickhouse: str) -> None:
    from profiler.fleet.clickhouse import ClickHouseFleet

    rows, server = list(jobs(77, SIZES)), ClickHouseFleet(clickhouse)
    server.command("CREATE DATABASE IF NOT EXISTS exported")
    there = clickhouse.rpartition("/")[0] + "/exported"
    server = ClickHouseFleet(there)
    server.prepare()
    server.write(rows)
    export(opened(tmp_path / "fleet", rows), tmp_path / "ours", K20, LATE)
    export(fleet.open(there), tmp_path / "theirs", K20, LATE)
    assert list(weeks_in(tmp_path / "ours")) == list(weeks_in(tmp_path / "theirs"))
