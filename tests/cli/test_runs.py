"""The list of runs: what it shows, filters, sorts and adds up, and what it keeps beside the logs."""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from pathlib import Path

import pytest

from profiler import Profiler
from profiler.config.paths import runs_path
from profiler.records.run import Run
from profiler.report.run_row import run_row, sums
from profiler.session.command_words import HIDDEN, MOST_LETTERS, command_words
from profiler.storage.run_log import run_paths
from support.processes import KILLED, epochmeter, python


def recorded(name: str, steps: int = 4, batch: int = 8) -> str:
    with Profiler(name) as prof:
        for _ in prof.train([[0] * batch] * steps, samples=len):
            pass
    return prof.summary.id


def ids(*options: str) -> list[str]:
    answer = epochmeter("runs", "--json", *options)
    assert answer.code == 0, answer.err
    return [row["id"] for row in answer.json]


def test_rows_tell_of_the_whole_run() -> None:
    run = recorded("one", steps=40, batch=8)
    (row,) = epochmeter("runs", "--json").json
    assert {"id", "name", "state", "started", "duration_s", "verdict", "steps", "steps_per_s"} <= set(row)
    assert (row["id"], row["steps"]) == (run, 40)
    assert row["samples_per_s"] == pytest.approx(8 * row["steps_per_s"])
    assert row["verdict"] == epochmeter("report", "--json").json["verdict"]["kind"]


@pytest.mark.slow
def test_filters_sort_and_add_up() -> None:
    first, second, third = recorded("apple"), recorded("pear", steps=4_000), recorded("Apple tree", steps=200)
    assert python("-c", KILLED).code != 0
    killed = ids("--state", "interrupted")
    assert len(killed) == 1 and ids() == [*killed, third, second, first]
    assert ids("--name", "apple") == [third, first]
    assert ids("--sort", "name", "--state", "finished") == [third, first, second]
    assert set(ids("--sort", "speed")[:3]) == {first, second, third}
    assert ids("-n", "2") == [*killed, third]
    assert ids("--since", "1h") == ids() and ids("--since", "2100-01-01") == []
    kinds = {row["verdict"] for row in epochmeter("runs", "--json").json}
    assert sum(len(ids("--verdict", kind)) for kind in kinds) == 4
    table = epochmeter("runs").out.splitlines()
    assert table[-1].startswith("4 runs, ") and len(table) == 7
    nothing = epochmeter("runs", "--name", "plum")
    assert (nothing.code, nothing.out) == (0, "") and "no run is like that" in nothing.err


@pytest.mark.parametrize(("option", "word", "says"), [("--state", "fnished", "finished"), ("--verdict", "host", "host-bound")])
def test_unknown_words_are_told(option: str, word: str, says: str) -> None:
    answer = epochmeter("runs", option, word)
    assert answer.code == 2 and f"not '{word}'" in answer.err and says in answer.err


@pytest.mark.parametrize("since", ["yesterday", "7y", "2026-13-01", "99999999d"])
def test_no_time_is_a_clear_error(since: str) -> None:
    answer = epochmeter("runs", "--since", since)
    assert answer.code == 2 and "--since" in answer.err and "Traceback" not in answer.err


def test_sums_say_of_how_many_runs_they_are() -> None:
    rows = [{"duration_s": 60.0, "energy_j": 3.6e6, "verdict": "balanced"}, {"duration_s": 60.0, "verdict": "balanced"}]
    assert sums(rows) == "2 runs, 2m00s in all, 1 kWh in 1 of them, 2 balanced"


def test_an_empty_run_has_only_what_is_known() -> None:
    assert set(run_row(Run("0a1b", "empty", 0))) == {"id", "name", "state", "started", "duration_s", "verdict"}


def test_a_list_waits_for_a_second() -> None:
    """Beyond its time, only the last lines are read; the rest follows, and with --json at once."""
    for name in ("one", "two"):
        recorded(name)
    hurried = "import sys; sys.argv[1:] = ['runs']; import profiler.cli.runs as runs; runs.READING_S = -1.0\n"
    answer = python("-c", f"{hurried}from profiler.cli import main; main()", COLUMNS="120")
    assert answer.code == 0 and "2 logs have not been read yet" in answer.err
    assert "verdict" not in answer.out and "one" in answer.out and answer.out.splitlines()[-1].startswith("2 runs, ")
    assert all("verdict" in row for row in epochmeter("runs", "--json").json)
    assert python("-c", f"{hurried}from profiler.cli import main; main()").err == ""


