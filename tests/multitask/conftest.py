"""Networks with several losses, small enough to train in a test."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn


class ThreeExits(nn.Module):
    """Three convolutions, a batch norm and an exit after each: losses nested like the paper's."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        widths = [1, channels, 2 * channels, 2 * channels]
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in pairwise(widths)
        )
        self.heads = nn.ModuleList(nn.Linear(b, 10) for b in widths[1:])

    def forward(self, x: Tensor) -> list[Tensor]:
        outputs = []
        for stage, head in zip(self.stages, self.heads, strict=True):
            x = stage(x)
            outputs.append(head(x.mean((2, 3))))
        return outputs


Losses = Callable[[nn.Module, int], list[Tensor]]


@pytest.fixture
def three_exits() -> Callable[..., ThreeExits]:
    def make(seed: int = 0, channels: int = 8) -> ThreeExits:
        torch.manual_seed(seed)
        return ThreeExits(channels)

    return make


@pytest.fixture(scope="session")
def digit_losses() -> Losses:
    """``losses(network, step)``: one cross-entropy per exit on the step's 32 digits."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(digits.target)

    def losses(network: nn.Module, step: int) -> list[Tensor]:
        start = 32 * step % (len(images) - 32)
        x, y = images[start : start + 32], labels[start : start + 32]
        x = x.to(next(network.parameters()).dtype)
        return [nn.functional.cross_entropy(logits.float(), y) for logits in network(x)]

    return losses
