"""Parameters sharded by ``fully_shard`` (FSDP2): their gradients stay sharded.

Such a parameter is a DTensor of which each rank stores a shard. It is not a leaf of the graph: its
gradient is produced by hooks after a backward pass, reduced over ranks and sharded like the
parameter. Each loss therefore takes an ordinary backward pass, after which ``.grad`` is set aside
as the task's gradient. The rule processes shards as it does pieces (``context``). Nothing needs to
be gathered, since the optimizer's parameters are shards too.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from ..checks import is_sharded
from ..gradients.diagonal import Metric

REMEDY = (
    "call fully_shard on the whole network, then pass list(network.parameters()) taken before the"
    " first forward pass, which replaces them by plain tensors"
)


class Shards:
    """The placement of sharded parameters on their mesh.

    Raises:
        ValueError: if they are not all sharded alike over all ``world`` ranks.
    """

    def __init__(self, leaves: Sequence[Any], world: int) -> None:
        plain = [p for p, leaf in enumerate(leaves) if not is_sharded(leaf)]
        if plain:
            raise ValueError(
                f"parameters must all be sharded or none, found {len(plain)} of {len(leaves)} that"
                f" are not, the first at position {plain[0]}: {REMEDY}"
            )
        first = leaves[0]
        self.mesh, self.placements = first.device_mesh, first.placements
        for p, leaf in enumerate(leaves):
            if (leaf.device_mesh, leaf.placements) != (self.mesh, self.placements):
                raise ValueError(
                    f"parameters must be sharded alike, found {leaf.placements} at position {p} and"
                    f" {self.placements} at 0: {REMEDY}"
                )
        if self.mesh.size() != world:
            raise ValueError(
                f"parameters must be sharded over the combiner's group, found a mesh of"
                f" {self.mesh.size()} ranks and a group of {world}: give the combiner the group of"
                " all ranks that share the batch"
            )
        copies = [d for d, place in enumerate(self.placements) if place.is_replicate()]
        # the number of ranks that store each entry
        self.copies = prod(self.mesh.size(d) for d in copies)
        with torch.no_grad():
            locals_ = [leaf.to_local() for leaf in leaves]
        self.like = [torch.empty_like(tensor, device="meta") for tensor in locals_]
        # of a shard, rounded up: equal on all ranks, whose own shards may differ
        self.sizes = [-(-leaf.numel() * self.copies // world) for leaf in leaves]

    def differentiate(
        self,
        share: float,
        outputs: Sequence[Tensor],
        seeds: Sequence[Tensor | None],
        parameters: Sequence[Any],
        retain_graph: bool,
    ) -> tuple[Tensor | None, ...]:
        """One backward pass with each output weighted by ``share``.

        Returns:
            This rank's shards of the gradient averaged over ranks; ``.grad`` is restored.
        """
        if share != 1:
            seeds = [
                torch.full_like(out, share) if seed is None else seed * share
                for out, seed in zip(outputs, seeds, strict=True)
            ]
        before = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None
        try:
            torch.autograd.backward(outputs, seeds, retain_graph=retain_graph)
            with torch.no_grad():
                return tuple(
                    None if parameter.grad is None else parameter.grad.to_local()
                    for parameter in parameters
                )
        finally:
            for parameter, grad in zip(parameters, before, strict=True):
                parameter.grad = grad

    def local_metric(self, metric: Metric) -> Metric:
        """The metric of this rank's shards, from an optimizer's sharded state."""

        def shard(tensor: Any) -> Tensor:
            local: Tensor = tensor.to_local() if is_sharded(tensor) else tensor
            return local

        return [None if diagonal is None else diagonal.map(shard) for diagonal in metric]

    def wrap(
        self, update: Sequence[Tensor | None], leaves: Sequence[Tensor]
    ) -> list[Tensor | None]:
        """Shards of an update as DTensors like the parameters."""
        from torch.distributed.tensor import DTensor

        return [
            None
            if part is None
            else DTensor.from_local(
                part,
                self.mesh,
                self.placements,
                run_check=False,
                shape=leaf.shape,
                stride=leaf.stride(),
            )
            for part, leaf in zip(update, leaves, strict=True)
        ]
