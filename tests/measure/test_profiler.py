"""Class Profiler as a user meets it: epochs, stages, the summary, how a run ends, and what happens to bad arguments."""

from __future__ import annotations

import copy
import json
import pickle
import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from profiler import ArgumentTypeError, ArgumentValueError, Phase, Profiler, ProfilerError, SettingsError
from profiler.report.document import document
from profiler.storage.run_log import run_paths
from profiler.storage.run_reader import find, load
from support.processes import wait_for, wait_for_ticks


def quick(name: str = "test", **options: Any) -> Profiler:
    return Profiler(name, **{"interval": 0.05, **options})


def saved(home: Path) -> dict[str, Any]:
    return document(load(run_paths(home / "runs")[0]))


def test_times_are_true(home: Path) -> None:
    with quick() as prof:
        for _ in prof.epochs(2):
            for _ in prof.train(range(5)):
                with prof.phase(Phase.FORWARD):
                    time.sleep(0.004)
                    with prof.phase("attention"):
                        time.sleep(0.010)
                time.sleep(0.006)
    for epoch in prof.summary.epochs:
        (stage,) = epoch["stages"]
        phases = stage["phases"]
        # sleep may take longer than asked, never shorter; all that it took is told once
        assert 0.070 <= phases["forward"]["total_s"] < 0.5
        assert 0.050 <= phases["forward"]["phases"]["attention"]["total_s"] <= phases["forward"]["total_s"]
        assert 0.020 <= phases["forward"]["self_s"] < 0.4
        assert 0.030 <= phases["other"]["total_s"] < 0.4
        parts = phases["data_wait"]["total_s"] + phases["forward"]["total_s"] + phases["other"]["total_s"]
        assert parts == pytest.approx(stage.get("call_time_s", stage["duration_s"]), abs=1e-9)
        assert stage["duration_s"] <= epoch["duration_s"]


def test_epochs_have_their_stages(home: Path) -> None:
    with quick(epochs=3) as prof:
        for epoch in prof.epochs():
            assert list(prof.train(range(4))) == [0, 1, 2, 3]
            assert sum(prof.validate([1, 2, 3])) == 6
            with prof.phase("checkpoint"):
                pass
            assert epoch in (0, 1, 2)
        for _ in prof.infer("ab"):
            pass
    summary = prof.summary
    assert [epoch["index"] for epoch in summary.epochs] == [0, 1, 2]
    assert [[stage["stage"] for stage in epoch["stages"]] for epoch in summary.epochs] == [["train", "val"]] * 3
    assert {name: stage["steps"] for name, stage in summary.stages.items()} == {"train": 12, "val": 9, "inference": 2}
    assert summary.epochs[0]["phases"]["checkpoint"]["count"] == 1
    assert summary.to_dict()["phases"]["checkpoint"]["count"] == 3
    assert summary.state == "finished"


def test_what_is_saved_is_what_the_summary_says(home: Path) -> None:
    with quick() as prof:
        for _ in prof.epochs(2):
            for _ in prof.train(range(30)):
                with prof.phase("mine"), prof.phase(Phase.LOSS):
                    pass
        wait_for_ticks(prof)
        time.sleep(0.1)  # a share of CPU time is of 50 ms at least
    told, kept = prof.summary.to_dict(), saved(home)
    assert told == json.loads(json.dumps(kept))
    assert told["hardware"]["runtime"]["python"]
    assert {reading["metric"] for reading in told["readings"]} >= {"process.cpu.utilization", "process.memory.usage"}


def test_training_passes_become_epochs(home: Path) -> None:
    with quick() as prof:
        for _ in range(3):
            list(prof.train(range(2)))
            list(prof.validate(range(1)))
    epochs = prof.summary.epochs
    assert [epoch["index"] for epoch in epochs] == [0, 1, 2]
    assert all(epoch["inferred"] for epoch in epochs)
    assert [len(epoch["stages"]) for epoch in epochs] == [2, 2, 2]


def test_two_loaders_at_once_are_one_inferred_epoch(home: Path) -> None:
    with quick() as prof:
        list(zip(prof.train(range(3)), prof.train(range(3)), strict=True))
    assert len(prof.summary.epochs) == 1
    assert prof.summary.stages["train"]["steps"] == 6


def test_passes_after_last_epoch_belong_to_run(home: Path) -> None:
    with quick() as prof:
        for _ in prof.epochs(1):
            list(prof.train(range(2)))
        list(prof.validate(range(3)))
        list(prof.train(range(5)))
    assert len(prof.summary.epochs) == 1
    assert prof.summary.stages["val"]["steps"] == 3
    assert prof.summary.stages["train"]["steps"] == 7


def test_resumed_epochs_keep_their_numbers(home: Path) -> None:
    with quick() as prof:
        assert list(prof.epochs(range(5, 7))) == [5, 6]
        assert list(prof.epochs(["a", "b"])) == ["a", "b"]
        assert len(prof.epochs(range(5, 7))) == 2
    assert [epoch["index"] for epoch in prof.summary.epochs] == [5, 6, 2, 3]


