"""The ablations' methods: Algorithm 2 with other projections, registered for ``make_combiner``.

Imported when a cell needs one of them. ``anynest train --resume FOLDER`` goes on with such a run
given ``--import anynest.experiments.catalog.projections``.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ...multitask import OSGD, Combination, TaskGradients, gram_matrix, register_method
from ...multitask.combiner import OnNonfinite
from ...multitask.methods.rules import Orthogonal, project_raw


class RawOSGD(OSGD):
    """OSGD that projects onto the original gradients (``project_raw``).

    >>> w = torch.nn.Parameter(torch.zeros(2))
    >>> a, b = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])
    >>> stats = RawOSGD().backward([w @ a, w @ b, w @ a], [w])
    >>> w.grad  # (1, 0) + (0, 1) + (-0.5, -0.5)
    tensor([0.5000, 0.5000])
    """

    def project(self, gradients: TaskGradients, order: Sequence[int]) -> Orthogonal:
        return project_raw(gradients, order)


class TensorOSGD(OSGD):
    """OSGD within each parameter tensor by itself, where the paper projects all as one vector.

    ``Stats`` has loss weights [T, S] and coefficients [T, S, S] for the T tensors that some task
    touches, in their order.

    >>> w, v = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    >>> stats = TensorOSGD().backward([w + v, w - v], [w, v])
    >>> w.grad, v.grad  # the second gradient is parallel to the first in either tensor
    (tensor([1.]), tensor([1.]))
    """

    tensorwise = True

    def __init__(
        self,
        priority: Sequence[int] | None = None,
        reduction: Literal["sum", "mean"] = "sum",
        *,
        on_nonfinite: OnNonfinite = "raise",
        group: Any = None,
    ) -> None:
        super().__init__(priority, reduction=reduction, on_nonfinite=on_nonfinite, group=group)

    def rule(
        self,
        gradients: TaskGradients,
        tasks: Sequence[int] | None = None,
        loss_scale: float | Tensor = 1.0,
    ) -> Combination:
        parts = [
            OSGD.rule(self, gradients.with_blocks((block,)), tasks, loss_scale)
            for block in gradients.blocks
        ]
        device = gradients.device
        weights = torch.stack([part.loss_weights.to(device) for part in parts])
        lower = [part.coefficients.to(device) for part in parts if part.coefficients is not None]
        return Combination(weights, torch.stack(lower), gram_matrix(gradients))


register_method("osgd-raw", RawOSGD)
register_method("osgd-tensor", TensorOSGD)
