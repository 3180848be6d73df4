"""Batch norm folded into the convolutions: what a trained node computes, without its norms.

At inference ``norm(conv(x)) = g (Wx - m) / sqrt(v + e) + b`` is one convolution with weight
``W g / sqrt(v + e)`` and bias ``b - m g / sqrt(v + e)`` (Ioffe & Szegedy 2015, section 3.1). The products are
taken in float64.

Legend: o outputs of the node, i inputs, k kernel side.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..nets import AnytimeNetwork
from ..nets.nested.node import Stripe

Folded = list[tuple[Tensor, Tensor]]


def folded(network: AnytimeNetwork) -> dict[tuple[str, int], Folded]:
    """Per (layer name, birth): each unit's weight ``[o, i, k, k]`` and bias ``[o]``, float64 on the CPU.

    The tensors are copies: later training does not change them. Running statistics are used whether the
    network is in training mode or not.

    Raises:
        ValueError: a norm that has no running statistics (it was replaced), and so cannot be folded.
    """
    result: dict[tuple[str, int], Folded] = {}
    for layer in network.plan.layers:
        for node in layer.nodes:
            stripe = network.get_submodule(f"{layer.name}.stage{node.birth}")
            assert isinstance(stripe, Stripe)
            result[layer.name, node.birth] = [
                _unit(f"{layer.name}.stage{node.birth}", stripe, unit)
                for unit in range(1, stripe.depth + 1)
            ]
    return result


@torch.no_grad()
def _unit(name: str, stripe: Stripe, number: int) -> tuple[Tensor, Tensor]:
    """A unit's convolution with its norm, or with the pieces of a shared one, folded in."""
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
    weights, biases = zip(*(_fold(*own) for own in rows), strict=True)
    return torch.cat(weights), torch.cat(biases)


def _fold(name: str, weight: Tensor, bias: Tensor, norm: nn.Module) -> tuple[Tensor, Tensor]:
    if isinstance(norm, nn.Identity):
        return weight, bias
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or norm.running_mean is None:
        raise ValueError(
            f"{name} must be a batch norm with running statistics to be folded, got "
            f"{type(norm).__name__}; serve the network with model.stages(x) instead"
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
