"""SGD on a weighted loss: equation 1 of Wan et al., ICML 2020, and its two neighbours."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ..checks import check_choice, check_numbers, check_weights
from ..combiner import Combiner, OnNonfinite
from ..gradients.combination import Combination, OnePass
from ..gradients.task_gradients import TaskGradients, numbers_on
from .rules import gram_matrix, weighted_sum

Reduction = Literal["mean", "sum", "participants"]


class WeightedSGD(Combiner):
    r"""The gradient of a fixed combination of the losses.

    - "mean", equation 1: :math:`\sum_i k_i L_i / \sum_i k_i`
    - "sum": :math:`\sum_i k_i L_i`, the control beside OSGD, which sums too
    - "participants": as "mean", but each parameter divides by the k of the losses that touch it, so
      that what only the last stage uses is not scaled down by the number of stages

    "mean" and "sum" are one ordinary backward pass of that loss, bit for bit, and cost no more;
    "participants" takes one pass per loss.

    Args:
        weights: k, one finite number per loss; None for ones. An average needs none below zero and
            one above; "participants" needs all above zero.
        reduction: see above.
        on_nonfinite: "raise", or "skip" to leave a non-finite loss out of this step (and its k out
            of the average).
        group: see ``Combiner``; the pass's gradient is then reduced over ranks.

    >>> w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    >>> stats = WeightedSGD([3.0, 1.0]).backward([w[0] ** 2, w.sum()], [w])
    >>> w.grad, stats.loss_weights.tolist()
    (tensor([1.7500, 0.2500]), [0.75, 0.25])
    """

    def __init__(
        self,
        weights: Sequence[float] | None = None,
        reduction: Reduction = "mean",
        *,
        on_nonfinite: OnNonfinite = "raise",
        group: Any = None,
    ) -> None:
        super().__init__(on_nonfinite, group)
        self.reduction = check_choice("reduction", reduction, ("mean", "sum", "participants"))
        self.weights = None if weights is None else check_numbers("weights", weights)
        if self.weights is None or reduction == "sum":
            return
        if min(self.weights, default=0.0) < 0 or sum(self.weights) <= 0:
            raise ValueError(
                f"weights of an average must be at least 0 and not all 0, found {self.weights}: use"
                " reduction='sum' for others"
            )
        if reduction == "participants" and min(self.weights) == 0:
            raise ValueError(
                f"weights must be above 0 for reduction='participants', found {self.weights}: leave"
                " out the loss, or use reduction='mean'"
            )

    def check_count(self, count: int) -> None:
        check_weights(self.weights, count)

    def settings(self) -> dict[str, Any]:
        return {"weights": self.weights, "reduction": self.reduction}

    def _importances(self, tasks: Sequence[int]) -> list[float]:
        return [1.0 if self.weights is None else self.weights[i] for i in tasks]

    def takes_one_pass(self, tasks: Sequence[int]) -> bool:
        return self.reduction != "participants"

    def single(self, losses: list[Tensor], tasks: Sequence[int]) -> OnePass:
        k = self._importances(tasks)
        first = losses[0].device
        total = sum(
            (k_i * loss.to(first) for k_i, loss in zip(k[1:], losses[1:], strict=True)),
            start=k[0] * losses[0],
        )
        if self.reduction == "mean" and sum(k) > 0:
            total = total / sum(k)
        return OnePass([total], [None], self._weights_of(k, first))

    def _weights_of(self, k: list[float], device: torch.device) -> Tensor:
        share = 1.0 if self.reduction == "sum" or sum(k) == 0 else sum(k)
        return numbers_on(tuple(k_i / share for k_i in k), device)

    def rule(
        self,
        rows: TaskGradients,
        tasks: Sequence[int] | None = None,
        loss_scale: float | Tensor = 1.0,
    ) -> Combination:
        k = self._importances(range(rows.num_tasks) if tasks is None else tasks)
        weights = self._weights_of(k, rows.device)
        if self.reduction == "participants":
            update = weighted_sum(rows, numbers_on(tuple(k), rows.device), importances=k)
        else:
            update = weighted_sum(rows, weights)
        return Combination(update, weights, gram=gram_matrix(rows))
