"""Tensors partitioned among ranks: rank r stores piece r of every tensor.

A tensor is padded to a multiple of the number of ranks, W, and cut into W pieces of equal length.
A task's whole gradient is then one [W, N] buffer, row r of which is the part that rank r stores.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from ..gradients.diagonal import Metric
from ..gradients.task_gradients import Grads


class Partition:
    """The pieces of ``tensors`` on ``world`` ranks."""

    def __init__(self, tensors: Sequence[Tensor], world: int) -> None:
        self.world = world
        self.tensors = tensors
        self.kinds = [(tensor.device, tensor.dtype) for tensor in tensors]
        self.lengths = [-(-tensor.numel() // world) for tensor in tensors]
        self.like = [torch.empty(length, device="meta") for length in self.lengths]

    def buckets(self, members: Sequence[int]) -> list[list[int]]:
        """The members grouped by device and dtype: each group is sent as one buffer."""
        groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
        for p in members:
            groups.setdefault(self.kinds[p], []).append(p)
        return list(groups.values())

    def pack(self, members: Sequence[int], grads: Grads) -> Tensor:
        """[W, N] the members' entries, row r for rank r; zeros for a member without a gradient."""
        return torch.cat([self._rows(p, grads[p]) for p in members], dim=1)

    def _rows(self, p: int, grad: Tensor | None) -> Tensor:
        device, dtype = self.kinds[p]
        if grad is None:
            return torch.zeros((self.world, self.lengths[p]), device=device, dtype=dtype)
        return self._cut(p, grad)

    def _cut(self, p: int, tensor: Tensor, padding: float = 0.0) -> Tensor:
        """[W, n] the pieces of a tensor of member p's shape."""
        flat = tensor.reshape(-1)
        missing = self.world * self.lengths[p] - flat.numel()
        if missing:
            flat = torch.nn.functional.pad(flat, (0, missing), value=padding)
        return flat.view(self.world, self.lengths[p])

    def piece(self, metric: Metric, rank: int) -> Metric:
        """The metric of one rank's pieces."""

        def cut(p: int, tensor: Tensor) -> Tensor:
            return self._cut(p, tensor, padding=1.0)[rank]  # no factor is infinite

        return [
            None if diagonal is None else diagonal.map(partial(cut, p))
            for p, diagonal in enumerate(metric)
        ]

    def split(self, members: Sequence[int], piece_N: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Views of one rank's row of a buffer, as ``(member, piece)``."""
        parts = torch.split_with_sizes(piece_N, [self.lengths[p] for p in members])
        return zip(members, parts, strict=True)

    def unpack(self, members: Sequence[int], rows_WN: Tensor) -> Iterator[tuple[int, Tensor]]:
        """The whole members as ``(member, tensor)``: new tensors in their own layouts."""
        parts = torch.split_with_sizes(rows_WN, [self.lengths[p] for p in members], dim=1)
        for p, part in zip(members, parts, strict=True):
            tensor = self.tensors[p].detach()
            whole = part.reshape(-1)[: tensor.numel()].view(tensor.shape)
            yield p, torch.empty_like(tensor, dtype=part.dtype).copy_(whole)
