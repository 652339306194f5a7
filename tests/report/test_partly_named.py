"""A loop that names a part of its computing, or attaches no loader: samples of its lines say what the rest is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.processes import epochmeter, python

LOOP = """
import sys, torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from epochmeter import Profiler

torch.set_num_threads(1)
torch.manual_seed(0)
wide = 768 if "wide" in sys.argv else 8
model = nn.Sequential(nn.Linear(64, wide), nn.ReLU(), nn.Linear(wide, wide), nn.ReLU(), nn.Linear(wide, 10))
optimizer = torch.optim.Adam(model.parameters())
data = TensorDataset(torch.randn(1024, 64), torch.randint(0, 10, (1024,)))
loader = DataLoader(data, batch_size=64)

with Profiler("partly") as prof:
    if "attach" in sys.argv:
        prof.attach(model, optimizer)
    for epoch in prof.epochs(12 if "wide" in sys.argv else 300):
        for x, y in loader if "attach" in sys.argv else prof.train(loader):
            with prof.phase("forward" if "attach" not in sys.argv else "mine"):
                loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
"""


@pytest.mark.slow
def test_unnamed_computing_is_useful(tmp_path: Path) -> None:
    script = tmp_path / "loop.py"
    script.write_text(LOOP)
    assert python(str(script), "wide").code == 0
    document = epochmeter("report", "--json").json
    verdict, ledger = document["verdict"], document["ledger"]
    if verdict["kind"] == "starved":
        pytest.skip("other programs had the CPUs, and the verdict says so")
    assert verdict["kind"] == "compute-bound", json.dumps(verdict, indent=1)
    assert "name backward and optimizer too" in verdict["next"]
    assert ledger["useful_s"] > 0.6 * document["stages"]["train"]["duration_s"]


@pytest.mark.slow
def test_unfollowed_loader_is_waited_for(tmp_path: Path) -> None:
    script = tmp_path / "loop.py"
    script.write_text(LOOP)
    assert python(str(script), "attach").code == 0
    ledger = epochmeter("report", "--json").json["ledger"]
    assert ledger.get("data_wait_s", 0) > ledger.get("host_s", 0), ledger
