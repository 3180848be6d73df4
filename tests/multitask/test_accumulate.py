"""Micro-batches: gradients add up, one projection of the sum, ``.grad`` unchanged before it."""

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anynest.multitask import (
    OSGD,
    Combiner,
    NonFiniteLossError,
    compile_for_tasks,
    list_methods,
    make_combiner,
)
from anynest.multitask.gradients.backward import (
    GradientBuffer,
    differentiate_each,
    gradient,
    inspect_graphs,
)

Make = Callable[..., nn.Module]
Losses = Callable[[nn.Module, int], list[Tensor]]
ALL = pytest.mark.parametrize("method", list_methods())
NAN = float("nan")


def grads_of(network: nn.Module) -> list[Tensor | None]:
    return [p.grad for p in network.parameters()]


@ALL
def test_micro_batches_are_one_backward_of_their_sum(
    method: str, three_exits: Make, digit_losses: Losses
) -> None:
    """Without batch statistics, in float64: rows of the summed losses, and all that is measured."""
    network = three_exits().double().eval()
    parts = [[loss / 3 for loss in digit_losses(network, step)] for step in range(3)]
    whole = [sum(losses, start=torch.zeros(())) for losses in zip(*parts, strict=True)]
    want = make_combiner(method).backward(whole, network.parameters(), retain_graph=True)
    expected = grads_of(network)
    network.zero_grad()
    combiner = make_combiner(method)
    for losses in parts:
        combiner.accumulate(losses, network.parameters())
        assert all(p.grad is None for p in network.parameters())
    found = combiner.combine()
    for a, b in zip(grads_of(network), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    for name in ("losses", "loss_weights", "coefficients", "gram"):
        torch.testing.assert_close(getattr(found, name), getattr(want, name), rtol=1e-6, atol=1e-8)


@ALL
def test_one_micro_batch_is_backward_bit_for_bit(
    method: str, three_exits: Make, digit_losses: Losses
) -> None:
    plain, ours = three_exits(), three_exits()
    combiners = make_combiner(method), make_combiner(method)
    for step in range(3):
        combiners[0].backward(digit_losses(plain, step), plain.parameters())
        combiners[1].accumulate(digit_losses(ours, step), ours.parameters())
        combiners[1].combine()
        for a, b in zip(grads_of(plain), grads_of(ours), strict=True):
            assert a is not None
            assert b is not None
            assert torch.equal(a, b)


def test_the_projection_is_of_the_sum_not_the_sum_of_projections() -> None:
    w = nn.Parameter(torch.zeros(2))
    x, y = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    combiner = OSGD()
    combiner.accumulate([w @ x, w @ x], [w])
    combiner.accumulate([w @ y, w @ (2 * x)], [w])
    combiner.combine()
    # g_1 = (1, 1), g_2 = (3, 0): u_2 = (3, 0) - 1.5 (1, 1)
    torch.testing.assert_close(w.grad, torch.tensor([2.5, -0.5]))


class Switch(nn.Module):
    """Losses that touch other parameters from call to call."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ParameterList(torch.randn(3, dtype=torch.float64) for _ in range(3))

    def losses(self, first: list[int], second: list[int]) -> list[Tensor]:
        used = [
            [(self.parts[p] * (p + i + 1)).sin().sum() for p in chosen]
            for i, chosen in enumerate((first, second))
        ]
        return [torch.stack(terms).sum() for terms in used]


PATTERNS = [([0], [0, 1]), ([0], [0, 1]), ([0, 2], [0, 1]), ([0], [1]), ([1], [0]), ([0], [0, 1])]


@pytest.mark.parametrize("method", ["osgd", "normsgd", "sgd-participants"])
def test_what_a_loss_touches_may_change_from_step_to_step(method: str) -> None:
    """A combiner keeps nothing of it: a fresh one finds the same."""
    network = Switch()
    parameters = list(network.parameters())
    combiner = make_combiner(method)
    for pattern in PATTERNS:
        found = []
        for each in (combiner, make_combiner(method)):
            network.zero_grad()
            each.backward(network.losses(*pattern), parameters)
            found.append([p.grad for p in parameters])
        for a, b in zip(*found, strict=True):
            assert (a is None) == (b is None)
            if a is not None and b is not None:
                assert torch.equal(a, b)


@pytest.mark.parametrize("order", [PATTERNS, PATTERNS[::-1], PATTERNS[2:] + PATTERNS[:2]])
@pytest.mark.parametrize("method", ["osgd", "sgd-participants", "sgd-sum"])
def test_what_a_loss_touches_may_change_from_micro_batch_to_micro_batch(
    method: str, order: list[tuple[list[int], list[int]]]
) -> None:
    network = Switch()
    parameters = list(network.parameters())
    all_of = [network.losses(*pattern) for pattern in order]
    whole = [torch.stack(losses).sum() for losses in zip(*all_of, strict=True)]
    make_combiner(method).backward(whole, parameters, retain_graph=True)
    expected = [p.grad for p in parameters]
    combiner = make_combiner(method)
    network.zero_grad()
    for pattern in order:
        combiner.accumulate(network.losses(*pattern), parameters)
    combiner.combine()
    for p, want in zip(parameters, expected, strict=True):
        torch.testing.assert_close(p.grad, want, rtol=1e-12, atol=1e-14)


def test_gradients_that_share_memory_are_not_added_into() -> None:
    """Autograd may hand out one tensor twice, or a view of a broadcast one."""
    a, b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    combiner = OSGD()
    for scale in (1.0, 2.0, 4.0):
        combiner.accumulate([scale * (a + b).sum()], [a, b])
    combiner.combine()
    for p in (a, b):
        torch.testing.assert_close(p.grad, torch.full((3,), 7.0))


def test_a_parameter_may_change_its_memory_format_between_steps() -> None:
    conv = nn.Conv2d(3, 4, 3)
    x = torch.randn(2, 3, 6, 6)
    combiner = OSGD()
    for layout in (torch.contiguous_format, torch.channels_last, torch.contiguous_format):
        conv.to(memory_format=layout)
        found = []
        for each in (combiner, OSGD()):
            conv.zero_grad()
            out = conv(x)
            each.backward([out.square().mean(), out.sin().mean()], conv.parameters())
            assert conv.weight.grad is not None
            assert conv.weight.grad.stride() == conv.weight.stride()
            found.append(conv.weight.grad)
        assert torch.equal(*found)


@pytest.mark.parametrize("first", [True, False])
def test_skipped_losses_are_left_out_of_their_micro_batch_alone(first: bool) -> None:
    a, b, c = torch.randn(3, 4)
    w = nn.Parameter(torch.zeros(4))
    OSGD().backward([w @ a, w @ (b + c)], [w])
    expected = w.grad
    w.grad = None
    combiner = OSGD(on_nonfinite="skip")
    parts = [[w @ a * NAN, w @ b], [w @ a, w @ c]]
    for losses in parts if first else parts[::-1]:
        combiner.accumulate(losses, [w])
    stats = combiner.combine()
    torch.testing.assert_close(w.grad, expected)
    assert stats.skipped == ()
    assert torch.isnan(stats.losses).tolist() == [True, False]
    w.grad = None
    for _ in range(2):
        combiner.accumulate([w @ a, w @ b * NAN], [w])
    stats = combiner.combine()
    torch.testing.assert_close(w.grad, 2 * a)
    assert stats.skipped == (1,)


@ALL
def test_a_step_without_any_finite_loss_changes_nothing(method: str) -> None:
    w = nn.Parameter(torch.ones(2))
    combiner = make_combiner(method, on_nonfinite="skip")
    combiner.accumulate([w.sum() * NAN, w.prod() * NAN], [w])
    stats = combiner.combine()
    assert stats.skipped == (0, 1)
    assert w.grad is None
    combiner.accumulate([w.sum() * NAN, w.prod() * NAN], [w])
    combiner.accumulate([w.sum(), w.prod()], [w])
    combiner.combine()
    found = w.grad
    w.grad = None
    make_combiner(method).backward([w.sum(), w.prod()], [w])
    torch.testing.assert_close(w.grad, found)


def another(w: Tensor) -> nn.Parameter:
    return nn.Parameter(w.detach().clone())


BETWEEN: dict[str, tuple[Callable[[Combiner, Tensor], Any], str]] = {
    "backward": (lambda c, w: c.backward([w.sum()] * 2, [w]), "backward must not come between"),
    "state": (lambda c, w: c.state_dict(), "state_dict must not come between"),
    "more losses": (lambda c, w: c.accumulate([w.sum()] * 3, [w]), "found 3 after 2: call comb"),
    "others": (
        lambda c, w: c.accumulate([(w + (v := another(w))).sum()] * 2, [v]),
        "found 1 that are not the 1 before",
    ),
    "more parameters": (
        lambda c, w: c.accumulate([w.sum()] * 2, [w, another(w)]),
        "found 2 that are not the 1 before",
    ),
    "nan": (lambda c, w: c.accumulate([w.sum(), w.sum() * NAN], [w]), "loss 1 is not finite"),
}


@pytest.mark.parametrize("method", ["osgd", "sgd-mean"])
@pytest.mark.parametrize("case", BETWEEN)
def test_bad_input_leaves_what_was_accumulated(method: str, case: str) -> None:
    act, message = BETWEEN[case]
    w = nn.Parameter(torch.tensor([1.0, 2.0]))
    losses = [w.sum(), w.prod()]
    make_combiner(method).backward(losses, [w], retain_graph=True)
    expected = w.grad
    w.grad = None
    combiner = make_combiner(method)
    combiner.accumulate(losses, [w])
    with pytest.raises(ValueError, match=message) as caught:
        act(combiner, w)
    assert "\n" not in str(caught.value)
    assert w.grad is None
    combiner.combine()
    assert expected is not None
    assert w.grad is not None
    assert torch.equal(w.grad, expected)


def test_combine_needs_gradients_and_discards_them() -> None:
    w = nn.Parameter(torch.ones(2))
    combiner = OSGD()
    for _ in range(2):
        with pytest.raises(ValueError, match=r"found none: call accumulate\(\) first"):
            combiner.combine()
        combiner.accumulate([w.sum()], [w])
        combiner.combine()
    combiner.accumulate([w.sum()], [w])
    combiner.discard()
    with pytest.raises(ValueError, match="found none"):
        combiner.combine()
    combiner.backward([w.sum()], [w])


def test_an_error_within_a_pass_discards_the_gradients() -> None:
    w = nn.Parameter(torch.ones(2))
    combiner = OSGD()
    combiner.accumulate([w.sum(), w.prod()], [w])
    second = w.prod()
    second.register_hook(lambda grad: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        combiner.accumulate([w.sum(), second], [w])
    with pytest.raises(ValueError, match="found none"):
        combiner.combine()
    combiner.backward([w.sum(), w.prod()], [w])


def test_a_nonfinite_loss_is_an_error_by_default() -> None:
    w = nn.Parameter(torch.ones(2))
    with pytest.raises(NonFiniteLossError):
        OSGD().accumulate([w.sum() * NAN], [w])


@pytest.mark.parametrize(
    ("samples", "message"),
    [(-1, "at least 0"), (NAN, "finite"), (True, "found bool"), ("8", "found str")],
)
def test_samples_must_be_a_count(samples: Any, message: str) -> None:
    w = nn.Parameter(torch.ones(2))
    with pytest.raises((ValueError, TypeError), match=message):
        OSGD().backward([w.sum()], [w], samples=samples)
    OSGD().backward([w.sum()], [w], samples=8)


def test_the_rows_of_earlier_tasks_alone_live_during_a_pass() -> None:
    """A gradient is stored where autograd put it: never two copies of it, beside the sums."""
    size = 1 << 15
    w = nn.Parameter(torch.randn(size))
    alive: list[weakref.ref[Tensor]] = []
    counts: list[int] = []

    def watched(*arguments: Any) -> tuple[Tensor | None, ...]:
        counts.append(sum(ref() is not None for ref in alive))
        grads = gradient(*arguments)
        alive.extend(weakref.ref(grad) for grad in grads if grad is not None)
        return grads

    buffer = GradientBuffer([w])
    for _ in range(2):
        losses = [(w * i).sin().sum() for i in range(1, 4)]
        graphs = inspect_graphs(losses, [w])
        differentiate_each(
            buffer, list(enumerate(losses)), graphs, [w], watched, retain_graph=False
        )
    assert counts == [0, 1, 2, 3, 2, 1]  # in the second micro-batch sums take their places
    rows = buffer.finalize()
    assert sum(ref() is not None for ref in alive) == 0
    for i, ((found,),) in enumerate(zip(rows.tensors(), strict=True), 1):
        torch.testing.assert_close(found, 2 * i * (w * i).cos())


@pytest.mark.parametrize("method", ["osgd", "osgd-norm", "sgd-sum"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_a_grad_scaler_over_micro_batches(
    method: str, dtype: torch.dtype, three_exits: Make, digit_losses: Losses
) -> None:
    """Steps with clipping and groups; the same as without a scaler, and a loss that falls."""
    plain, scaled = three_exits(channels=2), three_exits(channels=2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    combiners = make_combiner(method), make_combiner(method)
    steppers = [
        torch.optim.SGD([{"params": net.parameters(), "momentum": 0.5}], lr=0.05)
        for net in (plain, scaled)
    ]
    for step in range(2):
        for net, combiner, stepper, scales in zip(
            (plain, scaled), combiners, steppers, (False, True), strict=True
        ):
            stepper.zero_grad()
            for part in (0, 1):
                with torch.autocast("cpu", dtype=dtype):
                    losses = [loss / 2 for loss in digit_losses(net, 2 * step + part)]
                if scales:
                    losses = [scaler.scale(loss) for loss in losses]
                scale = scaler.get_scale() if scales else 1.0
                combiner.accumulate(losses, stepper.param_groups, loss_scale=scale)
            combiner.combine()
            if scales:
                scaler.unscale_(stepper)
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            if scales:
                scaler.step(stepper)
                scaler.update()
            else:
                stepper.step()
    for p, q in zip(plain.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0.02, atol=2e-3)


def test_a_compiled_network_with_micro_batches_and_steps_in_between(
    three_exits: Make, digit_losses: Losses
) -> None:
    plain, ours = three_exits(channels=2), three_exits(channels=2)
    torch.compiler.reset()
    compiled = compile_for_tasks(ours, backend="aot_eager")
    for combiner in (lambda: OSGD(), lambda: OSGD(refresh=2)):
        pair = combiner(), combiner()
        for step in range(3):
            for net, each in zip((plain, compiled), pair, strict=True):
                net.zero_grad()
                for part in (0, 1):
                    each.accumulate(digit_losses(net, 2 * step + part), net.parameters())
                each.combine()
            for p, q in zip(plain.parameters(), ours.parameters(), strict=True):
                torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-5)
