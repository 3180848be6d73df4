"""Looking at the tasks' gradients without a step."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from .gradients.combination import stats_of
from .methods.osgd import OSGD
from .stats import Stats


class _Looking(OSGD):
    """A step that ends before anything is written."""

    def look(
        self, losses: Sequence[Tensor], parameters: Iterable[Tensor] | Tensor, samples: float | None
    ) -> Stats:
        self._take(losses, parameters, True, 1.0, samples, into_grad=True)
        step, self._pending = self._pending, None
        assert step is not None
        tasks = sorted(step.tasks)
        result, values = self._result(step, tasks)
        return stats_of(values, tasks, result)


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
    return _Looking(group=group).look(losses, parameters, samples)
