"""The paper's rules as printed, in float64: the reference for the fast implementations.

Wan et al., ICML 2020: equations 1 and 2 and Algorithm 2. Gradients are flat vectors of equal
length, padded with zeros outside the task's own weights (text below equation 3). Not optimized.

As printed, line 12 uses the dot products of the original gradient. In float64 a remainder of
relative norm r is then accurate to about 1e-16 / r^2, and a remainder that should be zero is noise,
onto which later gradients are projected.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def padded(grads: Sequence[Tensor | None], like: Sequence[Tensor]) -> Tensor:
    """[P] one task's gradients as a flat float64 vector, zero where it has none."""
    pieces = [
        torch.zeros(p.numel(), dtype=torch.float64)
        if g is None
        else g.detach().to("cpu", torch.float64).reshape(-1)
        for g, p in zip(grads, like, strict=True)
    ]
    return torch.cat(pieces)


def proj(onto: Tensor, vector: Tensor, metric: Tensor | None = None) -> Tensor:
    """proj_A B: vector B projected onto vector A; onto nothing, nothing.

    ``metric`` [P] is the diagonal D of dot products ``a^T D b``; None for ordinary ones.
    """
    if not onto.any():
        return torch.zeros_like(vector)
    dual = onto if metric is None else metric * onto
    return (vector @ dual) / (onto @ dual) * onto


def sgd(gradients: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    """The gradient of equation 1: ``sum_i k_i g_i / sum_i k_i``."""
    k = [1.0] * len(gradients) if weights is None else list(weights)
    g = torch.zeros_like(gradients[0])
    for k_i, g_i in zip(k, gradients, strict=True):
        g = g + k_i * g_i
    return g / sum(k)


def normalized(g_i: Tensor, d_i: int, C: float) -> Tensor:
    """Equation 2: ``g_i / ||g_i|| * sqrt(d_i) * C``; a zero gradient stays zero."""
    return g_i / g_i.norm() * d_i**0.5 * C if g_i.any() else g_i


def normsgd(gradients: Sequence[Tensor], touched: Sequence[Tensor], C: float = 0.5) -> Tensor:
    """Equation 2, then each entry averaged over the subnetworks in which it takes part.

    ``touched[i]`` [P] is 1.0 on the entries of w_i and 0.0 elsewhere.
    """
    total, count = torch.zeros_like(gradients[0]), torch.zeros_like(gradients[0])
    for g_i, t_i in zip(gradients, touched, strict=True):
        total = total + normalized(g_i, int(t_i.sum()), C)
        count = count + t_i
    return total / count.clamp(min=1)


def osgd(
    gradients: Sequence[Tensor],
    *,
    normalizing: bool = False,
    sizes: Sequence[int] = (),
    C: float = 0.5,
    metric: Tensor | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Algorithm 2, lines 4 to 15: the gradient g(t) and the kept components g_i(t).

    ``gradients`` come in priority order; ``sizes`` are the d_i, needed only for normalizing.
    ``metric`` as in ``proj``.
    """
    n = len(gradients)
    g = torch.zeros_like(gradients[0])  # line 4
    g_ = list(gradients)
    for i in range(n):  # line 5
        # line 6: g_i(t) is given
        if normalizing:  # line 7
            g_[i] = normalized(g_[i], sizes[i], C)  # line 8
    for i in range(n):  # line 11
        h_i = torch.zeros_like(g)  # line 12
        for j in range(i):
            h_i = h_i + proj(g_[j], g_[i], metric)
        g_[i] = g_[i] - h_i  # line 13
        g = g + g_[i]  # line 14
    return g, g_
