"""Training loops whose bottleneck is known: ``python known_loops.py KIND [plain|named|bare]``, for the tests of the verdict.

Each trains a real net on scikit-learn's digits. ``plain`` knows nothing of us, ``named`` uses prof.train and prof.phase,
``bare`` prof.train alone.
"""

from __future__ import annotations

import copy
import gc
import io
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset

if len(sys.argv) < 2:
    sys.exit("name a kind of loop, such as logging; docs/report.md and tests/report/test_known_loops.py list them")
KIND, WAY = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "plain"
torch.manual_seed(0)
torch.set_num_threads(1)
DIGITS = load_digits()
IMAGES, LABELS = torch.tensor(DIGITS.data, dtype=torch.float32) / 16, torch.tensor(DIGITS.target)
SMALL = {"small batch": 2, "many layers": 4}
WORKERS = {"busy workers": 2, "waiting workers": 2, "starting workers": 2}


def spin(seconds: float) -> None:
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        sum(range(100))


class Digits(Dataset):  # type: ignore[type-arg]
    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        if KIND in ("waiting loader", "waiting workers"):
            time.sleep(0.0015)
        if KIND in ("busy loader", "busy workers"):
            spin(0.0015)
        if KIND == "slow file" and index == 0:
            time.sleep(1.5)
        return IMAGES[index % 1024], LABELS[index % 1024]


def collate(items: Any) -> Any:
    if KIND == "collate":
        time.sleep(0.03)
    return torch.stack([x for x, _ in items]), torch.stack([y for _, y in items])


def net() -> nn.Module:
    if KIND == "many layers":
        layers = [nn.Linear(64, 64) if number % 2 == 0 else nn.Tanh() for number in range(120)]
        return nn.Sequential(*layers, nn.Linear(64, 10))
    width = 1400 if KIND.startswith("healthy") or KIND == "starved" else 256
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))


MODEL: Any = net()
if KIND == "compile":
    MODEL = torch.compile(MODEL, backend="eager")
OPTIMIZER = torch.optim.SGD(MODEL.parameters(), lr=0.01)
LOSS = nn.CrossEntropyLoss()
LENGTH = {"small batch": 400, "many layers": 200, "rhythm": 3200}.get(KIND, 1024)
LOADER = DataLoader(
    Digits(LENGTH), batch_size=SMALL.get(KIND, 64), shuffle=True, collate_fn=collate, num_workers=WORKERS.get(KIND, 0)
)
VAL_LOADER = DataLoader(Digits(8192 if KIND == "validation" else 64), batch_size=64)
QUICK = ("leak", "copies", "clipping", "host before", "healthy", "healthy with validation", "small batch", "logging")
EPOCHS = 9 if KIND in QUICK else 3  # a second or more: less has too few samples
KEPT: list[Any] = []
MORE = torch.ones(25_000_000 if KIND == "step checkpoints" else 1)
steps = 0


def augment(x: torch.Tensor) -> torch.Tensor:
    if KIND == "host before":
        spin(0.02)
    return x


def clip() -> None:
    if KIND == "clipping":
        for _ in range(80):
            nn.utils.clip_grad_norm_(MODEL.parameters(), 1.0)


def log(epoch: int, loss: torch.Tensor) -> None:
    with Path("log.txt").open("a") as file:
        for _ in range(60):
            file.write(f"{loss.item()}\n")
            file.flush()
            os.fsync(file.fileno())


def copy_state(epoch: int, loss: torch.Tensor) -> None:
    for _ in range(12):
        KEPT[:] = [copy.deepcopy(MODEL.state_dict())]


def collect(epoch: int, loss: torch.Tensor) -> None:
    KEPT.append([[] for _ in range(10_000)])
    gc.collect()


def leak(epoch: int, loss: torch.Tensor) -> None:
    KEPT.append(torch.ones(2_000_000))


def sleep_now_and_then(epoch: int, loss: torch.Tensor) -> None:
    if KIND == "rhythm" and steps % 50 == 0:
        time.sleep(0.5)
    if KIND == "slow epoch" and epoch == 1:
        time.sleep(0.08)
    if KIND == "rare steps" and steps in (7, 23, 40):
        time.sleep(0.7)


def save_now_and_then(epoch: int, loss: torch.Tensor) -> None:
    if steps % 4 == 0:
        torch.save({"net": MODEL.state_dict(), "more": MORE}, io.BytesIO())


AFTER_STEP = {
    "logging": log,
    "copies": copy_state,
    "collections": collect,
    "leak": leak,
    "rhythm": sleep_now_and_then,
    "slow epoch": sleep_now_and_then,
    "rare steps": sleep_now_and_then,
    "step checkpoints": save_now_and_then,
}


def after_step(epoch: int, loss: torch.Tensor) -> None:
    global steps
    steps += 1
    if KIND in AFTER_STEP:
        AFTER_STEP[KIND](epoch, loss)


def after_epoch() -> None:
    if KIND == "checkpoints":
        for _ in range(6):
            torch.save({"net": MODEL.state_dict(), "more": torch.ones(8_000_000)}, "checkpoint.pt")


def validate(batches: Any) -> None:
    if KIND in ("validation", "healthy with validation"):
        MODEL.eval()
        with torch.no_grad():
            for x, _ in batches:
                MODEL(x)
        MODEL.train()


def unnamed(epochs: Any, train: Callable[[Any], Any], val: Callable[[Any], Any]) -> None:
    for epoch in epochs:
        for x, y in train(LOADER):
            x = augment(x)
            OPTIMIZER.zero_grad()
            loss = LOSS(MODEL(x), y)
            loss.backward()
            clip()
            OPTIMIZER.step()
            after_step(epoch, loss)
        validate(val(VAL_LOADER))
        after_epoch()


def named(prof: Any) -> None:
    for epoch in prof.epochs():
        for x, y in prof.train(LOADER):
            x = augment(x)
            with prof.phase("forward"):
                loss = LOSS(MODEL(x), y)
            with prof.phase("backward"):
                OPTIMIZER.zero_grad()
                loss.backward()
            clip()
            with prof.phase("optimizer"):
                OPTIMIZER.step()
            after_step(epoch, loss)
        validate(prof.validate(VAL_LOADER))
        with prof.phase("checkpoint"):
            after_epoch()


def as_it_is(loader: Any) -> Any:
    return loader


def hogs() -> Iterator[subprocess.Popen[bytes]]:
    for _ in range(4 * (os.cpu_count() or 1) if KIND == "starved" else 0):
        yield subprocess.Popen([sys.executable, "-c", "while True: pass"])


def main() -> None:
    started = list(hogs())
    try:
        if WAY == "plain":
            unnamed(range(EPOCHS), as_it_is, as_it_is)
            return
        from profiler import Profiler

        with Profiler(KIND, epochs=EPOCHS) as prof:
            if WAY == "named":
                named(prof)
            else:
                unnamed(prof.epochs(), prof.train, prof.validate)
    finally:
        for hog in started:
            hog.kill()
            hog.wait()


if __name__ == "__main__":
    main()
