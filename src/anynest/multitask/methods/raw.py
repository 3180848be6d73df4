"""Algorithm 2 with another reading of line 12: projected onto the gradients as they came.

Line 13 overwrites g_i, so the paper's loop projects onto what is left of the earlier gradients
(``orthogonalize``). Were line 12's g_j(t) the gradients of line 6 instead, what two earlier
gradients share would be taken off twice. This rule does that, for comparison.
"""

from collections.abc import Sequence

import torch

from ..checks import check_priority
from ..gradients.task_gradients import TaskGradients, index_on
from .rules import Orthogonal, gram_matrix


def project_raw(rows: TaskGradients, priority: Sequence[int] | None = None) -> Orthogonal:
    """``u_i = g_i - sum_{j before i} <g_i, g_j> / <g_j, g_j> g_j``.

    ``priority`` lists the rows, highest first (None: as they stand). A zero row takes nothing.

    Returns components u [S rows], which are *not* orthogonal from the third on, and the unit
    lower-triangular L [S, S] of ``g = L u``, both in the rows' own order.

    Raises ValueError if ``priority`` is no permutation of the rows.

    >>> g = [[torch.tensor([1.0, 0.0])], [torch.tensor([1.0, 1.0])], [torch.tensor([1.0, 0.0])]]
    >>> components, L = project_raw(TaskGradients.stack(g))
    >>> components.tensors()[2][0]  # less all of g_1 and half of g_2, where OSGD leaves [0., 0.]
    tensor([-0.5000, -0.5000])
    """
    check_priority(priority, rows.num_tasks)
    order = tuple(range(rows.num_tasks)) if priority is None else tuple(priority)
    gram = gram_matrix(rows)
    squares = gram.diagonal()
    share = torch.where(squares > 0, gram / torch.where(squares > 0, squares, 1.0), 0.0)
    place = index_on(tuple(sorted(range(len(order)), key=order.__getitem__)), gram.device)
    before = place[None, :] < place[:, None]  # [i, j]: j comes before i
    eye = torch.eye(len(order), dtype=gram.dtype, device=gram.device)
    mixing = eye - torch.where(before, share, 0.0)
    reads: list[tuple[int, ...]] = [()] * rows.num_tasks
    seen: set[int] = set()
    for i in order:
        seen.update(rows.reads[i])
        reads[i] = tuple(sorted(seen))
    return Orthogonal(rows.mixed(mixing, tuple(reads)), torch.linalg.inv(mixing))
