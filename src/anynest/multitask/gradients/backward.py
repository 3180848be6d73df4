"""From losses to rows, and from one gradient back into ``.grad``."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..checks import check_gradients
from .buffer import Filling
from .task_gradients import Grads, TaskGradients

Differentiate = Callable[
    [Sequence[Tensor], Sequence[Tensor | None], Sequence[Tensor], bool],
    tuple[Tensor | None, ...],
]


class Taker(Protocol):
    """What rows are added to, task by task."""

    def add(self, task: int, grads: Grads) -> None: ...


def task_gradients(
    losses: Sequence[Tensor],
    parameters: Sequence[Tensor],
    *,
    retain_graph: bool = False,
    names: Sequence[int] | None = None,
) -> TaskGradients:
    """One ``torch.autograd.grad`` per loss; the last frees the graph unless ``retain_graph``.

    Each pass walks only what its loss reads. A parameter that a loss does not touch has no entry in
    its row. ``names`` are the loss numbers for messages (default: their positions).

    Raises ValueError for a sparse or complex gradient.
    """
    filling = Filling(parameters)
    tasks = range(len(losses)) if names is None else names
    fill(filling, losses, parameters, tasks, gradient, retain_graph=retain_graph)
    return filling.settle()


def fill(
    filling: Taker,
    losses: Sequence[Tensor],
    parameters: Sequence[Tensor],
    tasks: Sequence[int],
    differentiate: Differentiate,
    *,
    retain_graph: bool = False,
) -> None:
    """Add to ``filling`` the gradient of each loss, by the number of its task."""
    last = len(losses) - 1
    for i, (task, loss) in enumerate(zip(tasks, losses, strict=True)):
        keep = retain_graph or i < last
        # no name is bound to the gradients: they are gone before the next pass begins
        filling.add(task, _checked(task, differentiate([loss], [None], parameters, keep)))


def gradient(
    outputs: Sequence[Tensor],
    seeds: Sequence[Tensor | None],
    parameters: Sequence[Tensor],
    retain_graph: bool,
) -> tuple[Tensor | None, ...]:
    """The gradient of ``sum_i seeds[i] * outputs[i]`` (None: 1), None where it touches nothing."""
    try:
        return torch.autograd.grad(
            outputs, parameters, grad_outputs=seeds, retain_graph=retain_graph, allow_unused=True
        )
    except RuntimeError as error:
        if "donated buffer" not in str(error):
            raise
        raise ValueError(
            "a compiled network must keep its graph for one backward pass per loss, found one whose"
            " first pass gives its memory away: compile it by anynest.multitask.compile_for_tasks(network)"
        ) from error


def _checked(task: int, grads: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    check_gradients(task, grads)
    return grads


@torch.no_grad()
def accumulate(parameters: Sequence[Tensor], update: Sequence[Tensor | None]) -> None:
    """Add ``update`` to ``.grad`` as ``loss.backward()`` does; None leaves ``.grad`` as it was."""
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
