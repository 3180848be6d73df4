"""Looking at the tasks' gradients without a step."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from .osgd import OSGD
from .stats import Stats


def gradient_stats(
    losses: Sequence[Tensor],
    parameters: Iterable[Tensor] | Tensor,
    *,
    group: Any = None,
    samples: float | None = None,
) -> Stats:
    """Norms, cosines and what OSGD would make of them, with ``.grad`` untouched.

    The graph is kept, so that a ``backward`` may follow. Costs one backward pass per loss. ``group``
    and ``samples`` are as in ``Combiner``: with them the gradients are those of the joined batch.
    Errors are those of ``Combiner.backward``; a non-finite loss raises NonFiniteLossError.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.ones(2))
    >>> round(gradient_stats([w[0], w.sum()], [w]).cosines[0, 1].item(), 6)
    0.707107
    """
    return OSGD(group=group).look(losses, parameters, samples=samples)
