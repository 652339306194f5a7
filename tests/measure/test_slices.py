"""Slices: a run is on disk, and its sums move, while an epoch goes on."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from profiler import Profiler
from profiler.config.paths import runs_path
from profiler.measure.cause_book import CauseBook
from profiler.measure.garbage import GarbageWatch
from profiler.measure.timer import Timer
from profiler.records.run import EpochRecord, Run
from profiler.records.slices import MOST, Slice, add_slice
from profiler.storage.compaction import joined_lines
from profiler.storage.log_lines import lines
from profiler.storage.run_log import run_paths
from profiler.storage.run_reader import load
from support.documents import near
from support.processes import python, wait_for, wait_for_ticks

QUICK = {"slice_s": 0.2}


def recorded(home: Path | None = None) -> Run:
    folder = (home / "runs") if home else runs_path()
    wait_for(lambda: [path for path in run_paths(folder) if path.stat().st_size])
    return load(run_paths(folder)[0])


def steps_on_disk(stage: str = "train") -> int:
    found = recorded().whole().stages.get(stage)
    return 0 if found is None else found.steps


class TestOneLongEpoch:
    def test_it_is_on_disk_and_its_sums_move(self) -> None:
        with Profiler("long", interval=0.05, settings=QUICK) as prof:
            done, sent = 0, []
            for _ in prof.epochs(1):
                for _ in prof.train(iter(int, 1)):
                    with prof.phase("forward"):
                        time.sleep(0.001)
                    done += 1
                    if done % 300 == 0:
                        on_disk = steps_on_disk()
                        assert 0 < on_disk <= done
                        points = prof.session._snapshot(lambda: None).points
                        sent.append({p.name: p.value for p in points if not p.attributes or p.name == "epochmeter.stage.steps"})
                    if done == 1500:
                        break
        told = prof.summary.to_dict()
        (epoch,) = told["epochs"]
        assert epoch["stages"][0]["steps"] == 1500
        assert [moment["epochmeter.stage.steps"] for moment in sent] == sorted({m["epochmeter.stage.steps"] for m in sent})
        assert [moment["epochmeter.epoch.time"] for moment in sent] == sorted({m["epochmeter.epoch.time"] for m in sent})
        again = recorded()
        assert len(again.slices) > 5 and len(again.epochs) == 1
        assert sum(cut.duration_ns for cut in again.slices if cut.epoch == 0) == again.epochs[0].duration_ns

    def test_the_log_tells_what_the_memory_does(self) -> None:
        from profiler.report.document import document

        with Profiler("same", interval=0.05, settings=QUICK) as prof:
            for _ in prof.epochs(2):
                for number, _ in enumerate(prof.train([0] * 200)):
                    with prof.phase("forward"), prof.phase("inner"):
                        time.sleep(0.002)
                    if number % 50 == 0:
                        for _ in prof.validate([0] * 5):
                            time.sleep(0.001)
        told, kept = prof.summary.to_dict(), document(recorded())
        for part in ("stages", "epochs", "readings", "phases"):
            assert near(kept.get(part), told.get(part)), part

    def test_short_epochs_are_one_line_each(self) -> None:
        with Profiler("short", interval=0.02) as prof:
            for _ in prof.epochs(5):
                for _ in prof.train([0] * 3):
                    time.sleep(0.01)
        (path,) = run_paths(runs_path())
        assert sum(b'"epochmeter.epoch.index"' in line for line in lines(path)) == 5

    def test_long_step_is_seen_and_counted_last(self) -> None:
        with Profiler("stuck", interval=0.05, settings=QUICK) as prof:
            for _ in prof.epochs(1):
                for number, _ in enumerate(prof.train([0] * 4)):
                    if number == 3:
                        with prof.phase("forward"):
                            wait_for(lambda: (seen := recorded().open_step) is not None and seen.phase == "forward")
                            seen = recorded().open_step
                            assert seen is not None and (seen.stage, seen.epoch, seen.step, seen.length) == ("train", 0, 3, 4)
                            assert seen.step_ns > 1e8
                            time.sleep(0.5)
                            before = steps_on_disk()
        assert before <= 3 and steps_on_disk() == 4
        long = [cut for cut in recorded().slices if "train" in cut.stages and cut.stages["train"].phases.get("forward")]
        assert len(long) == 1 and long[0].stages["train"].step_ns > 5e8

    def test_script_without_steps_keeps_its_readings(self) -> None:
        with Profiler("no loop", interval=0.02, settings=QUICK):
            wait_for(lambda: len(recorded().slices) >= 2)
            assert any(name == "process.memory.usage" for name, _ in recorded().whole().readings)

    def test_passes_that_last_for_long_outside_epochs(self) -> None:
        with Profiler("infer", interval=0.05, settings=QUICK) as prof:
            for _ in prof.infer([0] * 50):
                time.sleep(0.02)
            assert steps_on_disk("inference") == 50
        assert recorded().whole().stages["inference"].steps == 50

    def test_other_threads_while_the_owner_waits(self) -> None:
        with Profiler("threads", interval=0.05, settings=QUICK) as prof:

            def work() -> None:
                for _ in prof.validate([0] * 60):
                    time.sleep(0.02)

            thread = threading.Thread(target=work)
            thread.start()
            wait_for(lambda: steps_on_disk("val") > 0)
            assert thread.is_alive()
            before = recorded().whole().stages["val"].duration_ns
            assert before > 0
            thread.join()
        assert recorded().whole().stages["val"].steps == 60


LOOP = """
import os, sys, time
from profiler import Profiler
done = 0
with Profiler("killed", interval=0.1, settings={"slice_s": 0.5}) as prof, open(sys.argv[1], "wb", 0) as told:
    for _ in prof.epochs(1):
        for _ in prof.train(iter(int, 1)):
            with prof.phase("forward"):
                time.sleep(0.001)
            done += 1
            os.pwrite(told.fileno(), b"%12d" % done, 0)
