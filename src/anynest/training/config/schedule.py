"""The learning rate over a run, set at every batch.

Milestones are fractions of the run, so that a run with fewer epochs than its recipe keeps the
recipe's shape: x0.2 at epochs 60/120/160 of 200 is (0.3, 0.6, 0.8), and with ``--epochs 3`` the
same steps come after 0.9, 1.8 and 2.4 epochs.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor
from torch.optim import Optimizer

from ..errors import ConfigError


@dataclass(frozen=True)
class ScheduleConfig:
    """Epochs and the shape of the learning rate."""

    epochs: int = field(
        default=10,
        metadata={"flag": "--epochs", "help": "passes over the training split (greedy: per stage)"},
    )
    shape: Literal["steps", "cosine", "constant"] = field(
        default="steps", metadata={"flag": "--schedule", "help": "shape of the learning rate"}
    )
    milestones: tuple[float, ...] = field(
        default=(0.3, 0.6, 0.8),
        metadata={
            "flag": "--milestones",
            "help": "steps: where the rate drops; below 1 a fraction of the run, else an epoch",
        },
    )
    factor: float = field(
        default=0.2, metadata={"flag": "--lr-factor", "help": "steps: the rate's factor at each"}
    )
    warmup_epochs: float = field(
        default=0.0, metadata={"flag": "--warmup-epochs", "help": "linear rise from zero"}
    )

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ConfigError(f"schedule.epochs must be at least 1, found {self.epochs}")
        if any(
            later <= earlier
            for earlier, later in zip((0.0, *self.milestones), self.milestones, strict=False)
        ):
            raise ConfigError(
                f"schedule.milestones must be positive and rise, found {list(self.milestones)}"
            )
        if self.factor <= 0:
            raise ConfigError(f"schedule.factor must be positive, found {self.factor}")
        if not 0 <= self.warmup_epochs <= self.epochs:
            raise ConfigError(
                f"schedule.warmup_epochs must be from 0 to {self.epochs}, "
                f"found {self.warmup_epochs}"
            )

    def rate(self, batch: int, batches: int) -> float:
        """The factor on the base rate at batch ``batch`` (from 0) of ``batches`` an epoch.

        >>> recipe = ScheduleConfig(epochs=200)
        >>> [round(0.1 * recipe.rate(epoch * 391, 391), 6) for epoch in (0, 59, 60, 120, 160, 199)]
        [0.1, 0.1, 0.02, 0.004, 0.0008, 0.0008]
        """
        total = self.epochs * batches
        warmup = round(self.warmup_epochs * batches)
        if batch < warmup:
            return (batch + 1) / warmup
        if self.shape == "constant":
            return 1.0
        if self.shape == "cosine":
            done = (batch - warmup) / max(1, total - warmup)
            return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        drops = [round(m * (total if m < 1 else batches)) for m in self.milestones]
        return self.factor ** sum(batch >= drop for drop in drops)

    def set_rate(self, optimizer: Optimizer, batch: int, batches: int) -> None:
        """Set what batch ``batch`` (from 0) of ``batches`` an epoch is to be trained with."""
        for group in optimizer.param_groups:
            base = group.setdefault("initial_lr", float(group["lr"]))
            rate = base * self.rate(batch, batches)
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)  # in place, where a recorded step reads it
            else:
                group["lr"] = rate
