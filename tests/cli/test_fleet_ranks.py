"""64 real processes under torchrun are one job of one table, and the slow one among them is found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from profiler.config.paths import runs_path
from support.processes import free_port

pytest.importorskip("torch")
pytest.importorskip("duckdb")
from profiler import fleet
from profiler.fleet.loading import load_logs, logs_in
from profiler.fleet.parquet import ParquetFleet

TRAIN = """
import time, torch, torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from profiler import Profiler
torch.set_num_threads(1)
dist.init_process_group("gloo")
net = DistributedDataParallel(nn.Linear(8, 8))
optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
with Profiler("ranks", interval=1.0) as prof, prof.attach(net, optimizer):
    for _ in prof.epochs(3):
        for x in prof.train([torch.randn(4, 8) for _ in range(5)]):
            if dist.get_rank() == 37:
                time.sleep(0.3)
            optimizer.zero_grad()
            net(x).sum().backward()
            optimizer.step()
dist.destroy_process_group()
"""


@pytest.mark.proof
@pytest.mark.timeout(600)
def test_64_ranks_are_one_job(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TRAIN)
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "64", "--master-port", str(free_port())]
    ended = subprocess.run([sys.executable, *launcher, str(tmp_path / "train.py")], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    told = load_logs(logs_in([runs_path()]), ParquetFleet(tmp_path / "fleet"))
    assert told.logs == 64 and not told.bad
    found = fleet.open(tmp_path / "fleet")
    (sums,) = found.sql(
        "SELECT count(DISTINCT job) AS jobs, count(DISTINCT rank) AS ranks, sum(steps) AS n FROM fleet_epoch"
    ).to_pylist()
    assert sums == {"jobs": 1, "ranks": 64, "n": 64 * 15}
    first = found.stragglers().to_pylist()[0]
    assert (first["rank"], first["ranks"], first["waited_in"]) == (37, 64, "backward")
    assert {row["cause"]: row for row in found.waste().to_pylist()}["ranks"]["share"] > 0.1
