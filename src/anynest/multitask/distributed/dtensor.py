"""Parameters that ``fully_shard`` (FSDP2) spreads over ranks: their rows stay spread.

Such a parameter is a DTensor of which each rank holds a shard, and it is no leaf of the graph:
its gradient comes out of hooks that follow a backward pass, reduced over ranks and cut like the
parameter. So each loss takes an ordinary backward pass, and what has arrived in ``.grad`` is put aside
as the task's row. The rule then works on the shards as it does on pieces (``distributed``), and
nothing needs to be gathered: the optimizer's parameters are shards too.
"""

import sys
from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

REMEDY = (
    "call fully_shard on the whole network, then keep list(network.parameters()) for the combiner, as"
    " a forward pass lends plain tensors in their place"
)


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor; torch's module of them is heavy and not imported for it."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def require_plain(leaves: Sequence[Tensor]) -> None:
    """ValueError for sharded parameters in a combiner that was given no group."""
    if any(map(is_sharded, leaves)):
        raise ValueError(
            "parameters are sharded over ranks, of which the combiner knows nothing: give it"
            " group=torch.distributed.group.WORLD"
        )


class Shards:
    """How the parameters lie on their mesh.

    Raises ValueError, in one line, where they are not all sharded in one way over all ``world`` ranks.
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
        # in how many ranks each entry is found
        self.copies = prod(self.mesh.size(d) for d in copies)
        with torch.no_grad():
            locals_ = [leaf.to_local() for leaf in leaves]
        self.like = [torch.empty_like(tensor, device="meta") for tensor in locals_]

    def differentiate(
        self,
        share: float,
        outputs: Sequence[Tensor],
        seeds: Sequence[Tensor | None],
        parameters: Sequence[Any],
        retain_graph: bool,
    ) -> tuple[Tensor | None, ...]:
        """One backward pass, each output counting ``share`` times; this rank's shards of the mean.

        ``.grad`` is as it was afterwards.
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
