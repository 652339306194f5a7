"""``epochmeter whatif``: the table, the proof by running steps again, and what it refuses."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from profiler import Profiler
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
    if proof["outcome"] != "cannot tell":  # beside other tests, runs of a second differ much
        low, high = proof["interval"]  # wide where a disk is slow at times: then the prediction has to lie in it
        assert min(low, proof["measured"] - 0.12) <= proof["predicted"] <= max(high, proof["measured"] + 0.12), answer.json


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


@pytest.mark.slow
def test_a_cached_batch_needs_no_workers() -> None:
    pytest.importorskip("torch")
    answer = python("-c", CACHED)
    assert answer.code == 0, answer.err
