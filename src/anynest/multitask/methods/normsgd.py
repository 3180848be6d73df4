"""NormSGD: equation 2 of Wan et al., ICML 2020 (after Larsson, 2017).

The averaging over participants is the text below equation 2. A zero gradient stays zero.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..combiner import Combiner, OnNonfinite
from ..gradients.combination import Combination
from ..gradients.task_gradients import TaskGradients
from .calibration import Constant, ConstantC
from .rules import gram_matrix, normalize, update_norm, weighted_sum


class NormSGD(Combiner):
    r"""Every task's gradient brought to one scale, then averaged by those who take part.

    .. math:: g_i \leftarrow \frac{g_i}{\|g_i\|} \sqrt{d_i} \, C

    where d_i is the number of entries that task i touches; each parameter then gets the average
    over the tasks that touch it.

    Args:
        C: a positive number, or "calibrated": over the first ``calibration_steps`` steps C makes
            the sum of the update's norms equal to that of SGD's (reduction "mean"), then it stands.
        calibration_steps: see C.
        on_nonfinite: "raise", or "skip" to leave a non-finite loss out of this step.
        group: see ``Combiner``.

    Under ``torch.compile`` a task that does not touch a parameter may yield zeros in place of
    nothing, and then counts as a participant.

    >>> w = torch.nn.Parameter(torch.zeros(2))
    >>> stats = NormSGD(C=1.0).backward([w @ torch.tensor([30.0, 40.0])], [w])
    >>> w.grad / 2**0.5
    tensor([0.6000, 0.8000])
    """

    def __init__(
        self,
        C: ConstantC = 0.5,
        *,
        calibration_steps: int = 100,
        on_nonfinite: OnNonfinite = "raise",
        group: Any = None,
    ) -> None:
        super().__init__(on_nonfinite, group)
        self.constant = Constant(C, calibration_steps)

    def rule(
        self,
        rows: TaskGradients,
        tasks: Sequence[int] | None = None,
        loss_scale: float | Tensor = 1.0,
    ) -> Combination:
        count = rows.num_tasks
        ones = torch.ones_like(rows.new(count))
        each = [1.0] * count
        unit = normalize(rows, C=1.0)
        if self.constant.wants_norms:
            sgd = update_norm(rows, ones / count) / loss_scale
            self.constant.observe(sgd, update_norm(unit, ones, importances=each))
        scaled = ones * self.constant.value() * loss_scale
        update = weighted_sum(unit, scaled, importances=each)
        weights = unit.in_terms_of_stored(scaled) / count
        return Combination(update, weights, gram=gram_matrix(rows))

    def settings(self) -> dict[str, Any]:
        return {"C": self.constant.C}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), **self.constant.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.constant.load_state_dict(state)
