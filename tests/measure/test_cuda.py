"""The GPU's clock on a real GPU: `make gpu`. What can be said without one is in `test_device_clock`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from profiler import Profiler

pytestmark = pytest.mark.gpu
STEPS = 30


@pytest.fixture
def torch(home: Path) -> Any:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA device")
    return torch


def loop(torch: Any, prof: Profiler | None, *, amp: bool = False, accumulate: int = 1) -> list[Any]:
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.Dropout(0.3), torch.nn.Linear(256, 1)).cuda()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    scaler = torch.amp.GradScaler("cuda", enabled=amp)
    data = torch.randn(STEPS, 32, 64, device="cuda")
    if prof is not None:
        prof.attach(model, optimizer)
    losses = []
    for step, x in enumerate(data if prof is None else prof.train(data)):
        with torch.autocast("cuda", enabled=amp):
            loss = model(x).square().mean()
        scaler.scale(loss).backward()
        if (step + 1) % accumulate == 0:
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        losses.append(loss.detach())
    return [loss.item() for loss in losses]


@pytest.mark.parametrize("ways", [{}, {"amp": True}, {"accumulate": 4}], ids=["plain", "amp", "accumulation"])
def test_losses_are_identical_and_phases_have_device_time(torch: Any, ways: dict[str, Any]) -> None:
    plain = loop(torch, None, **ways)
    with Profiler("cuda") as prof:
        assert loop(torch, prof, **ways) == plain
        torch.cuda.synchronize()
    stage = prof.summary.stages["train"]
    assert stage["phases"]["forward"]["device"]["count"] >= STEPS // 2
    assert 0 < stage["device_busy"] <= 1
    assert "notes" not in prof.summary.to_dict()


def test_nothing_of_ours_synchronises(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By torch's own watch, and by those calls that it does not watch."""
    model = torch.nn.Linear(64, 64).cuda()
    x = torch.randn(32, 64, device="cuda")
    with Profiler("cuda", interval=0.05) as prof:
        model(x)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        waited: list[str] = []
        with monkeypatch.context() as patch:
            for of, name in (
                (torch.cuda, "synchronize"),
                (torch.cuda.Event, "synchronize"),
                (torch.cuda.Stream, "synchronize"),
            ):
                patch.setattr(of, name, lambda *_, name=f"{of.__name__}.{name}": waited.append(name))
            try:
                for _ in prof.epochs(2):
                    for _ in prof.train(range(STEPS)):
                        with prof.phase("forward"):
                            model(x)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()
    assert waited == []
    forward = prof.summary.stages["train"]["phases"]["forward"]
    assert (forward["count"], forward["device"]["count"]) == (2 * STEPS, 2 * STEPS - 1)  # and the clock did not fail
    assert "notes" not in prof.summary.to_dict()


def test_device_time_is_the_devices(torch: Any) -> None:
    torch.zeros(1, device="cuda")
    with Profiler("cuda") as prof:
        for _ in prof.train(range(10)):
            with prof.phase("forward"):
                torch.cuda._sleep(20_000_000)  # cycles: about 10 ms, of which the host sees nothing
        torch.cuda.synchronize()
    forward = prof.summary.stages["train"]["phases"]["forward"]
    assert forward["device"]["p50_s"] > 0.005 > forward["p50_s"]


def test_late_gpu_work_belongs_to_its_epoch(torch: Any) -> None:
    torch.zeros(1, device="cuda")
    with Profiler("cuda") as prof:
        for epoch in prof.epochs(2):
            for way, cycles in ((prof.validate, 40_000_000), (prof.train, 2_000_000)):
                for _ in way(range(6)):  # the host is through with it at once
                    with prof.phase("forward"):
                        torch.cuda._sleep(cycles * (epoch + 1))
        torch.cuda.synchronize()
    epochs = prof.summary.to_dict()["epochs"]
    found = [{stage["stage"]: stage["phases"]["forward"]["device"] for stage in epoch["stages"]} for epoch in epochs]
    assert [{stage: times["count"] for stage, times in epoch.items()} for epoch in found] == [
        {"val": 5, "train": 5},
        {"val": 6, "train": 6},
    ]
    for epoch in found:
        assert 10 < epoch["val"]["p50_s"] / epoch["train"]["p50_s"] < 40  # 20
    assert 1.5 < found[1]["val"]["p50_s"] / found[0]["val"]["p50_s"] < 2.5  # 2


def test_phase_ending_on_another_stream_is_harmless(torch: Any) -> None:
    torch.zeros(1, device="cuda")
    side = torch.cuda.Stream()
    with Profiler("cuda") as prof:
        for _ in prof.train(range(10)):
            phase = prof.phase("copy")
            phase.__enter__()
            torch.cuda._sleep(20_000_000)
            with torch.cuda.stream(side):
                phase.__exit__()
            with prof.phase("forward"):
                torch.cuda._sleep(20_000_000)
        torch.cuda.synchronize()
    phases = prof.summary.stages["train"]["phases"]
    assert "device" not in phases["copy"] and phases["forward"]["device"]["count"] == 9
    assert "notes" not in prof.summary.to_dict()


def test_a_graph_is_captured_and_replayed_as_ever(torch: Any) -> None:
    model = torch.nn.Linear(64, 64).cuda()
    x = torch.randn(32, 64, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with Profiler("cuda", interval=0.05) as prof:
        for step in prof.train(range(STEPS)):
            if step == 5:
                with torch.cuda.graph(graph), prof.phase("forward"):
                    y = model(x)
            elif step > 5:
                with prof.phase("forward"):
                    graph.replay()
            else:
                with prof.phase("forward"):
                    model(x)
        torch.cuda.synchronize()
    assert torch.allclose(y, model(x))
    assert prof.summary.stages["train"]["phases"]["forward"]["count"] == STEPS
    assert "notes" not in prof.summary.to_dict()


def test_another_stream_is_timed_where_its_phase_is(torch: Any) -> None:
    torch.zeros(1, device="cuda")
    stream = torch.cuda.Stream()
    with Profiler("cuda") as prof:
        for _ in prof.train(range(10)):
            with torch.cuda.stream(stream), prof.phase("copy"):
                torch.cuda._sleep(20_000_000)
            with prof.phase("forward"):
                pass
        torch.cuda.synchronize()
    phases = prof.summary.stages["train"]["phases"]
    assert phases["copy"]["device"]["p50_s"] > 0.005 > phases["forward"]["device"]["p50_s"]


def test_the_runs_gpu_is_found_by_its_uuid(torch: Any) -> None:
    x = torch.randn(1024, 1024, device="cuda")
    with Profiler("cuda", interval=0.1) as prof:
        for _ in prof.train(range(200)):
            x = x @ x / 1024
            torch.cuda.synchronize()
    found = prof.summary.to_dict()
    assert [gpu["cuda_index"] for gpu in found["hardware"]["gpus"]] == list(range(torch.cuda.device_count()))
    assert any(reading["metric"] == "hw.gpu.memory.usage" for reading in found["readings"])
    assert "GPU-" not in str(found)
