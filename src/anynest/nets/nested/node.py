"""One node's module: its convolutions and batch norms, evaluated by plain PyTorch operations.

This is the reference for the dense kernels (``fused.py``), and what stage-by-stage inference runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .plain import is_plain
from .plan import Node, Unit
from .sync import SyncBatchNorm

Norm = nn.BatchNorm2d | SyncBatchNorm


class Pointwise(nn.Conv2d):
    """A 1x1 convolution with a stride; on a CPU, one of stride 1 on every ``stride``-th pixel.

    Same values. It avoids a fault of oneDNN 3.12 (torch 2.13): on CPUs without AVX-512 the weight
    gradient of a strided 1x1 convolution writes outside its memory where the images are
    ``channels_last`` and have fewer than 8 channels.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return super().forward(x)
        return F.conv2d(subsample(x, self.stride[0]), self.weight, self.bias)


def subsample(x: Tensor, stride: int) -> Tensor:
    """Every ``stride``-th row and column of ``[B, C, H, W]``, a view."""
    return x[:, :, ::stride, ::stride]


def convolution(unit: Unit) -> nn.Conv2d:
    """The module of a unit."""
    kind = Pointwise if unit.kernel == 1 and unit.stride > 1 else nn.Conv2d
    return kind(unit.inputs, unit.outputs, unit.kernel, unit.stride, unit.kernel // 2, bias=False)


class SharedNorm(nn.Module):
    """Some channels of a batch norm that several nodes use (a group's transitions).

    It is registered in the network, not in the nodes, so that its parameters appear once.
    Replacing ``norm`` replaces it for all of them.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm: nn.Module = nn.BatchNorm2d(channels)

    def forward(self, z: Tensor) -> Tensor:
        normalised: Tensor = self.norm(z)
        return normalised


class NestedNode(nn.Module):
    """The channels of a layer that one stage adds.

    Args:
        node: its sizes.
        relu: whether its result is rectified.
        shared: the pieces that ``node.norms`` names; none if it has norms of its own.
    """

    def __init__(self, node: Node, relu: bool, shared: Sequence[SharedNorm] = ()) -> None:
        super().__init__()
        self._shared = tuple(shared)  # modules in a tuple are not registered
        self.node = node
        self.relu = relu
        self.depth = len(node.units)
        for number, unit in enumerate(node.units, 1):
            conv = convolution(unit)
            # He et al. 2015, by fan-in: the rows of a slice have the whole layer's distribution
            nn.init.kaiming_normal_(conv.weight, mode="fan_in", nonlinearity="relu")
            self.add_module(f"conv{number}", conv)
            if not shared:
                self.add_module(f"norm{number}", nn.BatchNorm2d(unit.outputs))

    def norms(self, number: int) -> list[nn.Module]:
        """The norms of a unit: its own, or those within the pieces of a shared one."""
        if self._shared:
            return [piece.norm for piece in self._shared]
        return [self._modules[f"norm{number}"]]  # type: ignore[list-item]

    def batch_norms(self, number: int) -> list[Norm] | None:
        """``norms``, if calling them does nothing but batch normalisation; None otherwise."""
        found: list[Norm] = []
        for norm in self.norms(number):
            if not is_plain(norm, nn.BatchNorm2d, SyncBatchNorm):
                return None
            found.append(norm)  # type: ignore[arg-type]
        return found if all(is_plain(piece, SharedNorm) for piece in self._shared) else None

    def normalise(self, number: int, z: Tensor) -> Tensor:
        """Normalise a unit's convolution, piece by piece where the norm is shared."""
        norms: Sequence[nn.Module] = self._shared or (getattr(self, f"norm{number}"),)
        if len(norms) == 1:
            normalised: Tensor = norms[0](z)
            return normalised
        parts = torch.split(z, [piece.channels for piece in self.node.norms], dim=1)
        return torch.cat([norm(part) for norm, part in zip(norms, parts, strict=True)], dim=1)

    def forward(
        self, x: Tensor, below: Sequence[Sequence[Tensor]], residual: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        """Evaluate the node.

        Args:
            x: ``[B, C, H, W]``, all channels that the node reads.
            below: per inner unit, the activations of the layer's earlier nodes.
            residual: ``[B, c, H', W']``, added to the result.

        Returns:
            The node's result ``[B, c, H', W']`` and its inner activations, one per unit but the
            last.
        """
        inner: list[Tensor] = []
        in_place = False
        for number in range(1, self.depth + 1):
            conv: nn.Module = getattr(self, f"conv{number}")
            x = self.normalise(number, conv(x))
            # a batch norm's result is new, and its backward pass does not read it
            in_place = self.batch_norms(number) is not None
            if number < self.depth:
                x = F.relu(x, in_place)
                inner.append(x)
                x = join([*below[number - 1], x])
        if residual is not None:
            x = x.add_(residual) if in_place else x + residual
        return (F.relu(x, in_place) if self.relu else x), inner


def join(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate along channels; a single part is returned as it is."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=1)
