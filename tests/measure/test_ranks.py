"""Ranks of torch.distributed: real processes over gloo, one of them slow, one of them killed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from profiler.config.paths import runs_path
from profiler.measure import ranks as module
from profiler.measure.ranks import gathered, place_from
from profiler.records.run import MEDIANS, EpochRecord, Run
from profiler.records.timing import Timing
from profiler.report import stragglers
from profiler.report.text import text
from profiler.report.verdict import judge
from profiler.storage.run_log import run_paths
from profiler.storage.run_reader import find, load
from support.processes import PATIENT, epochmeter, free_port

torch = pytest.importorskip("torch")

TRAINING = """
import os, sys, time
import torch
import torch.distributed as dist
from torch import nn

{before}
dist.init_process_group("gloo")
rank, slow, busy = dist.get_rank(), int(os.environ.get("SLOW", "-1")), int(os.environ.get("BUSY", "-1"))
torch.manual_seed(0)
torch.set_num_threads(1)

class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 160
    def __getitem__(self, index):
        if rank == slow:
            time.sleep(0.003)
        return torch.full((8,), index / 160), torch.ones(1)

data = Data()
model = nn.parallel.DistributedDataParallel(nn.Linear(8, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
loader = torch.utils.data.DataLoader(data, batch_size=10, sampler=torch.utils.data.distributed.DistributedSampler(data))

def epoch(batches):
    for x, y in batches:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        if rank == busy:
            time.sleep(0.02)
        optimizer.step()
    return loss.item()

{loop}
"""
TOLD = TRAINING.format(
    before="from profiler import Profiler",
    loop="""
way = "auto" if os.environ.get("DISTRIBUTED", str(rank)) == str(rank) else False
with Profiler("ranks", epochs=3, exporter="none", distributed=way) as prof:
    prof.attach(model, optimizer)
    for index in prof.epochs():
        try:
            epoch(prof.train(loader))
        except RuntimeError:  # a rank has died
            break
        if os.environ.get("DIES") == f"{rank}.{index}":
            os.kill(os.getpid(), 9)
    began = time.monotonic()
print(round(time.monotonic() - began, 2))
if os.environ.get("SHOW") and rank == 0:
    print(prof.summary)
""",
)
UNCHANGED = TRAINING.format(
    before="", loop="""sys.stdout.write(f"{[epoch(loader) for _ in range(3)]}\\n")\ndist.destroy_process_group()\n"""
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def ranks(size: int, script: str, **environment: str) -> list[tuple[int, str, str]]:
    """Run the script in so many processes, and return their exit codes and output."""
    Path("train.py").write_text(script, encoding="utf-8")
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    where.update(WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(size))
    started = [
        subprocess.Popen(
            [sys.executable, "train.py"],
            env={**os.environ, **PATIENT, **where, "RANK": str(rank), "LOCAL_RANK": str(rank), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    said = [process.communicate(timeout=100) for process in started]
    return [(process.returncode, out, err) for process, (out, err) in zip(started, said, strict=True)]


def recorded() -> dict[int | None, Run]:
    return {run.rank: run for run in (load(path) for path in run_paths(runs_path()))}


@pytest.mark.proof
class TestRealRanks:
    @pytest.mark.parametrize(("size", "slow"), [(2, 1), (4, 2)])
    def test_the_slow_one_is_found_and_named(self, size: int, slow: int) -> None:
        ended = ranks(size, TOLD, SLOW=str(slow), SHOW="1")
        assert [code for code, _, _ in ended] == [0] * size, ended
        runs = recorded()
        assert sorted(runs) == list(range(size))  # type: ignore[type-var]
        assert {run.world_size for run in runs.values()} == {size}
        table = stragglers.rank_table(runs[0])
        assert (table["world_size"], table["epochs"]) == (size, 3)
        assert table["stages"]["train"]["phases"]["data_wait"]["slowest"]["rank"] == slow
        (wait,) = table["waits"]
        assert (wait["rank"], wait["phase"], wait["waited_in"]) == (slow, "data_wait", "backward")
        for rank, run in runs.items():  # what each told is what it measured itself, to what a float of seconds holds
            mine = run.whole().stages["train"].phases
            told = runs[0].outside.ranks[rank]["train"].phases  # type: ignore[index]
            for phase in ("data_wait", "forward", "backward", "optimizer"):
                assert told[phase] == pytest.approx(mine[(phase,)].total_ns, abs=10)
        assert len({run.job for run in runs.values()}) == 1 and re.fullmatch("[0-9a-f]{12}", runs[0].job)
        assert {run.node for run in runs.values()} == {0}
        assert f"rank {slow} was behind in train" in ended[0][1]
        assert not runs[0].notes
        assert find(runs_path()).name.endswith(f"{runs[0].id}.otlp.jsonl")  # `report` shows the first rank

    def test_one_whose_own_code_is_slow(self) -> None:
        ended = ranks(2, TOLD, BUSY="1")
        assert [code for code, _, _ in ended] == [0, 0], ended
        run = recorded()[0]
        (wait,) = stragglers.rank_table(run)["waits"]
        assert (wait["rank"], wait["phase"], wait["waited_in"]) == (1, "other", "backward")
        found = judge(run)
        assert found.kind == "rank-bound" and found.findings[0].share > 0.5
        assert "rank 1 was" in found.evidence[0] and "behind in its own code (in no phase)" in found.evidence[0]

    def test_a_killed_one_is_survived_and_named(self) -> None:
        ended = ranks(4, TOLD, DIES="2.1", SHOW="1")
        assert [code for code, _, _ in ended] == [0, 0, -9, 0], ended
        assert float(ended[0][1].split()[0]) < 3  # the end waited for the dead one for a second at most
        table = stragglers.rank_table(recorded()[0])
        assert table["missing"] == [2]
        assert table["epochs"] == 1  # all four told of the first one; the second was not over for the one that died in it
        assert "no word in the end from rank 2" in ended[0][1]

    def test_one_that_profiles_alone_waits_for_nobody(self) -> None:
        ended = ranks(2, TOLD, DISTRIBUTED="0")
        assert [code for code, _, _ in ended] == [0, 0], ended
        assert float(ended[0][1]) < 3
        assert stragglers.rank_table(recorded()[0])["missing"] == [1]

    def test_unwanted_ranks_know_nothing_of_others(self) -> None:
        ranks(2, TOLD, DISTRIBUTED="off")
        assert not any(run.outside.ranks or run.job for run in (load(path) for path in run_paths(runs_path())))

    def test_off_keeps_it_on_this_machine(self) -> None:
        ranks(2, TOLD, EPOCHMETER_SYNC="0", LOCAL_WORLD_SIZE="1")  # as if the other rank were on another machine
        assert not any(run.outside.ranks or run.job for run in recorded().values())

    @pytest.mark.parametrize("front", [True, False])
    def test_under_torchrun_the_script_is_unchanged(self, front: bool) -> None:
        Path("train.py").write_text(UNCHANGED, encoding="utf-8")
        launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
        environment = {**os.environ, **PATIENT, "SLOW": "1"}
        bare = subprocess.run([sys.executable, *launcher, "train.py"], capture_output=True, text=True, env=environment)
        before = ["-m", "profiler.cli", "run", "--name", "ddp"]
        command = [*before, "--", sys.executable, *launcher] if front else [*launcher, *before]
        measured = subprocess.run([sys.executable, *command, "train.py"], capture_output=True, text=True, env=environment)
        assert (measured.returncode, sorted(measured.stdout.splitlines())) == (0, sorted(bare.stdout.splitlines())), measured
        runs = recorded()
        assert sorted(runs) == [0, 1]  # type: ignore[type-var]
        assert {run.name for run in runs.values()} == {"ddp"}
        assert (len(runs[0].outside.ranks), runs[0].outside.rank_epochs) == (2, 3)
        assert measured.stderr.count("verdict ") == 1  # the first rank's report alone
        assert "rank 1 was behind in train" in measured.stderr
        for run in runs.values():
            stage = run.whole().stages["train"]
            assert 0 <= stage.other_ns < 0.1 * stage.duration_ns

    def test_processes_that_the_script_spawns_itself(self) -> None:
        head, _, body = UNCHANGED.partition("dist.init_process_group")
        script = head + "def train(index):\n    os.environ['RANK'] = str(index)\n"
        script += "".join(f"    {line}\n" for line in ("dist.init_process_group" + body).splitlines())
        script += "\nif __name__ == '__main__':\n    torch.multiprocessing.spawn(train, nprocs=2)\n"
        Path("train.py").write_text(script, encoding="utf-8")
        environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
        measured = epochmeter("run", "train.py", **PATIENT, **environment)
        assert measured.code == 0, measured.err
        assert sorted(run.rank for run in map(load, run_paths(runs_path())) if run.epochs) == [0, 1]  # type: ignore[type-var]
        assert measured.err.count("verdict ") == 1
        assert "train, 2 ranks" in measured.err

    def test_the_list_of_runs_tells_the_rank(self) -> None:
        ranks(2, TOLD)
        listed = epochmeter("runs", "--json").json
        assert sorted(run["rank"] for run in listed) == [0, 1]
        assert "1 of 2" in epochmeter("runs").out


class TestTheTable:
    def run(self, *epochs: dict[int, dict[str, float]], size: int = 3) -> Run:
        """Return a run whose ranks reported these phases (s)."""
        run = Run("0" * 12, "table", 1, world_size=size, rank=0)
        told: dict[int, dict[int, Any]] = {rank: {} for rank in range(size)}
        for rank, ring in told.items():
            mine: list[Any] = [0, {}]
            for index, epoch in enumerate(epochs, 1):
                for phase, spent in epoch.get(rank, {}).items():
                    mine[0] += round(spent * 1e9)
                    mine[1][phase] = mine[1].get(phase, 0) + round(spent * 1e9)
                if rank in epoch:
                    ring[index] = {"train": [mine[0], dict(mine[1])]}
        found = gathered({rank: ring for rank, ring in told.items() if ring}, size)
        run.outside.ranks, run.outside.rank_epochs, run.outside.rank_missing = found.ranks, found.epochs, found.missing
        return run

    def test_slowest_median_and_fastest(self) -> None:
        second = {0: {"forward": 1.0}, 1: {"forward": 1.0}, 2: {"forward": 1.0}}
        run = self.run({0: {"forward": 1}, 1: {"forward": 4}, 2: {"forward": 2}}, second)
        spread = stragglers.rank_table(run)["stages"]["train"]["phases"]["forward"]
        assert spread == {"slowest": {"rank": 1, "total_s": 5}, "median_s": 3, "fastest": {"rank": 0, "total_s": 2}}

    def test_who_waited_for_whom(self) -> None:
        told = {0: {"forward": 1, "backward": 5.0}, 1: {"forward": 4, "backward": 2.0}, 2: {"forward": 1, "backward": 5.0}}
        (wait,) = stragglers.rank_table(self.run(told))["waits"]
        assert wait == {"stage": "train", "rank": 1, "phase": "forward", "behind_s": 3, "waited_in": "backward", "waited_s": 3}
        assert "rank 1 was behind in train: 3.00s more in forward" in text(self.run(told))

    def test_of_two_the_one_that_is_waited_for(self) -> None:
        told = {0: {"data_wait": 0, "backward": 3.0}, 1: {"data_wait": 3, "backward": 0.0}}
        (wait,) = stragglers.rank_table(self.run(told, size=2))["waits"]
        assert (wait["rank"], wait["phase"]) == (1, "data_wait")

    def test_time_in_no_phase_counts(self) -> None:
        usual = {"forward": 1.0, "backward": 5.0}
        run = self.run({0: usual, 1: {"forward": 1, "backward": 2, "own": 3}, 2: usual})
        for stages in run.outside.ranks.values():
            stages["train"].phases.pop("own", None)
        (wait,) = stragglers.rank_table(run)["waits"]
        assert (wait["rank"], wait["phase"], wait["behind_s"]) == (1, "other", 3)
        assert "rank 1 was behind in train: 3.00s more in its own code (in no phase) than the others" in " ".join(
            text(run).split()
        )

    def test_little_differences_are_nobodys_fault(self) -> None:
        told = {0: {"forward": 1.0, "backward": 5.02}, 1: {"forward": 1.02, "backward": 5.0}, 2: {"forward": 1, "backward": 5}}
        assert stragglers.rank_table(self.run(told))["waits"] == []

    def test_slow_rank_that_nobody_waits_for(self) -> None:
        told = {0: {"checkpoint": 9.0, "backward": 5}, 1: {"checkpoint": 0, "backward": 5}, 2: {"checkpoint": 0, "backward": 5}}
        assert stragglers.rank_table(self.run(told))["waits"] == []

    def test_nothing_was_told(self) -> None:
        assert stragglers.rank_table(self.run({}, {})) == {}


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({"RANK": "1", "WORLD_SIZE": "4"}, (1, 4)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, None),
        ({"RANK": "4", "WORLD_SIZE": "4"}, None),
        ({"RANK": "x", "WORLD_SIZE": "4"}, None),
        ({"WORLD_SIZE": "4"}, None),
        ({}, None),
    ],
)
def test_what_a_launcher_says(variables: dict[str, Any], found: Any) -> None:
    assert place_from(variables) == found


class Store:
    """A store of torch.distributed in this process, which counts what it is asked."""

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}
        self.asked = 0

    def set(self, key: str, value: str) -> None:
        self.asked += 1
        self.held[key] = value.encode()

    def add(self, key: str, number: int) -> int:
        self.asked += 1
        found = int(self.held.get(key, b"0")) + number
        self.held[key] = str(found).encode()
        return found

    def check(self, keys: list[str]) -> bool:
        self.asked += 1
        return all(key in self.held for key in keys)

    def multi_get(self, keys: list[str]) -> list[bytes]:
        self.asked += 1
        return [self.held[key] for key in keys]

    def compare_set(self, key: str, expected: str, wanted: str) -> bytes:
        self.asked += 1
        return self.held.setdefault(key, wanted.encode())


def joined(store: Store, size: int, monkeypatch: pytest.MonkeyPatch) -> list[module.Ranks]:
    """Return the ends of so many ranks, as if each were in its own process."""
    ends = []
    for rank in range(size):
        monkeypatch.setattr(module, "_runs", {})
        ends.append(module.Ranks(store, rank, size, "job"))
    return ends


def epoch_of(rank: int, index: int) -> EpochRecord:
    record = EpochRecord(index)
    stage = record.stage("train")
    for phase, spent in (("data_wait", 1000 + rank), ("forward", 5000), ("backward", 9000 - rank)):
        stage.phases[phase,] = Timing()
        stage.phases[phase,].steady.add([spent])
        stage.duration_ns += spent
    return record


def test_waiting_is_bounded_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others' words never come."""
    monkeypatch.setattr(module, "PATIENCE_S", 0.1)
    first = module.Ranks(Store(), 0, 2, "alone")
    first.publish(EpochRecord(0))
    assert first.gather().missing == [1]
    began = time.monotonic()
    first.finish()
    assert time.monotonic() - began < 1
    assert first.gather() == (1, [1], {0: {}})


def test_the_store_does_not_grow_with_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store()
    ends = joined(store, 8, monkeypatch)
    sizes = []
    for index in range(200):
        for rank, end in enumerate(ends):
            end.publish(epoch_of(rank, index))
        sizes.append((len(store.held), sum(map(len, store.held.values()))))
    assert sizes[10][0] == sizes[-1][0] <= 8 + 3
    assert sizes[-1][1] < 1.3 * sizes[10][1]  # numbers have more digits
    epochs, missing, told = ends[0].gather()
    assert (epochs, missing, len(told)) == (200, [], 8)
    assert told[5]["train"].phases["data_wait"] == 200 * 1005
    assert len({end.job for end in ends}) == 1


def test_many_ranks_cost_few_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when one of them never says a word, and one has died."""
    store = Store()
    ends = joined(store, 3000, monkeypatch)
    for index in range(3):
        for rank, end in enumerate(ends):
            if rank != 1234 and not (rank == 77 and index == 2):
                end.publish(epoch_of(rank, index))
        store.asked = 0
        found = ends[0].gather()
        assert store.asked < (60 if index == 0 else 10)
    assert found.missing == [77, 1234] and found.epochs == 3 and len(found.ranks) == 2998
    kept = module.notable(found.ranks)
    assert len(kept) <= 40 and kept[MEDIANS]["train"].phases["forward"] == 15_000
    run = Run("r", "r", 0, rank=0, world_size=3000)
    run.outside.ranks, run.outside.rank_epochs, run.outside.rank_missing = kept, found.epochs, found.missing
    spread = stragglers.rank_table(run)["stages"]["train"]["phases"]["data_wait"]
    assert spread["slowest"]["rank"] == 2999 and spread["fastest"]["rank"] == 0
    assert spread["median_s"] == pytest.approx(3 * 2500e-9, rel=0.01)


def test_ranks_are_compared_at_their_common_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = joined(Store(), 3, monkeypatch)
    for rank, epochs in ((0, 5), (1, 4), (2, 3)):
        for index in range(epochs):
            ends[rank].publish(epoch_of(rank, index))
    epochs, missing, told = ends[0].gather()
    assert (epochs, missing, sorted(told)) == (3, [1, 2], [0, 1, 2])
    assert {rank: stages["train"].phases["forward"] for rank, stages in told.items()} == dict.fromkeys(range(3), 15_000)


@pytest.mark.parametrize(
    ("variables", "node"),
    [
        ({"GROUP_RANK": "3", "LOCAL_WORLD_SIZE": "8"}, 3),
        ({"LOCAL_WORLD_SIZE": "8"}, 2),
        ({}, None),
        ({"LOCAL_WORLD_SIZE": "0"}, None),
        ({"GROUP_RANK": "x"}, None),
    ],
)
def test_the_node_is_a_number(variables: dict[str, str], node: int | None) -> None:
    assert module.node_from(variables, 17) == node
