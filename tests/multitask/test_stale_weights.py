"""What keeps stale weights harmless: drift and amplification against the gradients themselves."""

import pytest
import torch
from torch import Tensor

from anynest.multitask import OSGD, TaskGradients, orthogonalize
from anynest.multitask.methods.refresh import (
    MOST_AMPLIFICATION,
    amplification,
    bounded_weights,
    drift,
    noisy_weights,
)

ORDERS = [(0, 1, 2, 3), (2, 0, 3, 1)]


def gradients(seed: int, tasks: int = 4, near: float = 1.0) -> Tensor:
    """[S, P] random directions round a common one; near parallel where ``near`` is small."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(1, 30, generator=generator, dtype=torch.float64)
    own = torch.randn(tasks, 30, generator=generator, dtype=torch.float64)
    scales = torch.logspace(-1, 1, tasks, dtype=torch.float64)[:, None]
    return scales * (common + near * own)


def osgd(g: Tensor, order: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """w, L and G of OSGD on the rows of ``g``."""
    result = OSGD(order).rule(TaskGradients.stack([[row] for row in g]))
    assert result.coefficients is not None
    assert result.gram is not None
    return result.loss_weights, result.coefficients, result.gram


def ordered(g: Tensor, order: tuple[int, ...], share: float) -> Tensor:
    """w of the Gram matrix with noise, by a Cholesky factor of numpy's kind: nothing shared."""
    index = list(order)
    gram = g @ g.T
    gram = (gram + share * torch.diag(gram.diagonal()))[index][:, index]
    factor = torch.linalg.cholesky(gram)
    unit = factor / factor.diagonal()
    solved = torch.linalg.solve(unit.T, torch.ones(len(g), dtype=g.dtype))
    return torch.empty_like(solved).index_copy(0, torch.tensor(index), solved)


@pytest.mark.parametrize("order", ORDERS)
def test_noisy_weights_are_those_of_gradients_with_that_noise(order: tuple[int, ...]) -> None:
    g = gradients(0, near=0.1)
    shares = [0.0, 1e-3, 0.1, 10.0]
    found = noisy_weights(g @ g.T, torch.ones(4, dtype=g.dtype), order, shares)
    for row, share in zip(found, shares, strict=True):
        torch.testing.assert_close(row, ordered(g, order, share), rtol=1e-8, atol=1e-10)
    w, _, _ = osgd(g, order)
    torch.testing.assert_close(found[0], w, rtol=1e-8, atol=1e-10)
    far = noisy_weights(g @ g.T, torch.ones(4, dtype=g.dtype), order, [1e12])[0]
    torch.testing.assert_close(far, torch.ones_like(far))


