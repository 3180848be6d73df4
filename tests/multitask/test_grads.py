"""What ``backward`` does to ``.grad``, over all methods: it adds, and leaves the rest alone."""

import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from anynest.multitask import (
    OSGD,
    TaskGradients,
    list_methods,
    make_combiner,
    task_gradients,
    weighted_sum,
)

Make = Callable[..., nn.Module]
Losses = Callable[[nn.Module, int], list[Tensor]]
ALL = pytest.mark.parametrize("method", list_methods())


def two_losses(w: Tensor, b: Tensor) -> list[Tensor]:
    return [(w * w).sum(), (w * b).sin().sum()]


@pytest.fixture
def pair() -> tuple[nn.Parameter, nn.Parameter]:
    return nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(4))


@ALL
def test_it_adds_to_what_is_there(method: str, pair: tuple[nn.Parameter, nn.Parameter]) -> None:
    w, b = pair
    make_combiner(method).backward(two_losses(w, b), pair)
    assert w.grad is not None
    assert b.grad is not None
    fresh = [w.grad.clone(), b.grad.clone()]
    before = torch.ones(4)
    w.grad, b.grad = before, None
    make_combiner(method).backward(two_losses(w, b), pair)
    assert w.grad is before  # in place, so that whoever holds it sees the sum
    assert b.grad is not None
    torch.testing.assert_close(w.grad, fresh[0] + 1, rtol=0, atol=0)
    torch.testing.assert_close(b.grad, fresh[1], rtol=0, atol=0)


@ALL
def test_untouched_and_frozen_parameters_keep_their_grad(
    method: str, pair: tuple[nn.Parameter, nn.Parameter]
) -> None:
    none, held, frozen = (nn.Parameter(torch.randn(3)) for _ in range(3))
    held.grad = torch.full((3,), 7.0)
    held_grad = held.grad
    frozen.requires_grad_(False)
    frozen.grad = torch.full((3,), 5.0)
    make_combiner(method).backward(two_losses(*pair), [none, *pair, held, frozen])
    assert none.grad is None
    assert held.grad is held_grad
    assert torch.equal(held.grad, torch.full((3,), 7.0))
    assert torch.equal(frozen.grad, torch.full((3,), 5.0))


@ALL
def test_parameters_may_be_a_generator_and_hold_duplicates(
    method: str, pair: tuple[nn.Parameter, nn.Parameter]
) -> None:
    w, b = pair
    make_combiner(method).backward(two_losses(w, b), pair)
    assert w.grad is not None
    once = w.grad.clone()
    w.grad = None
    make_combiner(method).backward(two_losses(w, b), (p for p in [w, b, w, w, b]))
    assert w.grad is not None
    assert torch.equal(w.grad, once)


@ALL
def test_a_gradient_is_a_tensor_like_its_parameter(method: str) -> None:
    """Same shape, dtype and strides, so that fused and foreach optimizers keep their fast paths."""
    conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    transposed = nn.Parameter(torch.randn(5, 4).T)
    out = conv(torch.randn(2, 3, 5, 5).to(memory_format=torch.channels_last)).mean((0, 2, 3))
    losses = [(out @ transposed).square().sum(), out.sum()]
    parameters = [*conv.parameters(), transposed]
    make_combiner(method).backward(losses, parameters)
    for p in parameters:
        assert p.grad is not None
        assert p.grad.shape == p.shape
        assert p.grad.dtype == p.dtype
        assert p.grad.stride() == p.stride()
        assert not p.grad.requires_grad


def test_memory_layout_does_not_change_the_result() -> None:
    torch.manual_seed(3)
    plain = nn.Conv2d(3, 4, 3)
    last = nn.Conv2d(3, 4, 3)
    last.load_state_dict(plain.state_dict())
    last.to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 6, 6)
    for net in (plain, last):
        out = net(x)
        OSGD().backward([out.square().mean(), out.sin().mean()], net.parameters())
    assert plain.weight.grad is not None
    assert last.weight.grad is not None
    torch.testing.assert_close(last.weight.grad, plain.weight.grad, rtol=1e-5, atol=1e-6)


