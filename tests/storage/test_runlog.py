"""The run log: on disk before the next epoch, readable after a kill, harmless where nothing can be written."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import Parse
from opentelemetry.proto.metrics.v1.metrics_pb2 import MetricsData

from profiler import Profiler, RunLogError, RunNotFoundError
from profiler.config.folder import Folder, append_to
from profiler.records.causes import CausePlace, Cost, Line
from profiler.records.loader import LoaderFacts
from profiler.records.reading_record import reading_of
from profiler.records.readings import MetricSpec, Sample
from profiler.records.run import EpochRecord, Hardware, MemoryGrowth, RankStage, Run
from profiler.records.timing import Timing
from profiler.report.document import document
from profiler.session.keeper import VANISHED
from profiler.storage import log_lines
from profiler.storage.log_lines import last_lines, lines
from profiler.storage.run_log import RunLog, is_being_written, prune, run_id, run_paths
from profiler.storage.run_reader import find, load, outline, read_run_line
from support.processes import epochmeter, python, wait_for_ticks

LOOP = """
import sys, time
from profiler import Profiler
with Profiler("killed", interval=0.05) as prof:
    for epoch in prof.epochs(100):
        for step in prof.train(range(10)):
            with prof.phase("forward"):
                time.sleep(0.001)
            if epoch == 2 and step == 5:
                print("in the third epoch", flush=True)
                time.sleep(60)
