"""``fleet baseline`` and ``report --baseline``: where a run stands among others, found out on one's own machine."""

from __future__ import annotations

import json
import os
import random
import stat
import time
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from profiler import Profiler, ProfilerError
from profiler.records.run import Run
from profiler.report.accounts import Accounts
from profiler.report.baseline import Baseline, beside, in_words, place_of, read, signed_part
from support.big_run import big_run
from support.fleets import BEGAN, exact, phases, row
from support.processes import epochmeter

pytest.importorskip("duckdb")
pytest.importorskip("pyarrow")
pytest.importorskip("cryptography")
from profiler import fleet
from profiler.fleet.baseline import classes_of, key_in
from profiler.fleet.export import Rules, export
from profiler.fleet.parquet import ParquetFleet


def rows_of(gpu: str, waiting: list[float], **values: Any) -> list[dict[str, Any]]:
    """Return a job for each share of waiting."""
    found = []
    for number, share in enumerate(waiting):
        spent = phases(10.0)
        spent["ledger_s"] = {"data_wait": 10.0 * share, "useful": 10.0 * (1 - share)}
        found.append(row(f"{gpu}-{number}", gpu=gpu, start=BEGAN, **spent, **values))
    return found


@pytest.fixture
def public(tmp_path: Path) -> Path:
    """Return an export with 800 jobs on H100, which wait for 0.05 % to 40 % of their time."""
    ParquetFleet(tmp_path / "fleet").write(rows_of("H100", [number / 2_000 for number in range(1, 801)]))
    export(fleet.open(tmp_path / "fleet"), tmp_path / "public", Rules(20, ("hardware", "version"), ""), date(2026, 12, 4))
    return tmp_path / "public"


@pytest.fixture
def signed(public: Path, tmp_path: Path) -> Path:
    answer = epochmeter("fleet", "baseline", str(public), "--key", str(tmp_path / "key.pem"), "-o", str(tmp_path / "b.json"))
    assert answer.code == 0 and "1 class, signed by " in answer.out
    return tmp_path / "b.json"


def placed(run: Run, baseline: Baseline) -> list[dict[str, Any]]:
    whole = run.whole()
    return beside(run, whole, Accounts(run, whole), baseline)


class TestPlace:
    def test_a_run_stands_where_it_stands(self, signed: Path) -> None:
        """The hand-made run waits 3.8 % on an NVIDIA H100 80GB HBM3: of 0.05 % to 40 %, more than in a tenth."""
        run, baseline = big_run(3, gpus=1), read(signed)
        (found,) = placed(run, baseline)
        accounts = Accounts(run, run.whole())
        share = accounts.total("data_wait") / sum(one.ns for one in accounts.all if one.stage in ("train", "val"))
        assert found["value"] == pytest.approx(share, rel=0.02)
        assert (found["measure"], found["jobs"], found["class"]) == ("waiting", 800, "H100")
        assert found["less_than"] == pytest.approx(1 - share / 0.4, abs=0.02) and "more_than" not in found
        assert in_words(found).startswith("waiting for data 4% is less than in 9") and in_words(found).endswith(
            "of 800 jobs on H100"
        )

    @pytest.mark.parametrize(
        ("value", "told"),
        [
            (0.5, {"more_than": 0.75}),
            (0.3, {"more_than": 0.5}),
            (0.2, {}),
            (0.15, {"less_than": 0.5}),
            (0.0, {"less_than": 0.75}),
        ],
    )
    def test_between_percentiles_the_lower_claim_is_made(self, value: float, told: dict[str, float]) -> None:
        assert place_of(value, [(25, 0.1), (50, 0.2), (75, 0.4)]) == told

    def test_another_class_is_not_compared(self) -> None:
        run = big_run(1, gpus=1)
        steps = {"waiting": {"p50": 0.1}, "s_per_sample": {"p50": 1.0}, "jobs": 40}
        for by, names in (
            (("hardware",), {"hardware": "A100"}),
            (("hardware", "workload"), {"hardware": "H100", "workload": "x"}),
        ):
            assert placed(run, Baseline([{**names, **steps}], by, "")) == []
        own = {"hardware": "H100", "workload": run.name, **steps}
        assert [one["measure"] for one in placed(run, Baseline([own], ("hardware", "workload"), ""))] == [
            "waiting",
            "s_per_sample",
        ]
        alone = Baseline([{"hardware": "H100", **steps}], ("hardware",), "")
        assert [one["measure"] for one in placed(run, alone)] == ["waiting"]  # a sample of another workload is another thing


