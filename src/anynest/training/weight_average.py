"""An exponential moving average of a network's weights, which is evaluated and saved instead."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


class WeightAverage:
    """Averages the parameters and floating-point buffers of a network over its training steps.

    After update t the average is ``d * average + (1 - d) * weights`` with
    ``d = min(decay, (1 + t) / (10 + t))``, so that the first updates forget the initial weights.
    Buffers of other types are copied.

    Args:
        network: the network in training; its weights are read, and written by ``apply`` alone.
        decay: above 0 and below 1.

    >>> layer = nn.Linear(1, 1, bias=False)
    >>> average = WeightAverage(layer, decay=0.5)
    >>> nn.init.zeros_(layer.weight).requires_grad
    True
    >>> start = float(average.tensors["weight"])
    >>> average.update()
    >>> round(float(average.tensors["weight"]) / start, 4)  # d = 2 / 11
    0.1818
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network, self.decay, self.updates = network, decay, 0
        self.tensors = {name: tensor.detach().clone() for name, tensor in _tensors(network)}

    @torch.no_grad()
    def update(self) -> None:
        """Include the network's present weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averages: list[Tensor] = []
        weights: list[Tensor] = []
        for name, tensor in _tensors(self.network):
            if tensor.is_floating_point():
                averages.append(self.tensors[name])
                weights.append(tensor.detach())
            else:
                self.tensors[name].copy_(tensor)
        torch._foreach_lerp_(averages, weights, 1 - decay)

    def averaged(self) -> nn.Module:
        """The network with the averaged weights, as a module that shares them."""
        return _Averaged(self)

    @torch.no_grad()
    def apply(self) -> None:
        """Give the network the averaged weights."""
        for name, tensor in _tensors(self.network):
            tensor.copy_(self.tensors[name])

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values that a resumed run needs."""
        return {"updates": self.updates, "tensors": self.tensors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.updates = state["updates"]
        for name, tensor in self.tensors.items():
            tensor.copy_(state["tensors"][name])


class _Averaged(nn.Module):
    """Calls a network with the averaged weights; the network itself keeps its own."""

    def __init__(self, average: WeightAverage) -> None:
        super().__init__()
        self.network, self.average = average.network, average

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return functional_call(self.network, self.average.tensors, inputs, named)


def _tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer once, by name."""
    return chain(network.named_parameters(), network.named_buffers())
