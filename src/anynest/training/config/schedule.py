"""The learning rate over a run, set at every batch.

Milestones are fractions of the run, so that a run with fewer epochs than its recipe keeps the
recipe's shape: x0.2 at epochs 60/120/160 of 200 is (0.3, 0.6, 0.8), and with ``--epochs 3`` the
same steps come after 0.9, 1.8 and 2.4 epochs.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from ..errors import ConfigError
from .config_io import Section, option


@dataclass(frozen=True)
class ScheduleConfig(Section):
    """Epochs and the shape of the learning rate."""

    SECTION = "schedule"

    epochs: int = option(
        10, "--epochs", "passes over the training split (greedy: per stage)", at_least=1
    )
    shape: Literal["steps", "cosine", "constant"] = option(
        "steps", "--schedule", "shape of the learning rate"
    )
    milestones: tuple[float, ...] = option(
        (0.3, 0.6, 0.8),
        "--milestones",
        "steps: where the rate drops; below 1 a fraction of the run, else an epoch",
    )
    factor: float = option(0.2, "--lr-factor", "steps: the rate's factor at each", above=0)
    warmup_epochs: float = option(0.0, "--warmup-epochs", "linear rise from zero", at_least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(later <= earlier for earlier, later in pairwise((0.0, *self.milestones))):
            raise ConfigError(
                f"schedule.milestones must be positive and rise, found {list(self.milestones)}"
            )
        if self.warmup_epochs > self.epochs:
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
