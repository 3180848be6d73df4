"""Large float32 gradients on a CPU: float32 arithmetic where that is enough, and results in place.

The reference is float64 arithmetic on the same gradients. Every size is above ``LEAST_FAST``.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anynest.multitask import OSGD, TaskGradients, make_combiner, task_gradients
from anynest.multitask.gradients import task_gradients as module
from anynest.multitask.gradients.task_gradients import (
    LEAST_FAST,
    SMALL_CPU,
    fast_dots,
    fast_sum,
    longest_dot,
)
from anynest.multitask.methods import reference
from anynest.multitask.methods.rules import WELL_CONDITIONED_FAST

SIZE = 40_000


def osgd_of(rows: list[Tensor], combiner: Any = None) -> tuple[Tensor, Any]:
    """The update for these gradients of one parameter, through a real step."""
    w = nn.Parameter(torch.zeros_like(rows[0]))
    stats = (combiner or OSGD()).backward([(w * row).sum() for row in rows], [w])
    assert w.grad is not None
    return w.grad, stats


def relative(found: Tensor, true: Tensor) -> float:
    return float((found.double() - true).norm() / true.norm())


@pytest.mark.parametrize("k", [1, 2, 4, 6, 9])
@pytest.mark.parametrize("size", [0, 1, LEAST_FAST, 65_537, 300_001])
def test_float32_dots_are_those_of_float64_within_rounding(k: int, size: int) -> None:
    rows = torch.randn(k, size) + 0.5
    found = torch.tensor(fast_dots(list(rows)), dtype=torch.float64)
    true = rows.double() @ rows.double().T
    norms = rows.double().norm(dim=1)
    assert found.shape == (k, k)
    # what makes a step exact to 1e-6 down to the smallest remainder that these dots are used for
    bound = 1e-6 * WELL_CONDITIONED_FAST**0.5
    assert ((found - true).tril().abs() <= bound * norms[:, None] * norms).all()


def test_the_length_of_a_dot_does_not_depend_on_the_caller_s_defaults() -> None:
    measured = longest_dot.__wrapped__  # not what an earlier call found
    usual = measured(1)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            assert measured(1) == usual
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("k", [2, 7])
def test_long_dots_are_summed_in_float64(k: int) -> None:
    """Equal products, the worst case: each is rounded alike when it is added."""
    rows = [torch.full((1 << 23,), 0.1) for _ in range(k)]
    true = float(rows[0][0].double() ** 2) * (1 << 23)
    found = fast_dots(rows)
    assert max(abs(found[i][j] / true - 1) for i in range(k) for j in range(i + 1)) < 1e-5


@pytest.mark.parametrize("size", [1, 50_000, 300_001])
@pytest.mark.parametrize("weights", [[1.0], [0.5, 1.0], [1.0, -2.0, 0.25], [0.3] * 7])
def test_a_float32_sum_is_that_of_float64_within_rounding(size: int, weights: list[float]) -> None:
    rows = torch.randn(len(weights), size)
    true = torch.tensor(weights, dtype=torch.float64) @ rows.double()
    bound = 1e-7 * (rows.abs() * torch.tensor(weights).abs()[:, None]).sum(0) * len(weights)
    for first in range(len(weights)):
        out = torch.empty(size)
        fast_sum(list(rows), weights, first, out)
        assert ((out - true).abs() <= bound).all()
    copies = rows.clone()
    fast_sum(list(copies), weights, len(weights) - 1, copies[-1])  # in place
    assert ((copies[-1] - true).abs() <= bound).all()
    assert torch.equal(copies[:-1], rows[:-1])


@pytest.mark.parametrize("remainder", [1.0, 0.3, 0.2, 0.1, 1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("scale", [1e-25, 1e-22, 1e-21, 1e-10, 1.0, 1e10, 1e25])
def test_a_step_is_exact_to_1e_6_however_parallel_and_at_any_scale(
    remainder: float, scale: float
) -> None:
    base = torch.randn(SIZE)
    rows = [base, base + remainder * torch.randn(SIZE), base + remainder * torch.randn(SIZE)]
    rows = [row * scale for row in rows]
    true, _ = reference.osgd([row.double() for row in rows])
    found, stats = osgd_of(rows)
    assert relative(found, true) < 1e-6
    norms = torch.stack([row.double().norm() for row in rows])
    torch.testing.assert_close(stats.norms, norms, rtol=1e-6, atol=0)


def test_a_large_later_gradient_does_not_cost_the_first_its_digits() -> None:
    """Tasks of scales 1, 1e4 and 1e-4: the first one's part of the update is its own gradient."""
    rows = [
        row * factor for row, factor in zip(torch.randn(3, SIZE), (1.0, 1e4, 1e-4), strict=True)
    ]
    true, kept = reference.osgd([row.double() for row in rows])
    found, _ = osgd_of(rows)
    assert relative(found, true) < 1e-6
    assert abs(found.double() @ kept[0] - kept[0] @ kept[0]) <= 1e-6 * found.norm() * kept[0].norm()


