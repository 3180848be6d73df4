"""One training step: S logits -> S losses -> one gradient -> the base optimizer's update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..multitask import OSGD, NonFiniteLossError, Stats, compile_for_tasks
from ..nets import AnytimeNetwork
from .config.train_config import TrainConfig
from .cuda_graph import GraphedStep, make_capturable
from .distributed import World
from .errors import DivergedError
from .training_phases import Phase
from .weight_average import WeightAverage

if TYPE_CHECKING:
    from ..nets.staged import StagedModule


@dataclass(frozen=True)
class StepOutput:
    """The results of a step beside the new weights.

    losses_S: [S], detached; logits: S tensors [B, K], detached; cosines: [S, S] between the losses'
    gradients, where they are known.
    """

    losses_S: Tensor
    logits: list[Tensor]
    cosines: Tensor | None


class TrainStep:
    """``step(images, labels)`` updates a phase's weights from one batch.

    ``state_dict`` holds everything that a resumed phase needs. ``remark`` is a line for the user.
    """

    def __init__(
        self, config: TrainConfig, phase: Phase, device: torch.device, world: World | None = None
    ) -> None:
        self.config, self.phase, self.device = config, phase, device
        self.world = world or World()
        self.combiner = config.method.build(self.world.group)
        self.measuring = OSGD(group=self.world.group)  # cosines, where the method gives none
        self.remark = ""
        if config.run.compile:
            one_pass = self.combiner.takes_one_pass(range(len(phase.stages)))
            self.remark = compile_network(phase.network, one_pass)
        self.optimizer = config.optimizer.build(phase.parameters)
        # some supported versions of torch lack the scaler's kernels for mps
        scales = config.run.precision == "float16" and device.type != "mps"
        self.scaler = torch.amp.GradScaler(device.type, enabled=scales)
        ema = config.optimizer.ema
        self.average = None if ema is None else WeightAverage(phase.network, ema)
        self.graph: GraphedStep[StepOutput] | None = None
        if config.run.cuda_graph:
            make_capturable(self.optimizer, device)
            self.graph = GraphedStep(self.eager, device, kind=self.kind, replayed=self.replayed)

    def __call__(self, images: Tensor, labels: Tensor, *, measure: bool = False) -> StepOutput:
        """Update the weights from one batch.

        Args:
            images: [B, C, H, W].
            labels: [B].
            measure: measure the cosines of the losses' gradients where the method does not compute
                them anyway.

        Raises:
            DivergedError: a loss is not finite and ``method.on_nonfinite`` is ``raise``; on every
                rank.
        """
        if self.graph is None or measure:
            output = self.eager(images, labels, measure)
        else:
            output = self.graph(images, labels)
        if self.average is not None:
            self.average.update()
        return output

    def autocast(self) -> torch.autocast:
        """The context of the forward pass."""
        precision = self.config.run.precision
        return torch.autocast(
            self.device.type,
            dtype=torch.float16 if precision == "float16" else torch.bfloat16,
            enabled=precision != "float32",
        )

    def eager(self, images: Tensor, labels: Tensor, measure: bool = False) -> StepOutput:
        """The step itself, run or recorded as a CUDA graph."""
        with self.autocast():
            logits = self.phase.network(images)
        losses = self.config.method.losses(logits, labels)
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
            raise DivergedError(str(error).partition(":")[0]) from error
        if len(stats.skipped) < len(losses):
            self.update()
        cosines = cosines if stats.cosines is None else stats.cosines
        return StepOutput(losses_S, [out.detach() for out in logits], cosines)

    @property
    def evaluated(self) -> nn.Module:
        """The network to evaluate: with averaged weights where these are configured."""
        return self.phase.network if self.average is None else self.average.averaged()

    def finish(self) -> None:
        """End the phase: give the network its averaged weights where these are configured."""
        if self.average is not None:
            self.average.apply()

    def kind(self) -> bool:
        """Whether the next step is one backward pass; each kind of step has its own graph."""
        return self.combiner.takes_one_pass(range(len(self.phase.stages)))

    def replayed(self, single: bool) -> None:
        """Count a replayed step for OSGD's refresh, since a replay runs no Python."""
        if isinstance(self.combiner, OSGD) and self.combiner.kept is not None:
            self.combiner.kept.count(refreshed=not single)

    def cosines(self, losses: list[Tensor], samples: int | None) -> Tensor | None:
        """Cosines [S, S] of the whole batch's gradients; None where a loss is not finite.

        Under float16 the losses carry the loss scale, which cosines do not depend on: without it
        small gradients would be zeros.
        """
        scaled = [self.scaler.scale(loss) for loss in losses]
        try:
            return self.measuring.measure(scaled, self.phase.parameters, samples).cosines
        except NonFiniteLossError:
            return None

    def backward(self, losses: list[Tensor], samples: int | None = None) -> Stats:
        """Write the combined gradient into ``.grad``, times the loss scale under float16."""
        if not self.scaler.is_enabled():
            return self.combiner.backward(losses, self.phase.parameters, samples=samples)
        scaled = [self.scaler.scale(loss) for loss in losses]
        scale = self.scaler.get_scale()
        return self.combiner.backward(
            scaled, self.phase.parameters, loss_scale=scale, samples=samples
        )

    def update(self) -> None:
        """Take the base optimizer's step, which the scaler skips where float16 overflowed."""
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
        """DivergedError, naming the stages, where a loss is not finite."""
        if bool(torch.isfinite(losses_S).all()):
            return
        pairs = zip(self.phase.stages, losses_S.tolist(), strict=True)
        bad = [f"stage {stage} is {loss}" for stage, loss in pairs if not abs(loss) < float("inf")]
        raise DivergedError("the loss of " + ", of ".join(bad))

    def state_dict(self) -> dict[str, Any]:
        """The state that a resumed phase needs: tensors and plain values."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "combiner": self.combiner.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": {} if self.average is None else self.average.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of a checkpoint of the same phase."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.combiner.load_state_dict(state["combiner"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        if self.graph is not None:
            make_capturable(self.optimizer, self.device)  # the loaded rates are other tensors


def set_rate(optimizer: Optimizer, factor: float) -> None:
    """Set each group's learning rate to ``factor`` times the rate that it was made with."""
    for group in optimizer.param_groups:
        rate = factor * group.setdefault("initial_lr", float(group["lr"]))
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)  # in place: a recorded step reads this tensor
        else:
            group["lr"] = rate


def compile_network(network: StagedModule, one_pass: bool) -> str:
    """Compile the network in place and say in a line what was compiled.

    With one backward pass a step the whole network is one region. With one pass per loss each node
    is one, so that a pass runs only through the nodes of its loss; nodes that share a kernel stay
    in it, whose backward pass skips stages by itself (``nets/nested/fused.py``). A network that
    does not name its nodes is one region, through the whole of which each pass runs.
    """
    if one_pass:
        compile_for_tasks(network)
        return "compiled: the network as a whole"
    called_nodes = getattr(network, "called_nodes", None)
    if called_nodes is None:
        compile_for_tasks(network)
        return (
            "compiled: the network as a whole, through which the backward pass of each loss runs, "
            f"as {type(network).__name__} has no called_nodes()"
        )
    blocks = called_nodes()
    compile_for_tasks(network, blocks)
    if not isinstance(network, AnytimeNetwork):
        return f"compiled: each of {len(blocks)} modules by itself"
    nodes = sum(len(layer.nodes) for layer in network.plan.layers)
    if len(blocks) == nodes:
        return f"compiled: each of {nodes} nodes by itself"
    return f"compiled: {len(blocks)} of {nodes} nodes by themselves; others run in fused kernels"