def test_break_completes_the_open_epoch(home: Path) -> None:
    with quick() as prof:
        for epoch in prof.epochs(10):
            list(prof.train(range(2)))
            if epoch == 1:
                break
        list(prof.validate(range(1)))
    assert [epoch["index"] for epoch in prof.summary.epochs] == [0, 1]
    assert prof.summary.stages["val"]["steps"] == 1


def test_length_and_attributes_are_the_loaders_own(home: Path) -> None:
    class Loader(list):  # type: ignore[type-arg]
        sampler = "random"

    with quick() as prof:
        wrapped = prof.train(Loader([1, 2, 3]))
        assert len(wrapped) == 3
        assert wrapped.sampler == "random"
        assert list(wrapped) == list(wrapped) == [1, 2, 3]
        with pytest.raises(TypeError, match="has no len"):
            len(prof.train(iter([1])))
        with pytest.raises(AttributeError):
            _ = wrapped.nothing


def test_samples(home: Path) -> None:
    with quick() as prof:
        list(prof.train(range(3), samples=32))
        list(prof.validate(["ab", "cde"], samples=len))
        list(prof.infer(range(3)))
    stages = prof.summary.stages
    assert stages["train"]["samples"] == 96
    assert stages["val"]["samples"] == 5
    assert stages["train"]["samples_per_s"] > 0
    assert "samples" not in stages["inference"]  # not known is not 0


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (ValueError("x"), "crashed"),
        (KeyboardInterrupt(), "interrupted"),
        (SystemExit(0), "finished"),
        (SystemExit(1), "crashed"),
    ],
)
def test_user_exception_passes_and_sets_state(home: Path, error: BaseException, state: str) -> None:
    with pytest.raises(type(error)) as caught, quick() as prof:
        for _ in prof.epochs(3):
            for _ in prof.train(range(3)):
                raise error
    assert caught.value is error
    assert prof.summary.state == saved(home)["run"]["state"] == state
    assert prof.summary.epochs[0]["stages"][0]["partial"] is True


def test_start_and_stop(home: Path) -> None:
    prof = quick()
    assert prof.start() is prof
    prof.start()
    list(prof.train(range(3)))
    prof.stop()
    prof.stop()
    assert list(prof.train(range(3))) == [0, 1, 2]  # passed through, measured no more
    assert list(prof.epochs(2)) == [0, 1]
    with prof.phase("late"):
        pass
    assert prof.summary.stages["train"]["steps"] == 3
    with pytest.raises(ProfilerError, match="make a new Profiler"):
        prof.start()


def test_first_pass_starts_the_run(home: Path) -> None:
    prof = quick()
    list(prof.train(range(3)))
    prof.stop()
    assert saved(home)["stages"]["train"]["steps"] == 3


def test_the_summary_of_a_run_that_goes_on(home: Path) -> None:
    with quick() as prof:
        for _ in prof.epochs(2):
            list(prof.train(range(4)))
            now = prof.summary
            assert now.state == "running"
        assert now.stages["train"]["steps"] == 8
        assert len(now.epochs) == 2
    assert prof.summary.stages["train"]["steps"] == 8


def test_the_summary_prints_as_tables(home: Path) -> None:
    with quick("digits") as prof:
        for _ in prof.epochs(1):
            for _ in prof.train(range(9)):
                with prof.phase("[bold]mine"):
                    pass
    text = str(prof.summary)
    for word in ("digits", "epoch", "data_wait", "[bold]mine", "other", "p99", "verdict"):
        assert word in text
    assert max(map(len, text.splitlines())) <= 100
    assert "\x1b" not in text


