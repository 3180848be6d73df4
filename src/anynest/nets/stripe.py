"""One node's module: its convolutions and batch norms, evaluated by plain PyTorch operations.

This is the reference that the fused kernel (``fused.py``) is tested against, and what stage-by-stage
inference runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .plan import Node


class Stripe(nn.Module):
    """The slice of a layer that is born at one stage.

    Args:
        node: its sizes.
        relu: whether its result is rectified.
    """

    def __init__(self, node: Node, relu: bool) -> None:
        super().__init__()
        self.node = node
        self.relu = relu
        self.depth = len(node.units)
        for number, unit in enumerate(node.units, 1):
            conv = nn.Conv2d(
                unit.inputs, unit.outputs, unit.kernel, unit.stride, unit.kernel // 2, bias=False
            )
            # He et al. 2015, by fan-in: a slice's rows are then drawn as the whole layer's would be
            nn.init.kaiming_normal_(conv.weight, mode="fan_in", nonlinearity="relu")
            self.add_module(f"conv{number}", conv)
            self.add_module(f"norm{number}", nn.BatchNorm2d(unit.outputs))

    def conv(self, number: int) -> nn.Conv2d:
        conv = getattr(self, f"conv{number}")
        assert isinstance(conv, nn.Conv2d)
        return conv

    def norm(self, number: int) -> nn.Module:
        norm = getattr(self, f"norm{number}")
        assert isinstance(norm, nn.Module)
        return norm

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
            x = self.norm(number)(self.conv(number)(x))
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
