"""Numbers of each epoch in experiment trackers, read back by the trackers themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from profiler import Profiler
from profiler.report.document import epochs
from profiler.report.per_epoch import per_epoch
from support.big_run import big_run

PAGE = Path(__file__).parents[2] / "docs" / "share.md"


def recorded() -> Profiler:
    with Profiler("tracked") as prof:
        for _ in prof.epochs(3):
            for _ in prof.train(range(4)):
                with prof.phase("forward"), prof.phase("inner"):
                    pass
                with prof.phase("my own: 100 %"):
                    pass
            for _ in prof.validate(range(2)):
                pass
    return prof


def test_numbers_are_those_of_the_report() -> None:
    summary = recorded().summary
    told = dict(summary.per_epoch())
    assert list(told) == [0, 1, 2]
    for epoch in summary.epochs:
        train = epoch["stages"][0]
        numbers = told[epoch["index"]]
        assert numbers["train/duration_s"] == train["duration_s"] and numbers["train/steps"] == 4
        assert numbers["train/forward_s"] == train["phases"]["forward"]["total_s"]
        assert numbers["train/my own_ 100 __s"] == train["phases"]["my own: 100 %"]["total_s"]
        assert numbers["val/steps"] == 2 and "energy_j" not in numbers
        assert all(type(value) in (int, float) for value in numbers.values())


def test_every_gpu_has_its_numbers() -> None:
    _, numbers = next(per_epoch(epochs(big_run(epochs=1, gpus=2))))
    assert {"gpu-0/gpu_utilization", "gpu-1/power_w", "cpu_utilization", "memory_bytes"} <= set(numbers)


def snippet(package: str) -> str:
    """Return the lines that the page shows for a tracker."""
    blocks = [block.partition("```")[0] for block in PAGE.read_text().split("```python\n")[1:]]
    (found,) = (block for block in blocks if f"import {package}\n" in block or f"from {package}" in block)
    return found


BEGIN = """
from profiler import Profiler
with Profiler("tracked") as prof:
    for _ in prof.epochs(3):
        for _ in prof.train(range(4)):
            pass
"""
BACK = {
    "wandb": "",
    "mlflow": """
(run,) = mlflow.search_runs(output_format="list")
told = mlflow.MlflowClient().get_metric_history(run.info.run_id, "train/duration_s")
print([(one.step, one.value) for one in told] == [(e, n["train/duration_s"]) for e, n in prof.summary.per_epoch()])
""",
    "torch.utils.tensorboard": """
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
read = EventAccumulator(writer.log_dir)
read.Reload()
told = [(one.step, round(one.value, 9)) for one in read.Scalars("train/duration_s")]
print(all(abs(value - n["train/duration_s"]) < 1e-6 for (_, value), (_, n) in zip(told, prof.summary.per_epoch(), strict=True)))
""",
    "trackio": """
import sqlite3, pathlib, os
(base,) = (p for p in pathlib.Path(os.environ["TRACKIO_DIR"]).rglob("*.db"))
rows = sqlite3.connect(base).execute("select count(*) from metrics").fetchone()
print(rows[0] == 3)
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("package", BACK)
def test_trackers_read_back_what_was_written(package: str, tmp_path: Path) -> None:
    for name in {package.partition(".")[0], "tensorboard" if "tensorboard" in package else package}:
        pytest.importorskip(name)
    offline = {
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(tmp_path),
        "WANDB_SILENT": "true",
        "GRADIO_ANALYTICS_ENABLED": "False",
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
        "TRACKIO_DIR": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + snippet(package) + BACK[package]],
        cwd=tmp_path,
        env={**os.environ, **offline},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    if package == "wandb":
        (written,) = tmp_path.rglob("run-*.wandb")
        assert b"train/duration_s" in written.read_bytes()
    else:
        assert done.stdout.strip().splitlines()[-1] == "True", done.stdout
