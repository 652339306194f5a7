"""``epochmeter bench`` as a user runs it: results, failures, comparisons, and the run that it is."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from profiler.bench import plan, runner
from profiler.bench.plan import Method
from profiler.cli.bench import _compared
from profiler.config.paths import runs_path
from profiler.records.case import CaseRecord
from profiler.records.run import EpochRecord, Run, Sums
from profiler.report.bench import as_csv, compared, markdown, sentences
from profiler.report.document import document
from profiler.report.text import text
from profiler.storage.points import summed_points
from profiler.storage.run_log import RunLog, run_paths
from profiler.storage.run_reader import load
from support.processes import Answer, epochmeter, python, wait_for

YOURS = """
import os, signal, sys, time
import torch
from torch import nn

class Nap(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
    def forward(self, x):
        time.sleep(0.02)
        return self.layer(x)

def inputs(batch):
    return torch.ones(batch, 4)

def nap():
    print("a model may print")
    return Nap(), inputs

def raises():
    raise ValueError("no weights file\\nhere")

def leaves():
    os._exit(5)

def crashes():
    os.kill(os.getpid(), signal.SIGSEGV)

def hangs():
    return nn.Linear(4, 4), inputs, lambda output: time.sleep(600) if torch.is_grad_enabled() else output.sum()

def large():
    return nn.Linear(4, 4), lambda batch: inputs(batch) if batch <= 2 else torch.empty(1 << 50)

def killed():
    def made(batch):
        if batch > 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return inputs(batch)
    return nn.Linear(4, 4), made

def untrained():
    return nn.ReLU(), inputs

def shrinks():
    def made(batch):
        with open("launches", "a") as seen:
            seen.write("x")
        if batch > 4 and os.path.getsize("launches") > 2:
            raise torch.cuda.OutOfMemoryError("no more")
        return inputs(batch)
    class Slow(Nap):
        def forward(self, x):
            time.sleep(0.004 * len(x))
            return self.layer(x)
    return Slow(), made

def waits():
    open("began", "w").close()
    time.sleep(600)
"""


def record(name: str = "resnet50", stage: str = "train", seconds: float = 0.5, **more: Any) -> CaseRecord:
    numbers = {"time": seconds, "time_low": seconds * 0.98, "time_high": seconds * 1.02, "blocks": 15, "launches": 3}
    numbers |= {"samples": 8, "flops": 2e11, "moved": 5e9, "flops_limit": 1e12, "moved_limit": 4e10, "memory": 3e9, "cold": 1.5}
    told: dict[str, Any] = {"batch": 8, "shape": "ResNet-50, 3 x 224 x 224", "numbers": numbers, **more}
    return CaseRecord("models", name, "cpu", stage, "float32", **told)


def cases_of(*records: CaseRecord) -> list[dict[str, Any]]:
    run = Run("a1", "bench", 0, state="finished")
    run.outside.cases = list(records)
    found: list[dict[str, Any]] = document(run)["bench"]["cases"]
    return found


class TestTheRecord:
    def test_goes_into_the_log_and_comes_back(self, tmp_path: Path) -> None:
        run = Run("a1b2c3", "bench", time.time_ns(), state="finished")
        failed = record(
            stage="val", status="timed out", error="not done within 3 s", remarks=["out of memory", "b"], numbers={}
        )
        log = RunLog(tmp_path, run)
        log.append(run, EpochRecord(None, cases=[record(seconds=9.0), failed]))
        log.append(run, EpochRecord(None, cases=[record()]))  # the same case, better known
        log.close()
        assert load(log.path).whole().cases == [record(), failed]

    def test_leaves_without_names_and_once(self) -> None:
        run = Run("a1", "bench", 0, state="finished")
        run.outside.cases = [record(), record("shop.nets:make"), record("shop.nets:other", seconds=3.0)]
        for case in run.outside.cases[1:]:
            case.suite = "yours"
        points = [point for point in summed_points(run, Sums(), run.whole()) if point.name == "epochmeter.bench.sample_rate"]
        assert [(point.attributes["epochmeter.bench.name"], point.value) for point in points] == [
            ("resnet50", 16),
            ("custom", 16),
        ]
        assert not any("shape" in key or "shop" in str(value) for point in points for key, value in point.attributes.items())

    def test_report_has_a_table_and_a_sentence(self) -> None:
        run = Run("a1", "bench", 0, state="finished")
        run.outside.cases = [record(), record(stage="val", status="failed", error="ValueError: no", numbers={})]
        said = text(run, 200)
        assert "resnet50 train" in said and "16" in said
        assert "40% of this machine's limit (400 GFLOP/s of 1 TFLOP/s in float32)" in said
        assert "resnet50 val float32 failed: ValueError: no" in said
        assert "unknown: a benchmark" in said

    def test_what_was_not_measured_is_absent(self) -> None:
        (case,) = cases_of(record(numbers={"time": 1.0, "time_low": 0.9, "time_high": 1.1}))
        assert set(case) == {"suite", "name", "device", "stage", "dtype", "batch", "shape", "status", "time_s"}

    def test_csv_and_markdown(self) -> None:
        cases = cases_of(record(remarks=["a, b"]), record("vit | x", stage="val"))
        rows = list(csv.DictReader(io.StringIO(as_csv(cases))))
        assert [float(row["time_median_s"]) for row in rows] == [0.5, 0.5]
        assert rows[0]["remarks"] == "a, b" and rows[0]["latency_p50_s"] == ""
        assert float(rows[0]["share_of_operations_limit"]) == 0.4
        lines = markdown(cases).splitlines()
        assert lines[1].startswith("| --- |") and "vit \\| x val" in lines[3]
        assert len({line.replace("\\|", "").count("|") for line in lines[:4]}) == 1
        assert "- " + next(iter(sentences(cases))) in lines

    def test_cases_are_compared_where_they_are_the_same(self) -> None:
        before = cases_of(record(), record("vit"), record("gpt"), record("convnet"))
        after = cases_of(record(), record("vit", batch=4), record("gpt", status="failed", numbers={}))
        rows = {row.case["name"]: row for row in compared(before, after, lambda then, now: _Same())}
        assert rows["resnet50"].verdict == "noise"
        assert rows["vit"].verdict == "batch 4 now, 8 before: not comparable"
        assert rows["gpt"].verdict == "failed now, ok before"
        assert rows["convnet"].verdict == "not measured now"


def test_fail_on_uses_near_end_of_interval(capsys: pytest.CaptureFixture[str]) -> None:
    before, now = cases_of(record(seconds=0.5)), {"bench": {"cases": cases_of(record(seconds=0.53))}}
    assert not _compared(before, now, 0.05, False)  # 6 % more, 3 to 9
    assert "1 slower" in capsys.readouterr().out
    assert _compared(before, now, 0.02, False)
    assert not _compared(before, {"bench": {"cases": before}}, 0.0, False)
    assert "0 slower, 0 faster, 1 within noise" in capsys.readouterr().out


class _Same:
    change, low, high, is_noise = 0.0, -0.1, 0.1, True


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("modles",), "Did you mean 'models'"),
        (("--dtype", "float23"), "Did you mean 'float32'"),
        (("--batch", "0"), "--batch"),
        (("--fail-on", "5%"), "--fail-on needs --compare"),
        (("--compare", "nowhere.json"), "cannot be read"),
        (("--compare", "wrong.json"), "is not a result of 'epochmeter bench --json FILE'"),
        (("--compare", "right.json", "--fail-on", "lots"), "a percentage such as 5%, not 'lots'"),
        (("--compare", "zero.json"), "is not a result of 'epochmeter bench --json FILE'"),
        (("--json", "x", "--csv", "x"), "only one of --json, --csv and --markdown can go into x"),
        (("mine.py:make",), "Perhaps mine:make?"),
        ((":make",), "is named as package.module:factory"),
        (("--json", "nowhere/x.json"), "the folder it is to be in is not there"),
        (("--json", "-", "--csv", "-"), "only one of"),
    ],
)
def test_bad_input_is_said_before_anything_is_started(
    arguments: tuple[str, ...], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("wrong.json").write_text('{"bench": [1]}')
    case = {"suite": "limits", "name": "launch", "status": "ok", "time_s": {"low": 0, "median": 1, "high": 1}}
    Path("zero.json").write_text(json.dumps({"bench": {"cases": [case]}}))
    Path("right.json").write_text('{"bench": {"cases": []}}')
    answer = epochmeter("bench", *arguments)
    assert (answer.code, answer.out) == (2, "")
    assert says in " ".join(answer.err.replace("│", " ").split())
    assert "Traceback" not in answer.err


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("torch")
    made = tmp_path / "work"
    made.mkdir()
    monkeypatch.chdir(made)
    Path("mine.py").write_text(YOURS)
    return made


def bench(*arguments: str) -> Answer:
    return python("-m", "profiler.cli", "bench", "--quick", *arguments, timeout=110, COLUMNS="160")


def written() -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = json.loads(Path("told.json").read_text())["bench"]["cases"]
    return cases


@pytest.mark.proof
class TestMeasuring:
    def test_is_a_run_like_any_other(self, folder: Path) -> None:
        answer = bench("launch", "convnet", "--json", "-")
        assert answer.code == 0, answer.err
        told = answer.json
        cases = {(case["name"], case.get("stage")): case for case in told["bench"]["cases"]}
        assert set(cases) == {
            ("launch", None),
            ("matmul", None),
            ("memory", None),
            *(("convnet", s) for s in ("train", "val", "inference")),
        }
        train, inference = cases["convnet", "train"], cases["convnet", "inference"]
        assert train["batch"] == 64 and train["operations"] == 144_890_880
        assert train["samples_per_s"] == pytest.approx(64 / train["time_s"]["median"])
        assert train["time_s"]["low"] <= train["time_s"]["median"] <= train["time_s"]["high"]
        assert train["limits"]["operations_per_s"] == pytest.approx(cases["matmul", None]["operations_per_s"])
        assert train["share_of_limit"]["operations"] == pytest.approx(
            train["operations_per_s"] / train["limits"]["operations_per_s"]
        )
        assert train["memory_peak_bytes"] > 2**20 and train["cold_s"] > 0 and "latency_s" not in train
        assert inference["latency_s"]["p50"] <= inference["latency_s"]["p90"] <= inference["latency_s"]["max"]
        assert "joules_per_sample" not in train  # nothing here counts it
        assert told["hardware"]["runtime"]["torch"].startswith("2.")
        assert "convnet train" in answer.err  # the table makes room for the JSON
        assert epochmeter("runs", "--json").json[0]["name"] == "bench"
        assert epochmeter("report", "--format", "json").json == told
        said = epochmeter("report").out
        assert "of this machine's limit" in said or "not usable" in said  # on a busy machine

    def test_the_numbers_are_true_and_names_stay_here(self, folder: Path) -> None:
        answer = bench("mine:nap", "--json", "told.json")
        assert answer.code == 0, answer.err
        assert "a model may print" not in answer.out
        cases = {case["stage"]: case for case in written() if case["suite"] == "yours"}
        for case in cases.values():
            assert 0.02 <= case["time_s"]["median"] < 0.04
        assert cases["inference"]["latency_s"]["p50"] >= 0.02
        assert (cases["train"]["batch"], cases["inference"]["batch"]) == (8, 1)
        sent = epochmeter("telemetry", "preview", EPOCHMETER_EXPORTER="otlp").out
        assert "epochmeter.bench.sample_rate" in sent and "custom" in sent
        assert "mine" not in sent and "nap" not in sent

    def test_a_case_that_fails_leaves_the_others(self, folder: Path) -> None:
        names = ("raises", "leaves", "crashes", "hangs", "untrained")
        answer = bench("launch", *(f"mine:{name}" for name in names), "--time-limit", "4", "--json", "told.json")
        assert answer.code == 3
        told = {(case["name"], case.get("stage")): (case["status"], case.get("error")) for case in written()}
        assert told["launch", None] == told["mine:hangs", "val"] == ("ok", None)
        assert told["mine:raises", "train"] == ("failed", "ValueError: no weights file here")
        assert told["mine:leaves", "val"] == ("failed", "its process ended by itself, with exit code 5")
        assert told["mine:crashes", "inference"] == ("failed", "its process was ended by SIGSEGV")
        assert told["mine:hangs", "train"] == ("timed out", "not done within 4 s; --time-limit allows more")
        assert told["mine:untrained", "train"] == ("skipped", "the model has no parameters to train")
        assert "mine:hangs train float32 timed out" in answer.out and "Traceback" not in answer.out + answer.err
        assert "mine:raises train, val, inference float32 failed: ValueError: no weights file here" in answer.out

    def test_out_of_memory_halves_batch_with_remark(self, folder: Path) -> None:
        answer = bench("mine:large", "mine:killed", "--json", "told.json")
        assert answer.code == 0, answer.out + answer.err
        cases = {(c["name"], c.get("stage")): c for c in written()}
        large, killed = cases["mine:large", "train"], cases["mine:killed", "train"]
        assert large["batch"] == killed["batch"] == 2
        assert "out of memory: batch 8 halved to 2" in large["remarks"]
        assert any(
            "ended by SIGKILL, as the system does when memory runs out; batch 4 halved to 2" in r for r in killed["remarks"]
        )
        assert cases["mine:large", "inference"]["batch"] == 1

    def test_batch_halved_later_is_measured_anew(self, folder: Path) -> None:
        method = Method(0.02, rounds=3, launches=3, warm_up_s=0.05, stable=0.1, energy_s=0.1, limit_s=60)
        (case,) = (case for case in plan.yours("cpu", "mine:shrinks", [], 8) if case.stage == "val")
        found: list[Any] = []
        runner.describe()
        runner.run([case], method, lambda case: None, found.extend)
        (raw,) = found
        assert raw.case.batch == 4 and raw.remarks == ["out of memory: batch 8 halved to 4"]
        assert len(raw.seconds) == 1 and all(0.016 <= seconds < 0.032 for seconds in raw.seconds[0])

    def test_unknown_devices_and_types(self, folder: Path) -> None:
        for option, value, says in (
            ("--device", "cuda:7", "torch has no device 'cuda:7' here. There is cpu"),
            ("mine:gone", "mine:nap", "the module 'mine' has no function 'gone'"),
        ):
            answer = bench("launch", option, value)
            assert (answer.code, answer.out) == (2, "")
            assert says in answer.err and answer.err.count("\n") == 1
        assert run_paths(runs_path()) == []

    def test_what_became_slower_fails(self, folder: Path) -> None:
        assert bench("launch", "--json", "now.json").code == 0
        told = json.loads(Path("now.json").read_text())
        (case,) = told["bench"]["cases"]
        case["time_s"] = {key: value / 10 for key, value in case["time_s"].items()}
        Path("then.json").write_text(json.dumps(told))
        slower = bench("launch", "--compare", "then.json", "--fail-on", "5%")
        assert slower.code == 1
        assert "slower by more than 5.0%: launch (+" in slower.out and "1 slower, 0 faster" in slower.out

    def test_modules_of_our_names_do_no_harm(self, folder: Path) -> None:
        for name in ("profiler.py", "torch.py", "random.py"):
            Path(name).write_text("raise SystemExit('not this one')")
        arguments = "import sys; sys.path.pop(0); sys.argv = ['epochmeter', 'bench', 'launch', '--quick']"
        script = f"{arguments}; from profiler.cli import main; main()"
        answer = python("-c", script, PYTHONPATH=str(Path(__file__).parents[2]), timeout=60)
        assert answer.code == 0 and "launch" in answer.out, answer.err

    def test_ranks_reduce_together(self, folder: Path) -> None:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29517"]
        command = [*launcher, "-m", "profiler.cli", "bench", "all_reduce", "--quick", "--json", "told.json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
        assert done.returncode == 0, done.stderr
        (case,) = written()
        assert (case["name"], case["shape"], case["status"]) == ("all_reduce", "8 MiB, 2 ranks", "ok")
        assert case["bytes_per_s"] == pytest.approx(8 * 2**20 / case["time_s"]["median"])  # 2 (n - 1) / n is 1 for two
        assert len(run_paths(runs_path())) == 1

    def test_ctrl_c_keeps_what_was_measured(self, folder: Path) -> None:
        command = [sys.executable, "-X", "faulthandler", "-m", "profiler.cli", "bench", "--quick", "launch", "mine:waits"]
        # A shell starts background jobs with SIGINT ignored, which everything below them inherits.
        heard = signal.signal(signal.SIGINT, signal.default_int_handler)
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ), start_new_session=True
        )
        signal.signal(signal.SIGINT, heard)
        wait_for(Path("began").exists, 60)
        os.killpg(process.pid, signal.SIGINT)
        try:
            out, err = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGABRT)  # so that the failure shows where it hangs
            out, err = process.communicate()
        assert process.returncode == 130, err
        assert "launch" in out and "Traceback" not in err
        (path,) = run_paths(runs_path())
        run = load(path)
        assert run.state == "interrupted" and [case.name for case in run.whole().cases] == ["launch"]
        wait_for(lambda: not _alive(process.pid), 15)


@pytest.mark.gpu
def test_a_gpu_is_measured_by_its_own_clock(folder: Path) -> None:
    answer = bench("limits", "convnet", "resnet50", "--json", "told.json")
    assert answer.code == 0, answer.out + answer.err
    cases = {(case["name"], case["device"], case.get("stage"), case.get("dtype")): case for case in written()}
    for name in ("memory", "h2d_pinned", "h2d_pageable", "d2h_pinned", "launch"):
        assert cases[name, "cuda", None, None]["status"] == "ok"
    assert cases["memory", "cpu", None, None]["bytes_per_s"] < cases["memory", "cuda", None, None]["bytes_per_s"]
    train, inference = cases["resnet50", "cuda", "train", "float32"], cases["resnet50", "cuda", "inference", "float32"]
    assert 0.05 < train["share_of_limit"]["operations"] < 1.2 and train["memory_peak_bytes"] > 2**30
    assert inference["device_time_s"] <= 1.05 * inference["time_s"]["median"]
    assert train["joules_per_sample"] > 0


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
