"""The net, its training, and its use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

from digitreader.telemetry import telemetry

HELD_BACK = 360  # images for validation
ENOUGH = 0.97  # accuracy at which training ends


class NotTrainedError(ValueError):
    """There is no model to predict with."""


def images() -> tuple[torch.Tensor, torch.Tensor]:
    """scikit-learn's digits: images (1797 x 1 x 8 x 8, from 0 to 1), and what they show."""
    data = load_digits()
    return torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16, torch.tensor(data.target)


def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(32 * 16, 10),
    )  # fmt: skip


def batches(x: torch.Tensor, y: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for chosen in torch.randperm(len(x)).split(32):
        yield x[chosen], y[chosen]


def train(epochs: int, augment: bool, output: Path) -> float:
    """Trains, saves the model, and gives its accuracy on images that it has not seen."""
    torch.manual_seed(0)
    x, y = images()
    model, accuracy = net(), 0.0
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    if augment:
        telemetry.feature("augmentation")
    told, prof = telemetry.run(augment=augment), telemetry.profiler("train", epochs=epochs)
    with told, prof, prof.attach(model, optimizer):
        for epoch in prof.epochs():
            for images_, labels in prof.train(list(batches(x[HELD_BACK:], y[HELD_BACK:]))):
                shifted = torch.roll(images_, int(torch.randint(-1, 2, ())), dims=3) if augment else images_
                loss = nn.functional.cross_entropy(model(shifted), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            with torch.no_grad():
                accuracy = float((model(x[:HELD_BACK]).argmax(1) == y[:HELD_BACK]).float().mean())
            told.tell(accuracy=accuracy, epochs=epoch + 1)
            if accuracy >= ENOUGH:
                telemetry.feature("early_stop")
                break
    torch.save(model.state_dict(), output)
    return accuracy


def predict(index: int, path: Path) -> tuple[int, int]:
    """Return the digit that the model sees in an image, and the digit that the image shows.

    Raises:
        NotTrainedError: the model is not there.
    """
    if not path.exists():
        raise NotTrainedError(f"{path} is not there")
    model = net()
    model.load_state_dict(torch.load(path, weights_only=True))
    x, y = images()
    with torch.no_grad():
        return int(model(x[index : index + 1]).argmax()), int(y[index])