"""


def test_killed_after_its_second_epoch(home: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", LOOP], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "in the third epoch"
    going_on = epochmeter("runs", "--json").json
    assert [run["state"] for run in going_on] == ["running"]
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    process.stdout.close()
    (listed,) = epochmeter("runs", "--json").json
    assert (listed["name"], listed["state"]) == ("killed", "interrupted")
    report = epochmeter("report", "--format", "json").json
    assert [epoch["index"] for epoch in report["epochs"]] == [0, 1]
    assert all(epoch["stages"][0]["phases"]["forward"]["count"] == 10 for epoch in report["epochs"])
    assert report["hardware"]["cpu"]


@pytest.mark.parametrize("ending", ["raise ValueError('x')", "sys.exit(3)", "pass"])
def test_unstopped_run_is_completed_at_exit(home: Path, ending: str) -> None:
    script = f"import sys\nfrom profiler import Profiler\nprof = Profiler('x').start()\nlist(prof.train(range(3)))\n{ending}"
    answer = python("-c", script)
    assert answer.code == {"p": 0, "s": 3, "r": 1}[ending[0]]
    assert ("ValueError" in answer.err) is ending.startswith("raise")
    run = load(find(home / "runs"))
    assert run.state == ("crashed" if ending.startswith("raise") else "finished")
    assert run.epochs[0].stages["train"].steps == 3


def test_every_line_is_standard_otlp(home: Path) -> None:
    with Profiler("x", interval=0.05) as prof:
        for _ in prof.epochs(2):
            for _ in prof.train(range(5)):
                with prof.phase("mine"):
                    pass
        wait_for_ticks(prof)
    (path,) = run_paths(home / "runs")
    lines = path.read_text("utf-8").splitlines()
    assert len(lines) >= 4  # the start, two epochs, the end
    for line in lines:
        parsed = Parse(line, MetricsData())  # fails on a name that OTLP does not have
        assert parsed.resource_metrics[0].scope_metrics[0].metrics


def test_the_log_is_for_its_owner_alone(home: Path) -> None:
    with Profiler("x"):
        pass
    (path,) = run_paths(home / "runs")
    if os.name == "posix":
        assert path.stat().st_mode & 0o777 == 0o600


def a_log(home: Path, epochs: int = 3) -> Path:
    with Profiler("x") as prof:
        for _ in prof.epochs(epochs):
            list(prof.train(range(5)))
    return run_paths(home / "runs")[0]


@pytest.mark.parametrize("cut", [2, 40, 500])
def test_cut_last_line_costs_one_epoch(home: Path, cut: int) -> None:
    path = a_log(home)
    lines = path.read_bytes().splitlines(keepends=True)
    whole = lines[:2]
    path.write_bytes(b"".join(whole) + lines[2][:-cut])
    run = load(path)
    assert run.state == "interrupted"
    assert len(run.epochs) == sum(b"epochmeter.epoch.time" in line for line in whole)
    assert run.notes == {}


def test_spoilt_line_is_skipped_and_counted(home: Path) -> None:
    path = a_log(home)
    lines = path.read_bytes().splitlines()
    position = next(n for n, line in enumerate(lines) if b"epochmeter.epoch.time" in line)
    lines[position] = b'{"resourceMetrics": 3}'
    path.write_bytes(b"\n".join(lines) + b"\n")
    run = load(path)
    assert run.state == "finished"
    assert len(run.epochs) == 2
    assert run.notes == {"unreadable line in the run log": 1}


@pytest.mark.parametrize("content", [b"", b"\x00\xff", b"[]\n", b'{"resourceMetrics": []}\n', b"{}\n{}\n"])
def test_a_file_that_is_no_run_log(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.otlp.jsonl"
    path.write_bytes(content)
    with pytest.raises(RunLogError, match="holds no run"):
        load(path)


def test_keys_of_a_newer_version_are_passed_over(home: Path) -> None:
    path = a_log(home)
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    for line in lines:
        line["future"] = {"a": 1}
        line["resourceMetrics"][0]["resource"]["attributes"].append({"key": "future.thing", "value": {"boolValue": True}})
    path.write_text("\n".join(map(json.dumps, lines)) + "\n", "utf-8")
    assert len(load(path).epochs) == 3


def test_finding_a_run(home: Path) -> None:
    with pytest.raises(RunNotFoundError, match="no run has been recorded"):
        find(home / "runs")
    path = a_log(home)
    wanted = run_id(path)
    assert find(home / "runs", "last") == find(home / "runs", wanted[:5]) == find(home / "runs", wanted.upper()) == path
    with pytest.raises(RunNotFoundError, match="Did you mean"):
        find(home / "runs", wanted[:-1] + "x")
    with pytest.raises(RunNotFoundError, match="fits 2 runs"):
        folder = home / "runs"
        for name in ("xx11", "xx22"):
            (folder / f"20200101T000000Z-{name}.otlp.jsonl").touch()
        find(folder, "xx")


def test_old_logs_go(home: Path) -> None:
    path = a_log(home)
    old = path.with_name("20200101T000000.000000Z-aaaaaaaaaaaa.otlp.jsonl")
    old.write_text("{}")
    os.utime(old, (0, 0))
    others = [path.with_name(name) for name in ("notes.txt", "copy.otlp.jsonl")]
    for other in others:
        other.write_text("the user's own")
        os.utime(other, (0, 0))
    assert prune(home / "runs", 90) == 1
    assert sorted(home.joinpath("runs").iterdir()) == sorted([path, *others])


def trained(prof: Profiler) -> Any:
    with prof:
        for _ in prof.epochs(2):
            list(prof.train(range(3)))
        wait_for_ticks(prof)
    return prof.summary


@pytest.mark.parametrize("spoil", ["a file where the folder should be", "a folder of nobody"])
def test_run_continues_without_a_log(
    home: Path, spoil: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if spoil.startswith("a file"):
        home.write_text("in the way")
    else:
        monkeypatch.setenv("EPOCHMETER_HOME", "/proc/1/nothing" if sys.platform == "linux" else str(home / "\0"))
    with caplog.at_level(logging.WARNING):
        summary = trained(Profiler("x"))
    assert summary.stages["train"]["steps"] == 6
    assert len([record for record in caplog.records if "run log" in record.message]) == 1
    assert "doctor" in caplog.text
    assert any("run log" in note for note in summary.to_dict()["notes"])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
def test_a_full_disk(home: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    real_open = os.open
    monkeypatch.setattr(os, "open", lambda p, *a, **k: real_open("/dev/full" if str(p).endswith(".jsonl") else p, *a, **k))
    monkeypatch.setattr(Folder, "_checked", lambda self, status, name, **more: status)  # /dev/full is no plain file
    summary = trained(Profiler("x"))
    assert summary.stages["train"]["steps"] == 6
    assert "No space left on device" in caplog.text


def test_unsaved_lines_are_written_later(home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    real_append = RunLog.append
    full = True

    def append(self: RunLog, run: Run, part: EpochRecord) -> None:
        if full:
            raise OSError(28, "No space left on device")
        real_append(self, run, part)

    monkeypatch.setattr(RunLog, "append", append)
    with Profiler("x") as prof:
        for epoch in prof.epochs(4):
            full = epoch < 3
            list(prof.train(range(3)))
    assert [epoch.index for epoch in load(find(home / "runs")).epochs] == [0, 1, 2, 3]


def test_local_off_keeps_nothing(home: Path) -> None:
    summary = trained(Profiler("x", settings={"local": False}))
    assert summary.stages["train"]["steps"] == 6
    assert not home.exists()


def test_line_equals_opentelemetry_encoder() -> None:
    from google.protobuf.json_format import MessageToDict
    from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics

    from profiler.storage import otlp_json as lines
    from profiler.storage.points import epoch_attributes, epoch_points, local_resource
    from support import sdk_form

    run = Run("0123456789ab", "half characters and 語", 1_700_000_000_000_000_000, "running", 5_000_000_000, planned_epochs=3)
    run.hardware = Hardware({"family": "Intel Xeon", "available_cores": 1.5}, {}, {0: {"name": "H100"}}, {"notebook": True})
    run.overhead_ns, run.background_ns, run.rank, run.world_size = 1_000, 0, 0, 2
    run.note("something went wrong", 2)
    epoch = EpochRecord(0, started_ns=1_000, duration_ns=2_000_000_000, inferred=True)
    stage = epoch.stage("inference")
    stage.duration_ns, stage.steps, stage.samples, stage.passes = 1_500_000_000, 3, 96, 1
    for path in (("data_wait",), ("forward",), ("forward", "attention")):
        timing = stage.phases[path] = Timing()
        timing.steady.add([0, 1_000, 2_000_000, 3_000_000_000])
        timing.cold.add([7])
        timing.device.add([5_000])
    stage.step.steady.add([1_000_000_000])
    stage.latency.steady.add([3])
    stage.batch.add([32_000_000_000, 1_000_000_000])
    epoch.phases[("checkpoint",)] = Timing()
    epoch.phases[("checkpoint",)].steady.add([1])
    epoch.ranks = {1: {"train": RankStage(10, {"forward": 5})}}
    specs = [MetricSpec(f"m.{kind}", "By", kind, "Help.") for kind in ("gauge", "counter", "updowncounter")]
    for spec in specs:
        for value in (0, 3, 2.5):
            reading_of(epoch.readings, Sample(spec, value, {"hw.id": "gpu-0"})).add(value)
    for part in (epoch, EpochRecord(None)):
        points = epoch_points(run, part)
        data = sdk_form.metrics_data(local_resource(run), points, sdk_form.DELTA, 1, 2, epoch_attributes(part))
        theirs = MessageToDict(encode_metrics(data), use_integers_for_enums=True)
        ours = json.loads(lines.line(local_resource(run), points, 1, 2, epoch_attributes(part)))
        assert _flat(ours) == _flat(theirs)


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """Every leaf by its path: a difference is then one line."""
    if isinstance(value, dict) and value:
        return {key: leaf for name, inner in value.items() for key, leaf in _flat(inner, f"{path}.{name}").items()}
    if isinstance(value, list) and value:
        return {key: leaf for index, inner in enumerate(value) for key, leaf in _flat(inner, f"{path}[{index}]").items()}
    return {path: value}


# ---- what the program and the disk do to the log -------------------------------------------------------------------

CLOSES = """
import os, sys, time
from pathlib import Path
from profiler import Profiler
home = Path(os.environ["EPOCHMETER_HOME"])
with Profiler("closes", interval=60) as prof:
    for epoch in prof.epochs(5):
        list(prof.train(range(3)))
        if epoch == 1:  # as a program does that becomes a daemon
            while prof.session.sampler.threads[0].cpu_ns is None:  # no file that a probe is just reading: nobody can save that
                time.sleep(0.01)
            os.closerange(3, 256)
            files = [os.open(home / f"mine{n}", os.O_CREAT | os.O_RDWR) for n in range(40)]
