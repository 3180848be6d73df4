"""The tasks' gradients, measured without a step."""

from typing import Any

from .checks import Losses, Parameters
from .methods.osgd import OSGD
from .stats import Stats


def gradient_stats(
    losses: Losses,
    parameters: Parameters | None = None,
    *,
    group: Any = None,
    samples: float | None = None,
) -> Stats:
    """Norms, cosines and OSGD's loss weights, with ``.grad`` unchanged and the graph kept.

    Costs one backward pass per loss. A ``backward`` of the same losses may follow.

    Args:
        losses: as in ``Combiner.backward``.
        parameters: as in ``Combiner.backward``.
        group: as in ``Combiner``; the gradients are then those of the joined batch.
        samples: as in ``Combiner.backward``.

    Raises:
        ValueError, TypeError: as ``Combiner.backward``; NonFiniteLossError for a non-finite loss.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.ones(2))
    >>> stats = gradient_stats({"first": w[0], "all": w.sum()})
    >>> round(stats["first"].cosines["all"].item(), 6)
    0.707107
    """
    return OSGD(group=group).measure(losses, parameters, samples)
