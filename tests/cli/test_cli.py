"""The command line: what it prints, where, and with which exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from profiler import Profiler, __version__, settings
from profiler.cli import COMMANDS
from profiler.cli.telemetry import COMMANDS as TELEMETRY
from profiler.config.paths import runs_path
from profiler.measure import hot_path
from profiler.storage.run_log import run_id, run_paths
from support.processes import epochmeter, python


def recorded(name: str = "a run") -> str:
    with Profiler(name) as prof:
        for _ in prof.epochs(2):
            for _ in prof.train(range(10)):
                with prof.phase("forward"):
                    pass
    return prof.summary.id


def test_version_and_help() -> None:
    assert epochmeter("--version").out == f"epochmeter {__version__}\n"
    said = epochmeter("--help").out
    for command in ("demo", "runs", "report", "settings", "doctor"):
        assert command in said


@pytest.mark.parametrize("command", [*COMMANDS, *(f"telemetry {name}" for name in TELEMETRY)])
def test_every_help_has_an_example(command: str) -> None:
    said = epochmeter(*command.split(), "--help").out
    assert f"Example: epochmeter {command}" in " ".join(said.split())


def test_shells_complete_commands_and_runs() -> None:
    first, second = recorded("first"), recorded("second")
    asked = {"_EPOCHMETER_COMPLETE": "complete_bash", "COMP_CWORD": "1"}
    program = "import sys; sys.argv = ['epochmeter']; from profiler.cli import main; main()"
    assert python("-c", program, **asked, COMP_WORDS="epochmeter co").out.split() == ["compare"]
    runs = python("-c", program, **{**asked, "COMP_CWORD": "2"}, COMP_WORDS="epochmeter report ")
    assert runs.out.split() == [second, first]
    shown = python("-c", program, _EPOCHMETER_COMPLETE="source_bash")  # what --show-completion shows in that shell
    assert shown.code == 0 and "complete_bash" in shown.out


def test_runs() -> None:
    empty = epochmeter("runs")
    assert (empty.code, empty.out) == (0, "")
    assert "epochmeter demo" in empty.err
    assert epochmeter("runs", "--json").json == []
    first, second = recorded("first"), recorded("sec[bold]ond")
    listed = epochmeter("runs", "--json").json
    assert [run["id"] for run in listed] == [second, first]
    assert {"id", "name", "state", "started", "duration_s", "verdict"} <= set(listed[0])
    table = epochmeter("runs").out
    assert "first" in table and "sec[bold]ond" in table


def test_report(tmp_path: Path) -> None:
    run = recorded()
    text = epochmeter("report").out
    assert "a run" in text and "forward" in text
    assert epochmeter("report", run[:6]).out == text
    document = epochmeter("report", run, "--format", "json").json
    assert (document["schema"], document["run"]["id"], len(document["epochs"])) == (1, run, 2)
    written = tmp_path / "report.json"
    answer = epochmeter("report", "--format", "json", "-o", str(written))
    assert answer.out == ""
    assert json.loads(written.read_text()) == document


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("report",), "no run has been recorded"),
        (("reprot",), "Did you mean 'report'"),
        (("report", "--format", "pdf"), "json"),
        (("settings", "snyc=false"), "Did you mean 'sync'"),
        (("settings", "sync=perhaps"), "true or false"),
        (("settings", "sync"), "KEY=VALUE"),
        (("demo", "--epochs", "0"), "epochs"),
        (("runs", "--jsno"), "--json"),
    ],
)
def test_bad_input_exits_2_with_cure(arguments: tuple[str, ...], says: str) -> None:
    answer = epochmeter(*arguments)
    assert (answer.code, answer.out) == (2, "")
    assert says in answer.err
    assert "Traceback" not in answer.err


def test_an_unknown_run_exits_2() -> None:
    run = recorded()
    answer = epochmeter("report", "x" + run)
    assert answer.code == 2
    assert "Did you mean" in answer.err


def test_a_report_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    recorded()
    answer = epochmeter("report", "-o", str(tmp_path / "nowhere" / "x.txt"))
    assert answer.code == 2
    assert "cannot be written" in answer.err


def test_settings_show_change_explain_and_reset() -> None:
    assert epochmeter("settings", "--json").json["sync"] is True
    assert epochmeter("settings", "sync=off", "retention_days=7").code == 0
    assert epochmeter("settings", "--json").json["retention_days"] == 7
    explained = epochmeter("settings", "--explain", "--json", DO_NOT_TRACK="1").json
    assert explained["sync"] == {"value": False, "source": "environment", "detail": "DO_NOT_TRACK"}
    assert explained["retention_days"]["source"] == "file"
    assert "settings.json" in epochmeter("settings", "--explain").out
    epochmeter("settings", "reset")
    assert settings["sync"] is False
    assert settings["retention_days"] == 90


def test_doctor() -> None:
    recorded()
    answer = epochmeter("doctor", "--json")
    checks = {check["name"]: check for check in answer.json["checks"]}
    assert answer.code == 0
    assert checks["data folder"]["state"] == "ok"
    assert checks["probe host"]["state"] == "ok"
    assert "nothing leaves this machine" in checks["export"]["detail"]
    assert checks["recorded runs"]["detail"] == "1"
    assert checks["probe nvml"]["state"] in ("ok", "missing")
    assert checks["probe nvml"]["detail"]
    assert "data folder" in epochmeter("doctor").out


def test_doctor_says_which_hot_path_is_used() -> None:
    def told(value: str) -> str:
        answer = epochmeter("doctor", "--json", EPOCHMETER_PURE=value)
        return next(str(check["detail"]) for check in answer.json["checks"] if check["name"] == "hot path")

    assert told("1").startswith("in Python (EPOCHMETER_PURE is set)")
    assert told("0").startswith("compiled" if hot_path.COMPILED else "in Python (")
    assert epochmeter("settings", "--json", EPOCHMETER_PURE="0").json["sync"] is True  # it is no "off"


def test_doctor_tells_what_is_wrong_and_what_helps(home: Path, tmp_path: Path) -> None:
    home.mkdir()
    (home / "settings.json").write_text("{")
    (home / "runs").write_text("in the way")
    answer = epochmeter("doctor", "--json")
    problems = {check["name"]: check for check in answer.json["checks"] if check["state"] == "problem"}
    assert answer.code == 0
    assert "is not a folder" in problems["data folder"]["detail"] and problems["data folder"]["cure"] == "remove it"
    assert "not valid JSON" in problems["settings"]["detail"]
    assert "sync is off (the settings file is not valid JSON (Expecting" in epochmeter("doctor", COLUMNS="200").out


def test_doctor_names_a_file_that_hides_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "profiler.py").write_text("")
    script = "import sys; sys.path.pop(0); sys.argv = ['epochmeter', 'doctor', '--json']; from profiler.cli import main; main()"
    answer = python("-c", script)
    found = [check for check in answer.json["checks"] if check["name"] == "package profiler"]
    assert "profiler.py in this folder hides it" in found[0]["detail"]


@pytest.mark.slow
def test_doctor_full_asks_py_cpuinfo() -> None:
    checks = epochmeter("doctor", "--full", "--json").json["checks"]
    assert checks[-1]["name"] == "cpu"
    assert "vector instructions" in checks[-1]["detail"]


def test_no_colour_where_there_is_no_terminal() -> None:
    recorded()
    for command in ("runs", "report", "settings", "doctor"):
        assert "\x1b" not in epochmeter(command, FORCE_COLOR="").out


# ---- output that cannot be shown -----------------------------------------------------------------------------------

SHOWN = (
    *("runs", "runs --json", "report", "report --json", "compare FIRST last", "compare FIRST last --format markdown"),
    *("whatif", "watch --once", "doctor", "settings", "telemetry schema", "--version", "--help"),
)


@pytest.fixture
def recorded_run(home: Path) -> None:
    for _ in range(2):
        with Profiler("\N{ROCKET} é [bold]x[/nope]") as prof:
            list(prof.train(range(3)))


def with_first(command: str) -> str:
    """Name the older one of two runs."""
    return command.replace("FIRST", run_id(run_paths(runs_path())[-1]))


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
@pytest.mark.parametrize("command", ["runs", "report", "compare FIRST last"])
def test_name_that_the_terminal_cannot_show(recorded_run: None, command: str, encoding: str) -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "profiler.cli", *with_first(command).split()],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding},
    )
    assert (answer.returncode, answer.stderr) == (0, b"")
    assert b"\\U0001f680" in answer.stdout or "\N{ROCKET}".encode() in answer.stdout  # click writes UTF-8 to an ASCII stream


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
@pytest.mark.parametrize("command", SHOWN)
def test_full_disk_is_said_in_one_line(recorded_run: None, command: str) -> None:
    with Path("/dev/full").open("w") as full:
        words = with_first(command).split()
        answer = subprocess.run([sys.executable, "-m", "profiler.cli", *words], stdout=full, stderr=subprocess.PIPE)
    assert (answer.returncode, answer.stderr) == (2, b"epochmeter: the output cannot be written: No space left on device\n")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
@pytest.mark.parametrize("command", SHOWN)
def test_closed_output_ends_in_no_traceback(recorded_run: None, command: str) -> None:
    for ending in (">&-", ">&- 2>&-", "| head -c 1 >/dev/null"):
        line = f"{sys.executable} -m profiler.cli {with_first(command)} {ending}"
        answer = subprocess.run(["sh", "-c", line], capture_output=True, text=True)
        assert (answer.returncode, answer.stderr) == (0, "")