"""


@pytest.mark.proof
@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM", "copy"])
def test_at_most_a_slice_is_missing(how: str, home: Path, tmp_path: Path) -> None:
    """The machine's loss is a copy of the home, taken in mid-run."""
    rng = random.Random(how)
    counted = tmp_path / "count"
    for attempt in range(3):
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(mode=0o700)
        process = subprocess.Popen([sys.executable, "-c", LOOP, str(counted)], env={**os.environ})
        try:
            wait_for(lambda: counted.exists() and counted.stat().st_size > 0)
            time.sleep(rng.uniform(1, 2.5))
            if how == "copy":
                shutil.copytree(home, tmp_path / f"copy{attempt}")
                done = int(counted.read_bytes())
            else:
                process.send_signal(getattr(signal, how))
                process.wait()
                done = int(counted.read_bytes())
        finally:
            process.kill()
            process.wait()
        run = recorded(tmp_path / f"copy{attempt}" if how == "copy" else home)
        told = run.epochs[0].stages["train"]
        missing_s = (done - told.steps) * told.step.total_ns / 1e9 / max(told.steps, 1)
        assert told.steps <= done and missing_s < 0.5 + 0.3, (done, told.steps)  # a machine may be busy for a moment
        assert run.state == "interrupted"
        assert told.duration_ns == pytest.approx(told.step.total_ns, rel=0.05)
        counted.unlink()


