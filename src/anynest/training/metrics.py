"""Running metrics of an epoch, kept on the device: no synchronization within the epoch.

S stages (losses), B batch, K classes.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .distributed import World

COSINE_BATCHES = 5  # of an epoch, on which every method's cosines are measured


def is_sampled(batch: int, batches: int) -> bool:
    """Whether cosines are measured on a batch: the first of each fifth of the epoch.

    These are the same batches for every method, whether it knows its cosines in each step or not,
    so that the means of two methods compare.

    >>> [batch for batch in range(11) if is_sampled(batch, 11)]
    [0, 3, 5, 7, 9]
    >>> [batch for batch in range(3) if is_sampled(batch, 3)]
    [0, 1, 2]
    """
    count = min(COSINE_BATCHES, batches)
    return batch == 0 or batch * count // batches != (batch - 1) * count // batches


@dataclass
class RunningMetrics:
    """Per-stage sums over the images of an epoch, without the losses that are not finite."""

    stages: int
    device: torch.device
    top5: bool = False
    tensors: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        kind = torch.float32 if self.device.type == "mps" else torch.float64
        names = ["loss", "images", "errors", "seen"] + (["top5"] if self.top5 else [])
        self.tensors = {
            name: torch.zeros(self.stages, dtype=kind, device=self.device) for name in names
        }
        self.tensors["cosines"] = torch.zeros(
            self.stages, self.stages, dtype=kind, device=self.device
        )
        self.tensors["cosine_batches"] = torch.zeros(1, dtype=kind, device=self.device)

    @torch.no_grad()
    def add(self, losses_S: Tensor, logits: list[Tensor], labels_B: Tensor) -> None:
        """Add a batch: its mean loss per stage, and its logits [B, K] per stage."""
        finite = torch.isfinite(losses_S)
        count = labels_B.shape[0]
        self.tensors["loss"] += torch.where(finite, losses_S, 0.0).to(self.tensors["loss"]) * count
        self.tensors["images"] += finite * count
        self.tensors["seen"] += count
        wrong = [(out.argmax(1) != labels_B).sum() for out in logits]
        self.tensors["errors"] += torch.stack(wrong)
        if self.top5:
            missed = [~(out.topk(5, 1).indices == labels_B[:, None]).any(1) for out in logits]
            self.tensors["top5"] += torch.stack([miss.sum() for miss in missed])

    @torch.no_grad()
    def add_cosines(self, cosines_SS: Tensor | None) -> None:
        """Add the cosines between the losses' gradients on one batch, where they are known."""
        if cosines_SS is None:
            return
        known = torch.isfinite(cosines_SS).all().to(self.device)
        cosines_SS = cosines_SS.to(self.tensors["cosines"])
        self.tensors["cosines"] += torch.where(known, cosines_SS, 0.0)
        self.tensors["cosine_batches"] += known

    def over(self, world: World) -> "RunningMetrics":
        """The metrics over all ranks."""
        whole = RunningMetrics(self.stages, self.device, self.top5)
        whole.tensors = dict(
            zip(self.tensors, world.total(list(self.tensors.values())), strict=True)
        )
        return whole

    def merge(self, tensors: dict[str, Tensor]) -> None:
        """Add the sums of a checkpoint."""
        for name, tensor in self.tensors.items():
            tensor += tensors[name].to(tensor.device)

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restore the sums of a checkpoint."""
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])

    def means(self) -> dict[str, Any]:
        """``loss``, ``error`` and perhaps ``top5_error`` per stage. Synchronizes the device."""
        sums = {name: tensor.tolist() for name, tensor in self.tensors.items()}

        def ratio(over: str, under: str) -> list[float | None]:
            pairs = zip(sums[over], sums[under], strict=True)
            return [a / b if b else None for a, b in pairs]

        result = {"loss": ratio("loss", "images"), "error": ratio("errors", "seen")}
        if self.top5:
            result["top5_error"] = ratio("top5", "seen")
        return result

    def cosines(self) -> list[list[float]] | None:
        """The mean cosines [S, S] over the batches where they are known."""
        batches = self.tensors["cosine_batches"].item()
        if not batches or self.stages < 2:
            return None
        mean: list[list[float]] = (self.tensors["cosines"] / batches).tolist()
        return mean

    def cosine_batches(self) -> int:
        """The number of batches where the cosines are known."""
        return int(self.tensors["cosine_batches"].item())
