"""The rules by which rows become one gradient: pure functions of rows, no modules, no state.

Wan et al., ICML 2020, section 4. TaskGradients are linear maps of what is stored (see ``rows``), so the
rules read as algebra::

    components, L = orthogonalize(normalize(rows, C=0.5), priority=[1, 0])
    update = weighted_sum(components, ones)

Numerics: the projections are found from Gram matrices in float64, in two rounds. The first gives
L to about 1e-15 / r^2, where r is the smallest share of a row that survives projection; where that
is not small the second takes the dots of the *projected* rows, so that even shares of 1e-7 come
out right to 1e-8. That is modified Gram-Schmidt with one re-orthogonalisation, at the price of two
looks at the entries instead of S^2.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import check_priority
from ..gradients.task_gradients import TaskGradients, index_on

# A remaining share r of a row: above r^2 = 1e-6 one round is good to about 1e-9.
WELL_CONDITIONED = 1e-6
# In units of the arithmetic's eps: below this r^2 the first round cannot tell a remainder from its
# own rounding, and below this r neither can the second.
FIRST_ROUND_FLOOR = 32
ROUNDING_FLOOR = 16


class Orthogonal(NamedTuple):
    """``rows = coefficients @ components``: L is unit lower-triangular in priority order."""

    components: TaskGradients
    coefficients: Tensor


def gram_matrix(rows: TaskGradients) -> Tensor:
    """[S, S] dot products of the rows over their common entries, in float64."""
    return rows.gram.clone()


def rounding_noise(rows: TaskGradients) -> Tensor:
    """[S] the squared norm of each row's own rounding: (eps of its dtype * norm)^2, per block."""
    noise = rows.new(rows.num_tasks)
    floor = ROUNDING_FLOOR * torch.finfo(noise.dtype).eps
    for block, gram in zip(rows.blocks, rows.block_grams, strict=True):
        eps = max(torch.finfo(block.values.dtype).eps, floor)
        index = index_on(rows.rows_in(block), noise.device)
        noise.index_add_(0, index, gram.diagonal().to(noise.device) * eps**2)
    return noise


def normalize(rows: TaskGradients, C: float = 0.5) -> TaskGradients:
    """Equation 2: ``g_i / ||g_i|| * sqrt(d_i) * C``, with d_i the number of entries of g_i.

    A zero row stays zero.

    >>> rows = TaskGradients.stack([[torch.tensor([3.0, 4.0])], [torch.zeros(2)]])
    >>> normalize(rows, C=1.0).tensors()[0][0] / 2**0.5
    tensor([0.6000, 0.8000])
    """
    norms = rows.gram.diagonal().sqrt()
    roots = torch.stack([norms.new_full((), d**0.5) for d in rows.sizes])
    scales = torch.where(norms == 0, torch.zeros_like(norms), roots * C / norms)
    return rows.mixed(torch.diag(scales))


def orthogonalize(rows: TaskGradients, priority: Sequence[int] | None = None) -> Orthogonal:
    """Lines 11 to 13 of Algorithm 2: ``u_i = g_i - sum_{j before i} proj_{u_j} g_i``.

    ``priority`` lists the rows, highest first (None: as they stand). A remainder smaller than the
    rounding of the row it is left from (eps of the row's dtype times its norm) is noise: it counts
    as zero, so identical rows leave exactly one. A zero row projects to nothing and takes nothing.

    Returns components u [S rows] and L [S, S] with ``L[i, j] = <g_i, u_j> / <u_j, u_j>``, both in
    the rows' own order; L is unit lower-triangular if read in priority order.

    Raises ValueError if ``priority`` is no permutation of the rows.

    >>> rows = TaskGradients.stack([[torch.tensor([1.0, 0.0])], [torch.tensor([2.0, 3.0])]])
    >>> components, L = orthogonalize(rows)
    >>> components.tensors()[1][0]
    tensor([0., 3.])
    >>> L
    tensor([[1., 0.],
            [2., 1.]], dtype=torch.float64)
    """
    check_priority(priority, rows.num_tasks)
    order = tuple(range(rows.num_tasks)) if priority is None else tuple(priority)
    natural = order == tuple(range(rows.num_tasks))
    index = index_on(order, rows.device)
    back = index_on(tuple(sorted(range(len(order)), key=order.__getitem__)), rows.device)

    def in_order(matrix: Tensor, index: Tensor) -> Tensor:
        return matrix if natural else matrix.index_select(0, index).index_select(1, index)

    gram = in_order(rows.gram, index)
    reads = _reads(rows, order)
    lower = None
    if rows.across is None:  # ranks must not decide by what a library's last bit may be elsewhere
        eps = max((torch.finfo(block.values.dtype).eps for block in rows.blocks), default=0.0)
        lower = _at_once(gram, eps)
    if lower is not None:
        components = rows.mixed(in_order(_invert(lower), back), reads)
        return Orthogonal(components, in_order(lower, back))
    squares = gram.diagonal()
    noise = rounding_noise(rows).index_select(0, index)
    floor = FIRST_ROUND_FLOOR * torch.finfo(gram.dtype).eps
    coefficients, rest = _eliminate(gram, torch.maximum(noise, squares * floor))
    inverse = _invert(coefficients)
    if not _well_conditioned(rest, squares):
        projected = rows.mixed(in_order(inverse, back), reads)
        coefficients_2, rest = _eliminate(in_order(projected.gram, index), noise)
        coefficients = coefficients @ coefficients_2
        inverse = _invert(coefficients_2) @ inverse
    dropped = (rest <= noise) & (squares > 0)
    inverse = torch.where(dropped[:, None], torch.zeros_like(inverse), inverse)
    return Orthogonal(rows.mixed(in_order(inverse, back), reads), in_order(coefficients, back))


