"""Methods of TorchJD through the same call: weights from the tasks' Gram matrix.

Quinton and Rey, "Jacobian Descent for Multi-Objective Optimization" (2024): an aggregator that
combines the rows of a Jacobian J into ``J^T w``, with w computed from ``J J^T`` alone.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from ..combiner import Combiner, OnNonfinite
from ..distributed.context import DistributedContext
from ..gradients.task_gradients import TaskGradients
from ..stats import Combination

# Weightings of matrices that read the number of rows alone.
BY_COUNT = ("ConstantWeighting", "MeanWeighting", "RandomWeighting", "SumWeighting")


def from_torchjd(
    method: Any, *, on_nonfinite: OnNonfinite = "raise", group: Any = None
) -> Combiner:
    """A combiner that takes its loss weights from TorchJD (``pip install torchjd``).

    One backward pass per loss, and dot products in float64. The update is that of TorchJD's
    own ``backward`` and ``jac_to_grad`` on the same parameters, up to rounding.

    Args:
        method: an aggregator, such as ``UPGrad()`` or ``PCGrad()``, whose weights depend on the
            Gram matrix alone, or a ``Weighting`` of Gram matrices.
        on_nonfinite: see ``Combiner``; the weighting then gets the Gram matrix of the other losses.
        group: see ``Combiner``. The weights are those of the group's first rank.

    Raises:
        TypeError: for another object, or a method that needs more than the Gram matrix, such as
            ``ConFIG`` and ``GradDrop``.

    What a weighting keeps from step to step (``GradVac``) is no part of ``state_dict``.

    >>> from torchjd.aggregation import PCGrad
    >>> w = torch.nn.Parameter(torch.zeros(2))
    >>> losses = {"depth": w @ torch.tensor([1.0, 0.0]), "seg": w @ torch.tensor([-2.0, 2.0])}
    >>> stats = from_torchjd(PCGrad()).backward(losses)
    >>> w.grad
    tensor([0.5000, 2.5000])
    """
    # By attribute and class name: whoever has such an object has imported TorchJD.
    weighting = method
    if "GramianWeightedAggregator" in _bases(method):
        weighting = method.gramian_weighting
    elif "WeightedAggregator" in _bases(method):
        weighting = method.weighting
    bases = _bases(weighting)
    reads_rows = "_MatrixWeighting" in bases and not bases.intersection(BY_COUNT)
    if "Weighting" not in bases or reads_rows:
        raise TypeError(
            "method must be a TorchJD aggregator or weighting that needs the Gram matrix alone,"
            f" found {type(method).__name__}: pass one such as UPGrad() or PCGrad()"
        )
    return GramWeighting(weighting, repr(method), on_nonfinite=on_nonfinite, group=group)


def _bases(thing: Any) -> set[str]:
    return {base.__name__ for base in type(thing).__mro__}


class GramWeighting(Combiner):
    """Loss weights that a function computes from the tasks' Gram matrix.

    Args:
        weighting: a function from [s, s] to [s].
        method: its name, for ``repr``.
        on_nonfinite: see ``Combiner``.
        group: see ``Combiner``.
    """

    def __init__(
        self,
        weighting: Callable[[Tensor], Tensor],
        method: str,
        *,
        on_nonfinite: OnNonfinite = "raise",
        group: Any = None,
    ) -> None:
        super().__init__(on_nonfinite, group)
        self.weighting, self.method = weighting, method

    def rule(
        self,
        gradients: TaskGradients,
        tasks: Sequence[int] | None = None,
        loss_scale: float | Tensor = 1.0,
    ) -> Combination:
        gram = gradients.gram
        with torch.no_grad():
            weights = self.weighting(gram.clone()).to(gram)
        if isinstance(self.context, DistributedContext):  # some weightings draw random numbers
            collectives = self.context.collectives
            first = weights if collectives.rank == 0 else torch.zeros_like(weights)
            weights = collectives.all_reduce(first)
        return Combination(weights, gram=gram)

    def twin(self) -> Self:
        twin = super().twin()
        twin.weighting = copy.deepcopy(self.weighting)  # some keep the weights of the last step
        return twin

    def __repr__(self) -> str:
        return f"from_torchjd({self.method}, on_nonfinite={self.on_nonfinite!r})"
