"""Orthogonalized SGD: Algorithm 2 of Wan et al., ICML 2020.

Line 13 overwrites g_i, so line 12 projects onto gradients that are orthogonal already: Gram-Schmidt
without normalizing. The update is the sum of what is left (line 14). Deviations: reduction "mean"
divides that sum by the number of losses, as equation 1 does; a remainder below the gradient's own
rounding counts as zero; zero gradients are left zero where the paper divides by their norm.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from .calibration import Constant, ConstantC
from .checks import check_choice, check_priority, priority_of
from .combiner import Combination, Combiner, OnNonfinite
from .rows import Rows
from .rules import gram_matrix, normalize, orthogonalize, update_norm, weighted_sum


class OSGD(Combiner):
    r"""Each task's gradient, less what lies along those of higher priority.

    .. math:: u_i = g_i - \sum_{j < i} \frac{\langle g_i, u_j \rangle}{\langle u_j, u_j \rangle}
        u_j, \qquad g = \sum_i u_i

    To first order, a step along g does to the first task what its own gradient alone would:
    :math:`\langle g, g_1 \rangle = \|g_1\|^2`. The same g is the gradient of
    :math:`\sum_i w_i L_i` with :math:`L^T w = 1` (``Stats.weights``). With one loss this is
    ``loss.backward()``, bit for bit.

    Args:
        priority: loss indices from 0, highest first; None for the order of the losses.
        normalize: bring every gradient to norm ``sqrt(d_i) * C`` first (line 8; "OSGD-norm").
        reduction: "sum" as in line 14, or "mean", which divides it by the number of losses.
        C: for normalizing, a positive number or "calibrated" (see ``NormSGD``; here against SGD
            under the same reduction).
        calibration_steps: see C.
        on_nonfinite: "raise", or "skip" to leave a non-finite loss out of this step; the others
            keep their order.

    >>> w = torch.nn.Parameter(torch.zeros(2))
    >>> a, b = torch.tensor([1.0, 0.0]), torch.tensor([-2.0, 3.0])
    >>> stats = OSGD().backward([w @ a, w @ b], [w])
    >>> w.grad
    tensor([1., 3.])
    >>> stats.weights.tolist()
    [3.0, 1.0]
    """

    def __init__(
        self,
        priority: Sequence[int] | None = None,
        normalize: bool = False,
        reduction: Literal["sum", "mean"] = "sum",
        C: ConstantC = 0.5,
        *,
        calibration_steps: int = 100,
        on_nonfinite: OnNonfinite = "raise",
    ) -> None:
        super().__init__(on_nonfinite)
        self.priority = None if priority is None else priority_of(priority)
        self.normalize = normalize
        self.reduction = check_choice("reduction", reduction, ("sum", "mean"))
        self.constant = Constant(C, calibration_steps)

    def check_count(self, count: int) -> None:
        check_priority(self.priority, count)

    def rule(
        self,
        rows: Rows,
        tasks: Sequence[int] | None = None,
        loss_scale: float | Tensor = 1.0,
    ) -> Combination:
        given = list(range(rows.num_tasks) if tasks is None else tasks)
        order = None
        if self.priority is not None:
            order = [given.index(i) for i in self.priority if i in given]
        ones = torch.ones_like(rows.new(rows.num_tasks))
        share = ones / rows.num_tasks if self.reduction == "mean" else ones
        unit = normalize(rows, C=1.0) if self.normalize else rows
        components, coefficients = orthogonalize(unit, order)
        if self.normalize:
            if self.constant.wants_norms:
                sgd = update_norm(rows, share) / loss_scale
                self.constant.observe(sgd, update_norm(components, share))
            share = share * self.constant.value() * loss_scale
            scales = unit.in_terms_of_stored(ones)
            safe = torch.where(scales == 0, ones, scales)
            # L of the gradients as they came: projecting does not depend on their scale
            coefficients = coefficients / safe[:, None] * safe
        return Combination(
            weighted_sum(components, share),
            components.in_terms_of_stored(share),
            coefficients,
            gram_matrix(rows),
        )

    def settings(self) -> dict[str, Any]:
        shown = {
            "priority": self.priority,
            "normalize": self.normalize,
            "reduction": self.reduction,
        }
        return {**shown, "C": self.constant.C} if self.normalize else shown

    def state_dict(self) -> dict[str, Any]:
        return self.constant.state_dict() if self.normalize else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.normalize:
            self.constant.load_state_dict(state)
        else:
            super().load_state_dict(state)