@ALL
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_and_mixtures_of_them_work(method: str, dtype: torch.dtype) -> None:
    """The dots are float64 whatever the dtype: 70,000 products of 1 overflow float16's range."""
    w = nn.Parameter(torch.ones(70_000, dtype=dtype))
    v = nn.Parameter(torch.ones(10))
    shared = w.float().sum() + v.sum()
    losses = [shared * 1.0, shared * 1.0 + (v * torch.arange(10.0)).sum()]
    make_combiner(method).backward(losses, [w, v])
    assert w.grad is not None
    assert w.grad.dtype == dtype
    assert torch.isfinite(w.grad).all()
    assert v.grad is not None
    assert v.grad.dtype == torch.float32
    if method == "osgd":
        torch.testing.assert_close(w.grad.float(), torch.ones(70_000), rtol=1e-2, atol=1e-2)


@ALL
def test_accumulating_twice_is_the_sum_of_two_steps(
    method: str, three_exits: Make, digit_losses: Losses
) -> None:
    network = three_exits().eval()
    alone = []
    for step in (0, 1):
        network.zero_grad()
        make_combiner(method).backward(digit_losses(network, step), network.parameters())
        alone.append([p.grad for p in network.parameters()])
    network.zero_grad()
    for step in (0, 1):
        make_combiner(method).backward(digit_losses(network, step), network.parameters())
    for p, a, b in zip(network.parameters(), *alone, strict=True):
        assert p.grad is not None
        assert a is not None
        assert b is not None
        torch.testing.assert_close(p.grad, a + b, rtol=1e-6, atol=1e-8)


def test_a_task_has_no_entry_where_it_touches_nothing(
    three_exits: Make, digit_losses: Losses
) -> None:
    network = three_exits()
    parameters = list(network.parameters())
    names = [name for name, _ in network.named_parameters()]
    rows = task_gradients(digit_losses(network, 0), parameters)
    for i, row in enumerate(rows.tensors()):
        for name, grad in zip(names, row, strict=True):
            kind, stage = name.split(".")[:2]
            reads = int(stage) <= i if kind == "stages" else int(stage) == i
            assert (grad is not None) == reads
    sizes = [sum(g.numel() for g in row if g is not None) for row in rows.tensors()]
    assert list(rows.sizes) == sizes


def test_stacked_rows_are_copies_and_come_back_as_they_went_in() -> None:
    a, b = torch.randn(2, 3).T, torch.randn(4)
    rows = TaskGradients.stack([[a, None], [a, b]])
    back = rows.tensors()
    assert back[0][1] is None
    for found, given in [(back[0][0], a), (back[1][0], a), (back[1][1], b)]:
        assert found is not None
        assert torch.equal(found, given)
    kept = a.clone()
    a.zero_()
    again = weighted_sum(rows, torch.tensor([1.0, 0.0]))[0]
    assert again is not None
    assert torch.equal(again, kept)


@ALL
@pytest.mark.parametrize("size", [3, 1 << 15])
@pytest.mark.parametrize("micro_batches", [0, 1, 2])
def test_a_gradient_is_an_ordinary_tensor(method: str, size: int, micro_batches: int) -> None:
    """Not a view, not shared: what works after ``loss.backward()`` works, and it saves itself."""
    parameters = [nn.Parameter(torch.randn(n)) for n in (size, 4, 5)]
    w, b, c = parameters
    combiner = make_combiner(method)

    def losses() -> list[Tensor]:
        return [(w + b.sum() + c.sum()).sum(), (w * b.prod()).sin().sum() + c.sum()]

    for _ in range(micro_batches):
        combiner.accumulate(losses(), parameters)
    if micro_batches:
        combiner.combine()
    else:
        combiner.backward(losses(), parameters)
    for p in parameters:
        assert p.grad is not None
        assert not p.grad._is_view()
        assert p.grad.untyped_storage().nbytes() == p.grad.nbytes
        p.grad.add_(1e-3 * p)
        p.grad.detach_()
        saved = io.BytesIO()
        torch.save(p.grad, saved)
        assert len(saved.getvalue()) < p.grad.nbytes + 3000
    assert len({p.grad.data_ptr() for p in parameters if p.grad is not None}) == 3
