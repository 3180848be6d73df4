"""Several processes, a plain loop: the tasks' gradients are summed over the ranks, then projected.

    torchrun --standalone --nproc-per-node 2 examples/distributed_loop.py
    python examples/distributed_loop.py

Both end with the same weights, up to rounding: a projection is not linear, so ranks must not project
apart and average. ``group=`` is all that the combiner needs to be told; the network is not wrapped
in DistributedDataParallel. Ranks with unlike numbers of samples say how many they had.
"""

import os

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from anynest import OSGD


def train(steps: int = 60, batch: int = 31) -> tuple[list[float], torch.Tensor]:
    """The last losses over all ranks, and the weights [P]."""
    many = dist.is_initialized()
    rank, world = (dist.get_rank(), dist.get_world_size()) if many else (0, 1)
    torch.manual_seed(0)  # the same weights on every rank
    trunk = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh())
    heads = nn.ModuleList([nn.Linear(16, 1), nn.Linear(16, 3)])
    parameters = [*trunk.parameters(), *heads.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    combiner = OSGD(group=dist.group.WORLD if many else None)
    for _ in range(steps):
        x = torch.randn(batch, 8)[rank::world]  # this rank's samples of the common batch
        features = trunk(x)
        losses = [
            F.mse_loss(heads[0](features)[:, 0], x[:, 0] * x[:, 1]),
            F.cross_entropy(heads[1](features), x[:, 2:5].argmax(dim=1)),
        ]
        optimizer.zero_grad()
        stats = combiner.backward(losses, parameters, samples=len(x))
        optimizer.step()
    return stats.losses.tolist(), nn.utils.parameters_to_vector(parameters).detach()


def main() -> None:
    many = "RANK" in os.environ  # set by torchrun
    if many:
        dist.init_process_group("gloo")  # "nccl" for GPUs
    losses, weights = train()
    if not many or dist.get_rank() == 0:
        print(
            f"losses {losses[0]:.4f} and {losses[1]:.4f}, norm of the weights {weights.norm():.5f}"
        )
    if many:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
