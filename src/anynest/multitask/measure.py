"""Looking at the tasks' gradients without a step."""

from collections.abc import Iterable, Sequence

from torch import Tensor

from .checks import check_losses, check_parameters, check_touched, finite_losses, loss_values
from .combiner import stats_of
from .gradients import task_rows
from .osgd import OSGD
from .stats import Stats


def gradient_stats(losses: Sequence[Tensor], parameters: Iterable[Tensor] | Tensor) -> Stats:
    """Norms, cosines and what OSGD would make of them, with ``.grad`` untouched.

    The graph is kept, so that a ``backward`` may follow. Costs one backward pass per loss. Errors
    are those of ``Combiner.backward``; a non-finite loss raises NonFiniteLossError.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.ones(2))
    >>> gradient_stats([w[0], w.sum()], [w]).cosines[0, 1] * 2**0.5
    tensor(1.0000, dtype=torch.float64)
    """
    found = check_losses(losses)
    leaves = check_parameters(parameters)
    check_touched(found, leaves)
    values = loss_values(found)
    tasks = finite_losses(values, "raise")
    rows = task_rows(found, leaves, retain_graph=True)
    return stats_of(values, tasks, OSGD().rule(rows))
