"""A batch too large for memory, in micro-batches: rows are added up, then projected once.

    python examples/accumulation.py

Projecting is not linear. Projecting every micro-batch and adding the results would be another
method; ``accumulate`` adds the tasks' gradients, and ``combine`` projects their sums, as one pass
over the whole batch would.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anynest import OSGD


def network() -> nn.ModuleList:
    """A trunk and two heads."""
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(8, 32), nn.ReLU())
    return nn.ModuleList([trunk, nn.Linear(32, 4), nn.Linear(32, 4)])


def losses_of(net: nn.ModuleList, x: Tensor, y: Tensor) -> list[Tensor]:
    features = net[0](x)
    return [F.cross_entropy(head(features), y) for head in net[1:]]


def step(net: nn.ModuleList, x: Tensor, y: Tensor, micro_batches: int) -> None:
    """One update from a batch in ``micro_batches`` equal parts."""
    combiner = OSGD()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    optimizer.zero_grad()
    for part, label in zip(x.chunk(micro_batches), y.chunk(micro_batches), strict=True):
        # means of equal parts: their average is the whole batch's mean
        losses = [loss / micro_batches for loss in losses_of(net, part, label)]
        combiner.accumulate(losses, net.parameters())  # frees this part's graph
    combiner.combine()
    optimizer.step()


def difference(micro_batches: int) -> float:
    """How far the weights are from those of a step on the whole batch."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(64, 8, generator=generator)
    y = torch.randint(0, 4, (64,), generator=generator)
    whole, parts = network(), network()
    step(whole, x, y, micro_batches=1)
    step(parts, x, y, micro_batches=micro_batches)
    pairs = zip(whole.parameters(), parts.parameters(), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


if __name__ == "__main__":
    print(f"4 micro-batches of 16 and one batch of 64 differ by {difference(4):.1e}")
