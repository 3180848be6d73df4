"""SGD on a weighted loss: equation 1 of Wan et al., ICML 2020, and two variants."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ..checks import Names, check_choice, check_numbers, check_weights
from ..combiner import Combiner, OnePass, OnNonfinite
from ..gradients.task_gradients import TaskGradients, numbers_on
from ..stats import Combination

Reduction = Literal["mean", "sum", "participants"]


class WeightedSGD(Combiner):
    r"""The gradient of a fixed combination of the losses.

    - "mean", equation 1: :math:`\sum_i k_i L_i / \sum_i k_i`
    - "sum": :math:`\sum_i k_i L_i`, the control for OSGD, which sums too
    - "participants": as "mean", but in each parameter over the losses that touch it, so that a
      parameter of the last stage alone is not scaled down by the number of stages

    "mean" and "sum" are bitwise equal to one ordinary backward pass of that loss, at its cost;
    "participants" takes one pass per loss.

    Args:
        weights: k, one finite number per loss, or a dict of them by name; None for ones. "mean"
            requires numbers of at least 0, not all 0; "participants" requires numbers above 0.
        reduction: see above.
        on_nonfinite: see ``Combiner``; the k of a skipped loss is left out of the average.
        group: see ``Combiner``.

    >>> w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    >>> stats = WeightedSGD([3.0, 1.0]).backward([w[0] ** 2, w.sum()], [w])
    >>> w.grad, stats.loss_weights.tolist()
    (tensor([1.7500, 0.2500]), [0.75, 0.25])
    """

    def __init__(
        self,
        weights: Sequence[float] | Mapping[str, float] | None = None,
        reduction: Reduction = "mean",
        *,
        on_nonfinite: OnNonfinite = "raise",
        group: Any = None,
    ) -> None:
        super().__init__(on_nonfinite, group)
        self.reduction = check_choice("reduction", reduction, ("mean", "sum", "participants"))
        self.weights: tuple[float, ...] | dict[str, float] | None = None
        if weights is None:
            return
        if isinstance(weights, Mapping):
            numbers = check_numbers("weights", list(weights.values()))
            self.weights = dict(zip(weights, numbers, strict=True))
        else:
            numbers = self.weights = check_numbers("weights", weights)
        if reduction == "sum":
            return
        if min(numbers, default=0.0) < 0 or sum(numbers) <= 0:
            raise ValueError(
                f"weights of an average must be at least 0 and not all 0, found {self.weights}: use"
                " reduction='sum' for others"
            )
        if reduction == "participants" and min(numbers) == 0:
            raise ValueError(
                f"weights must be above 0 for reduction='participants', found {self.weights}: leave"
                " out the loss, or use reduction='mean'"
            )

    def check_count(self, count: int, names: Names) -> None:
        check_weights(self.weights, count, names)

    def _importances(self, tasks: Sequence[int]) -> list[float]:
        if isinstance(self.weights, dict):
            return [self.weights[(self._names or ())[i]] for i in tasks]
        return [1.0 if self.weights is None else self.weights[i] for i in tasks]

    def takes_one_pass(self, tasks: Sequence[int]) -> bool:
        return self.reduction != "participants"

    def one_pass(self, losses: list[Tensor], tasks: Sequence[int]) -> OnePass:
        k = self._importances(tasks)
        # in the order of the weighted loss's own backward pass, so that the bits are the same
        ones = [torch.ones_like(loss) for loss in losses]
        if self.reduction == "mean" and sum(k) > 0:
            ones = [one / sum(k) for one in ones]
        seeds = [one * k_i for one, k_i in zip(ones, k, strict=True)]
        return OnePass(seeds, self._weights_of(k, losses[0].device))

    def _weights_of(self, k: list[float], device: torch.device) -> Tensor:
        share = 1.0 if self.reduction == "sum" or sum(k) == 0 else sum(k)
        return numbers_on(tuple(k_i / share for k_i in k), device)

    def rule(
        self,
        gradients: TaskGradients,
        tasks: Sequence[int] | None = None,
        loss_scale: float | Tensor = 1.0,
    ) -> Combination:
        k = self._importances(range(gradients.num_tasks) if tasks is None else tasks)
        weights = self._weights_of(k, gradients.device)
        importances = k if self.reduction == "participants" else None
        return Combination(weights, gram=gradients.gram, importances=importances)