def _at_once(gram_SS: Tensor, eps: float) -> Tensor | None:
    """L where one round is exact enough and no remainder is near its rounding (``eps``: the rows'),
    in few operations, which are much of a small network's step. None otherwise, and off the CPU."""
    if gram_SS.device.type != "cpu":
        return None
    root, failed = torch.linalg.cholesky_ex(gram_SS)  # L diag(sqrt(rest))
    left = root.diagonal()
    squares = gram_SS.diagonal()
    if not _well_conditioned(left.square() - (2 * eps) ** 2 * squares, squares) or failed:
        return None
    lower: Tensor = root / left
    return lower


def _eliminate(gram_SS: Tensor, noise_S: Tensor) -> tuple[Tensor, Tensor]:
    """``L diag(rest) L^T = gram``; rows whose rest is at most their noise project nothing."""
    rest = gram_SS.clone()
    lower = torch.eye(len(rest), dtype=rest.dtype, device=rest.device)
    for j in range(len(rest) - 1):
        left = rest[j, j]
        column = rest[j + 1 :, j] / left
        column = torch.where(left <= noise_S[j], torch.zeros_like(column), column)
        lower[j + 1 :, j] = column
        rest[j + 1 :, j + 1 :] -= torch.outer(column, rest[j, j + 1 :])
    return lower, rest.diagonal()


def _invert(lower_SS: Tensor) -> Tensor:
    eye = torch.eye(len(lower_SS), dtype=lower_SS.dtype, device=lower_SS.device)
    inverse: Tensor = torch.linalg.solve_triangular(lower_SS, eye, upper=False, unitriangular=True)
    return inverse


def _well_conditioned(rest_S: Tensor, squares_S: Tensor) -> bool:
    """Whether one round is exact enough; on a GPU asking would cost more than the second round."""
    if rest_S.device.type != "cpu":
        return False
    return bool((rest_S >= WELL_CONDITIONED * squares_S).all())


def _reads(rows: TaskGradients, order: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """What each component may draw upon: all that it or any row before it draws upon."""
    reads: list[tuple[int, ...]] = [()] * rows.num_tasks
    seen: set[int] = set()
    for i in order:
        seen.update(rows.reads[i])
        reads[i] = tuple(sorted(seen))
    return tuple(reads)


def _block_weights(
    rows: TaskGradients, weights_S: Tensor, importances: Sequence[float] | None
) -> list[Tensor]:
    """For each block the [k] weights of its stored rows, divided by the participants' share."""
    stored = rows.in_terms_of_stored(weights_S.to(rows.device, rows.new(0).dtype))
    out = []
    for block in rows.blocks:
        part = stored.index_select(0, index_on(block.tasks, stored.device))
        if importances is not None:
            part = part / sum(importances[i] for i in block.tasks)
        out.append(part.to(block.values.device, non_blocking=True))
    return out


def weighted_sum(
    rows: TaskGradients, weights_S: Tensor, importances: Sequence[float] | None = None
) -> list[Tensor | None]:
    """Line 14 of Algorithm 2: ``sum_i weights[i] * row_i``, one tensor (or None) per position.

    With ``importances`` k each entry is divided by the sum of k over the tasks that touch it: an
    average over participants (text below equation 2). The sum is taken in float64 and rounded once
    to the tensor's dtype. Tensors of one block are views of one buffer.

    >>> rows = TaskGradients.stack([[torch.ones(2), None], [torch.ones(2), torch.ones(1)]])
    >>> weighted_sum(rows, torch.tensor([1.0, 2.0]))
    [tensor([3., 3.]), tensor([2.])]
    >>> weighted_sum(rows, torch.tensor([1.0, 2.0]), importances=[1.0, 1.0])
    [tensor([1.5000, 1.5000]), tensor([2.])]
    """
    update: list[Tensor | None] = [None] * len(rows.layouts)
    for block, part in zip(rows.blocks, _block_weights(rows, weights_S, importances), strict=True):
        for p, tensor in rows.split(block, block.combine(part)):
            update[p] = tensor
    return update


def update_norm(
    rows: TaskGradients, weights_S: Tensor, importances: Sequence[float] | None = None
) -> Tensor:
    """Norm of ``weighted_sum`` with the same arguments, from the dot products alone."""
    total = rows.new()
    for block, part in zip(rows.blocks, _block_weights(rows, weights_S, importances), strict=True):
        total += (part @ block.gram @ part).to(total.device)
    return total.clamp(min=0).sqrt()
