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
from ...multitask.methods.rules import Orthogonal


def project_raw(gradients: TaskGradients, priority: Sequence[int] | None = None) -> Orthogonal:
    r"""Line 12 of Algorithm 2 read otherwise: projections onto the original gradients.

    .. math:: u_i = g_i - \sum_{j < i} \frac{\langle g_i, g_j \rangle}{\langle g_j, g_j \rangle} g_j

    The algorithm overwrites g_j in line 13, so it projects onto components (``orthogonalize``).
    If line 12 meant the gradients of line 6 instead, the common part of two earlier gradients
    would be subtracted twice. From the third on, the components are *not* orthogonal.

    Args and returns are those of ``orthogonalize``.

    >>> g = [[torch.tensor([1.0, 0.0])], [torch.tensor([1.0, 1.0])], [torch.tensor([1.0, 0.0])]]
    >>> components, L = project_raw(TaskGradients.stack(g))
    >>> components.tensors()[2][0]  # less all of g_1 and half of g_2, where OSGD leaves [0., 0.]
    tensor([-0.5000, -0.5000])
    """
    order = tuple(range(gradients.num_tasks)) if priority is None else tuple(priority)
    gram = gradients.gram
    squares = gram.diagonal()
    share = torch.where(squares > 0, gram / torch.where(squares > 0, squares, 1.0), 0.0)
    place = torch.tensor(order, device=gram.device).argsort()
    is_before = place[None, :] < place[:, None]  # [i, j]: j precedes i
    mixing = torch.eye(len(order), dtype=gram.dtype, device=gram.device)
    mixing = mixing - torch.where(is_before, share, 0.0)
    return Orthogonal(
        gradients.mixed(mixing, gradients.reads_up_to(order)), torch.linalg.inv(mixing)
    )


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
