"""Rules that combine gradients: pure functions, without modules and state.

Wan et al., ICML 2020, section 4. ``TaskGradients`` are linear maps of stored gradients, so the
rules read as algebra::

    components, L = orthogonalize(normalize(gradients, C=0.5), priority=[1, 0])
    update = weighted_sum(components, ones)

Numerics: projections are computed from Gram matrices in float64, in two rounds. The first gives L
to about 1e-15 / r^2, where r is the smallest relative norm of a remainder. If that is not accurate
enough, the second round uses the dot products of the *projected* gradients, so that remainders of
1e-7 are accurate to 1e-8. This is modified Gram-Schmidt with one reorthogonalization, which reads
the entries twice instead of S^2 times.

Large float32 gradients on a CPU are first tried with float32 dot products (``fast_gram``), which
are enough unless a remainder is small; likewise the sum, unless its terms cancel (``consume``).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import check_priority
from ..gradients.task_gradients import TaskGradients, index_on

# r is the norm of a remainder relative to its gradient. Above r^2 = 1e-6 one round is accurate to
# about 1e-9.
WELL_CONDITIONED = 1e-6
# Float32 dot products, off by up to 2e-7 of the product of the norms, move a remainder by 2e-7 / r:
# above this r^2 by less than 1e-6 of its gradient. Likewise a float32 sum.
WELL_CONDITIONED_FAST = 1 / 16
# Of this squared norm, float32 loses less than 1e-7 in a gradient of 1e9 entries: squares of
# entries below its range.
SMALLEST_SQUARE = 1e-22
# In units of the arithmetic's eps: below this r^2 the first round cannot tell a remainder from
# rounding, and below this r neither can the second.
FIRST_ROUND_FLOOR = 32
ROUNDING_FLOOR = 16


class Orthogonal(NamedTuple):
    """``gradients = L @ components`` with L unit lower-triangular in priority order."""

    components: TaskGradients
    coefficients: Tensor


def gram_matrix(gradients: TaskGradients) -> Tensor:
    """[S, S] dot products over common entries, in float64."""
    return gradients.gram.clone()


def rounding_noise(gradients: TaskGradients) -> Tensor:
    """[S] the squared norm of each gradient's rounding: the sum over blocks of (eps * norm)^2."""
    noise = gradients.new(gradients.num_tasks)
    floor = ROUNDING_FLOOR * torch.finfo(noise.dtype).eps
    for block, gram in zip(gradients.blocks, gradients.block_grams, strict=True):
        noise += gram.diagonal() * max(torch.finfo(block.dtype).eps, floor) ** 2
    return noise


def normalize(gradients: TaskGradients, C: float = 0.5) -> TaskGradients:
    r"""Equation 2, with d_i the number of entries of g_i; a zero gradient stays zero.

    .. math:: g_i \leftarrow \frac{g_i}{\|g_i\|} \sqrt{d_i} \, C

    >>> gradients = TaskGradients.stack([[torch.tensor([3.0, 4.0])], [torch.zeros(2)]])
    >>> normalize(gradients, C=1.0).tensors()[0][0] / 2**0.5
    tensor([0.6000, 0.8000])
    """
    norms = gradients.gram.diagonal().sqrt()
    roots = torch.stack([norms.new_full((), d**0.5) for d in gradients.sizes])
    scales = torch.where(norms == 0, torch.zeros_like(norms), roots * C / norms)
    return gradients.mixed(torch.diag(scales))


def orthogonalize(gradients: TaskGradients, priority: Sequence[int] | None = None) -> Orthogonal:
    r"""Lines 11 to 13 of Algorithm 2: each gradient less its projections onto earlier components.

    .. math:: u_i = g_i - \sum_{j < i} L_{ij} u_j, \qquad
        L_{ij} = \frac{\langle g_i, u_j \rangle}{\langle u_j, u_j \rangle}

    A remainder smaller than the rounding of its gradient (eps of the dtype times the norm) counts
    as zero, so that of several equal gradients exactly one remains. A zero component takes part in
    no projection.

    Args:
        gradients: g.
        priority: their indices, highest priority first (None: as they are).

    Returns:
        The components u, and L [S, S]; both in the order of the gradients.

    Raises:
        ValueError: if ``priority`` is no permutation of the gradients.

    >>> gradients = TaskGradients.stack([[torch.tensor([1.0, 0.0])], [torch.tensor([2.0, 3.0])]])
    >>> components, L = orthogonalize(gradients)
    >>> components.tensors()[1][0]
    tensor([0., 3.])
    >>> L
    tensor([[1., 0.],
            [2., 1.]], dtype=torch.float64)
    """
    check_priority(priority, gradients.num_tasks)
    order = tuple(range(gradients.num_tasks)) if priority is None else tuple(priority)
    natural = order == tuple(range(gradients.num_tasks))
    index = index_on(order, gradients.device)
    back = index_on(tuple(sorted(range(len(order)), key=order.__getitem__)), gradients.device)

    def in_order(matrix: Tensor, index: Tensor) -> Tensor:
        return matrix if natural else matrix.index_select(0, index).index_select(1, index)

    reads = gradients.reads_up_to(order)
    lower = None
    if gradients.across is None:  # on ranks, different last bits could lead to different decisions
        eps = max((torch.finfo(block.dtype).eps for block in gradients.blocks), default=0.0)
        if (fast := gradients.fast_gram) is not None:
            lower = _at_once(in_order(fast, index), eps, WELL_CONDITIONED_FAST)
        if lower is None:
            lower = _at_once(in_order(gradients.gram, index), eps, WELL_CONDITIONED)
    if lower is not None:
        components = gradients.mixed(in_order(_invert(lower), back), reads)
        return Orthogonal(components, in_order(lower, back))
    gram = in_order(gradients.gram, index)
    squares = gram.diagonal()
    noise = rounding_noise(gradients).index_select(0, index)
    floor = FIRST_ROUND_FLOOR * torch.finfo(gram.dtype).eps
    coefficients, rest = _eliminate(gram, torch.maximum(noise, squares * floor))
    inverse = _invert(coefficients)
    if not _well_conditioned(rest, squares):
        projected = gradients.mixed(in_order(inverse, back), reads)
        coefficients_2, rest = _eliminate(in_order(projected.gram, index), noise)
        coefficients = coefficients @ coefficients_2
        inverse = _invert(coefficients_2) @ inverse
    dropped = (rest <= noise) & (squares > 0)
    inverse = torch.where(dropped[:, None], torch.zeros_like(inverse), inverse)
    return Orthogonal(gradients.mixed(in_order(inverse, back), reads), in_order(coefficients, back))


