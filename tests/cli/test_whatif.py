"""``epochmeter whatif``: the table, the proof by running steps again, and what it refuses."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from profiler import Profiler
from profiler.report.whatif import WhatIf
from profiler.session.proof import Proof, Share
from support.processes import epochmeter, python

LOOPS = str(Path(__file__).parents[1] / "support" / "known_loops.py")


def record(script: str, *arguments: str) -> str:
    answer = epochmeter("run", "--quiet", script, *arguments)
    assert answer.code == 0, answer.err
    (listed,) = epochmeter("runs", "--json").json
    found: str = listed["id"]
    return found


def test_table_of_a_run(home: Path) -> None:
    with Profiler("waits") as prof:
        for _ in prof.epochs(4):
            for _ in prof.train(time.sleep(0.002) for _ in range(10)):
                time.sleep(0.001)
    answer = epochmeter("whatif")
    assert answer.code == 0 and "no waiting for data" in answer.out and "95 % interval" in answer.out
    (row,) = (row for row in epochmeter("whatif", "last", "--json").json["whatif"] if row["key"] == "data_wait")
    assert 0.3 < row["saved"] < 0.95 and row["interval"][0] <= row["saved"] <= row["interval"][1]
    assert row["then_s"] == pytest.approx(row["now_s"] * (1 - row["saved"]))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nosuchrun",), "there is no run 'nosuchrun'"),
        (("last", "train.py"), "is run again with --prove alone"),
        (("ffffffffffff",), "there is no run 'ffffffffffff'"),
        (("last", "--prove"), "was not recorded by 'epochmeter run'"),
        (("last", "--rounds", "0"), "--rounds"),
    ],
)
def test_bad_input_is_told(arguments: tuple[str, ...], says: str) -> None:
    with Profiler("code") as prof:
        for _ in prof.train(range(10)):
            pass
    answer = epochmeter("whatif", *arguments)
    assert answer.code == 2 and says in answer.err and "Traceback" not in answer.err


def test_no_run_at_all() -> None:
    answer = epochmeter("whatif")
    assert answer.code == 2 and "epochmeter demo" in answer.err


@pytest.mark.slow
def test_proof_needs_the_script(tmp_path: Path) -> None:
    script = tmp_path / "nothing.py"
    script.write_text("import torch\n")
    run = record(str(script))
    answer = epochmeter("whatif", run, "--prove")
    assert answer.code == 2 and "the script and its own" in answer.err
    answer = epochmeter("whatif", run, "--prove", "--", str(script))
    assert answer.code == 2 and "no training step" in answer.err


@pytest.mark.proof
@pytest.mark.timeout(400)  # seven runs of up to half a minute each on a slow machine
@pytest.mark.parametrize(
    ("kind", "key"),
    [("collate", "data_wait"), ("busy loader", "data_wait"), ("collections", "collection"), ("checkpoints", "checkpoint")],
)
def test_proof_agrees_with_prediction(kind: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = record(LOOPS, kind, "plain")
    answer = python("-m", "profiler.cli", "whatif", run, "--prove", "--json", "--", LOOPS, kind, "plain", timeout=300)
    assert answer.code == 0, answer.err
    (proof,) = (proof for proof in answer.json["proofs"] if proof["key"] == key)
    # A disk that was slower or faster in the record is told, and no fault of the prediction: the runs of the same minute count.
    assert proof["outcome"] in ("as predicted", "changed since the record", "cannot tell"), answer.json
    if proof["outcome"] != "cannot tell":
        (low, high), (least, most) = proof["interval"], proof["again_interval"]
        assert min(low, proof["measured"] - 0.12) <= most and least <= max(high, proof["measured"] + 0.12), answer.json


CACHED = """
import sys, torch
from torch.utils.data import DataLoader, IterableDataset
from profiler.session.proof_changes import install

class Counting(torch.utils.data.Dataset):
    made = 0
    def __len__(self): return 40
    def __getitem__(self, index):
        Counting.made += 1
        return torch.tensor([index])

class Endless(IterableDataset):
    def __iter__(self): return iter(range(12))

install({"change": "data_wait", "steps": 10**6})
for more in ({}, {"num_workers": 2, "timeout": 5}, {"num_workers": 2, "persistent_workers": True}):
    Counting.made = 0
    loader = DataLoader(Counting(), batch_size=4, **more)
    for epoch in range(3):
        batches = list(loader)
        assert len(batches) == len(loader) == 10, len(batches)
        assert all(batch is batches[0] for batch in batches)
    assert Counting.made == 4, Counting.made  # one batch, in this process
    assert loader.num_workers == more.get("num_workers", 0) and loader.timeout == more.get("timeout", 0)
handed = iter(DataLoader(Endless(), batch_size=4))
assert len([next(handed) for _ in range(50)]) == 50
"""


EPOCH_ENDS = """
import torch
from profiler.session.proof_changes import install

install({"change": "none", "steps": 6})
net = torch.nn.Linear(1, 1)
optimizer = torch.optim.SGD(net.parameters())
for epoch in range(5):
    for _ in range(3):
        optimizer.step()
    print("saved", epoch, flush=True)
"""


@pytest.mark.slow
def test_the_last_epoch_keeps_its_end() -> None:
    pytest.importorskip("torch")
    answer = python("-c", EPOCH_ENDS)
    assert answer.code == 0 and answer.out.split("\n")[:-1] == ["saved 0", "saved 1"], answer.err


@pytest.mark.parametrize(
    ("again", "measured", "outcome"),
    [
        ((0.3, 0.28, 0.32), (0.35, 0.31, 0.39), "as predicted"),
        ((0.6, 0.55, 0.65), (0.6, 0.56, 0.64), "changed since the record"),
        ((0.3, 0.28, 0.32), (0.6, 0.56, 0.64), "not as predicted"),
        ((0.3, 0.28, 0.32), (0.3, 0.0, 0.6), "cannot tell"),
    ],
)
def test_outcome_of_a_proof(again: tuple[float, ...], measured: tuple[float, ...], outcome: str) -> None:
    predicted = WhatIf("checkpoint", "checkpoints in the background", 0.3, 0.25, 0.35, 1.0)
    assert Proof(predicted, Share(*again), Share(*measured), 20).outcome.partition(":")[0] == outcome


@pytest.mark.slow
def test_a_cached_batch_needs_no_workers() -> None:
    pytest.importorskip("torch")
    answer = python("-c", CACHED)
    assert answer.code == 0, answer.err
