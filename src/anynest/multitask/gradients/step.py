"""What a combiner handles in one step: its micro-batches, what it accumulates, and the result."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .backward import Buffer, Differentiate
from .graph import LossGraph


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """One micro-batch after all checks.

    Attributes:
        losses: all S losses.
        parameters: the leaf tensors to differentiate for.
        values: [S] the losses' values; with a group this rank's share of the joined batch's, so
            that they add up over ranks.
        tasks: the losses that count, by number.
        graphs: for each loss, what its backward pass may free.
        differentiate: takes one backward pass.
    """

    losses: list[Tensor]
    parameters: list[Tensor]
    values: Tensor
    tasks: list[int]
    graphs: list[LossGraph]
    differentiate: Differentiate


@dataclass(frozen=True, eq=False)
class OnePass:
    """A micro-batch's step as one ordinary backward pass of ``sum_i seeds[i] * losses[i]``.

    Attributes:
        seeds: one per loss, of its shape, dtype and device.
        loss_weights: [s] the same numbers in float64, for ``Stats``.
        refreshed: as in ``Stats``.
    """

    seeds: list[Tensor]
    loss_weights: Tensor
    refreshed: bool = True


@dataclass(frozen=True, eq=False)
class Combination:
    """A rule's result for s tasks: the step's gradient is ``sum_i loss_weights[i] * g_i``.

    Attributes:
        loss_weights: [s] as in ``Stats``, over these tasks; likewise the others. [T, s] for
            gradients that are ``tensorwise``: for each of the T tensors that some task touches.
        coefficients: [s, s] or None.
        gram: [s, s] or None.
        importances: [s] k for an average over participants, None for a sum. Entries that not every
            task touches are then multiplied by the sum of k over that of the tasks that do.
        refreshed: as in ``Stats``.
        drift: as in ``Stats``.
    """

    loss_weights: Tensor
    coefficients: Tensor | None = None
    gram: Tensor | None = None
    importances: Sequence[float] | None = None
    refreshed: bool = True
    drift: Tensor | None = None


@dataclass(eq=False)
class Step:
    """The micro-batches so far.

    Attributes:
        parameters: those of the first micro-batch.
        loss_scale: that of the first micro-batch.
        values: [S] the losses, summed over the micro-batches.
        weights: [S] the weights of one-pass micro-batches, averaged over all micro-batches.
        buffer: the gradients so far; None before the first finite loss.
        one_pass: whether the step consists of ordinary backward passes.
        refreshed: as in ``Stats``.
        tasks: the losses that counted in some micro-batch.
        micro_batches: their number.
    """

    parameters: list[Tensor]
    loss_scale: float | Tensor
    values: Tensor
    weights: Tensor
    buffer: Buffer | None = None
    one_pass: bool = False
    refreshed: bool = True
    tasks: set[int] = field(default_factory=set)
    micro_batches: int = 0

    @classmethod
    def of(cls, batch: MicroBatch, loss_scale: float | Tensor) -> "Step":
        """A step that begins with this micro-batch."""
        zeros = torch.zeros_like(batch.values)
        return cls(batch.parameters, loss_scale, zeros, zeros)

    def count(self, batch: MicroBatch) -> None:
        """Count a micro-batch whose gradients are in the buffer."""
        self.values = batch.values if self.micro_batches == 0 else self.values + batch.values
        self.micro_batches += 1
        self.tasks.update(batch.tasks)

    def average(self, one: OnePass, tasks: list[int]) -> None:
        """Include the weights of a one-pass micro-batch, which is not counted yet."""
        weights = one.loss_weights
        if len(tasks) < len(self.weights):
            weights = torch.zeros_like(self.weights)
            weights[torch.tensor(tasks, device=weights.device)] = one.loss_weights
        self.weights = self.weights + (weights - self.weights) / (self.micro_batches + 1)
        self.refreshed = one.refreshed
