"""The demonstration: a small convolutional net learns to read scikit-learn's 1,797 handwritten digits, profiled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from profiler.errors import ProfilerError
from profiler.records.vocabulary import Phase

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.session.profiler import Profiler


BATCH = 64
TRAIN_IMAGES = 1437  # four fifths; the rest is for validation and inference


@dataclass
class Setup:
    """The demo's data, net and optimizer, made before the run begins so that they are not measured."""

    torch: Any
    device: Any
    model: Any
    optimizer: Any
    train_loader: Any
    val_loader: Any


def prepare() -> Setup:
    """Return the data, the net and the optimizer, on the GPU if there is one.

    Raises:
        ProfilerError: torch or scikit-learn is not installed.
    """
    try:
        import torch
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ProfilerError(f"the demo needs {error.name}, which is not installed: pip install 'epochmeter[demo]'") from None

    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(labels))
    train_part, val_part = order[:TRAIN_IMAGES], order[TRAIN_IMAGES:]
    model = _net(torch).to(device)
    return Setup(
        *(torch, device, model, torch.optim.AdamW(model.parameters(), lr=3e-3)),
        train_loader=_loader(torch, images[train_part], labels[train_part], shuffle=True),
        val_loader=_loader(torch, images[val_part], labels[val_part], shuffle=False),
    )


def train(
    setup: Setup, epochs: int, prof: Profiler, on_batch: Callable[[int, int], None] = lambda epoch, batches: None
) -> tuple[list[float], list[float]]:
    """Train, and predict once.

    Args:
        setup: from `prepare`.
        epochs: how many epochs.
        prof: a Profiler that has been started.
        on_batch: called after each training batch with the epoch and the number of batches so far.

    Returns:
        The mean training loss and the validation accuracy (0 to 1) of each epoch.
    """
    torch, device, model, optimizer = setup.torch, setup.device, setup.model, setup.optimizer
    losses, accuracies, batches = [], [], 0
    for epoch in prof.epochs(epochs):
        model.train()
        total = 0.0
        for x, y in prof.train(setup.train_loader):
            with prof.phase(Phase.TRANSFER):
                x, y = x.to(device), y.to(device)
            with prof.phase(Phase.FORWARD):
                loss = torch.nn.functional.cross_entropy(model(x), y)
            with prof.phase(Phase.BACKWARD):
                optimizer.zero_grad()
                loss.backward()
            with prof.phase(Phase.OPTIMIZER):
                optimizer.step()
            with prof.phase(Phase.METRICS):
                total += loss.item() * len(y)
            batches += 1
            on_batch(epoch, batches)
        losses.append(total / TRAIN_IMAGES)
        accuracies.append(_accuracy(torch, model, prof.validate(setup.val_loader), device, prof))
    model.eval()
    with torch.inference_mode():
        for x, _ in prof.infer(setup.val_loader):
            model(x.to(device)).argmax(1)
    return losses, accuracies


def _loader(torch: Any, images: Any, labels: Any, shuffle: bool) -> Any:
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), batch_size=BATCH, shuffle=shuffle)


def _net(torch: Any) -> Any:
    """Return two convolutions and a linear layer on 8 x 8 images."""
    nn = torch.nn
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Dropout(0.25), nn.Linear(64 * 4 * 4, 10)),
    )


def _accuracy(torch: Any, model: Any, batches: Any, device: Any, prof: Profiler) -> float:
    model.eval()
    right = count = 0
    with torch.inference_mode():
        for x, y in batches:
            with prof.phase(Phase.FORWARD):
                guess = model(x.to(device)).argmax(1).cpu()
            with prof.phase(Phase.METRICS):
                right += int((guess == y).sum())
                count += len(y)
    return right / count