def _at_once(gram_SS: Tensor, eps: float, least: float) -> Tensor | None:
    """L from one Cholesky factorization, in few operations; None if it is not accurate enough.

    That is the case if a remainder is small or near its rounding (``eps`` of the gradients), and
    off the CPU, where asking would synchronize.
    """
    if gram_SS.device.type != "cpu":
        return None
    root, failed = torch.linalg.cholesky_ex(gram_SS)  # L diag(sqrt(rest))
    left = root.diagonal()
    squares = gram_SS.diagonal()
    if not _well_conditioned(left.square() - (2 * eps) ** 2 * squares, squares, least) or failed:
        return None
    lower: Tensor = root / left
    return lower


def _eliminate(gram_SS: Tensor, noise_S: Tensor) -> tuple[Tensor, Tensor]:
    """``L diag(rest) L^T = gram``; columns whose rest is at most their noise are zero."""
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


def _well_conditioned(rest_S: Tensor, squares_S: Tensor, least: float = WELL_CONDITIONED) -> bool:
    """Whether ``rest >= least * squares``; False on a GPU, where asking would synchronize.

    Also False below the range in which float32 holds the squares of entries.
    """
    if rest_S.device.type != "cpu":
        return False
    return bool((rest_S >= (squares_S * least).clamp(min=SMALLEST_SQUARE)).all())


def weighted_sum(
    gradients: TaskGradients, weights_S: Tensor, importances: Sequence[float] | None = None
) -> list[Tensor | None]:
    r"""Line 14 of Algorithm 2: :math:`\sum_i w_i g_i`, one tensor (or None) per position.

    With ``importances`` k each entry is divided by the sum of k over the tasks that touch it: an
    average over participants (text below equation 2). The sum is computed in float64 and rounded
    once to the tensor's dtype.

    >>> g = TaskGradients.stack([[torch.ones(2), None], [torch.ones(2), torch.ones(1)]])
    >>> weighted_sum(g, torch.tensor([1.0, 2.0]))
    [tensor([3., 3.]), tensor([2.])]
    >>> weighted_sum(g, torch.tensor([1.0, 2.0]), importances=[1.0, 1.0])
    [tensor([1.5000, 1.5000]), tensor([2.])]
    """
    return gradients.combine(weights_S, importances)


def consume(
    gradients: TaskGradients, weights_S: Tensor, importances: Sequence[float] | None = None
) -> list[Tensor | None]:
    """The update of a ``Combination``, after which the gradients are of no use.

    As ``weighted_sum``, with three differences: large gradients become the result; the entries that
    all tasks touch have the weights themselves, with ``importances`` too; and the sum is computed in
    float32 if its terms do not cancel: if their norms add up to at most four times its own.
    """
    if importances is not None:
        weights_S = weights_S * sum(importances)
    fast = False
    if weights_S.dim() == 1 and gradients.may_be_fast:
        gram = gradients.known_gram
        terms = weights_S.abs() @ gram.diagonal().sqrt()
        fast = _well_conditioned(weights_S @ gram @ weights_S, terms**2, WELL_CONDITIONED_FAST)
    return gradients.combine(weights_S, importances, in_place=True, fast=fast)


def update_norm(
    gradients: TaskGradients, weights_S: Tensor, importances: Sequence[float] | None = None
) -> Tensor:
    """The norm of ``weighted_sum`` with the same arguments, from dot products alone."""
    total = gradients.new()
    weights_S = gradients.in_terms_of_stored(weights_S.to(total.device, total.dtype))
    for block, gram in zip(gradients.blocks, gradients.stored_grams, strict=True):
        square = weights_S @ gram @ weights_S
        if importances is not None:
            square = square / sum(importances[i] for i in block.tasks) ** 2
        total += square
    return total.clamp(min=0).sqrt()