for file in files:
    os.write(file, b"my data")
    os.close(file)
print({path.read_bytes() for path in home.glob("mine*")})
"""


def test_program_that_closes_every_descriptor(home: Path) -> None:
    home.mkdir(mode=0o700)
    answer = python("-c", CLOSES)
    assert (answer.code, answer.out) == (0, "{b'my data'}\n")
    run = load(find(home / "runs"))
    assert (run.state, [epoch.index for epoch in run.epochs], run.notes) == ("finished", [0, 1, 2, 3, 4], {})


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("ending", ["os._exit(0)", "sys.exit(0)"])
def test_forked_child_does_not_unlock_the_run(home: Path, ending: str) -> None:
    script = f"""
import gc, os, sys
from pathlib import Path
from profiler import Profiler
from profiler.config.paths import runs_path
from profiler.storage.run_log import is_being_written, run_paths
with Profiler("forks") as prof:
    list(prof.train(range(3)))
    prof.session.end_epoch()
    if not os.fork():
        gc.collect()
        {ending}
    os.wait()
    print(is_being_written(run_paths(runs_path())[0]))
print(is_being_written(run_paths(runs_path())[0]))
"""
    answer = python("-c", script)
    assert answer.out.splitlines()[-2:] == ["True", "False"], answer.err


def test_killed_parent_leaves_no_lock_to_its_children(home: Path) -> None:
    script = """