def test_terms_that_cancel_are_summed_in_float64() -> None:
    """The gradients are well apart, so that float32 dots are enough, and nearly sum to nothing."""
    a, b, c = torch.randn(3, SIZE)
    rows = [a, b, -(a + b) + 1e-3 * c]
    found = make_combiner("sgd-participants").backward
    w, v = nn.Parameter(torch.zeros(SIZE)), nn.Parameter(torch.zeros(2))
    found([(w * row).sum() + v.sum() for row in rows], [w, v])
    assert w.grad is not None
    assert relative(w.grad, sum(row.double() for row in rows) / 3) < 1e-6


@pytest.mark.parametrize("parallel", [1.0, 3.0, -2.5])
def test_equal_and_parallel_gradients_leave_exactly_the_first(parallel: float) -> None:
    g = torch.randn(SIZE)
    found, _ = osgd_of([g, g * parallel, g])
    assert torch.equal(found, g)


def test_a_zero_gradient_takes_nothing_and_leaves_nothing() -> None:
    a, b = torch.randn(2, SIZE)
    true, _ = reference.osgd([a.double(), b.double()])
    found, _ = osgd_of([torch.zeros(SIZE), a, torch.zeros(SIZE), b])
    assert relative(found, true) < 1e-6


def test_one_loss_is_its_own_gradient_bit_for_bit() -> None:
    row = torch.randn(SIZE)
    assert torch.equal(osgd_of([row])[0], row)


class Saved(torch.autograd.Function):
    """Its gradient is a tensor of the caller's."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, gradient: Tensor) -> Tensor:
        ctx.gradient = gradient
        return w.sum()

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, None]:
        return ctx.gradient, None


def test_a_gradient_that_is_not_finite_reaches_grad() -> None:
    a, b = torch.randn(2, SIZE)
    b[7] = float("inf")
    w = nn.Parameter(torch.zeros(SIZE))
    OSGD().backward([(w * a).sum(), Saved.apply(w, b)], [w])
    assert w.grad is not None
    assert not torch.isfinite(w.grad).all()


def linears(count: int) -> tuple[list[nn.Parameter], Callable[[], list[Tensor]]]:
    net = nn.Sequential(nn.Linear(200, 200), nn.Tanh(), nn.Linear(200, 200))
    x = torch.randn(8, 200)

    def losses() -> list[Tensor]:
        out = net(x)
        return [(out * (i + 1)).sin().square().mean() for i in range(count)]

    return list(net.parameters()), losses


def test_large_gradients_become_the_result_without_a_copy() -> None:
    parameters, losses = linears(3)
    where: list[list[int]] = [[] for _ in parameters]
    small: list[Tensor] = []  # kept, so that no result gets the memory of one that is gone

    def seen(g: Tensor, addresses: list[int]) -> None:
        addresses.append(g.data_ptr())
        if g.numel() < SMALL_CPU:
            small.append(g)

    for p, addresses in zip(parameters, where, strict=True):
        p.register_hook(lambda g, addresses=addresses: seen(g, addresses))
    OSGD().backward(losses(), parameters)
    for p, addresses in zip(parameters, where, strict=True):
        assert p.grad is not None
        assert not p.grad._is_view()
        assert (p.grad.data_ptr() in addresses) == (p.numel() >= SMALL_CPU)


@pytest.mark.parametrize("count", [1, 3])
def test_a_gradient_that_a_hook_kept_is_not_modified(count: int) -> None:
    parameters, losses = linears(count)
    kept: list[tuple[Tensor, Tensor]] = []
    parameters[0].register_hook(lambda g: kept.append((g, g.clone())))
    OSGD().backward(losses(), parameters)
    assert len(kept) == count
    for gradient, copy in kept:
        assert torch.equal(gradient, copy)


def test_a_tensor_of_the_callers_is_not_modified() -> None:
    a, b = torch.randn(2, SIZE)
    a, b = a.clone(), b.clone()
    before = a.clone(), b.clone()
    w = nn.Parameter(torch.zeros(SIZE))
    OSGD().backward([Saved.apply(w, a), Saved.apply(w, b)], [w])
    assert torch.equal(a, before[0])
    assert torch.equal(b, before[1])
    assert w.grad is not None
    true, _ = reference.osgd([a.double(), b.double()])
    assert relative(w.grad, true) < 1e-6


def test_gradients_that_share_memory_are_separate_results() -> None:
    """Autograd gives both terms of a sum one tensor, and the parts of ``cat`` views of one."""
    for joined in (lambda a, b: (a + b, a + b), lambda a, b: torch.cat([a, b]).chunk(2)):
        a, b = (nn.Parameter(torch.randn(SIZE)) for _ in range(2))
        first, second = joined(a, b)
        losses = [(first * first).sum() + second.sum(), (first * second).sin().sum()]
        true = [torch.autograd.grad(loss, [a, b], retain_graph=True) for loss in losses]
        stacked = [torch.cat(row).double() for row in true]
        OSGD().backward(losses, [a, b])
        assert a.grad is not None
        assert b.grad is not None
        assert relative(torch.cat([a.grad, b.grad]), reference.osgd(stacked)[0]) < 1e-6
        a.grad.zero_()
        assert b.grad.any()


def test_gradients_without_memory_of_their_own_are_copied() -> None:
    """That of a sum is one number, expanded."""
    w = nn.Parameter(torch.randn(SIZE))
    OSGD().backward([w.sum(), w.square().sum()], [w])
    assert w.grad is not None
    assert w.grad.stride() == (1,)
    ones = torch.ones(SIZE, dtype=torch.float64)
    assert relative(w.grad, reference.osgd([ones, 2 * w.detach().double()])[0]) < 1e-6


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_any_layout_is_combined_in_place(layout: torch.memory_format) -> None:
    conv = nn.Conv2d(48, 48, 3).to(memory_format=layout)
    out = conv(torch.randn(2, 48, 6, 6).to(memory_format=layout))
    losses = [out.square().mean(), out.sin().mean()]
    rows = [torch.autograd.grad(loss, conv.weight, retain_graph=True)[0] for loss in losses]
    true, _ = reference.osgd([row.double().reshape(-1) for row in rows])
    OSGD().backward(losses, [conv.weight])
    assert conv.weight.grad is not None
    assert conv.weight.grad.stride() == conv.weight.stride()
    assert relative(conv.weight.grad.reshape(-1), true) < 1e-6


def test_measuring_and_public_sums_leave_the_gradients() -> None:
    parameters, losses = linears(3)
    found = losses()
    rows = task_gradients(found, parameters, retain_graph=True)
    before = [[g.clone() for g in row if g is not None] for row in rows.tensors()]
    OSGD().rule(rows)
    from anynest.multitask import orthogonalize, weighted_sum

    weighted_sum(orthogonalize(rows).components, torch.ones(3))
    OSGD().measure(found, parameters)
    for row, copies in zip(rows.tensors(), before, strict=True):
        for g, copy in zip(row, copies, strict=True):
            assert g is not None
            assert torch.equal(g, copy)


class Heads(nn.Module):
    """30,000 weights, of which one tensor is large; a head per task."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(
            nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 32)
        )
        self.heads = nn.ModuleList(nn.Linear(32, 10) for _ in range(3))

    def losses(self, x: Tensor, labels: Tensor) -> list[Tensor]:
        features = self.trunk(x)
        pairs = zip(self.heads, labels, strict=True)
        return [nn.functional.cross_entropy(head(features), y) for head, y in pairs]


