"""From losses to rows, and from one gradient back into ``.grad``."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .checks import check_gradients
from .rows import Rows


def task_rows(
    losses: Sequence[Tensor],
    parameters: Sequence[Tensor],
    *,
    retain_graph: bool = False,
    names: Sequence[int] | None = None,
) -> Rows:
    """One ``torch.autograd.grad`` per loss; the last frees the graph unless ``retain_graph``.

    Each pass walks only what its loss reads. A parameter that a loss does not touch has no entry in
    its row. ``names`` are the loss numbers for messages (default: their positions).

    Raises ValueError for a sparse or complex gradient.
    """
    last = len(losses) - 1
    grads = []
    for i, loss in enumerate(losses):
        row = torch.autograd.grad(
            loss, parameters, retain_graph=retain_graph or i < last, allow_unused=True
        )
        check_gradients(i if names is None else names[i], row)
        grads.append(row)
    return Rows.stack(grads, like=parameters)


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