@pytest.mark.parametrize("order", ORDERS)
def test_noise_is_what_the_share_says(order: tuple[int, ...]) -> None:
    """The mean of L over gradients with real noise of that share, in many dimensions."""
    g = gradients(3, near=0.3)
    share, wide = 0.2, 20_000
    noise = torch.randn(4, wide, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    noise *= (share * g.square().sum(1) / wide).sqrt()[:, None]
    w, _, _ = osgd(torch.cat([g, noise], dim=1), order)
    found = noisy_weights(g @ g.T, torch.ones(4, dtype=g.dtype), order, [share])[0]
    torch.testing.assert_close(found, w, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("seed", range(5))
def test_ordinary_weights_are_kept_as_they_are(seed: int, order: tuple[int, ...]) -> None:
    g = gradients(seed)
    w, lower, gram = osgd(g, order)
    assert amplification(gram, w) < MOST_AMPLIFICATION * 2
    assert torch.equal(bounded_weights(gram, w, lower, order), w)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("near", [0.1, 1e-2, 1e-3])
@pytest.mark.parametrize("seed", range(5))
def test_weights_near_parallel_gradients_are_bounded(
    seed: int, near: float, order: tuple[int, ...]
) -> None:
    """An error in the gradients comes out at most twice sqrt(S) times as large."""
    g = gradients(seed, near=near)
    w, lower, gram = osgd(g, order)
    kept = bounded_weights(gram, w, lower, order)
    bound = MOST_AMPLIFICATION * 2
    assert amplification(gram, kept) <= bound
    if near < 0.1:
        assert amplification(gram, w) > bound  # OSGD's own would not do
    error = 0.01 * torch.randn(4, 30, dtype=g.dtype) * g.norm(dim=1, keepdim=True) / 30**0.5
    worst = max((error / g.norm(dim=1, keepdim=True)).norm(dim=1))
    update = kept @ g
    assert (kept @ (g + error) - update).norm() <= bound * worst * update.norm() * (1 + 1e-9)


def test_conflicting_gradients_need_no_bound() -> None:
    """Their sum cancels, OSGD's update does not: w stays, where the sum would be refused."""
    g = torch.tensor([[1.0, 0.0], [-0.99, 0.1]], dtype=torch.float64)
    w, lower, gram = osgd(g, (0, 1))
    assert amplification(gram, torch.ones(2, dtype=g.dtype)) > MOST_AMPLIFICATION * 2**0.5
    assert torch.equal(bounded_weights(gram, w, lower, (0, 1)), w)


def test_a_loss_that_was_dropped_as_rounding_stays_dropped() -> None:
    g = torch.tensor([[1.0, 2.0, 0.0], [2.0, 4.0, 0.0], [1.0, 0.0, 1.0]], dtype=torch.float64)
    w, lower, gram = osgd(g, (0, 1, 2))
    assert w[1] == 0
    kept = bounded_weights(gram, w, lower, (0, 1, 2))
    torch.testing.assert_close(kept, w)


def test_normalized_weights_shrink_towards_the_normalized_sum() -> None:
    """``L^T w = s`` there: the target of the noise is s, not 1."""
    base, first, second = torch.randn(3, 30, dtype=torch.float64)
    g = torch.stack([base, 3 * (base + 1e-4 * first), 0.2 * (base + 0.1 * (first + second))])
    result = OSGD(normalize=True, C=1.0).rule(TaskGradients.stack([[row] for row in g]))
    assert result.coefficients is not None
    assert result.gram is not None
    bound = MOST_AMPLIFICATION * 3**0.5
    assert amplification(result.gram, result.loss_weights) > bound
    kept = bounded_weights(result.gram, result.loss_weights, result.coefficients, (0, 1, 2))
    assert amplification(result.gram, kept) <= bound
    scales = 30**0.5 / g.norm(dim=1)
    plain = OSGD().rule(TaskGradients.stack([[row] for row in g * scales[:, None]]))
    assert plain.coefficients is not None
    assert plain.gram is not None
    same = bounded_weights(plain.gram, plain.loss_weights, plain.coefficients, (0, 1, 2)) * scales
    torch.testing.assert_close(kept, same, rtol=1e-4, atol=1e-8)


def test_zero_gradients_and_one_loss() -> None:
    zero = torch.zeros(3, 3, dtype=torch.float64)
    ones = torch.ones(3, dtype=torch.float64)
    assert drift(zero, ones, 2 * ones) == 0
    assert amplification(zero, ones) == 1
    rows = TaskGradients.stack([[torch.zeros(4)] for _ in range(3)])
    w, lower = OSGD().rule(rows).loss_weights, orthogonalize(rows).coefficients
    assert torch.equal(bounded_weights(zero, w, lower, (0, 1, 2)), w)
    one = torch.full((1, 1), 4.0, dtype=torch.float64)
    assert bounded_weights(one, ones[:1], torch.eye(1, dtype=one.dtype), (0,)).tolist() == [1.0]


def test_drift_knows_no_scale() -> None:
    """A GradScaler's factor, which all gradients carry, cancels; so does none in the weights."""
    g = gradients(1)
    w, _, gram = osgd(g, (0, 1, 2, 3))
    kept = w + 0.1
    torch.testing.assert_close(drift(gram * 2.0**32, w, kept), drift(gram, w, kept))
    want = ((kept - w) @ g).norm() / (w @ g).norm()
    torch.testing.assert_close(drift(gram, w, kept), want)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_a_combiner_bounds_what_it_keeps_and_not_the_refresh(order: tuple[int, ...]) -> None:
    base, first, second = torch.randn(3, 30, dtype=torch.float64)
    rows = {order[0]: base, order[1]: base + 1e-4 * first, order[2]: base + first + second}
    g = torch.stack([rows[i] for i in range(3)])
    parameter = torch.nn.Parameter(torch.zeros(30, dtype=torch.float64))
    combiner = OSGD(order, refresh=2)
    exact, lazy = (combiner.backward(list(g @ parameter), [parameter]) for _ in range(2))
    w, lower, gram = osgd(g, order)
    assert torch.equal(exact.loss_weights, w)
    bound = MOST_AMPLIFICATION * 3**0.5
    assert amplification(gram, exact.loss_weights) > bound
    assert amplification(gram, lazy.loss_weights) <= bound
    torch.testing.assert_close(lazy.loss_weights, bounded_weights(gram, w, lower, order))
