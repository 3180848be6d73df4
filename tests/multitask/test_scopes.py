"""OSGD within parameter groups or tensors: a plain float64 Algorithm 2 in each scope alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anynest.multitask import OSGD, TaskGradients, list_methods, make_combiner, orthogonalize
from anynest.multitask.gradients.scopes import project_within
from anynest.multitask.methods import reference

Make = Callable[..., nn.Module]
Losses = Callable[[nn.Module, int], list[Tensor]]


def groups_of(network: nn.Module) -> list[dict[str, Any]]:
    """Heads, then the first and the last stage, then the rest: scopes that cross blocks."""
    stages = network.get_submodule("stages")
    first, second, third = (list(child.parameters()) for child in stages.children())
    return [
        {"params": network.get_submodule("heads").parameters(), "lr": 0.1},
        {"params": [*first, *third]},
        {"params": second, "weight_decay": 0.0},
    ]


def by_scope(
    losses: list[Tensor],
    parameters: list[Tensor],
    scopes: list[list[int]],
    order: list[int],
    normalize: bool,
) -> list[Tensor]:
    """[p] the update of Algorithm 2 in each scope by itself, in float64."""
    rows = [
        torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        for loss in losses
    ]
    whole = [reference.padded(row, parameters) for row in rows]
    sizes = [sum(g.numel() for g in row if g is not None) for row in rows]
    factors = [
        (reference.normalized(g, d, 0.5).norm() / g.norm()) if normalize else torch.ones(())
        for g, d in zip(whole, sizes, strict=True)
    ]
    update: list[Tensor] = [torch.empty(0)] * len(parameters)
    for scope in scopes:
        inside = [parameters[p] for p in scope]
        vectors = [
            reference.padded([rows[i][p] for p in scope], inside) * factors[i] for i in order
        ]
        g, _ = reference.osgd(vectors)
        pieces = g.split([p.numel() for p in inside])
        for p, piece in zip(scope, pieces, strict=True):
            update[p] = piece.view_as(parameters[p])
    return update


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("order", [None, [2, 0, 1]])
@pytest.mark.parametrize("scope", ["group", "tensor"])
def test_each_scope_is_algorithm_2_by_itself(
    scope: Any,
    order: list[int] | None,
    normalize: bool,
    reduction: Any,
    three_exits: Make,
    digit_losses: Losses,
) -> None:
    network = three_exits()
    groups = groups_of(network)
    groups = [{**group, "params": list(group["params"])} for group in groups]
    parameters = [p for group in groups for p in group["params"]]
    numbers = [number for number, group in enumerate(groups) for _ in group["params"]]
    scopes = [[p for p, n in enumerate(numbers) if n == number] for number in range(len(groups))]
    if scope == "tensor":
        scopes = [[p] for p in range(len(parameters))]
    losses = digit_losses(network, 0)
    want = by_scope(losses, parameters, scopes, order or [0, 1, 2], normalize)
    combiner = OSGD(order, normalize, reduction, scope=scope)
    for _ in range(2):  # the second time straight into the expected blocks
        network.zero_grad()
        stats = combiner.backward(losses, groups, retain_graph=True)
        for p, expected in zip(parameters, want, strict=True):
            assert p.grad is not None
            share = expected / 3 if reduction == "mean" else expected
            error = (p.grad.double() - share).norm()
            assert error <= 2e-6 * share.norm() + 1e-9, (p.shape, error, share.norm())
    assert stats.loss_weights.shape == (len(scopes), 3)
    assert stats.coefficients is not None
    assert stats.coefficients.shape == (len(scopes), 3, 3)
    assert stats.cosines is not None
    assert stats.cosines.shape == (3, 3)
    stats.to_dict()


def test_the_weights_of_each_scope_make_its_update(three_exits: Make, digit_losses: Losses) -> None:
    network = three_exits().double()
    parameters = list(network.parameters())
    losses = digit_losses(network, 0)
    rows = [
        torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        for loss in losses
    ]
    stats = OSGD(scope="tensor").backward(losses, parameters)
    for p, parameter in enumerate(parameters):
        want = sum(
            w * g
            for w, g in zip(stats.loss_weights[p], (row[p] for row in rows), strict=True)
            if g is not None
        )
        torch.testing.assert_close(parameter.grad, want)


@pytest.mark.parametrize("scope", ["group", "tensor"])
def test_one_scope_is_the_paper_bit_for_bit(scope: Any) -> None:
    a, b = torch.randn(2, 5)
    found = []
    for combiner, wrap in [
        (OSGD(), lambda w: [w]),
        (OSGD(scope=scope), lambda w: [{"params": [w]}]),
    ]:
        w = nn.Parameter(torch.zeros(5))
        stats = combiner.backward([w @ a, w @ b], wrap(w))
        assert w.grad is not None
        found.append((w.grad, stats.loss_weights.reshape(-1)))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("method", list_methods())
def test_groups_are_taken_by_every_method(
    method: str, three_exits: Make, digit_losses: Losses
) -> None:
    plain, ours = three_exits(), three_exits()
    groups = groups_of(ours)
    order = [p for group in groups_of(plain) for p in group["params"]]
    make_combiner(method).backward(digit_losses(plain, 0), order)
    optimizer = torch.optim.SGD(groups, lr=0.1)
    make_combiner(method).backward(digit_losses(ours, 0), optimizer.param_groups)
    for p, q in zip(plain.parameters(), ours.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert torch.equal(p.grad, q.grad)


def test_micro_batches_and_scopes(three_exits: Make, digit_losses: Losses) -> None:
    network = three_exits().double().eval()
    parts = [[loss / 2 for loss in digit_losses(network, step)] for step in (0, 1)]
    whole = [a + b for a, b in zip(*parts, strict=True)]
    OSGD(scope="group").backward(whole, groups_of(network), retain_graph=True)
    expected = [p.grad for p in network.parameters()]
    network.zero_grad()
    combiner = OSGD(scope="group")
    for losses in parts:
        combiner.accumulate(losses, groups_of(network))
    combiner.combine()
    for p, want in zip(network.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, want, rtol=1e-8, atol=1e-12)


def test_groups_may_change_from_step_to_step() -> None:
    parameters = [nn.Parameter(torch.randn(3)) for _ in range(3)]
    combiner = OSGD(scope="group")
    for cut in (1, 2, 1):
        found = []
        for each in (combiner, OSGD(scope="group")):
            for p in parameters:
                p.grad = None
            a, b, c = parameters
            losses = [(a * b).sum() + c.sum(), (a * c).sin().sum() + (b * b).sum()]
            each.backward(losses, [{"params": parameters[:cut]}, {"params": parameters[cut:]}])
            found.append(torch.cat([p.grad for p in parameters if p.grad is not None]))
        assert torch.equal(*found)


def test_a_group_that_no_loss_touches_keeps_its_grad() -> None:
    w, other = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    other.grad = torch.full((2,), 7.0)
    groups = [{"params": [other]}, {"params": [w]}]
    stats = OSGD(scope="group").backward([w.sum(), (w * w).sum()], groups)
    assert torch.equal(other.grad, torch.full((2,), 7.0))
    assert stats.loss_weights[0].tolist() == [1.0, 1.0]
    frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    w.grad = None
    OSGD(scope="group").backward([w.sum()], [{"params": frozen}, {"params": w}])
    assert w.grad is not None


def test_a_skipped_loss_with_scopes() -> None:
    a, b = torch.randn(2, 4)
    w, v = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4))
    losses = [(w + v) @ a, (w + v).sum() * float("nan"), w @ b]
    stats = OSGD(scope="tensor", on_nonfinite="skip").backward(losses, [w, v])
    assert stats.loss_weights[:, 1].tolist() == [0.0, 0.0]
    assert stats.coefficients is not None
    assert torch.isnan(stats.coefficients).sum() == 2 * 5
    torch.testing.assert_close(v.grad, a)


def test_calibration_with_scopes() -> None:
    """C makes the norms over all scopes equal to SGD's."""
    a, b = torch.randn(2, 4)
    w, v = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4))
    combiner = OSGD(normalize=True, C="calibrated", calibration_steps=1, scope="tensor")
    losses = [w @ a + v @ b, w @ b - v @ a]
    combiner.backward(losses, [w, v], retain_graph=True)
    assert w.grad is not None
    assert v.grad is not None
    found = torch.cat([w.grad, v.grad]).norm()
    w.grad = v.grad = None
    sum(losses).backward()  # type: ignore[union-attr]
    torch.testing.assert_close(found, torch.cat([w.grad, v.grad]).norm())


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda w: OSGD(scope="layer"), "scope must be one of 'all', 'group', 'tensor', found 'la"),
        (lambda w: OSGD(scope="group", refresh=4), "refresh must be 1 with scope='group', found 4"),
        (
            lambda w: OSGD(scope="group").backward([w.sum()], [w]),
            r"needs parameter groups, found tensors alone: pass optimizer\.param_groups",
        ),
        (
            lambda w: OSGD().backward([w.sum()], [{"params": [w]}, w]),
            "must be dicts with 'params', found Parameter at position 1",
        ),
        (lambda w: OSGD().backward([w.sum()], [{"lr": 1}]), "found dict at position 0"),
        (lambda w: OSGD().backward([w.sum()], [{"params": []}]), "at least one tensor, found none"),
        (lambda w: OSGD().backward([w.sum()], [{"params": [("w", w)]}]), "found tuple at pos"),
    ],
)
def test_bad_scopes_and_groups_are_named(act: Callable[[Any], Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        act(nn.Parameter(torch.ones(2)))
    assert "\n" not in str(caught.value)


def test_no_block_is_of_two_scopes() -> None:
    grads: list[list[Tensor | None]] = [[torch.ones(2), torch.ones(3), torch.ones(1)]] * 2
    rows = TaskGradients.stack(grads, scopes=(1, 0, 1))
    assert sorted(block.members for block in rows.blocks) == [(0, 2), (1,)]
    assert [part.sizes for part in rows.parts()] == [(3, 3), (3, 3)]
    assert len(project_within(rows, None, orthogonalize).parts) == 2
    assert "scope='tensor'" in repr(OSGD(scope="tensor"))
