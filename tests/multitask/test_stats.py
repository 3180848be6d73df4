"""What is reported: norms, cosines, L, and the loss weights that give the same gradient."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anynest.multitask import (
    OSGD,
    Combiner,
    NormSGD,
    gradient_stats,
    list_methods,
    make_combiner,
)

Make = Callable[..., nn.Module]
Losses = Callable[[nn.Module, int], list[Tensor]]


@pytest.mark.parametrize("priority", [None, [2, 0, 1]])
@pytest.mark.parametrize("method", ["osgd", "osgd-mean", "osgd-norm"])
def test_the_equivalent_weights_give_the_same_gradient(
    method: str, priority: list[int] | None, three_exits: Make, digit_losses: Losses
) -> None:
    """OSGD's update is an ordinary backward pass of sum_i w_i L_i."""
    one, other = three_exits(), three_exits()
    stats = make_combiner(method, priority=priority).backward(
        digit_losses(one, 0), one.parameters()
    )
    losses = digit_losses(other, 0)
    total = sum((w * loss for w, loss in zip(stats.loss_weights.float(), losses, strict=True)))
    assert isinstance(total, Tensor)
    total.backward()
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("priority", [None, [2, 0, 1]])
def test_l_transposed_times_w_is_what_each_method_sums(
    priority: list[int] | None, three_exits: Make, digit_losses: Losses
) -> None:
    network = three_exits()
    sizes = torch.tensor([90 + 72 + 16, 0, 0], dtype=torch.float64)
    for method in ("osgd", "osgd-mean", "osgd-norm"):
        stats = make_combiner(method, priority=priority).backward(
            digit_losses(network, 0), network.parameters()
        )
        assert stats.coefficients is not None
        assert stats.norms is not None
        found = stats.coefficients.T @ stats.loss_weights
        if method == "osgd-norm":
            assert abs(found[0] - 0.5 * sizes[0].sqrt() / stats.norms[0]) < 1e-9
        else:
            share = torch.full_like(found, 1.0 if method == "osgd" else 1 / 3)
            torch.testing.assert_close(found, share)


def test_norms_and_cosines_are_those_of_the_gradients() -> None:
    a, b = torch.tensor([3.0, 4.0]), torch.tensor([0.0, -2.0])
    w = nn.Parameter(torch.zeros(2))
    stats = OSGD().backward([w @ a, w @ b, w.sum() * 0], [w])
    want = torch.tensor([[1.0, -0.8, 0], [-0.8, 1.0, 0], [0, 0, 0]], dtype=torch.float64)
    assert stats.cosines is not None
    torch.testing.assert_close(stats.cosines, want)
    torch.testing.assert_close(stats.norms, torch.tensor([5.0, 2.0, 0.0], dtype=torch.float64))


def test_a_zero_gradient_keeps_its_weight_and_a_repeated_one_has_none() -> None:
    a, b = torch.randn(2, 4)
    w = nn.Parameter(torch.zeros(4))
    stats = OSGD().backward([w @ a, w.sum() * 0, w @ a, w @ b], [w])
    share = (a @ b / (a @ a)).item()
    assert stats.loss_weights.tolist() == pytest.approx([1 - share, 1.0, 0.0, 1.0])


@pytest.mark.parametrize("method", list_methods())
def test_stats_are_plain_json(method: str, three_exits: Make, digit_losses: Losses) -> None:
    network = three_exits()
    stats = make_combiner(method).backward(digit_losses(network, 0), network.parameters())
    listed: dict[str, Any] = json.loads(json.dumps(stats.to_dict(), allow_nan=False))
    assert len(listed["losses"]) == len(listed["loss_weights"]) == 3
    assert set(listed) == {
        "losses",
        "loss_weights",
        "norms",
        "cosines",
        "coefficients",
        "skipped",
        "refreshed",
        "drift",
    }
    one_pass = method in ("sgd-mean", "sgd-sum")
    assert (listed["norms"] is None) == one_pass
    assert (listed["cosines"] is None) == one_pass


@pytest.mark.parametrize("method", ["normsgd", "sgd-participants"])
def test_weights_of_an_average_hold_where_all_take_part(method: str) -> None:
    a, b = torch.randn(2, 4)
    w, own = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4))
    stats = make_combiner(method).backward([w @ a, w @ b + own.sum()], [w, own])
    assert w.grad is not None
    torch.testing.assert_close(
        w.grad.double(), stats.loss_weights[0] * a.double() + stats.loss_weights[1] * b.double()
    )


@pytest.mark.parametrize("method", list_methods())
def test_a_measurement_leaves_grad_and_graph(method: str) -> None:
    """Also for a method whose step is one ordinary backward pass."""
    w = nn.Parameter(torch.ones(3))
    losses = [(w * w).sum(), w.prod()]
    combiner = make_combiner(method)
    measured = combiner.measure(losses)
    assert w.grad is None
    assert measured.gram is not None
    done = combiner.backward(losses)
    assert w.grad is not None
    torch.testing.assert_close(measured.loss_weights, done.loss_weights)


@pytest.mark.parametrize(
    "make",
    [
        lambda: OSGD(refresh=3),
        lambda: OSGD(normalize=True, C="calibrated", calibration_steps=4),
        lambda: NormSGD(C="calibrated", calibration_steps=4),
    ],
    ids=["refresh", "osgd-norm", "normsgd"],
)
def test_a_measurement_leaves_the_steps_after_it(make: Callable[[], Combiner]) -> None:
    """Steps with measurements of other losses between them are those without."""

    def steps(measures: bool) -> Tensor:
        combiner, w = make(), nn.Parameter(torch.ones(3))
        torch.manual_seed(0)
        for batch in torch.randn(7, 2, 2, 3):
            other, here = batch
            if measures:
                combiner.measure([(w * w) @ row for row in other])
            combiner.backward([(w * w) @ row for row in here])
        assert w.grad is not None
        return w.grad

    torch.testing.assert_close(steps(True), steps(False), rtol=0, atol=0)


def test_gradient_stats_measure_without_a_trace(three_exits: Make, digit_losses: Losses) -> None:
    network = three_exits()
    losses = digit_losses(network, 0)
    measured = gradient_stats(losses, network.parameters())
    assert all(p.grad is None for p in network.parameters())
    done = OSGD().backward(losses, network.parameters())  # the graph is still there
    for name in ("losses", "loss_weights", "coefficients", "norms", "cosines"):
        torch.testing.assert_close(getattr(measured, name), getattr(done, name), rtol=0, atol=0)
