"""A network's plan and its weights, with batch norms folded into the convolutions.

At inference ``norm(conv(x)) = g (Wx - m) / sqrt(v + e) + b`` is one convolution with weight
``W g / sqrt(v + e)`` and bias ``b - m g / sqrt(v + e)`` (Ioffe & Szegedy 2015, section 3.1). The
products are computed in float64 and rounded to float32 once. All engines run these weights.

Legend: o outputs of a node, i inputs, k kernel size, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..nets import AnytimeNetwork
from ..nets.nested.node import NestedNode
from ..nets.nested.plan import Plan

Array = npt.NDArray[Any]
Weights = tuple[Array, Array]  # weight and bias


@dataclass(frozen=True)
class FoldedNetwork:
    """The plan and copies of the weights, float32.

    Attributes:
        plan: the graph of nodes.
        outputs: the plan's stage of each output, in order.
        in_channels: channels of the images.
        convolutions: (layer name, birth) -> per unit (weight ``[o, i, k, k]``, bias ``[o]``).
        heads: plan's stage -> (weight ``[K, features]``, bias ``[K]``).
    """

    plan: Plan
    outputs: tuple[int, ...]
    in_channels: int
    convolutions: dict[tuple[str, int], list[Weights]]
    heads: dict[int, Weights]

    @classmethod
    @torch.no_grad()
    def of(cls, network: AnytimeNetwork) -> FoldedNetwork:
        """Copy a network's weights and fold its batch norms.

        Running statistics are used whether the network is in training mode or not.

        Raises:
            ValueError: a norm without running statistics, which cannot be folded.
        """
        convolutions = {}
        for layer in network.plan.layers:
            for node in layer.nodes:
                name = f"{layer.name}.stage{node.birth}"
                stripe = network.get_submodule(name)
                assert isinstance(stripe, NestedNode)
                convolutions[layer.name, node.birth] = [
                    _float32(*fold_unit(name, stripe, unit)) for unit in range(1, stripe.depth + 1)
                ]
        heads = {
            exit_.stage: _float32(*network.classifier(exit_.stage)) for exit_ in network.plan.exits
        }
        return cls(network.plan, network.outputs, network.in_channels, convolutions, heads)

    @property
    def num_classes(self) -> int:
        """K."""
        return self.plan.num_classes


def _float32(weight: Tensor, bias: Tensor) -> Weights:
    pair = [np.array(t.detach().cpu().numpy(), dtype=np.float32) for t in (weight, bias)]
    return pair[0], pair[1]


def fold_unit(name: str, stripe: NestedNode, number: int) -> tuple[Tensor, Tensor]:
    """Fold a unit's norm, or the pieces of a shared one, into its convolution.

    Args:
        name: dotted path of the stripe, for messages.
        stripe: the node's module.
        number: of the unit, from 1.

    Returns:
        Weight ``[o, i, k, k]`` and bias ``[o]``, float64 on the CPU.
    """
    conv, pieces = stripe.conv(number), stripe.node.norms
    weight = conv.weight.detach().cpu().double()
    bias = torch.zeros(weight.shape[0], dtype=torch.float64)
    if conv.bias is not None:
        bias = conv.bias.detach().cpu().double()
    names = [f"{piece.name}.norm" for piece in pieces] or [f"{name}.norm{number}"]
    sizes = [piece.channels for piece in pieces] or [len(bias)]
    rows = zip(
        names,
        torch.split(weight, sizes),
        torch.split(bias, sizes),
        stripe.norms(number),
        strict=True,
    )
    weights, biases = zip(*(_fold(*row) for row in rows), strict=True)
    return torch.cat(weights), torch.cat(biases)


def _fold(name: str, weight: Tensor, bias: Tensor, norm: nn.Module) -> tuple[Tensor, Tensor]:
    if isinstance(norm, nn.Identity):
        return weight, bias
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or norm.running_mean is None:
        raise ValueError(
            f"{name} must be a batch norm with running statistics to be folded, found "
            f"{type(norm).__name__}"
        )
    assert norm.running_var is not None
    mean, variance = norm.running_mean.cpu().double(), norm.running_var.cpu().double()
    scale = (variance + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().cpu().double()
    shift = (bias - mean) * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach().cpu().double()
    return weight * scale.view(-1, 1, 1, 1), shift
