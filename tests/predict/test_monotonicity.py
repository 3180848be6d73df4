"""Monotone confidence: the guarantees of each rule on random logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anynest.predict.early_stopping.policies import Confidence
from anynest.predict.monotonicity import RULES, find_rule
from anynest.predict.predictor import AnytimePredictor

EPS = 1e-6

logits = st.integers(0, 10_000).map(
    lambda seed: (
        torch.randn(5, 4, 6, generator=torch.Generator().manual_seed(seed)).double() * 3 + 1
    )
)


def answers(name: str | None, stages: Tensor) -> Tensor:
    """Probabilities ``[S, b, K]``."""
    rule, state, rows = find_rule(name), None, []
    for z in stages:
        state, probabilities = rule(state, z)
        assert state.shape[0] == z.shape[0]
        rows.append(probabilities)
    return torch.stack(rows)


@pytest.mark.parametrize("name", [None, *RULES])
@settings(max_examples=50, deadline=None)
@given(z=logits)
def test_probabilities(name: str | None, z: Tensor) -> None:
    p = answers(name, z)
    assert bool((p >= 0).all())
    torch.testing.assert_close(p.sum(2), torch.ones(5, 4, dtype=torch.float64))


@settings(max_examples=100, deadline=None)
@given(z=logits)
def test_support_is_never_less_sure_of_what_is_possible(z: Tensor) -> None:
    p = answers("support", z)
    possible = (z > 0).cummin(0).values  # [S, b, K]
    some = possible.any(2, keepdim=True)
    expected = torch.where(some, possible.double() / possible.sum(2, keepdim=True), z.softmax(2))
    torch.testing.assert_close(p, expected)
    for s in range(len(z) - 1):
        stays = possible[s + 1]
        assert bool((p[s + 1][stays] >= p[s][stays] - EPS).all())


@settings(max_examples=100, deadline=None)
@given(z=logits)
def test_product_grows_exactly_where_promised(z: Tensor) -> None:
    p = answers("product", z)
    factors = z.clamp(min=0)
    products = factors.cumprod(0)
    alive = products.sum(2, keepdim=True) > 0
    expected = torch.where(alive, products / products.sum(2, keepdim=True), z.softmax(2))
    torch.testing.assert_close(p, expected)
    for s in range(len(z) - 1):
        mean = (p[s] * factors[s + 1]).sum(1, keepdim=True)
        going = alive[s + 1].expand_as(p[s])
        more = (factors[s + 1] > mean + EPS) & going
        less = (factors[s + 1] < mean - EPS) & going
        assert bool((p[s + 1][more] >= p[s][more] - EPS).all())
        assert bool((p[s + 1][less] <= p[s][less] + EPS).all())
        top = factors[s + 1].argmax(1, keepdim=True)
        grown = p[s + 1].gather(1, top) >= p[s].gather(1, top) - EPS
        assert bool(grown[alive[s + 1]].all())


@settings(max_examples=100, deadline=None)
@given(z=logits)
def test_caching_is_never_less_confident(z: Tensor) -> None:
    p, plain = answers("caching", z), z.softmax(2)
    confidence = p.amax(2)
    assert bool((confidence[1:] >= confidence[:-1]).all())
    torch.testing.assert_close(confidence, plain.amax(2).cummax(0).values)
    for s in range(len(z)):  # each prediction is some stage's own
        for b in range(z.shape[1]):
            assert any(torch.equal(p[s, b], plain[earlier, b]) for earlier in range(s + 1))


def test_caching_takes_the_later_of_equally_confident_stages() -> None:
    z = torch.tensor([[[2.0, 0.0, 0.0]], [[0.0, 2.0, 0.0]], [[0.0, 0.0, 1.0]]])
    plain = z.softmax(2)
    assert plain[0].max() == plain[1].max() > plain[2].max()
    p = answers("caching", z)
    assert torch.equal(p, plain[[0, 1, 1]])


def test_plain_softmax_is_not_monotone() -> None:
    z = torch.randn(5, 200, 6) * 3
    p = answers(None, z)
    assert bool((p.amax(2)[1:] < p.amax(2)[:-1]).any())
    assert torch.equal(p, z.softmax(2))


@pytest.mark.parametrize("name", ["product", "support"])
def test_all_classes_ruled_out_gives_the_stages_softmax(name: str) -> None:
    z = torch.tensor([[[1.0, -1.0, 2.0]], [[-1.0, 3.0, -0.5]], [[4.0, 1.0, 1.0]]])
    p = answers(name, z)
    assert float(p[0].sum()) == 1
    assert torch.equal(p[1], z[1].softmax(1))
    assert torch.equal(p[2], z[2].softmax(1))  # classes stay ruled out


@pytest.mark.parametrize("name", sorted(RULES))
def test_huge_and_tiny_logits(name: str) -> None:
    for scale in (1e-30, 1e-10, 1.0, 1e10, 1e30, 1e38):
        z = torch.rand(20, 3, 4) * scale + scale
        p = answers(name, z)
        assert bool(torch.isfinite(p).all())
        torch.testing.assert_close(p.sum(2), torch.ones(20, 3))


def test_in_predictions_and_batches_that_shrink(make_session: Any, make_image: Any) -> None:
    values = [0.2, 3.0, 0.5, 1.0]
    x = torch.stack([make_image(v) for v in values])
    z = torch.zeros(3, 4, 4)
    for s in range(3):
        z[s, :, 0] = torch.tensor(values) * (s + 1)
        z[s, :, 1:] = 0
    for name in RULES:
        with AnytimePredictor(make_session(), monotone=name) as predictor:
            streamed = torch.stack([p.probabilities for p in predictor.stream(x)])
            assert torch.equal(streamed, answers(name, z))
            shrunk = predictor.predict(x, None, policy=Confidence(0.9))
            for row, stage in enumerate(shrunk.stages):
                assert torch.equal(shrunk.probabilities[row], streamed[stage - 1, row])


def test_unknown_rules() -> None:
    with pytest.raises(
        ValueError, match="monotone must be one of product, support, caching or None"
    ):
        find_rule("always")