def test_inference_under_threads(home: Path) -> None:
    with quick() as prof:

        @prof.inference
        def predict(x: int) -> int:
            with prof.phase("forward"):
                return x + 1

        results: list[int] = []
        threads = [threading.Thread(target=lambda: results.extend(predict(x) for x in range(50))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    stage = prof.summary.stages["inference"]
    assert sorted(results) == sorted([*range(1, 51)] * 4)
    assert (stage["steps"], stage["latency"]["count"], stage["phases"]["forward"]["count"]) == (200, 200, 200)


def test_decorated_function_starts_the_run(home: Path) -> None:
    prof = quick()
    predict = prof.inference(abs)
    assert predict(-3) == 3
    prof.stop()
    assert predict(-4) == 4
    assert saved(home)["stages"]["inference"]["steps"] == 1


def test_a_second_run_beside_the_first(home: Path) -> None:
    with quick("outer") as outer, quick("inner") as inner:
        for _ in outer.train(range(3)):
            for _ in inner.train(range(2)):
                pass
    assert outer.summary.stages["train"]["steps"] == 3
    assert inner.summary.stages["train"]["steps"] == 6
    assert outer.summary.id != inner.summary.id


def test_copies_measure_nothing_and_pass_through(home: Path) -> None:
    with quick() as prof:
        for twin in (pickle.loads(pickle.dumps(prof)), copy.deepcopy(prof)):  # our own bytes
            assert list(twin.train(range(3))) == [0, 1, 2]
            with twin.phase("forward"):
                pass
    assert prof.summary.stages == {}


def test_the_programs_random_numbers_are_its_own(home: Path) -> None:
    random.seed(7)
    expected = random.random()
    random.seed(7)
    with quick() as prof:
        for _ in prof.epochs(2):
            list(prof.train(range(3)))
    assert random.random() == expected


def test_no_thread_is_left(home: Path) -> None:
    before = set(threading.enumerate())
    with quick() as prof:
        extra = set(threading.enumerate()) - before
        assert 1 <= len(extra) <= 2 and all(thread.daemon for thread in extra)
        list(prof.train(range(3)))
        wait_for_ticks(prof, 3)
    wait_for(lambda: set(threading.enumerate()) == before)


def test_names_that_no_encoder_takes(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with quick("half \udcff a name") as prof:
        for _ in prof.train(range(2)):
            with prof.phase("\udcfe"):
                pass
    assert saved(home)["run"]["name"] == prof.summary.name == "half ? a name"
    assert prof.summary.stages["train"]["phases"]["?"]["count"] == 2
    assert capfd.readouterr() == ("", "")


def test_live_says_a_line_an_epoch_on_stderr(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with quick("digits", live=True) as prof:
        for _ in prof.epochs(2):
            list(prof.train(range(2)))
    said = capsys.readouterr()
    assert said.out == ""
    assert [line.split(" in ")[0] for line in said.err.splitlines()] == ["digits: epoch 0", "digits: epoch 1"]


def test_nothing_is_printed_uninvited(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with quick() as prof:
        for _ in prof.epochs(2):
            list(prof.train(range(2)))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"name": 3}, ArgumentTypeError, "a run needs a name"),
        ({"name": ""}, ArgumentValueError, "1 to 200 characters"),
        ({"epochs": 0}, ArgumentValueError, "above 0"),
        ({"epochs": 2.5}, ArgumentTypeError, "whole number"),
        ({"epochs": True}, ArgumentTypeError, "whole number"),
        ({"interval": 0}, ArgumentValueError, "0.01"),
        ({"interval": "1"}, ArgumentTypeError, "seconds"),
        ({"device": "gpu"}, ArgumentValueError, "cuda"),
        ({"distributed": "yes"}, ArgumentValueError, "auto"),
        ({"exporter": 3}, ArgumentTypeError, "MetricExporter"),
        ({"exporter": "oltp"}, SettingsError, "Did you mean 'otlp'"),
        ({"settings": {"snyc": False}}, SettingsError, "Did you mean 'sync'"),
        ({"settings": {"sync": "perhaps"}}, SettingsError, "true or false"),
        ({"settings": 3}, SettingsError, "mapping"),
    ],
)
def test_bad_arguments_are_said_at_once(options: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        Profiler(**{"name": "x", **options})


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda p: p.train(3), ArgumentTypeError, "DataLoader"),
        (lambda p: p.validate(None), ArgumentTypeError, "val loader"),
        (lambda p: p.train([], samples="many"), ArgumentTypeError, "samples"),
        (lambda p: p.train([], samples=-1), ArgumentValueError, "samples"),
        (lambda p: p.epochs(), ArgumentValueError, "how many epochs"),
        (lambda p: p.epochs(-1), ArgumentValueError, "above 0"),
        (lambda p: p.epochs(1.5), ArgumentTypeError, "whole number"),
        (lambda p: p.epochs(object()), ArgumentTypeError, "epochs"),
        (lambda p: p.inference(3), ArgumentTypeError, "function"),
        (lambda p: p.phase(3), ArgumentTypeError, "name"),
        (lambda p: p.phase(["x"]), ArgumentTypeError, "name"),
    ],
)
def test_bad_calls_are_said_at_once(call: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        call(Profiler("x"))


@pytest.mark.parametrize("elsewhere", [False, True])
def test_stop_in_mid_epoch_keeps_its_part(home: Path, elsewhere: bool) -> None:
    """The loop goes on, and nothing of that is measured; from another thread it is the same."""
    prof = Profiler("early", interval=0.05).start()
    done = 0
    for _ in prof.epochs(3):
        for _ in prof.train(range(10)):
            with prof.phase("mine"):
                done += 1
            if done == 14:
                stopping = threading.Thread(target=prof.stop) if elsewhere else None
                if stopping is None:
                    prof.stop()
                else:
                    stopping.start()
                    stopping.join()
                at_stop = prof.summary
    for told in (at_stop.to_dict(), prof.summary.to_dict(), document(load(find(home / "runs")))):
        assert [[stage["steps"] for stage in epoch["stages"]] for epoch in told["epochs"]] == [[10], [4]]
        assert told["stages"]["train"]["phases"]["mine"]["count"] == 14
        assert told["run"]["duration_s"] == at_stop.to_dict()["run"]["duration_s"]
        assert "phases" not in told