@pytest.mark.parametrize("priority", [None, [2, 0, 1]])
def test_a_hundred_float32_steps_stay_with_the_float64_reference(
    priority: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two networks train side by side: float32 dot products and sums, and the reference.

    Every step's gradient is within 1e-6 of the reference on the same weights, relative to its norm,
    and after 100 steps the weights are within 1e-5 of the twin's, relative to how far they went.
    """
    sums: list[int] = []
    monkeypatch.setattr(
        module, "fast_sum", lambda rows, *rest: sums.append(1) or fast_sum(rows, *rest)
    )
    monkeypatch.setattr(module.Block, "mixed_gram", None)  # no dot product is in float64
    ours, twin = Heads(), Heads()
    start = nn.utils.parameters_to_vector(ours.parameters()).detach().clone()
    combiner = OSGD(priority)
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9) for net in (ours, twin)]
    for _ in range(100):
        x, labels = torch.randn(32, 64), torch.randint(10, (3, 32))
        for net, optimizer in zip((ours, twin), optimizers, strict=True):
            parameters = list(net.parameters())
            losses = net.losses(x, labels)
            grads = [
                torch.autograd.grad(losses[i], parameters, retain_graph=True, allow_unused=True)
                for i in priority or range(3)
            ]
            true, _ = reference.osgd([reference.padded(row, parameters) for row in grads])
            if net is ours:
                optimizer.zero_grad()
                sums.clear()
                combiner.backward(losses, parameters)
                assert sums
                found = reference.padded([p.grad for p in parameters], parameters)
                assert relative(found, true) < 1e-6
            else:
                pieces = true.float().split([p.numel() for p in parameters])
                for p, piece in zip(parameters, pieces, strict=True):
                    p.grad = piece.view_as(p)
            optimizer.step()
    here, there = (nn.utils.parameters_to_vector(net.parameters()) for net in (ours, twin))
    assert (there - start).norm() > 1
    assert (here - there).norm() < 1e-5 * (there - start).norm()


@pytest.mark.parametrize("tasks", [2, 7])
def test_the_fast_path_agrees_with_the_wide_one(
    tasks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    grads = [
        [torch.randn(30_000), torch.randn(50), None if i else torch.randn(9)] for i in range(tasks)
    ]
    fast = TaskGradients.stack(grads).fast_gram
    assert fast is not None
    torch.testing.assert_close(fast, TaskGradients.stack(grads).gram, rtol=1e-6, atol=1e-3)
    monkeypatch.setattr(module, "LEAST_FAST", 1 << 40)
    assert TaskGradients.stack(grads).fast_gram is None
