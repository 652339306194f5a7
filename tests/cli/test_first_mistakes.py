"""What newcomers do wrong first: each is answered with what happened and what to do."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from profiler import Profiler
from support.processes import Answer, epochmeter, python

TRAINS = """
import sys, torch
model = torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
for _ in range(20):
    model(torch.zeros(4, 2)).sum().backward()
    optimizer.step()
"""


def ran(script: Path, text: str) -> Answer:
    script.write_text(text)
    return epochmeter("run", str(script))


def test_no_with_is_measured_all_the_same(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "from epochmeter import Profiler\nprof = Profiler('bare')\n"
        "for _ in prof.epochs(2):\n    for _ in prof.train(range(5)):\n        pass\n"
    )
    assert python(str(script)).code == 0
    (run,) = epochmeter("runs", "--json").json
    assert (run["name"], run["state"], run["steps"]) == ("bare", "finished", 10)


def test_only_phases_names_the_loop_to_write() -> None:
    with Profiler("phases") as prof:
        for _ in range(10):
            with prof.phase("forward"):
                pass
    assert "for x, y in prof.train(loader)" in prof.summary.verdict["next"]
    assert "nothing was handed to prof.train" in " ".join(str(prof.summary).split())


def test_phase_without_with_is_told() -> None:
    with Profiler("phases") as prof:
        for _ in prof.train(range(10)):
            prof.phase("forward")
            with prof.phase("loss"):
                time.sleep(0.001)
    (note,) = prof.summary.to_dict()["notes"]
    assert note == 'phase forward was named and never begun; around its lines write: with prof.phase("forward"):'
    assert note in " ".join(str(prof.summary).split())


def test_used_phases_are_not_told() -> None:
    with Profiler("phases") as prof:

        @prof.phase("load")
        def load() -> None: ...

        for _ in prof.epochs(2):
            for _ in prof.train(range(4)):
                with prof.phase("forward"), prof.phase("attention"):
                    load()
    assert "notes" not in prof.summary.to_dict()


def test_phases_without_a_run_say_to_begin_it() -> None:
    prof = Profiler("phases")
    with prof.phase("forward"):
        pass
    assert "the run has not begun" in " ".join(str(prof.summary).split())
    assert "prof.start()" in prof.summary.verdict["next"]


@pytest.mark.slow
def test_exit_code_of_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ends.py").write_text("import sys\nsys.exit(7)\n")
    monkeypatch.chdir(tmp_path)
    assert epochmeter("run", "-m", "ends").code == 7
    (run,) = epochmeter("runs", "--json").json
    assert (run["state"], run["exit_code"]) == ("crashed", 7)


@pytest.mark.slow
def test_script_that_never_trains(tmp_path: Path) -> None:
    answer = ran(tmp_path / "train.py", "import torch\n")
    assert answer.code == 0 and "neither a DataLoader nor an optimizer's step was seen" in " ".join(answer.err.split())


def test_failure_before_the_first_step_is_one_line(tmp_path: Path) -> None:
    answer = ran(tmp_path / "train.py", "raise ValueError('no data')\n")
    assert answer.code == 1
    *_, error, said = answer.err.splitlines()
    assert error == "ValueError: no data"
    (run,) = epochmeter("runs", "--json").json
    assert said == f"epochmeter: the script failed before its first step; the machine's readings: epochmeter report {run['id']}"


@pytest.mark.slow
@pytest.mark.parametrize("ends", ["sys.exit(7)", "def main():\n    sys.exit(7)\nmain()"])
def test_exit_code_is_shown_as_such(ends: str, tmp_path: Path) -> None:
    answer = ran(tmp_path / "train.py", TRAINS + ends)
    assert answer.code == 7 and "crashed (exit code 7)" in answer.err
    (run,) = epochmeter("runs", "--json").json
    assert (run["state"], run["exit_code"]) == ("crashed", 7)
    assert epochmeter("report", "--json").json["run"]["exit_code"] == 7


@pytest.mark.parametrize(
    ("ends", "state", "code"),
    [
        ("sys.exit()", "finished", None),
        ("sys.exit(0)", "finished", None),
        ("sys.exit('no data')", "crashed", 1),
        ("sys.exit(256)", "finished", None),
        ("try:\n    sys.exit(5)\nexcept SystemExit:\n    pass", "finished", None),
        ("def main():\n    try:\n        sys.exit(5)\n    except SystemExit:\n        pass\nmain()", "finished", None),
        ("import threading\nt = threading.Thread(target=sys.exit, args=(5,))\nt.start()\nt.join()", "finished", None),
    ],
)
def test_only_an_exit_that_ends_it_counts(ends: str, state: str, code: int | None, tmp_path: Path) -> None:
    ran(tmp_path / "train.py", f"import sys\n{ends}\n")
    (run,) = epochmeter("runs", "--json").json
    assert (run["state"], run.get("exit_code")) == (state, code)


def test_exit_within_the_with_is_shown() -> None:
    with pytest.raises(SystemExit), Profiler("exits") as prof:
        raise SystemExit(3)
    assert (prof.summary.state, prof.summary.to_dict()["run"]["exit_code"]) == ("crashed", 3)


@pytest.mark.slow
def test_time_before_the_first_step_is_told(tmp_path: Path) -> None:
    answer = ran(tmp_path / "train.py", "import time\ntime.sleep(2)\n" + TRAINS)
    ledger = epochmeter("report", "--json").json["ledger"]
    assert ledger["start_up_s"] > 2 and "start-up" in answer.err


def test_nobody_listening_is_said_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and not listening: connections are refused
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        answer = epochmeter("settings", "exporter=otlp", f"otlp_endpoint={address}")
        assert answer.code == 0 and address in answer.err and "nobody listens" in answer.err and "pipeline" in answer.err
        taken.listen()
        assert epochmeter("settings", f"otlp_endpoint={address}").err == ""
        taken.settimeout(10)
        with taken.accept()[0] as connection:
            assert connection.recv(1) == b""  # connected, and nothing was sent
    assert epochmeter("settings", "tariff=0.30 EUR").err == ""  # another setting


def test_off_tries_no_connection() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        epochmeter("settings", "exporter=otlp", f"otlp_endpoint={address}", EPOCHMETER_SYNC="0")
        listening.settimeout(0.2)
        with pytest.raises(TimeoutError):
            listening.accept()


def test_version_is_a_command_too() -> None:
    import profiler

    said = epochmeter("version").out
    assert said.startswith(f"epochmeter {profiler.__version__}, python 3.")
    assert epochmeter("version", "--json").json["epochmeter"] == profiler.__version__


def test_bare_command_says_where_to_begin() -> None:
    answer = epochmeter()
    assert "First: epochmeter demo" in " ".join((answer.out + answer.err).split())
