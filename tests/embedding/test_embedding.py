"""Inside somebody else's program: what importing costs, forks, spawned workers, and real training with torch."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

import profiler
from profiler import Phase, Profiler
from profiler.storage.run_log import run_paths
from profiler.storage.run_reader import find, load
from support.processes import python

HEAVY = ("torch", "opentelemetry", "grpc", "psutil", "pynvml", "cpuinfo", "numpy", "rich", "typer", "requests", "filelock")


def test_importing_loads_nothing_heavy() -> None:
    script = "import sys\nbefore = set(sys.modules)\nimport profiler\nprint(*sorted(set(sys.modules) - before))"
    assert set(python("-c", script).out.split()) - {"__future__"} == {"profiler"}


def test_making_a_profiler_loads_nothing_heavy() -> None:
    script = (
        "import sys\nbefore = set(sys.modules)\nfrom profiler import Profiler\nProfiler('x')\nprint(*set(sys.modules) - before)"
    )
    assert not {name.partition(".")[0] for name in python("-c", script).out.split()} & set(HEAVY)


BESIDE = """
import sys, time
from profiler import Profiler
with Profiler("x", interval=0.05) as prof:
    before = set(sys.modules)
    for _ in prof.epochs(2):
        list(prof.train(range(3)))
        time.sleep(0.2)
    print(*sorted(set(sys.modules) - before))
"""


def test_nothing_is_imported_beside_the_loop(home: Path) -> None:
    """An import in the sampling thread holds the loop up, 5 ms at a time: steps of 8 ms were seen to take 13."""
    answer = python("-c", BESIDE)
    assert (answer.code, answer.err) == (0, "")
    late = {name for name in answer.out.split() if name.partition(".")[0] in HEAVY or name.startswith(("profiler", "google"))}
    assert late == set()


def test_the_public_names_are_all_there() -> None:
    assert sorted(profiler.__all__) == profiler.__all__
    for name in profiler.__all__:
        assert getattr(profiler, name) is not None
    assert set(dir(profiler)) == set(profiler.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        _ = profiler.nothing


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_measures_nothing_and_writes_nothing(home: Path) -> None:
    with Profiler("parent", interval=0.05) as prof:
        for _ in prof.epochs(1):
            for step in prof.train(range(4)):
                if step == 1:
                    child = os.fork()
                    if child == 0:
                        with prof.phase("forward"):
                            pass
                        done = list(prof.validate(range(2))) == [0, 1]
                        prof.stop()
                        os._exit(0 if done else 1)
                    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    (path,) = run_paths(home / "runs")
    run = load(path)
    assert run.state == "finished"
    assert set(run.whole().stages) == {"train"}
    assert run.notes == {}


def work(prof: Profiler) -> list[int]:
    with prof.phase("augment"):
        return list(prof.train(range(3)))


@pytest.mark.slow
def test_a_spawned_worker_passes_through(home: Path) -> None:
    with Profiler("parent") as prof, multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(work, (prof,)) == [0, 1, 2]
    assert prof.summary.stages == {}
    assert len(run_paths(home / "runs")) == 1


# ---- real training -------------------------------------------------------------------------------------------------


class Squares:
    """A data set that times a part of itself, as users' do."""

    def __init__(self, prof: Profiler | None) -> None:
        self.prof = prof

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        import torch

        x = torch.full((4,), float(index) / 32)
        if self.prof is None:
            return x, (x**2).sum()
        with self.prof.phase("augment"):
            return x, (x**2).sum()


def losses(prof: Profiler | None, workers: int = 0) -> list[float]:
    import torch

    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = torch.utils.data.DataLoader(Squares(prof), batch_size=8, shuffle=True, num_workers=workers)  # type: ignore[arg-type]
    found = []
    for _ in range(2):
        for x, y in prof.train(loader) if prof else loader:
            loss = ((model(x).squeeze(1) - y) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
    return found


def test_losses_are_the_same_to_the_bit(home: Path) -> None:
    pytest.importorskip("torch")
    bare = losses(None)
    with Profiler("x", interval=0.02) as prof:
        assert losses(prof) == bare
    stage = prof.summary.stages["train"]
    assert (stage["samples"], stage["steps"]) == (64, 8)
    assert stage["phases"]["data_wait"]["phases"]["augment"]["count"] == 64


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_loader_workers(home: Path) -> None:
    pytest.importorskip("torch")
    with Profiler("x", interval=0.02) as prof:
        losses(prof, workers=2)
    stage = prof.summary.stages["train"]
    assert stage["steps"] == 8
    assert "phases" not in stage["phases"]["data_wait"]  # augment took place elsewhere, not in the loop's wait
    assert load(find(home / "runs")).state == "finished"


@pytest.mark.slow
def test_the_demo_learns(home: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    answer = python("-m", "profiler.cli", "demo", "--epochs", "3", COLUMNS="80")
    assert answer.code == 0
    assert "verdict" in answer.out and "validation accuracy 9" in answer.out
    assert max(map(len, answer.out.splitlines())) <= 80
    run = load(find(home / "runs"))
    assert len(run.epochs) == 3
    assert {phase for (phase, *_) in run.whole().stages["train"].phases} == {
        *("data_wait", Phase.TRANSFER, Phase.FORWARD, Phase.BACKWARD, Phase.OPTIMIZER, Phase.METRICS)
    }


def test_the_demo_says_what_it_needs() -> None:
    script = (
        "import sys\nsys.modules['sklearn'] = None\nsys.argv = ['epochmeter', 'demo']\nfrom profiler.cli import main\nmain()"
    )
    answer = python("-c", script)
    assert answer.code == 2
    assert "pip install 'epochmeter[demo]'" in answer.err
