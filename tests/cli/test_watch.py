"""``epochmeter watch``, ``run --live``, and a run that hangs, seen from another process."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from profiler import Profiler
from profiler.config.paths import runs_path
from profiler.records.run import Run
from profiler.report.watch import screen
from profiler.storage.follower import LogFollower
from profiler.storage.run_log import run_paths
from profiler.storage.run_reader import load
from support.processes import epochmeter, wait_for

HANGS = """
import sys, time
from profiler import Profiler
from profiler.records import run
run.STALLED_NS = 10**9
with Profiler("hangs", epochs=2, interval=0.1, settings={"slice_s": 0.4}) as prof:
    for _ in prof.epochs():
        for number, _ in enumerate(prof.train([0] * 400, samples=8)):
            with prof.phase("forward"):
                time.sleep(0.003)
                if number == 300:
                    sys.stdin.readline()
"""


@pytest.fixture
def hanging() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", HANGS], stdin=subprocess.PIPE, text=True, env={**os.environ})
    try:
        wait_for(lambda: [path for path in run_paths(runs_path()) if path.stat().st_size])
        wait_for(lambda: (step := load(run_paths(runs_path())[0]).open_step) and step.is_stalled)
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.kill()
        process.wait()


@pytest.mark.slow
def test_run_that_hangs_is_seen(hanging: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch) -> None:
    answer = epochmeter("watch", "--once")
    assert answer.code == 0 and answer.err == ""
    assert re.search(r"running, epoch 0 \(of 2\), train step 300 \(of 400\), [\d,]+ samples/s, forward \d+%", answer.out)
    assert "in forward for" in answer.out
    monkeypatch.setattr("profiler.records.run.STALLED_NS", 10**9)
    seen = LogFollower(run_paths(runs_path())[0]).look()
    shown = io.StringIO()
    Console(width=60, file=shown).print(screen(seen))
    lines = shown.getvalue().splitlines()
    assert max(map(len, lines)) <= 60 and any("STALLED" in line for line in lines)
    watching = subprocess.Popen(
        [sys.executable, "-m", "profiler.cli", "watch", "--every", "0.2"], stdout=subprocess.PIPE, text=True
    )
    for _ in range(2):
        assert hanging.stdin is not None
        hanging.stdin.write("\n")
        hanging.stdin.flush()
    out, _ = watching.communicate(timeout=30)
    assert watching.returncode == 0 and "finished" in out.splitlines()[-1]


@pytest.mark.proof
def test_runs_tell_of_a_hang(hanging: subprocess.Popen[str]) -> None:
    wait_for(lambda: (step := load(run_paths(runs_path())[0]).open_step) and step.step_ns > 10.5e9)
    (row,) = json.loads(epochmeter("runs", "--json").out)
    assert (row["state"], row["stalled"]["phase"], row["stalled"]["step"]) == ("running", "forward", 300)
    assert "stalled in forward" in epochmeter("runs").out
    assert "STALLED: no step has ended for" in epochmeter("watch", "--once").out


def test_watch_needs_a_run() -> None:
    assert epochmeter("watch").code == 2
    with Profiler("x"):
        pass
    assert epochmeter("watch", "nonsense").code == 2
    answer = epochmeter("watch")
    assert answer.code == 0 and "finished" in answer.out


def test_follower_reads_only_what_is_new(home: Path) -> None:
    with Profiler("followed", interval=0.02) as prof:
        follower: LogFollower | None = None
        for epoch in prof.epochs(4):
            list(prof.train([0] * 10))
            if epoch == 0:
                wait_for(lambda: run_paths(runs_path()) and run_paths(runs_path())[0].stat().st_size)
                follower = LogFollower(run_paths(runs_path())[0])
            elif follower is not None:
                assert steps(follower.look()) == 10 * epoch
        (path,) = run_paths(runs_path())
    assert follower is not None
    assert (steps(follower.look()), follower.look().state) == (40, "finished")
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: content.index(b"\n") + 1] + b'{"resourceMetrics": [')  # written anew, and cut off
    assert steps(follower.look()) == 0


def steps(run: Run) -> int:
    train = run.whole().stages.get("train")
    return 0 if train is None else train.steps


@pytest.mark.slow
def test_live_lines_of_a_script(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text("import time\nprint('mine')\ntime.sleep(1.5)\n")
    answer = epochmeter("run", "--live", "--quiet", str(script), EPOCHMETER_SLICE_S="0.4")
    assert (answer.code, answer.out) == (0, "mine\n")
    lines = answer.err.splitlines()
    assert len(lines) >= 2 and all(line.startswith("train: running") for line in lines)


def test_live_lines_of_a_loop(capsys: pytest.CaptureFixture[str]) -> None:
    import time

    with Profiler("mine", live=True, interval=0.05, settings={"slice_s": 0.2}) as prof:
        for _ in prof.epochs(1):
            for _ in prof.train([0] * 300, samples=4):
                with prof.phase("forward"):
                    time.sleep(0.003)
    said = capsys.readouterr().err.splitlines()
    assert len(said) >= 3 and said[-1].startswith("mine: epoch 0 in ")
    assert re.search(r"mine: running, epoch 0 \(of 1\), train step \d+ \(of 300\), [\d,]+ samples/s, forward \d+%", said[0])
