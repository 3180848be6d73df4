"""A network's plan and its weights, with batch norms folded into the convolutions.

At inference ``norm(conv(x)) = g (Wx - m) / sqrt(v + e) + b`` is one convolution with weight
``W g / sqrt(v + e)`` and bias ``b - m g / sqrt(v + e)`` (Ioffe & Szegedy 2015, section 3.1). The
products are computed in float64 and rounded to float32 once. All engines run these weights.

Folding reads the weights of modules and does not call them, so each module must be plain:
subclasses with a forward of their own, parametrizations, pruning and hooks are refused
(``FoldError``).

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
from ..nets.nested.layer import NestedLayer
from ..nets.nested.node import NestedNode, Pointwise, SharedNorm
from ..nets.nested.plain import has_hooks, is_plain
from ..nets.nested.plan import Node, Plan, Unit
from ..nets.nested.sync import SyncBatchNorm

Array = npt.NDArray[Any]
Weights = tuple[Array, Array]  # weight and bias

_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, SyncBatchNorm, nn.Identity)
_REMEDY = (
    "make the change permanent (such as prune.remove or parametrize.remove_parametrizations), or "
    "use backend='torch', which calls the modules"
)


class FoldError(ValueError):
    """A network that cannot be folded; ``reason`` is the message without its remedy."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}; {_REMEDY}")
        self.reason = reason


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
            FoldError: a module is not plain, or a norm has no running statistics.
            TypeError: a layer or a container of layers was replaced.
        """
        if type(network).stages is not AnytimeNetwork.stages or "stages" in vars(network):
            raise FoldError(
                f"the network must have AnytimeNetwork's stages, found {_kind(network)}"
            )
        network.layers()  # TypeError if a container was replaced: ``stages`` would refuse it too
        plan = network.plan
        convolutions = {}
        for layer in plan.layers:
            _plain(network, layer.name, NestedLayer)
            for node in layer.nodes:
                name = f"{layer.name}.stage{node.birth}"
                _plain(network, name, NestedNode)
                convolutions[layer.name, node.birth] = [
                    _float32(*fold_unit(network, name, node, number))
                    for number in range(1, len(node.units) + 1)
                ]
        for piece in plan.heads():
            _plain(network, piece.name, nn.Linear)
        heads = {exit_.stage: _float32(*network.classifier(exit_.stage)) for exit_ in plan.exits}
        return cls(plan, network.outputs, network.in_channels, convolutions, heads)

    @property
    def num_classes(self) -> int:
        """K."""
        return self.plan.num_classes


def _float32(weight: Tensor, bias: Tensor) -> Weights:
    pair = [np.array(t.detach().cpu().numpy(), dtype=np.float32) for t in (weight, bias)]
    return pair[0], pair[1]


def fold_unit(network: AnytimeNetwork, name: str, node: Node, number: int) -> tuple[Tensor, Tensor]:
    """Fold a unit's norm, or the pieces of a shared one, into its convolution.

    Args:
        network: the whole network.
        name: dotted path of the node's module.
        node: the plan's entry.
        number: of the unit, from 1.

    Returns:
        Weight ``[o, i, k, k]`` and bias ``[o]``, float64 on the CPU.
    """
    conv = _convolution(network, f"{name}.conv{number}", node.units[number - 1])
    weight = conv.weight.detach().cpu().double()
    bias = torch.zeros(weight.shape[0], dtype=torch.float64)
    if conv.bias is not None:
        bias = conv.bias.detach().cpu().double()
    for piece in node.norms:
        _plain(network, piece.name, SharedNorm)
    names = [f"{piece.name}.norm" for piece in node.norms] or [f"{name}.norm{number}"]
    sizes = [piece.channels for piece in node.norms] or [len(bias)]
    rows = zip(names, torch.split(weight, sizes), torch.split(bias, sizes), strict=True)
    weights, biases = zip(*(_fold(network, *row) for row in rows), strict=True)
    return torch.cat(weights), torch.cat(biases)


def _fold(
    network: AnytimeNetwork, name: str, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    norm = _plain(network, name, *_NORMS)
    if isinstance(norm, nn.Identity):
        return weight, bias
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    if norm.running_mean is None or norm.running_var is None:
        raise FoldError(f"{name} must be a batch norm with running statistics, found none")
    mean, variance = norm.running_mean.cpu().double(), norm.running_var.cpu().double()
    scale = (variance + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().cpu().double()
    shift = (bias - mean) * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach().cpu().double()
    return weight * scale.view(-1, 1, 1, 1), shift


def _convolution(network: AnytimeNetwork, name: str, unit: Unit) -> nn.Conv2d:
    """A plain convolution of the unit's sizes."""
    conv = _plain(network, name, nn.Conv2d, Pointwise)
    assert isinstance(conv, nn.Conv2d)
    half = unit.kernel // 2
    wanted = (
        (unit.outputs, unit.inputs, unit.kernel, unit.kernel),
        (unit.stride,) * 2,
        (half,) * 2,
    )
    found = (tuple(conv.weight.shape), conv.stride, conv.padding)
    if found != wanted or conv.dilation != (1, 1) or conv.padding_mode != "zeros":
        raise FoldError(f"{name} must be a convolution of the plan's size, found {conv}")
    return conv


def _plain(network: AnytimeNetwork, name: str, *types: type[nn.Module]) -> nn.Module:
    """The module of a dotted path; FoldError unless calling it only runs one of ``types``."""
    try:
        module = network.get_submodule(name)
    except AttributeError:
        raise FoldError(f"{name} must be a {types[0].__name__}, found none") from None
    if not is_plain(module, *types):
        raise FoldError(f"{name} must be a plain {types[0].__name__}, found {_kind(module)}")
    return module


def _kind(module: nn.Module) -> str:
    return f"{type(module).__name__}{' with hooks' if has_hooks(module) else ''}"
