"""The measured nets, in plain torch, with the shapes of their papers. The weights are random, because only time matters.

A test compares the numbers of parameters with the papers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def lenet5(classes: int = 10) -> nn.Module:
    """Return LeNet-5 for 1 x 32 x 32, with ReLU and max pooling. LeCun et al., 1998, doi:10.1109/5.726791, figure 2."""
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 120, 5), nn.ReLU(), nn.Flatten(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, classes)),
    )


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions, and the input added. The stride is in the 3 x 3, as in torchvision."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.block = nn.Sequential(
            *(nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)),
            *(nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)),
            *(nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)),
        )
        self.shortcut = (
            nn.Identity()
            if inputs == outputs and stride == 1
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.block(x) + self.shortcut(x))


def resnet50(classes: int = 1000) -> nn.Module:
    """Return ResNet-50 for 3 x 224 x 224. He et al., 2016, arXiv:1512.03385, table 1."""
    layers: list[nn.Module] = [
        *(nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1))
    ]
    inputs = 64
    for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for block in range(blocks):
            layers.append(Bottleneck(inputs, width, stride if block == 0 else 1))
            inputs = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


class Block(nn.Module):
    """A transformer's block: attention, and a feed-forward of four times the width, each after its norm, each added.

    GPT-2: Radford et al., 2019, section 2.3; larger shapes: Brown et al., 2020, arXiv:2005.14165, table 2.1.
    """

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.projection = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of shape ``(batch, tokens, width)``, like the input."""
        batch, tokens, width = x.shape
        q, k, v = self.qkv(self.norm_1(x)).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.projection(seen.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.feed_forward(self.norm_2(x))


class VisionTransformer(nn.Module):
    """ViT for 3 x 224 x 224 in patches of 16 x 16. Dosovitskiy et al., 2021, arXiv:2010.11929, table 1.

    The small and the tiny one: Touvron et al., 2021, arXiv:2012.12877, table 1.
    """

    def __init__(self, width: int, heads: int, depth: int = 12, image: int = 224, patch: int = 16, classes: int = 1000) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.first = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 1 + (image // patch) ** 2, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, heads, causal=False) for _ in range(depth)), nn.LayerNorm(width))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat((self.first.expand(len(x), -1, -1), tokens), 1) + self.positions
        logits: Tensor = self.head(self.blocks(tokens)[:, 0])
        return logits
