"""The phases of a training run: which network, weights and losses each of them trains.

Every method has one phase, which trains all stages together, except greedy, which has one a stage
(Algorithm 1): phase s trains ``w_s \\ w_{s-1}`` on the loss of stage s alone for a full schedule.
Earlier stages are frozen: their weights take no gradient, their batch norms keep their statistics.
Line 3's initialisation is that of the network as it was built.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from .config.train_config import TrainConfig
from .errors import ConfigError

if TYPE_CHECKING:
    from ..nets.staged import StagedModule


@dataclass(frozen=True)
class Phase:
    """``network(images)`` gives the logits of ``stages`` (numbered from 1), in order."""

    network: StagedModule
    parameters: list[nn.Parameter]
    stages: tuple[int, ...]
    frozen: tuple[nn.Module, ...] = ()

    def train_mode(self) -> None:
        """Set training mode, except for the frozen modules."""
        self.network.train()
        for module in self.frozen:
            module.eval()


def count_phases(config: TrainConfig, model: StagedModule) -> int:
    """The number of phases, each a full schedule."""
    return model.num_stages if config.greedy else 1


def require_stages(model: StagedModule) -> None:
    """ConfigError for a network whose stages cannot be trained one after another."""
    for method, meaning in (
        ("stage_modules", "stage_modules(stage) -> the modules that it adds"),
        ("subnetwork", "subnetwork(stage) -> the network of its output alone"),
    ):
        if not callable(getattr(model, method, None)):
            raise ConfigError(
                f"greedy training needs a network with {method} ({meaning}), found "
                f"{type(model).__name__} without: take another --method"
            )


def make_phase(config: TrainConfig, model: Any, index: int) -> Phase:
    """Phase ``index`` (from 0), with ``requires_grad`` set on the model's weights to match."""
    stages = tuple(range(1, model.num_stages + 1))
    if not config.greedy:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return Phase(model, trained, stages)
    model.requires_grad_(False)
    stage = stages[index]
    earlier = tuple(module for number in stages[:index] for module in model.stage_modules(number))
    parameters = [p for module in model.stage_modules(stage) for p in module.parameters()]
    for parameter in parameters:
        parameter.requires_grad_(True)
    return Phase(model.subnetwork(stage), parameters, (stage,), earlier)
