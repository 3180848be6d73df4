"""Every method on a real network: against the paper's formulas, and 100 steps beside a twin."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anynest import multitask
from anynest.multitask import OSGD, WeightedSGD, list_methods, make_combiner
from anynest.multitask.methods import reference
from anynest.multitask.methods.reference import padded

Losses = Callable[[nn.Module, int], list[Tensor]]
Make = Callable[..., nn.Module]


def separate_gradients(losses: list[Tensor], parameters: list[Tensor]) -> list[list[Tensor | None]]:
    """One backward pass per loss, each into an empty ``.grad``."""
    before = [p.grad for p in parameters]
    rows: list[list[Tensor | None]] = []
    for loss in losses:
        for p in parameters:
            p.grad = None
        loss.backward(retain_graph=True)
        rows.append([p.grad for p in parameters])
    for p, grad in zip(parameters, before, strict=True):
        p.grad = grad
    return rows


def by_the_book(method: str, losses: list[Tensor], parameters: list[Tensor]) -> Tensor:
    """[P] the method's gradient from the reference, in float64."""
    rows = separate_gradients(losses, parameters)
    vectors = [padded(row, parameters) for row in rows]
    ones = [torch.ones_like(p) for p in parameters]
    touched = [
        padded([None if g is None else o for g, o in zip(row, ones, strict=True)], parameters)
        for row in rows
    ]
    sizes = [int(t.sum()) for t in touched]
    if method == "sgd-mean":
        return reference.sgd(vectors)
    if method == "sgd-sum":
        return reference.sgd(vectors) * len(vectors)
    if method == "sgd-participants":
        return sum(vectors, start=torch.zeros(())) / sum(touched, start=torch.zeros(()))
    if method == "normsgd":
        return reference.normsgd(vectors, touched)
    g, _ = reference.osgd(vectors, normalizing=method == "osgd-norm", sizes=sizes)
    return g / len(vectors) if method == "osgd-mean" else g


def taken(parameters: list[Tensor]) -> Tensor:
    return padded([p.grad for p in parameters], parameters)


def relative(found: Tensor, true: Tensor) -> float:
    return float((found - true).norm() / true.norm())


@pytest.mark.parametrize("method", list_methods())
def test_each_method_is_the_papers_formula(
    method: str, three_exits: Make, digit_losses: Losses
) -> None:
    network = three_exits()
    parameters = list(network.parameters())
    losses = digit_losses(network, 0)
    expected = by_the_book(method, losses, parameters)
    stats = make_combiner(method).backward(losses, parameters)
    assert relative(taken(parameters), expected) < 1e-6
    torch.testing.assert_close(stats.losses.float(), torch.stack(losses).detach())


def test_a_step_runs_through_seven_files() -> None:
    """From ``backward(losses, parameters)`` to ``.grad``: what a reader must read."""
    w, v = nn.Parameter(torch.randn(200, 100)), nn.Parameter(torch.randn(100))
    losses = [(w @ v).sum(), (w @ v).sin().sum()]
    combiner, files = OSGD(), set[str]()
    root = Path(multitask.__file__).parent

    def watch(frame: FrameType, event: str, argument: object) -> None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(root):
            files.add(path.relative_to(root).as_posix())

    sys.setprofile(watch)
    try:
        combiner.backward(losses, [w, v])
    finally:
        sys.setprofile(None)
    assert files == {
        "combiner.py",  # the walk itself
        "checks.py",
        "gradients/backward.py",
        "gradients/task_gradients.py",
        "methods/osgd.py",
        "methods/rules.py",
        "stats.py",
    }


@pytest.mark.parametrize("priority", [None, [2, 0, 1]])
@pytest.mark.parametrize("method", ["osgd", "osgd-norm"])
def test_a_hundred_steps_stay_with_the_float64_reference(
    method: str, priority: list[int] | None, three_exits: Make, digit_losses: Losses
) -> None:
    """Two float32 networks train side by side, one on our gradients, one on the reference's.

    Every step's gradient is within 1e-6 of the reference on the same weights, relative to its norm,
    and after 100 steps the weights are within 1e-5 of the twin's, relative to how far they went.
    """
    ours, twin = three_exits(), three_exits()
    start = nn.utils.parameters_to_vector(ours.parameters()).detach().clone()
    combiner = make_combiner(method, priority=priority)
    rate = 1e-3 if method == "osgd-norm" else 0.05
    steppers = [
        torch.optim.SGD(net.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4)
        for net in (ours, twin)
    ]
    order = priority or [0, 1, 2]
    for step in range(100):
        for net, stepper in zip((ours, twin), steppers, strict=True):
            parameters = list(net.parameters())
            losses = digit_losses(net, step)
            expected = by_the_book(method, [losses[i] for i in order], parameters)
            stepper.zero_grad()
            if net is ours:
                combiner.backward(losses, parameters)
                assert relative(taken(parameters), expected) < 1e-6
            else:
                pieces = expected.float().split([p.numel() for p in parameters])
                for p, piece in zip(parameters, pieces, strict=True):
                    p.grad = piece.view_as(p)
            stepper.step()
    there = nn.utils.parameters_to_vector(twin.parameters()).detach()
    here = nn.utils.parameters_to_vector(ours.parameters()).detach()
    assert (there - start).norm() > 1  # they went somewhere
    assert (here - there).norm() < 1e-5 * (there - start).norm()