import os, time
from profiler import Profiler
with Profiler("forks") as prof:
    list(prof.train(range(3)))
    prof.session.end_epoch()
    if not os.fork():
        time.sleep(30)
        os._exit(0)
    time.sleep(0.2)
    os.kill(os.getpid(), 9)
"""
    with subprocess.Popen([sys.executable, "-c", script], start_new_session=True) as process:
        process.wait(20)
        assert not is_being_written(run_paths(home / "runs")[0])
        os.killpg(process.pid, signal.SIGKILL)


def test_removed_log_is_written_again(home: Path) -> None:
    with Profiler("vanishes", interval=0.02) as prof:
        list(prof.infer([1, 2]))
        for epoch in prof.epochs(5):
            list(prof.train(range(3)))
            if epoch == 2:
                shutil.rmtree(home)
    run = load(find(home / "runs"))
    assert run.notes == {VANISHED: 1}
    assert [epoch.index for epoch in run.epochs] == [0, 1, 2, 3, 4]
    assert (run.whole().stages["train"].steps, run.whole().stages["inference"].steps) == (15, 2)
    assert prof.summary.stages == load_summary(run)


def load_summary(run: Run) -> dict[str, Any]:
    stages: dict[str, Any] = document(run)["stages"]
    return stages


@pytest.mark.skipif(not hasattr(os, "pread"), reason="needs pread")
def test_line_cut_by_full_disk_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = Folder(tmp_path).open_append("log")
    append_to(file, b"first\n")
    real_write = os.write
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", lambda descriptor, data: real_write(descriptor, data[:3]))
        with pytest.raises(OSError, match="No space"):
            append_to(file, b"second\n")
        assert (tmp_path / "log").read_bytes() == b"first\n"
        patched.setattr(os, "ftruncate", lambda *_: (_ for _ in ()).throw(OSError))
        with pytest.raises(OSError, match="No space"):
            append_to(file, b"second\n")
    append_to(file, b"third\n")
    os.close(file)
    assert (tmp_path / "log").read_bytes() == b"first\nsec\nthird\n"


def test_pruning_spares_a_living_run(home: Path) -> None:
    with Profiler("lives") as prof:
        prof.session.begin_named_epoch()
        prof.session.end_epoch()
        wait_for_ticks(prof)
        (path,) = run_paths(home / "runs")
        assert prune(home / "runs", 1, now=path.stat().st_mtime + 10 * 86_400) == 0 and path.exists()
    assert prune(home / "runs", 1, now=path.stat().st_mtime + 10 * 86_400) == 1


def test_time_to_read_grows_with_the_log(home: Path) -> None:
    """Counted in look-ups, not in seconds: an epoch was once looked for among all of them."""
    looked = 0

    class Counted(dict[int, EpochRecord]):
        def setdefault(self, *args: Any) -> Any:
            nonlocal looked
            looked += 1
            return super().setdefault(*args)

    path = a_log(home, epochs=50)
    run = Run("x", "x", 0, by_index=Counted())
    for line in lines(path):
        read_run_line(run, line)
    assert len(run.epochs) == 50 == looked


def test_outline_reads_the_end_alone(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = a_log(home, epochs=40)
    monkeypatch.setattr(log_lines, "FIRST_BLOCK", 200)
    read = [line for line, _ in zip(last_lines(path), range(3), strict=False)]
    assert read == path.read_bytes().splitlines()[:-4:-1]
    assert [*last_lines(path)] == path.read_bytes().splitlines()[::-1]
    assert outline(path).state == "finished"


def test_summaries_share_the_sums() -> None:
    """A summary after each epoch adds up that epoch alone, and its cost is told."""
    with Profiler("sums") as prof:
        for _ in prof.epochs(30):
            list(prof.train(range(2)))
            assert prof.summary.stages["train"]["steps"] % 2 == 0
        before = prof.session.timer.overhead_ns
        summary = prof.summary
        assert len(summary.epochs) == 30 and summary.stages["train"]["steps"] == 60
        assert prof.session.timer.overhead_ns > before
        list(prof.train(range(5)))
        assert len(summary.epochs) == 30 and summary.stages["train"]["steps"] == 60


def test_causes_come_back_from_the_log(home: Path) -> None:
    run = Run("0a1b2c3d4e5f", "causes", 1_700_000_000_000_000_000, "finished", 10**9, way="script")
    run.loaders = {"train": LoaderFacts(2, 64, True, 4, True), "val": LoaderFacts(0)}
    run.growth = MemoryGrowth(2**29, 10**9, 0.97)
    part = EpochRecord(0, duration_ns=10**9)
    part.stage("train").operations = 1840
    part.costs = {CausePlace("starved", "train", "forward"): Cost(1_500_000, 3), CausePlace("collection", "", ""): Cost(7, 1)}
    part.lines = {Line("train", "forward", "träin.py", 12, "<lambda>", "os.fsync"): 5, Line("", "", "", 0, "", ""): 2}
    log = RunLog(home / "runs", run)
    log.append(run, part)
    log.append(run, EpochRecord(1, duration_ns=5, lines=dict(part.lines)))
    log.close()
    again = load(log.path)
    assert (again.loaders, again.growth, again.way) == (run.loaders, run.growth, "script")
    assert again.epochs[0].costs == part.costs and again.epochs[0].lines == part.lines
    assert again.whole().lines == {line: 2 * samples for line, samples in part.lines.items()}
    assert again.whole().stages["train"].operations == 1840
    assert again.slices[0].costs == {("starved", "train"): 1_500_000, ("collection", ""): 7}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"epochmeter.line.file","value":{"arrayValue"', '"epochmeter.line.file","value":{"stringValue"'),
        (
            '"epochmeter.line.number","value":{"arrayValue":{"values":[',
            '"epochmeter.line.number","value":{"arrayValue":{"no":[',
        ),
        ('"epochmeter.cause","value":{"stringValue"', '"epochmeter.cause","value":{"intValue"'),
        ('"epochmeter.stage","value":{"stringValue"', '"epochmeter.stage","value":{"intValue"'),
    ],
)
def test_odd_causes_spoil_their_line_alone(old: str, new: str, home: Path) -> None:
    run = Run("0a1b2c3d4e5f", "causes", 1_700_000_000_000_000_000, "finished", 10**9)
    log = RunLog(home / "runs", run)
    part = EpochRecord(0, duration_ns=10**9, lines={Line("train", "", "a.py", 1, "f", ""): 1})
    part.costs = {CausePlace("starved", "train", ""): Cost(5, 1)}
    log.append(run, part)
    log.append(run, EpochRecord(1, duration_ns=10**9))
    log.close()
    text = log.path.read_text()
    spoilt = text.replace(old, new, 1)
    assert spoilt != text
    log.path.write_text(spoilt)
    again = load(log.path)
    assert [epoch.index for epoch in again.epochs] == [1] and again.notes == {"unreadable line in the run log": 1}
