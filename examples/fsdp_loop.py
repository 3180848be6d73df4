"""FSDP2: the network is spread over the ranks by ``fully_shard``, and so are the tasks' gradients.

    torchrun --standalone --nproc-per-node 2 examples/fsdp_loop.py
    python examples/fsdp_loop.py

Each rank holds a shard of the weights, of the optimizer's state and of every task's gradient; the
projection needs only their dot products, which are summed over the ranks. Both commands end alike.
"""

import os
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from anynest import OSGD


class TwoExits(nn.Module):
    """Two blocks with an exit after each."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(8, 32), nn.ReLU())
        self.second = nn.Sequential(nn.Linear(32, 32), nn.ReLU())
        self.exits = nn.ModuleList([nn.Linear(32, 3), nn.Linear(32, 3)])

    def forward(self, x: Tensor) -> list[Tensor]:
        early = self.first(x)
        return [self.exits[0](early), self.exits[1](self.second(early))]


def train(steps: int = 40, batch: int = 32) -> list[float]:
    """The last losses over all ranks."""
    many = dist.is_initialized()
    rank, world = (dist.get_rank(), dist.get_world_size()) if many else (0, 1)
    torch.manual_seed(0)
    network = TwoExits()
    if many:
        mesh = init_device_mesh("cpu", (world,))  # "cuda" for GPUs
        for block in (network.first, network.second):
            fully_shard(block, mesh=mesh)
        fully_shard(network, mesh=mesh)
    parameters = list(network.parameters())  # kept: a forward pass lends others in their place
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    combiner = OSGD(group=dist.group.WORLD if many else None)
    for _ in range(steps):
        x = torch.randn(batch, 8)[rank::world]
        losses = [F.cross_entropy(out, x[:, :3].argmax(dim=1)) for out in network(x)]
        optimizer.zero_grad()
        stats = combiner.backward(losses, parameters)
        optimizer.step()
    return stats.losses.tolist()


def main() -> None:
    many = "RANK" in os.environ  # set by torchrun
    if many:
        dist.init_process_group("gloo")  # "nccl" for GPUs
    losses = train()
    if not many or dist.get_rank() == 0:
        print(f"losses {losses[0]:.5f} and {losses[1]:.5f}")
    if many:
        # gloo's threads may still hold the last tensors, and fully_shard's caches keep the group
        # alive (torch 2.13): a process that ended before they let go would abort
        time.sleep(0.5)
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
