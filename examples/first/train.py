"""Train a small net on scikit-learn's digits. One thing in it is slow: `epochmeter run examples/first/train.py` says which.

With --batched, that thing is done for a whole batch at once.
"""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset

IS_BATCHED = "--batched" in sys.argv
torch.manual_seed(0)
torch.set_num_threads(1)
digits = load_digits()


class Digits(Dataset):
    """1,797 images of handwritten digits, each turned by a random angle."""

    def __len__(self):
        return len(digits.target)

    def __getitem__(self, index):
        image = torch.tensor(digits.images[index], dtype=torch.float32)[None] / 16
        return image if IS_BATCHED else turned(image[None])[0], int(digits.target[index])


def turned(images):
    angles = 0.3 * torch.randn(len(images))
    cos, sin, zero = angles.cos(), angles.sin(), torch.zeros(len(images))
    turns = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)
    grid = nn.functional.affine_grid(turns, list(images.shape), align_corners=False)
    return nn.functional.grid_sample(images, grid, align_corners=False)


loader = DataLoader(Digits(), batch_size=64, shuffle=True)
model = nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1152, 10))
optimizer = torch.optim.Adam(model.parameters())

for epoch in range(8):
    right = 0
    for x, y in loader:
        if IS_BATCHED:
            x = turned(x)
        optimizer.zero_grad()
        scores = model(x)
        loss = nn.functional.cross_entropy(scores, y)
        loss.backward()
        optimizer.step()
        right += (scores.argmax(1) == y).sum().item()
    print(f"epoch {epoch}: {right / len(digits.target):.1%} right")