class TestCompaction:
    @pytest.fixture
    def log(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
        """Write a log of two epochs in many slices, of which some are pieces, with other lines between them."""
        with Profiler("many", interval=3600, settings={"slice_s": 3600}) as prof:
            slices = prof.session.slices
            list(prof.infer([0] * 3))
            for _ in prof.epochs(2):
                for number, _ in enumerate(prof.train([0] * 150)):
                    with prof.phase("forward"):
                        time.sleep(0.0002 * (number % 7))
                    if number % 2:
                        prof.session.timer.ask_for_slice()
                    if number % 20 == 0:
                        prof.session.sampler.tick()
                        slices._close_at(prof.session._now(), is_piece=True)
                        slices.look()
                list(prof.validate([0] * 4))
        (path,) = run_paths(home / "runs")
        yield path

    def test_totals_stay_exact(self, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        before, size = load(log), log.stat().st_size
        monkeypatch.setattr("profiler.storage.compaction.KEPT_BYTES", 0)
        log.write_bytes(b"".join(joined_lines(log, size)))
        after = load(log)
        assert log.stat().st_size < size / 3 and len(after.slices) < len(before.slices) / 3
        assert after.notes == before.notes and after.state == before.state
        for part, other in zip(before.parts(), after.parts(), strict=True):
            part.slice = other.slice = None
            for stage in (*part.stages.values(), *other.stages.values()):
                stage.slowest.sort(key=lambda slow: slow.number)
            assert part.stages == other.stages or same(part, other)
            assert part.costs == other.costs and sum(part.lines.values()) == sum(other.lines.values())
            assert (part.index, part.started_ns, part.duration_ns) == (other.index, other.started_ns, other.duration_ns)
        for name in ("train", "val"):
            cuts = [sum(cut.stages[name].duration_ns for cut in run.slices if name in cut.stages) for run in (before, after)]
            assert cuts[0] == cuts[1] > 0

    def test_twice_changes_little_and_a_cut_line_stays(self, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("profiler.storage.compaction.KEPT_BYTES", 0)
        with log.open("ab") as file:
            file.write(b'{"resourceMetrics": [')
        for _ in range(3):
            log.write_bytes(b"".join(joined_lines(log, log.stat().st_size)))
        assert load(log).epochs[1].stages["train"].steps == 150
        assert log.read_bytes().endswith(b"[")

    @pytest.mark.parametrize("replaces_open_files", [True, False])
    def test_a_living_log_is_made_shorter(self, replaces_open_files: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        """Also where an open file cannot be replaced, as on Windows."""
        monkeypatch.setattr("profiler.storage.run_log.POSIX", replaces_open_files)
        monkeypatch.setattr("profiler.session.keeper.FULL_BYTES", 60_000)
        for name, value in (("KEPT_BYTES", 20_000), ("FEWEST", 4)):
            monkeypatch.setattr(f"profiler.storage.compaction.{name}", value)
        with Profiler("living", interval=0.02, settings={"slice_s": 0.05}) as prof:
            largest = done = 0
            for _ in prof.epochs(1):
                until = time.monotonic() + 4
                for _ in prof.train(iter(int, 1)):
                    with prof.phase("forward"):
                        time.sleep(0.001)
                    done += 1
                    if done % 50 == 0 and (paths := run_paths(runs_path())):
                        largest = max(largest, paths[0].stat().st_size)
                        assert load(paths[0]).state == "running" or not replaces_open_files
                    if time.monotonic() > until:
                        break
        run = recorded()
        assert run.whole().stages["train"].steps == done and run.state == "finished" and not run.notes
        assert 60_000 < largest < 250_000
        assert not list(runs_path().glob("*.new"))


def same(part: EpochRecord, other: EpochRecord) -> bool:
    """Return True if the stages of two records hold the same numbers, also in histograms, which compare by identity."""

    def plain(thing: Any) -> Any:
        if isinstance(thing, dict):
            return {key: plain(value) for key, value in thing.items()}
        if hasattr(thing, "dense"):
            return thing.dense(), thing.scale, thing.sum_ns, thing.min_ns, thing.max_ns, thing.zero_count
        if hasattr(thing, "__dict__"):
            return {key: plain(value) for key, value in vars(thing).items()}
        return [plain(one) for one in thing] if isinstance(thing, list) else thing

    return bool(plain(part.stages) == plain(other.stages))


def test_disk_full_for_long_costs_no_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    from profiler.storage import own_file

    full, real = threading.Event(), own_file.append_to

    def append(descriptor: int, data: bytes) -> None:
        if full.is_set():
            raise OSError(28, "No space left on device")
        real(descriptor, data)

    monkeypatch.setattr(own_file, "append_to", append)
    with Profiler("full", interval=0.01, settings={"slice_s": 0.02}) as prof:
        done = 0
        for _ in prof.epochs(1):
            for _ in prof.train(iter(int, 1)):
                time.sleep(0.001)
                done += 1
                if done == 100:
                    full.set()
                if done == 1500:
                    assert len(prof.session._keeper._unsaved) <= 40
                    full.clear()
                if done == 2000:
                    break
    run = recorded()
    assert run.epochs[0].stages["train"].steps == 2000
    assert sum(cut.stages["train"].steps for cut in run.slices if "train" in cut.stages) == 2000
    assert list(run.notes) == ["the run log could not be written: No space left on device"]


def test_slices_of_a_long_run_are_joined() -> None:
    slices: list[Slice] = []
    for number in range(10_000):
        add_slice(slices, Slice(0, 0, number * 10, 10, number))
    assert len(slices) <= 2 * MOST
    assert (slices[0].started_ns, slices[-1].ended_ns) == (0, 100_000)
    assert all(a.ended_ns == b.started_ns for a, b in itertools.pairwise(slices))
    assert slices[-1].duration_ns == 10 < slices[0].duration_ns


class TestSlowestSteps:
    def test_number_time_and_phases_of_the_slow_ones(self) -> None:
        began = time.time()
        with Profiler("slow", interval=0.05, settings=QUICK) as prof:
            for _ in prof.epochs(2):
                for number, _ in enumerate(prof.train([0] * 300)):
                    with prof.phase("forward"):
                        time.sleep(0.0005)
                    if number in (70, 170):
                        with prof.phase("checkpoint"):
                            time.sleep(0.05)
        run = recorded()
        slow = sorted(run.whole().stages["train"].slowest, key=lambda step: -step.duration_ns)[:4]
        assert {(step.epoch, step.step) for step in slow} == {(0, 70), (0, 170), (1, 70), (1, 170)}
        assert {step.number for step in slow} == {70, 170, 370, 470}
        for step in slow:
            assert step.phases["checkpoint"] > 4.9e7 and step.phases["forward"] < 4e7
            assert 0 < step.at_ns < run.duration_ns
            assert began * 1e9 <= run.started_unix_ns + step.at_ns <= time.time() * 1e9

    def test_phases_that_occur_twice_in_a_step(self) -> None:
        with Profiler("twice") as prof:
            for number, _ in enumerate(prof.train([0] * 40)):
                for _ in range(2):
                    with prof.phase("forward"):
                        time.sleep(0.02 if number == 30 else 0.0005)
        (slow,) = (step for step in recorded().whole().stages["train"].slowest if step.step == 30)
        assert slow.phases["forward"] > 3.9e7

    def test_first_step_is_marked(self) -> None:
        with Profiler("first") as prof:
            for _ in prof.train([0] * 5):
                pass
        firsts = [step.step for step in recorded().whole().stages["train"].slowest if step.is_first]
        assert firsts == [0]


def test_garbage_collections_are_counted() -> None:
    import gc

    watch = GarbageWatch(Timer().owner, lambda: True, CauseBook())
    watch.start()
    try:
        moment = time.perf_counter_ns()
        held = [[number] for number in range(300_000)]
        gc.collect()
        spent = watch.since(moment)
    finally:
        watch.stop()
        watch.stop()
    del held
    watch.add_up()
    assert 0 < spent <= watch.spent_ns and watch.since(moment) == spent
    told = watch.spent_ns
    gc.collect()
    watch.add_up()
    assert watch.spent_ns == told  # it has stopped


@pytest.mark.parametrize("kind", ["plain", "inside another", "in an epoch"])
def test_phases_without_any_pass(kind: str) -> None:
    with Profiler("phases", interval=0.05, settings=QUICK) as prof:

        def work() -> None:
            for number in range(400):
                with prof.phase("a"), prof.phase("b"):
                    time.sleep(0.002)
                if number == 350:
                    told = recorded()
                    parts = [told.outside, *told.epochs]
                    counts = {path: timing.count for part in parts for path, timing in part.phases.items()}
                    assert max(counts.values()) > 150

        if kind == "inside another":
            with prof.phase("outer"):
                work()
        elif kind == "in an epoch":
            for _ in prof.epochs(1):
                work()
        else:
            work()
    told = recorded()
    paths = {path: timing.count for part in (told.outside, *told.epochs) for path, timing in part.phases.items()}
    above = ("outer",) if kind == "inside another" else ()
    assert (paths[(*above, "a")], paths[(*above, "a", "b")]) == (400, 400)
    assert not [span for _, span in prof.session.timer.owner.outside.spans() if span.shared and span.name in "ab"]


def test_overlapping_calls_pass_once_in_a_slice() -> None:
    with Profiler("calls", interval=0.05, settings=QUICK) as prof:
        predict = prof.inference(lambda: time.sleep(0.01))
        threads = [threading.Thread(target=lambda: [predict() for _ in range(60)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    told = prof.summary.to_dict()
    whole = sum(cut["stages"]["inference"]["duration_s"] for cut in told["timeline"] if "inference" in cut["stages"])
    assert whole == pytest.approx(told["stages"]["inference"]["duration_s"], rel=0.05)
    assert whole < 0.6 * told["stages"]["inference"]["call_time_s"]


def test_steps_count_on_after_a_validation() -> None:
    with Profiler("mixed", interval=0.02, settings={"slice_s": 0.1}) as prof:
        for _ in prof.epochs(1):
            for _ in range(3):
                for _ in prof.train([0] * 100):
                    time.sleep(0.002)
                for _ in prof.validate([0] * 100):
                    time.sleep(0.002)
    cuts = [cut.stages["train"] for cut in recorded().slices if cut.epoch == 0 and "train" in cut.stages]
    assert len(cuts) > 3 and cuts[0].first_step == 0
    assert all(after.first_step == before.first_step + before.steps for before, after in itertools.pairwise(cuts))


def test_timelines_of_log_and_memory_are_equal() -> None:
    """Also with pieces in which nothing was measured, as the loop and the sampling thread were elsewhere."""
    from profiler.report.document import document

    with Profiler("pieces", interval=3600, settings={"slice_s": 3600}) as prof:
        wait_for_ticks(prof)
        for _ in prof.epochs(2):
            for number, _ in enumerate(prof.train([0] * 12)):
                time.sleep(0.002)
                if number % 3 == 0:
                    prof.session.slices._close_at(prof.session._now(), is_piece=True)
                    prof.session.slices._close_at(prof.session._now(), is_piece=True)
                if number % 4 == 3:
                    prof.session.timer.ask_for_slice()
    told = prof.summary.to_dict()["timeline"]
    assert near(document(recorded())["timeline"], told) and len(told) > 4


def test_long_step_without_readings_has_its_whole_slice() -> None:
    with Profiler("gap", interval=3600, settings={"slice_s": 0.1}) as prof:
        wait_for_ticks(prof)
        for _ in prof.epochs(1):
            for _ in prof.train([0] * 4):
                time.sleep(0.5)
    for cuts in (recorded().slices, prof.session.run.slices):
        long = [cut for cut in cuts if "train" in cut.stages and cut.stages["train"].steps]
        assert len(long) >= 3 and all(cut.duration_ns > 4e8 for cut in long[:3])


def test_hang_in_the_first_validation_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("profiler.records.run.STALLED_NS", 10**8)
    with Profiler("val", interval=0.05, settings=QUICK) as prof:
        for _ in prof.epochs(1):
            for _ in prof.train([0] * 30):
                time.sleep(0.002)
            for _ in prof.validate([0]):
                with prof.phase("forward"):
                    wait_for(lambda: (seen := recorded().open_step) is not None and seen.is_stalled)
                    seen = recorded().open_step
                    assert seen is not None and (seen.stage, seen.phase) == ("val", "forward")


STRUCK = """
import collections, random, signal, sys
from profiler import Profiler
rng, struck, at = random.Random(1), None, collections.Counter()
def strikes(number, frame):
    global struck
    names = []
    while frame:
        names.append(frame.f_code.co_name)
        frame = frame.f_back
    if {"close_slice", "take", "exceed", "fold"} & set(names):
        struck = names[0]
        raise KeyboardInterrupt
    signal.setitimer(signal.ITIMER_REAL, rng.uniform(2e-5, 4e-4))
signal.signal(signal.SIGALRM, strikes)
hits = 0
while hits < 12:
    steps = phases = 0
    struck, prof = None, Profiler("struck", settings={"slice_s": 0.005, "local": False}, interval=60)
    try:
        with prof:
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.004, 0.014))
            for _ in prof.train(iter(int, 1)):
                steps += 1
                with prof.phase("f"):
                    phases += 1
    except KeyboardInterrupt:
        hits += 1
        at[struck] += 1
    train = prof.summary.to_dict()["stages"]["train"]
    assert prof.summary.state == "interrupted"
    assert abs(train["steps"] - steps) <= 1 and abs(train["step"]["count"] - steps) <= 1, (struck, train["step"], steps)
    assert abs(train["phases"]["f"]["count"] - phases) <= 1, (struck, train["phases"]["f"], phases)
print(dict(at))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32" or sys.version_info < (3, 11), reason="needs setitimer; 3.10 strikes anywhere")
def test_ctrl_c_within_the_closing_of_slices() -> None:
    answer = python("-c", STRUCK)
    assert (answer.code, answer.err) == (0, ""), answer.err
