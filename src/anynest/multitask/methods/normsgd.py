"""NormSGD: equation 2 of Wan et al., ICML 2020 (after Larsson, 2017).

The average over participants is described below equation 2. A zero gradient stays zero.
"""

import copy
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from ..combiner import Combiner, OnNonfinite
from ..gradients.task_gradients import TaskGradients
from ..stats import Combination
from .calibration import Constant, ConstantC
from .rules import normalize, update_norm


class NormSGD(Combiner):
    r"""Normalizes every task's gradient, then averages over the tasks that touch a parameter.

    .. math:: g_i \leftarrow \frac{g_i}{\|g_i\|} \sqrt{d_i} \, C

    with d_i the number of entries that task i touches.

    Args:
        C: a positive number, or "calibrated": during the first ``calibration_steps`` steps C makes
            the sum of the updates' norms equal to that of SGD's updates (reduction "mean"), then it
            is constant.
        calibration_steps: see C.
        on_nonfinite: see ``Combiner``.
        group: see ``Combiner``.

    Note:
        Under ``torch.compile``, and with full backward hooks on modules, a task that does not touch
        a parameter may produce zeros instead of no gradient, and then counts as a participant.

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
        self.C, self.calibration_steps = self.constant.C, self.constant.steps

    def rule(
        self,
        gradients: TaskGradients,
        tasks: Sequence[int] | None = None,
        loss_scale: float | Tensor = 1.0,
    ) -> Combination:
        count = gradients.num_tasks
        ones = torch.ones_like(gradients.new(count))
        each = [1.0] * count
        unit = normalize(gradients, C=1.0)
        if self.constant.wants_norms:
            sgd = update_norm(gradients, ones / count) / loss_scale
            self.constant.observe(sgd, update_norm(unit, ones, importances=each))
        scaled = ones * self.constant.value() * loss_scale
        weights = unit.in_terms_of_stored(scaled) / count
        return Combination(weights, gram=gradients.known_gram, importances=each)

    def twin(self) -> Self:
        twin = super().twin()
        twin.constant = copy.copy(self.constant)
        return twin

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), **self.constant.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.constant.load_state_dict(state)
