"""Backward passes: from losses to the tasks' gradients, and from one update into ``.grad``."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..checks import check_gradients
from .diagonal import Metric
from .graph import LossGraph, inspect_graphs
from .task_gradients import Grads, TaskGradients

# (outputs, seeds, parameters, retain_graph) -> gradients
Differentiate = Callable[
    [Sequence[Tensor], Sequence[Tensor | None], Sequence[Tensor], bool],
    tuple[Tensor | None, ...],
]


class Buffer(Protocol):
    """Collects the tasks' gradients as the backward passes produce them."""

    def add(self, task: int, grads: Grads) -> None:
        """Add one task's gradients to those that it has so far (None: not touched)."""

    def finalize(self, metric: Metric | None = None) -> TaskGradients:
        """The gradients of all tasks that were added, in the order of their numbers."""


class GradientBuffer:
    """The tasks' gradients in the memory of this process.

    Args:
        like: the tensors that the gradients belong to.
        tensorwise: as in ``TaskGradients.stack``.
    """

    def __init__(self, like: Sequence[Tensor], tensorwise: bool = False) -> None:
        self.like, self.tensorwise = like, tensorwise
        self._grads: dict[int, list[Tensor | None]] = {}

    @property
    def tasks(self) -> list[int]:
        """The tasks that have a gradient, in order."""
        return sorted(self._grads)

    def add(self, task: int, grads: Grads) -> None:
        """Add to a task's gradients; new sums are made, as autograd's tensors may share memory."""
        sums = self._grads.setdefault(task, [None] * len(grads))
        for p, grad in enumerate(grads):
            if grad is not None:
                before = sums[p]
                sums[p] = grad if before is None else before + grad

    def finalize(self, metric: Metric | None = None) -> TaskGradients:
        """The gradients in the order of ``tasks``; of no task and no tensor if none were added."""
        if not self._grads:
            return TaskGradients(0, (), (None,) * len(self.like), ())
        grads = [self._grads[task] for task in self.tasks]
        self._grads = {}
        return TaskGradients.stack(grads, self.like, self.tensorwise, metric)


def task_gradients(
    losses: Sequence[Tensor], parameters: Sequence[Tensor], *, retain_graph: bool = False
) -> TaskGradients:
    """One ``torch.autograd.grad`` per loss; each pass walks only what its loss reads.

    Args:
        losses: scalar tensors.
        parameters: leaf tensors; a loss has no gradient in those that it does not touch.
        retain_graph: keep the graph for further passes.

    Raises:
        ValueError: for a sparse or complex gradient, or if no loss touches a parameter.
    """
    buffer = GradientBuffer(parameters)
    graphs = inspect_graphs(losses, parameters)
    differentiate_each(
        buffer, list(enumerate(losses)), graphs, parameters, gradient, retain_graph=retain_graph
    )
    return buffer.finalize()


def differentiate_each(
    buffer: Buffer,
    losses: Sequence[tuple[int, Tensor]],
    graphs: Sequence[LossGraph],
    parameters: Sequence[Tensor],
    differentiate: Differentiate,
    *,
    retain_graph: bool,
) -> None:
    """Add the gradient of each ``(task, loss)`` to ``buffer``, one backward pass per loss.

    Unless ``retain_graph``, each pass frees the part of the graph that no later loss reads.
    """
    for number, (task, loss) in enumerate(losses, 1):
        graph = graphs[task]
        keep = retain_graph or (graph.shared and number < len(losses))
        # Unreferenced here, so freed before the next backward pass.
        buffer.add(task, _checked(task, differentiate([loss], [None], parameters, keep)))
        if keep and not retain_graph:
            graph.free()


def gradient(
    outputs: Sequence[Tensor],
    seeds: Sequence[Tensor | None],
    parameters: Sequence[Tensor],
    retain_graph: bool,
) -> tuple[Tensor | None, ...]:
    """The gradient of ``sum_i seeds[i] * outputs[i]`` (None: 1); None where nothing is touched."""
    try:
        return torch.autograd.grad(
            outputs, parameters, grad_outputs=seeds, retain_graph=retain_graph, allow_unused=True
        )
    except RuntimeError as error:
        if "donated buffer" not in str(error):
            raise
        raise ValueError(
            "a compiled network must keep its graph for one backward pass per loss, found one that"
            " frees it in the first: compile it by anynest.multitask.compile_for_tasks(network)"
        ) from error


def _checked(task: int, grads: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    check_gradients(task, grads)
    return grads


@torch.no_grad()
def accumulate(parameters: Sequence[Tensor], update: Sequence[Tensor | None]) -> None:
    """Add ``update`` to ``.grad`` as ``loss.backward()`` does; None leaves ``.grad`` unchanged."""
    sums: list[Tensor] = []
    terms: list[Tensor] = []
    for parameter, term in zip(parameters, update, strict=True):
        if term is None:
            continue
        if parameter.grad is None:
            parameter.grad = term
        elif parameter.grad.layout != torch.strided:
            parameter.grad = term + parameter.grad
        else:
            sums.append(parameter.grad)
            terms.append(term)
    if sums:
        torch._foreach_add_(sums, terms)