class TestJoined:
    def test_two_kinds_of_jobs_are_not_averaged(self) -> None:
        """Half of the jobs wait 10 %, the others 50 %: nobody waits 30 %."""
        cells = [
            {"gpu": "H100", "jobs": 40, "waiting": {f"p{share}": wait for share in range(5, 100, 5)}} for wait in (0.1, 0.5)
        ]
        (found,) = classes_of([{"cells": cells}], ["gpu"])
        assert [found["waiting"][f"p{share}"] for share in (5, 25, 45, 55, 75, 95)] == [0.1, 0.1, 0.1, 0.5, 0.5, 0.5]
        assert found["jobs"] == 80

    def test_percentiles_are_those_of_all_jobs(self) -> None:
        rng = random.Random(1)
        many, few = sorted(rng.gauss(5, 1) for _ in range(900)), sorted(rng.uniform(2, 20) for _ in range(300))
        cells = [
            {"gpu": "L4", "jobs": len(jobs), "s_per_sample": {f"p{share}": exact(jobs, share / 100) for share in range(1, 100)}}
            for jobs in (many, few)
        ]
        (found,) = classes_of([{"cells": cells}], ["gpu"])
        for share in range(2, 99):
            assert found["s_per_sample"][f"p{share}"] == pytest.approx(exact(many + few, share / 100), rel=0.05), share

    def test_a_job_of_many_weeks_is_one(self) -> None:
        weeks = [{"cells": [{"gpu": "L4", "jobs": jobs, "waiting": {"p50": 0.2}}]} for jobs in (20, 30, 20)]
        assert classes_of(weeks, ["gpu"]) == [{"gpu": "L4", "jobs": 30, "waiting": {"p50": 0.2}}]


