"""One node's module: its convolutions and batch norms, evaluated by plain PyTorch operations.

This is the reference that the fused kernel (``fused.py``) is tested against, and what stage-by-stage
inference runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .plan import Node, Unit


class Pointwise(nn.Conv2d):
    """A 1x1 convolution with a stride; on a CPU one without, of every ``stride``-th pixel.

    The same numbers, past a fault of oneDNN 3.12 (torch 2.13): on CPUs without AVX-512 its weight
    gradient of such a convolution writes beyond its memory where the images are ``channels_last``
    and have fewer than 8 channels.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return super().forward(x)
        return F.conv2d(every(x, self.stride[0]), self.weight, self.bias)


def every(x: Tensor, stride: int) -> Tensor:
    """``[B, C, H, W]``: every ``stride``-th row and column, a view."""
    return x[:, :, ::stride, ::stride]


def convolution(unit: Unit) -> nn.Conv2d:
    """The module of a unit."""
    kind = Pointwise if unit.kernel == 1 and unit.stride > 1 else nn.Conv2d
    return kind(unit.inputs, unit.outputs, unit.kernel, unit.stride, unit.kernel // 2, bias=False)


class SharedNorm(nn.Module):
    """A batch norm that several stripes use: channels of the norm that a group's transitions share.

    The network has it as a module, the stripes only refer to it, so that its parameters are
    registered once. Another norm may be put in the place of ``norm``, for all of them.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm: nn.Module = nn.BatchNorm2d(channels)


class NestedNode(nn.Module):
    """The slice of a layer that is born at one stage.

    Args:
        node: its sizes.
        relu: whether its result is rectified.
        shared: the pieces that ``node.norms`` names; none where it has norms of its own.
    """

    def __init__(self, node: Node, relu: bool, shared: Sequence[SharedNorm] = ()) -> None:
        super().__init__()
        self._shared = tuple(shared)  # in a tuple they are not registered
        self.node = node
        self.relu = relu
        self.depth = len(node.units)
        for number, unit in enumerate(node.units, 1):
            conv = convolution(unit)
            # He et al. 2015, by fan-in: a slice's rows are then drawn as the whole layer's would be
            nn.init.kaiming_normal_(conv.weight, mode="fan_in", nonlinearity="relu")
            self.add_module(f"conv{number}", conv)
            if not shared:
                self.add_module(f"norm{number}", nn.BatchNorm2d(unit.outputs))

    def conv(self, number: int) -> nn.Conv2d:
        conv = getattr(self, f"conv{number}")
        assert isinstance(conv, nn.Conv2d)
        return conv

    def norm(self, number: int) -> nn.Module:
        norm = getattr(self, f"norm{number}")
        assert isinstance(norm, nn.Module)
        return norm

    def norms(self, number: int) -> list[nn.Module]:
        """What a unit's channels are normalised by: its own norm, or the pieces of a shared one."""
        return [piece.norm for piece in self._shared] or [self.norm(number)]

    def normalise(self, number: int, z: Tensor) -> Tensor:
        """A unit's norm of its convolution's result: channel by channel, so piece by piece."""
        norms = self.norms(number)
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
            The node's result ``[B, c, H', W']`` and its inner activations, one per unit but the last.
        """
        inner: list[Tensor] = []
        for number in range(1, self.depth + 1):
            x = self.normalise(number, self.conv(number)(x))
            if number < self.depth:
                x = x.relu_()  # in place: no norm needs its own result for its backward pass
                inner.append(x)
                x = join([*below[number - 1], x])
        if residual is not None:
            x = x.add_(residual)
        return (x.relu_() if self.relu else x), inner


def join(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate along channels; one part is handed on as it is."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=1)