@pytest.mark.parametrize("method", list_methods())
@pytest.mark.parametrize("scale", [0.0, 1e-10, 1e-3, 1e3, 1e10])
def test_hostile_scales_give_finite_gradients(method: str, scale: float) -> None:
    weight = nn.Parameter(torch.randn(6, 5))
    bias = nn.Parameter(torch.randn(6))
    x = torch.randn(5)
    hidden = weight @ x
    losses = [scale * hidden.square().sum(), (hidden + bias).sin().sum(), scale * bias.sum()]
    expected = by_the_book(method, losses, [weight, bias])
    make_combiner(method).backward(losses, [weight, bias])
    found = taken([weight, bias])
    assert torch.isfinite(found).all()
    assert relative(found, expected) < 1e-6


@pytest.mark.parametrize("method", ["osgd", "sgd-mean", "sgd-sum", "sgd-participants"])
def test_one_loss_is_plain_backward_bit_for_bit(
    method: str, three_exits: Make, digit_losses: Losses
) -> None:
    """Twice in a row, so that the accumulation is compared too."""
    plain, ours = three_exits(), three_exits()
    for step in range(2):
        digit_losses(plain, step)[-1].backward()
        make_combiner(method).backward([digit_losses(ours, step)[-1]], ours.parameters())
    for p, q in zip(plain.parameters(), ours.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None and q.grad is not None:
            assert torch.equal(p.grad.view(torch.int32), q.grad.view(torch.int32))


def test_one_loss_keeps_the_sign_of_zero() -> None:
    w = nn.Parameter(torch.ones(5))
    OSGD().backward([(w * -0.0).sum()], [w])
    assert w.grad is not None
    assert w.grad.signbit().all()


@pytest.mark.parametrize(
    ("options", "by_hand"),
    [
        ({"reduction": "mean"}, lambda a, b, c: (a + b + c) / 3),
        ({"reduction": "sum"}, lambda a, b, c: a + b + c),
        (
            {"reduction": "mean", "weights": [0.2, 0.0, 1.5]},
            lambda a, b, c: (0.2 * a + 0.0 * b + 1.5 * c) / 1.7,
        ),
        ({"reduction": "sum", "weights": [1, -2, 0.3]}, lambda a, b, c: 1 * a + -2 * b + 0.3 * c),
    ],
)
def test_weighted_sgd_is_the_weighted_loss_bit_for_bit(
    options: dict[str, Any],
    by_hand: Callable[[Tensor, Tensor, Tensor], Tensor],
    three_exits: Make,
    digit_losses: Losses,
) -> None:
    plain, ours = three_exits(), three_exits()
    by_hand(*digit_losses(plain, 0)).backward()
    WeightedSGD(**options).backward(digit_losses(ours, 0), ours.parameters())
    for p, q in zip(plain.parameters(), ours.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert torch.equal(p.grad, q.grad)


def test_the_same_loss_twice_is_that_loss_once(three_exits: Make, digit_losses: Losses) -> None:
    once, twice = three_exits(), three_exits()
    digit_losses(once, 0)[1].backward()
    loss = digit_losses(twice, 0)[1]
    OSGD().backward([loss, loss, loss * 1.0], twice.parameters())
    for p, q in zip(once.parameters(), twice.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None and q.grad is not None:
            assert torch.equal(p.grad, q.grad)


def test_the_graph_is_freed_on_the_last_loss_unless_told(
    three_exits: Make, digit_losses: Losses
) -> None:
    network = three_exits()
    losses = digit_losses(network, 0)
    OSGD().backward(losses, network.parameters(), retain_graph=True)
    first = taken(list(network.parameters()))
    network.zero_grad()
    OSGD().backward(losses, network.parameters())
    assert torch.equal(first, taken(list(network.parameters())))
    with pytest.raises(RuntimeError, match="second time"):
        losses[-1].backward()


def test_each_loss_walks_its_own_subnetwork_only(three_exits: Make, digit_losses: Losses) -> None:
    network = three_exits()
    visits = [0, 0, 0]

    def watch(number: int) -> Callable[..., None]:
        def count(_: Tensor) -> None:
            visits[number] += 1

        def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
            output.register_hook(count)

        return hook

    for number, stage in enumerate(network.get_submodule("stages").children()):
        stage.register_forward_hook(watch(number))
    OSGD().backward(digit_losses(network, 0), network.parameters())
    assert visits == [3, 2, 1]