class TestKept:
    """What a list keeps is used only for the same log, and never believed."""

    def kept(self) -> Path:
        return runs_path() / "list.json"

    def test_a_kept_row_is_used(self) -> None:
        recorded("one")
        told = epochmeter("runs", "--json").json
        content = json.loads(self.kept().read_text())
        ((stamp, row),) = content["runs"].values()
        assert row == told[0]
        row["name"] = "changed in the file"
        self.kept().write_text(json.dumps(content))
        assert epochmeter("runs", "--json").json[0]["name"] == "changed in the file"
        (path,) = run_paths(runs_path())
        os.utime(path, ns=(stamp[1] + 1, stamp[1] + 1))
        assert epochmeter("runs", "--json").json == told

    @pytest.mark.parametrize(
        "content",
        [
            "",
            "[]",
            "{",
            '{"version": "0.1.0", "runs": 3}',
            "[" * 50_000,
            "row: 3",
            'row: {"id": 3}',
            "row: NaN",
            "row: null",
            "1e400",
            "NaN",
            "-5",
        ],
    )
    def test_a_spoilt_file_is_made_anew(self, content: str) -> None:
        recorded("one")
        told = epochmeter("runs", "--json").json
        if content in ("1e400", "NaN", "-5"):
            content = re.sub(r'"duration_s":[^,}]*', f'"duration_s":{content}', self.kept().read_text())
        elif content.startswith("row: "):
            known = json.loads(self.kept().read_text())
            ((name, (stamp, _)),) = known["runs"].items()
            content = json.dumps({**known, "runs": {name: [stamp, "HERE"]}}).replace('"HERE"', content[5:])
        self.kept().write_text(content)
        answer = epochmeter("runs", "--json")
        assert (answer.json, answer.err) == (told, "")

    def test_a_narrow_list_shows_what_went_wrong(self) -> None:
        recorded("one")
        with suppress(ZeroDivisionError), Profiler("two") as prof:
            for _ in prof.train(range(3)):
                raise ZeroDivisionError
        narrow = epochmeter("runs", COLUMNS="60").out
        assert "crashed" in narrow and max(map(len, narrow.splitlines())) <= 60

    def test_a_removed_log_is_forgotten(self) -> None:
        recorded("one")
        recorded("two")
        epochmeter("runs")
        run_paths(runs_path())[0].unlink()
        recorded("three")
        assert [row["name"] for row in epochmeter("runs", "--json").json] == ["three", "one"]
        assert len(json.loads(self.kept().read_text())["runs"]) == 2

    @pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a folder that cannot be written")
    def test_a_folder_that_cannot_be_written(self) -> None:
        recorded("one")
        runs_path().chmod(0o500)
        try:
            assert [row["name"] for row in epochmeter("runs", "--json").json] == ["one"]
        finally:
            runs_path().chmod(0o700)


class TestCommand:
    """The words of a command are kept here, without folders and secrets."""

    @pytest.mark.parametrize(
        ("arguments", "kept"),
        [
            (["gc", "--lr", "0.1"], "train.py gc --lr 0.1"),
            (["--data", "/home/me/patients/set.csv", "--out=C:\\Users\\me\\x"], "train.py --data set.csv --out=x"),
            (["--api-key", "sk-1", "b"], f"train.py --api-key {HIDDEN} b"),
            (["--wandb_token=abc", "--password", "-x"], f"train.py --wandb_token={HIDDEN} --password -x"),
            (["hf_AbCd1234AbCd1234AbCd1234"], f"train.py {HIDDEN}"),
            (["https://me:pw@host.example/set.tar?x=1"], "train.py set.tar?x=1"),
        ],
    )
    def test_words(self, arguments: list[str], kept: str) -> None:
        assert command_words("/home/me/train.py", arguments) == kept

    def test_a_long_command_is_cut(self) -> None:
        assert len(command_words("train.py", ["word"] * 500)) == MOST_LETTERS

    def test_epochmeter_run_keeps_them(self, tmp_path: Path) -> None:
        script = tmp_path / "train.py"
        script.write_text("import sys; print(sys.argv[1:])")
        for kind in ("gc", "loader"):
            answer = epochmeter("run", "-q", str(script), kind, "--token", "abc")
            assert answer.out == f"['{kind}', '--token', 'abc']\n"
        rows = epochmeter("runs", "--json").json
        assert [row["command"] for row in rows] == [f"train.py loader --token {HIDDEN}", f"train.py gc --token {HIDDEN}"]
        assert ids("--name", "loader") == [rows[0]["id"]]
        assert "train.py gc" in epochmeter("runs").out