class TestSignature:
    def test_a_changed_file_is_not_used(self, signed: Path) -> None:
        content = json.loads(signed.read_text())
        content["body"]["classes"][0]["jobs"] += 1
        signed.write_text(json.dumps(content))
        with pytest.raises(ProfilerError, match="changed after it was signed"):
            read(signed)

    def test_the_key_may_be_demanded(self, signed: Path) -> None:
        key = json.loads(signed.read_text())["key"]
        assert read(signed, f" {key.upper()}\n").key == key
        with pytest.raises(ProfilerError, match="and not by 0000"):
            read(signed, "00" * 32)

    def test_the_key_is_not_overwritten(self, public: Path, tmp_path: Path) -> None:
        same = str(tmp_path / "one")
        answer = epochmeter("fleet", "baseline", str(public), "--key", same, "-o", same)
        assert answer.code == 2 and "is your private key" in answer.err and not Path(same).exists()

    @pytest.mark.parametrize("text", ["[]", "{}", '{"by": ["x"], "cells": [1]}', '{"by": [], "cells": [{"jobs": 0}]}'])
    def test_an_odd_export_is_told(self, public: Path, tmp_path: Path, text: str) -> None:
        next((public / "weeks").iterdir()).write_text(text)
        answer = epochmeter("fleet", "baseline", str(public), "--key", str(tmp_path / "k"), "-o", str(tmp_path / "b"))
        assert answer.code == 2 and "is no week of an export" in answer.err and len(answer.err.splitlines()) == 1

    def test_the_private_key_is_the_owners(self, signed: Path, public: Path, tmp_path: Path) -> None:
        assert os.name == "nt" or stat.S_IMODE((tmp_path / "key.pem").stat().st_mode) == 0o600
        epochmeter("fleet", "baseline", str(public), "--key", str(tmp_path / "key.pem"), "-o", str(tmp_path / "second.json"))
        assert json.loads((tmp_path / "second.json").read_text())["key"] == json.loads(signed.read_text())["key"]

    @pytest.mark.parametrize(
        "odd",
        [
            *([1], [{}], "x", [{"hardware": "a", "jobs": 0}], [{"hardware": 1, "jobs": 3}]),
            [{"hardware": "a", "jobs": 3, "waiting": {"p50": "x"}}],
            [{"hardware": "a", "jobs": 3, "waiting": {"p500": 1}}],
            [{"hardware": "a", "jobs": 3, "waiting": {"p10": 0.5, "p90": 0.1}}],
            [{"hardware": "a", "jobs": 3, "waiting": [1]}],
        ],
    )
    def test_a_signed_file_may_be_odd(self, signed: Path, tmp_path: Path, odd: Any) -> None:
        """Whoever has a key can sign anything."""
        content = json.loads(signed.read_text())
        content["body"]["classes"] = odd
        content["signature"] = key_in(tmp_path / "key.pem").sign(signed_part(content["body"])).hex()
        signed.write_text(json.dumps(content))
        with pytest.raises(ProfilerError, match="is no baseline"):
            read(signed)

    @pytest.mark.parametrize(
        "text", ["", "{}", "[]", "[" * 10**5, '{"form": "epochmeter baseline 1", "body": 1, "signature": "ab"}']
    )
    def test_what_is_no_baseline_is_told(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "b.json").write_text(text)
        with pytest.raises(ProfilerError, match="is no baseline"):
            read(tmp_path / "b.json")


class TestCommand:
    def test_the_report_says_it(self, home: Path, tmp_path: Path) -> None:
        with Profiler("mine") as prof:
            list(prof.train(time.sleep(0.005) or [1] for _ in range(5)))  # it waits for data, whatever else the machine does
        family = prof.summary.to_dict()["hardware"]["cpu"].get("family", "")
        ParquetFleet(tmp_path / "fleet").write([one | {"gpu": "", "cpu": family} for one in rows_of("", [0.0001] * 40)])
        export(fleet.open(tmp_path / "fleet"), tmp_path / "public", Rules(20, ("hardware",), ""), date(2026, 12, 4))
        file = str(tmp_path / "b.json")
        epochmeter("fleet", "baseline", str(tmp_path / "public"), "--key", str(tmp_path / "k"), "-o", file)
        text = epochmeter("report", "--baseline", file).out
        told = json.loads(epochmeter("report", "--json", "--baseline", file).out)["beside"]
        page = epochmeter("report", "--format", "html", "--baseline", file).out
        if not family:  # the run was over before it was known
            assert told == [] and "no class that this run is of" in text
        else:
            assert told[0]["more_than"] == 0.75 and "is more than in 75% of 40 jobs on" in " ".join(text.split())
            assert "is more than in 75% of 40 jobs" in page
        assert "beside" not in json.loads(epochmeter("report", "--json").out)

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (["--baseline", "nowhere"], "nowhere cannot be read"),
            (["--signed-by", "00"], "--signed-by is about a --baseline"),
            (["--baseline", "x", "--format", "perfetto", "-o", "y"], "a trace takes none"),
        ],
    )
    def test_bad_input_is_told(self, home: Path, arguments: list[str], says: str) -> None:
        with Profiler("mine"):
            pass
        answer = epochmeter("report", *arguments)
        assert answer.code == 2 and says in answer.err and len(answer.err.splitlines()) == 1

    def test_an_export_without_cells_gives_none(self, tmp_path: Path) -> None:
        for folder in ("nowhere", str(tmp_path)):
            answer = epochmeter("fleet", "baseline", folder, "--key", str(tmp_path / "k"), "-o", str(tmp_path / "b"))
            assert answer.code == 2 and "makes an export" in answer.err
