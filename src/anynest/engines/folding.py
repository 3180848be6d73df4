"""A network as the graphs are made from it: its plan and its folded weights, without any module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..nets import AnytimeNetwork
from ..nets.nested.plan import Plan
from .fold import folded

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class FoldedNetwork:
    """What every output is computed from.

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
    convolutions: dict[tuple[str, int], list[tuple[Array, Array]]]
    heads: dict[int, tuple[Array, Array]]

    @classmethod
    def of(cls, network: AnytimeNetwork) -> FoldedNetwork:
        """Fold a network's batch norms; float32. ValueError where a norm cannot be folded."""
        convolutions = {
            place: [(_float32(weight), _float32(bias)) for weight, bias in units]
            for place, units in folded(network).items()
        }
        heads = {}
        for exit_ in network.plan.exits:
            weight, bias = network.classifier(exit_.stage)
            heads[exit_.stage] = (_float32(weight), _float32(bias))
        return cls(network.plan, network.outputs, network.in_channels, convolutions, heads)

    @property
    def num_classes(self) -> int:
        return self.plan.num_classes


def _float32(tensor: Any) -> Array:
    return np.array(tensor.detach().cpu().numpy(), dtype=np.float32)
