"""One training step: S logits -> S losses -> one gradient -> the base optimizer's update."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..multitask import OSGD, NonFiniteLossError, Stats, gradient_stats
from .compiled import compile_network
from .config.train_config import TrainConfig
from .cuda_graph import GraphedStep, make_capturable
from .distributed import World
from .errors import ConfigError, RunError
from .metrics import RunningMetrics
from .training_phases import Phase


@dataclass(frozen=True)
class StepOutput:
    """What a step leaves beside new weights: losses [S], logits [B, K] each, cosines [S, S]."""

    losses_S: Tensor
    logits: list[Tensor]
    cosines: Tensor | None


class TrainStep:
    """What one phase updates with; ``state_dict`` holds all that a resumed phase needs."""

    def __init__(
        self, config: TrainConfig, phase: Phase, device: torch.device, world: World | None = None
    ) -> None:
        self.config, self.phase, self.device = config, phase, device
        self.world = world or World()
        self.forward = phase.network
        self.combiner = config.method.build(self.world.group)
        self.remark = ""  # for the one who watches the run
        if config.run.compile:
            one_pass = self.combiner.takes_one_pass(range(len(phase.stages)))
            self.remark = compile_network(phase.network, one_pass)
        self.optimizer = config.optimizer.build(phase.parameters)
        # not every torch that we run on has the scaler's kernels for mps
        scales = config.run.precision == "float16" and device.type != "mps"
        self.scaler = torch.amp.GradScaler(device.type, enabled=scales)
        self.graph: GraphedStep[StepOutput] | None = None
        if config.run.cuda_graph:
            make_capturable(self.optimizer, device)
            self.graph = GraphedStep(self.take, device, kind=self.kind, replayed=self.replayed)

    def autocast(self) -> torch.autocast:
        """The context of the forward pass."""
        precision = self.config.run.precision
        return torch.autocast(
            self.device.type,
            dtype=torch.float16 if precision == "float16" else torch.bfloat16,
            enabled=precision != "float32",
        )

    def step(self, images: Tensor, labels: Tensor, sums: RunningMetrics, measure: bool) -> None:
        """Update the weights from one batch, and add it to ``sums``.

        ``measure`` asks for the gradients' cosines where the method does not know them anyway.

        Errors: RunError where a loss is not finite (the caller knows where) and
        ``method.on_nonfinite`` says to raise; on every rank, where it is so on one.
        """
        if self.graph is None or measure:
            taken = self.take(images, labels, measure)
        else:
            taken = self.graph(images, labels)
        sums.add(taken.losses_S, taken.logits, labels)
        if taken.cosines is not None and self.world.leads:  # they are the same on all ranks
            sums.add_cosines(taken.cosines)

    def take(self, images: Tensor, labels: Tensor, measure: bool = False) -> StepOutput:
        """The step itself, which may be recorded: what is kept of it is added up by ``step``."""
        with self.autocast():
            logits = self.forward(images)
        losses = [self.config.method.criterion(out, labels) for out in logits]
        losses_S = torch.stack([loss.detach() for loss in losses])
        alone = self.world.size == 1
        if alone and self.config.method.on_nonfinite == "raise":
            self.require_finite(losses_S)
        self.optimizer.zero_grad(set_to_none=True)
        samples = None if alone else len(labels)
        cosines = None
        if measure and len(losses) > 1:
            cosines = self.cosines(losses, samples)
        try:
            stats = self.backward(losses, samples)
        except NonFiniteLossError as error:
            raise RunError(str(error).partition(":")[0]) from error
        if len(stats.skipped) < len(losses):
            self.update()
        cosines = cosines if stats.cosines is None else stats.cosines
        return StepOutput(losses_S, [out.detach() for out in logits], cosines)

    def set_rate(self, factor: float) -> None:
        """Set the learning rates to ``factor`` times the optimizer's base rates."""
        set_rate(self.optimizer, factor)

    def kind(self) -> bool:
        """Whether the next step is one backward pass: recorded apart from one that is several."""
        return self.combiner.takes_one_pass(range(len(self.phase.stages)))

    def replayed(self, single: bool) -> None:
        """Count a replayed step for OSGD's refresh, whose Python has not run."""
        if isinstance(self.combiner, OSGD) and self.combiner.kept is not None:
            self.combiner.kept.count(refreshed=not single)

    def cosines(self, losses: list[Tensor], samples: int | None) -> Tensor | None:
        """[S, S] of the joined batch's gradients; None where a loss is not finite."""
        try:
            return gradient_stats(
                losses, self.phase.parameters, group=self.world.group, samples=samples
            ).cosines
        except NonFiniteLossError:
            return None

    def backward(self, losses: list[Tensor], samples: int | None = None) -> Stats:
        """The combined gradient into ``.grad``, times the loss scale under float16."""
        if not self.scaler.is_enabled():
            return self.combiner.backward(losses, self.phase.parameters, samples=samples)
        scaled = [self.scaler.scale(loss) for loss in losses]
        scale = self.scaler.get_scale()
        return self.combiner.backward(
            scaled, self.phase.parameters, loss_scale=scale, samples=samples
        )

    def update(self) -> None:
        """The base optimizer's step along ``.grad``, which float16 may have to leave out."""
        if self.config.optimizer.clip is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.phase.parameters, self.config.optimizer.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.world.size > 1 and not self.config.run.sync_batch_norm:
            self.world.average(
                [
                    buffer
                    for module in self.phase.network.modules()
                    if module.training
                    for buffer in module.buffers(recurse=False)
                    if buffer.is_floating_point()
                ]
            )

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
            "combiner": self.combiner.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint of the same phase."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.combiner.load_state_dict(state["combiner"])
        self.scaler.load_state_dict(state["scaler"])
        if self.graph is not None:
            make_capturable(self.optimizer, self.device)  # the loaded rate lies elsewhere


def set_rate(optimizer: Optimizer, factor: float) -> None:
    """Set each group's learning rate to ``factor`` times the rate that it was made with."""
    for group in optimizer.param_groups:
        rate = factor * group.setdefault("initial_lr", float(group["lr"]))
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)  # in place, where a recorded step reads it
        else:
            group["lr"] = rate


def require_capturable(config: TrainConfig, device: torch.device, world: World) -> None:
    """ConfigError where a step that is to be a CUDA graph could not be one."""
    if not config.run.cuda_graph:
        return
    wrong = {
        f"a CUDA device, found {device}": device.type != "cuda",
        "method.on_nonfinite ignore (--on-nonfinite ignore), since a recorded step looks at no "
        f"loss, found {config.method.on_nonfinite}": config.method.on_nonfinite != "ignore",
        "float32 or bf16, found float16, whose scaler waits for the device": (
            config.run.precision == "float16"
        ),
        "a number for method.C, found calibrated, whose first steps differ": (
            config.method.C == "calibrated"
        ),
        f"one process, found {world.size}": world.size > 1,
    }
    for need, lacking in wrong.items():
        if lacking:
            raise ConfigError(f"run.cuda_graph needs {need}: change that, or leave it out")
    try:
        make_capturable(config.optimizer.build([nn.Parameter(torch.zeros(1, 1))]), "cpu")
    except ValueError as error:
        raise ConfigError(f"run.cuda_graph: {error}") from error
