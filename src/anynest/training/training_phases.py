"""The phases of a training run: which network, weights and losses each of them trains.

Every method has one phase, which trains all stages together, except greedy, which has one a stage
(Algorithm 1): phase s trains ``w_s \\ w_{s-1}`` on the loss of stage s alone for a full schedule.
Earlier stages are frozen: their weights take no gradient, their batch norms keep their statistics.
Line 3's initialisation is that of the network as it was built.
"""

from dataclasses import dataclass

from torch import nn

from ..nets import AnytimeNetwork
from .config.train_config import TrainConfig


@dataclass(frozen=True)
class Phase:
    """``network(images)`` gives the logits of ``stages`` (numbered from 1), in order."""

    network: AnytimeNetwork
    parameters: list[nn.Parameter]
    stages: tuple[int, ...]
    frozen: tuple[nn.Module, ...] = ()

    def train_mode(self) -> None:
        """Set training mode, except for the frozen modules."""
        self.network.train()
        for module in self.frozen:
            module.eval()


def count_phases(config: TrainConfig, model: AnytimeNetwork) -> int:
    """The number of phases, each a full schedule."""
    return model.num_stages if config.greedy else 1


def make_phase(config: TrainConfig, model: AnytimeNetwork, index: int) -> Phase:
    """Phase ``index`` (from 0), with ``requires_grad`` set on the model's weights to match."""
    stages = tuple(range(1, model.num_stages + 1))
    if not config.greedy:
        return Phase(model, list(model.parameters()), stages)
    model.requires_grad_(False)
    stage = stages[index]
    earlier = tuple(module for number in stages[:index] for module in model.stage_modules(number))
    parameters = [p for module in model.stage_modules(stage) for p in module.parameters()]
    for parameter in parameters:
        parameter.requires_grad_(True)
    return Phase(model.subnetwork(stage), parameters, (stage,), earlier)
