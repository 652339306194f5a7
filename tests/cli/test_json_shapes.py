"""``--json`` of every command: a documented shape, with its version in it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from profiler import Profiler
from profiler.cli import COMMANDS
from support.processes import epochmeter

PAGE = Path(__file__).parents[2] / "docs" / "commands.md"
LISTS = ("runs", "telemetry log", "fleet ask")
MAPS = ("settings",)
ROW = re.compile(r"^\| ((?:`[a-z ]+`(?:, )?)+) \| ((?:an object|a list).*) \|$", re.MULTILINE)
SHAPES = {
    name: set(re.findall(r"`(\w+)`", shape))
    for names, shape in ROW.findall(PAGE.read_text("utf-8"))
    for name in re.findall(r"`([a-z ]+)`", names)
}


def trained(name: str) -> None:
    with Profiler(name, epochs=4) as prof:
        for _ in prof.epochs():
            for _ in prof.train(range(12)):
                with prof.phase("forward"):
                    pass


@pytest.fixture
def runs(home: Path) -> None:
    for name in ("before", "after"):
        trained(name)


def asked(arguments: list[str], folder: Path) -> Any:
    if arguments == ["compare"]:
        arguments = ["compare", *(run["id"] for run in epochmeter("runs", "--json").json)]
    if arguments[0] == "fleet":
        assert epochmeter("fleet", "load", "--into", str(folder)).code == 0
        more = {"load": ["--into", str(folder)], "ask": ["trend", "--from", str(folder)], "schema": []}
        arguments += more[arguments[1]]
    answer = epochmeter(*arguments, "--json")
    assert answer.code == 0, answer.err
    return json.loads(answer.out)


def test_page_has_every_command() -> None:
    commands = {name.partition(" ")[0] for name in SHAPES}
    assert commands == set(COMMANDS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        *("runs", "report", "compare", "whatif", "watch", "settings", "doctor", "version", "fleet load", "fleet ask"),
        *("fleet schema", "telemetry schema", "telemetry preview", "telemetry log", "telemetry flush"),
    ],
)
def test_shape_is_the_documented_one(command: str, runs: None, tmp_path: Path) -> None:
    found = asked(command.split(), tmp_path / "fleet")
    if command in LISTS:
        assert isinstance(found, list)
        if command == "runs":
            assert found and all(set(row) <= SHAPES[command] for row in found)
    elif command in MAPS:
        assert found["exporter"] == "none"
    else:
        assert next(iter(found)) == "schema" and found["schema"] == 1
        assert set(found) - {"schema"} <= SHAPES[command], command


def test_comparison_has_its_documented_keys(runs: None, tmp_path: Path) -> None:
    (comparison,) = asked(["compare"], tmp_path)["comparisons"]
    assert set(comparison) <= SHAPES["compare"]


@pytest.mark.slow
def test_run_writes_its_report_into_a_file(tmp_path: Path) -> None:
    script, report = tmp_path / "train.py", tmp_path / "report.json"
    script.write_text("print('mine')\n")
    answer = epochmeter("run", "--json", str(report), str(script))
    assert (answer.code, answer.out) == (0, "mine\n") and "verdict" in answer.err
    assert set(json.loads(report.read_text())) - {"schema"} <= SHAPES["run"]
    assert epochmeter("run", "--quiet", "--json", str(tmp_path / "none" / "r.json"), str(script)).code == 2


@pytest.mark.slow
def test_watch_writes_a_look_a_line(runs: None) -> None:
    (line,) = epochmeter("watch", "--once", "--json").out.splitlines()
    assert json.loads(line)["state"] == "finished"
