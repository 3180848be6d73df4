"""One training step: S logits -> S losses -> one gradient -> the base optimizer's update."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ..multitask import gradient_stats
from .config import TrainConfig
from .errors import RunError
from .metrics import Sums
from .phases import Phase


@dataclass
class Stepper:
    """What one phase updates with; ``state_dict`` holds all that a resumed phase needs."""

    config: TrainConfig
    phase: Phase
    forward: Callable[[Tensor], list[Tensor]]
    combiner: Any
    optimizer: Optimizer
    scheduler: LambdaLR
    scaler: torch.amp.GradScaler
    device: torch.device

    @classmethod
    def build(
        cls, config: TrainConfig, phase: Phase, device: torch.device, batches: int
    ) -> "Stepper":
        """Fresh, for a phase whose epochs have ``batches`` batches."""
        optimizer = config.optimizer.build(phase.parameters)
        forward = phase.network
        if config.run.compile:
            # one backward a loss keeps the graph, which donated buffers forbid
            torch._functorch.config.donated_buffer = False
            forward = torch.compile(phase.network)
        return cls(
            config=config,
            phase=phase,
            forward=forward,
            combiner=config.method.build(),
            optimizer=optimizer,
            scheduler=config.schedule.build(optimizer, batches),
            scaler=torch.amp.GradScaler(
                device.type, enabled=config.run.precision == "float16" and device.type == "cuda"
            ),
            device=device,
        )

    def autocast(self) -> torch.autocast:
        """The context of the forward pass."""
        precision = self.config.run.precision
        return torch.autocast(
            self.device.type,
            dtype=torch.float16 if precision == "float16" else torch.bfloat16,
            enabled=precision != "float32",
        )

    def step(self, images: Tensor, labels: Tensor, sums: Sums, measure: bool) -> None:
        """Update the weights from one batch, and add it to ``sums``.

        ``measure`` asks for the gradients' cosines where the method does not know them anyway.

        Errors: RunError where a loss is not finite (the caller knows where) and
        ``method.on_nonfinite`` says to raise.
        """
        config, parameters = self.config, self.phase.parameters
        with self.autocast():
            logits = self.forward(images)
        losses = [config.method.criterion(out, labels) for out in logits]
        losses_S = torch.stack([loss.detach() for loss in losses])
        if config.method.on_nonfinite == "raise":
            self.require_finite(losses_S)
        self.optimizer.zero_grad(set_to_none=True)
        cosines = None
        if measure and len(losses) > 1:
            cosines = gradient_stats(losses, parameters).cosines
        stats = self.combiner.backward(self.scaled(losses), parameters)
        if config.optimizer.clip is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(parameters, config.optimizer.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        sums.add(losses_S, [out.detach() for out in logits], labels)
        if stats.cosines is not None:
            cosines = stats.cosines
        if cosines is not None and len(losses) > 1:
            sums.add_cosines(cosines)

    def scaled(self, losses: list[Tensor]) -> list[Tensor]:
        """Float16's loss scaling; the losses themselves in any other precision."""
        if not self.scaler.is_enabled():
            return losses
        return [self.scaler.scale(loss) for loss in losses]

    def require_finite(self, losses_S: Tensor) -> None:
        """RunError names the stages whose loss is not finite."""
        if bool(torch.isfinite(losses_S).all()):
            return
        pairs = zip(self.phase.stages, losses_S.tolist(), strict=True)
        bad = [f"stage {stage} is {loss}" for stage, loss in pairs if not abs(loss) < float("inf")]
        raise RunError("the loss of " + ", of ".join(bad))

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values only."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "combiner": self.combiner.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint of the same phase."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.combiner.load_state_dict(state["combiner"])
        self.scaler.load_state_dict(state["scaler"])
