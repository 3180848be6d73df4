"""The gradients of one process; ``distributed.context`` has those of a group of processes."""

from collections.abc import Callable, Sequence

from torch import Tensor

from ..checks import (
    Parameters,
    check_losses,
    check_parameters,
    check_samples,
    finite_losses,
    loss_values,
)
from ..distributed.dtensor import require_no_shards
from .backward import Buffer, GradientBuffer, gradient
from .diagonal import Metric
from .graph import inspect_graphs
from .step import MicroBatch
from .task_gradients import TaskGradients

Accepts = Callable[[list[Tensor], list[Tensor]], None]


class LocalContext:
    """One process."""

    def check(
        self,
        losses: Sequence[Tensor],
        parameters: Parameters,
        samples: float | None,
        on_nonfinite: str,
        accepts: Accepts,
    ) -> MicroBatch:
        """Check one micro-batch; ``accepts`` raises if the combiner cannot take it."""
        found, leaves = check_losses(losses), check_parameters(parameters)
        require_no_shards(leaves)
        check_samples(samples)
        accepts(found, leaves)
        graphs = inspect_graphs(found, leaves)
        values = loss_values(found)
        tasks = finite_losses(values, on_nonfinite)
        return MicroBatch(found, leaves, values, tasks, graphs, gradient)

    def buffer(
        self, parameters: Sequence[Tensor], one_pass: bool, is_whole: bool, tensorwise: bool
    ) -> Buffer:
        """A buffer for a step's gradients; ``is_whole``: the step has this one micro-batch."""
        return GradientBuffer(parameters, tensorwise)

    def collect(
        self, buffer: Buffer, values_S: Tensor, one_pass: bool, metric: Metric | None = None
    ) -> tuple[TaskGradients, Tensor]:
        """The gradients and losses of the whole batch."""
        return buffer.finalize(metric), values_S

    def total(self, values_S: Tensor) -> Tensor:
        """[S] the losses of the whole batch, for a step without gradients."""
        return values_S

    def gather(self, update: list[Tensor | None]) -> list[Tensor | None]:
        """The whole update."""
        return update

    def take_sent(self) -> int:
        """Bytes sent by this rank since the last call."""
        return 0
