"""Two tasks, one network, a plain PyTorch loop: the first task comes first.

    python examples/plain_loop.py

A trunk is shared by a regression (high priority) and a classification. Orthogonalized SGD takes from
the second task's gradient what lies along the first one's; the rest of the loop is as ever, with any
optimizer and any schedule.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anynest import OSGD


class TwoTasks(nn.Module):
    """[B, 8] -> a number [B] and three classes' logits [B, 3]."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh())
        self.value, self.classes = nn.Linear(32, 1), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(x)
        return self.value(features)[:, 0], self.classes(features)


def batch(size: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(size, 8)
    return x, x[:, 0] * x[:, 1] + x[:, 2].sin(), x[:, 3:6].argmax(dim=1)


def train(steps: int = 400) -> tuple[list[float], list[float]]:
    """The first and the last step's losses."""
    torch.manual_seed(0)
    model = TwoTasks()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    combiner = OSGD(priority=[0, 1])  # the regression first
    seen = []
    for _ in range(steps):
        x, target, label = batch()
        value, logits = model(x)
        losses = [F.mse_loss(value, target), F.cross_entropy(logits, label)]
        optimizer.zero_grad()
        stats = combiner.backward(losses, model.parameters())  # in place of loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        seen.append(stats.losses.tolist())
    print(f"cosine of the two gradients at the end: {stats.cosines[0, 1]:+.2f}")
    print(f"weights that amount to the same step:   {stats.loss_weights.tolist()}")
    return seen[0], seen[-1]


if __name__ == "__main__":
    first, last = train()
    print(f"regression     {first[0]:.3f} -> {last[0]:.3f}")
    print(f"classification {first[1]:.3f} -> {last[1]:.3f}")
