"""It is no optimizer: base optimizers, schedulers, clipping, groups and GradScaler work untouched."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anynest.multitask import OSGD, list_methods, make_combiner

Make = Callable[..., nn.Module]
Losses = Callable[[nn.Module, int], list[Tensor]]
OPTIMIZERS: dict[str, Callable[[Iterable[Any]], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.9, nesterov=True, weight_decay=5e-4),
    "adamw": lambda p: torch.optim.AdamW(p, lr=5e-3),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=2e-3, momentum=0.5),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", list_methods())
def test_every_method_trains_under_every_optimizer(
    method: str, optimizer: str, three_exits: Make, digit_losses: Losses
) -> None:
    """With parameter groups, a schedule and clipping: after 25 steps every exit has learned."""
    network = three_exits()
    groups = [
        {"params": network.get_submodule("stages").parameters()},
        {"params": network.get_submodule("heads").parameters(), "weight_decay": 0.0},
    ]
    stepper = OPTIMIZERS[optimizer](groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(stepper, 50)
    combiner = make_combiner(method)
    before = [loss.item() for loss in digit_losses(network, 0)]
    for step in range(25):
        stepper.zero_grad()
        combiner.backward(digit_losses(network, step), network.parameters())
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        stepper.step()
        schedule.step()
    after = [loss.item() for loss in digit_losses(network, 0)]
    assert all(b < a for a, b in zip(before, after, strict=True))
    assert after[-1] < 0.8 * before[-1]


@pytest.mark.parametrize("method", list_methods())
def test_under_a_grad_scaler_the_step_is_the_unscaled_one(
    method: str, three_exits: Make, digit_losses: Losses
) -> None:
    plain, scaled = three_exits(), three_exits()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    steppers = [torch.optim.SGD(net.parameters(), lr=1e-4) for net in (plain, scaled)]
    combiners = [make_combiner(method), make_combiner(method)]
    for step in range(3):
        for stepper in steppers:
            stepper.zero_grad()
        combiners[0].backward(digit_losses(plain, step), plain.parameters())
        steppers[0].step()
        losses = [scaler.scale(loss) for loss in digit_losses(scaled, step)]
        combiners[1].backward(losses, scaled.parameters(), loss_scale=scaler.get_scale())
        scaler.unscale_(steppers[1])
        scaler.step(steppers[1])
        scaler.update()
    for p, q in zip(plain.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", list_methods())
def test_a_grad_scaler_skips_the_step_that_overflows(
    method: str, three_exits: Make, digit_losses: Losses
) -> None:
    """One task's gradient overflows (its loss is finite): no weight moves, and the scale falls."""
    network = three_exits()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    stepper = torch.optim.SGD(network.parameters(), lr=0.1)
    combiner = make_combiner(method)
    parameters = list(network.parameters())
    for overflows in (True, False):
        before = [p.detach().clone() for p in parameters]
        stepper.zero_grad()
        losses = digit_losses(network, 0)
        if overflows:
            losses[1].register_hook(lambda grad: grad * torch.inf)
        scale = scaler.get_scale()
        combiner.backward([scaler.scale(loss) for loss in losses], parameters, loss_scale=scale)
        scaler.step(stepper)
        scaler.update()
        moved = any(not torch.equal(a, p) for a, p in zip(before, parameters, strict=True))
        assert moved != overflows
        assert (scaler.get_scale() < scale) == overflows


def test_micro_batches_accumulate_as_with_backward(three_exits: Make, digit_losses: Losses) -> None:
    """One loss a micro-batch: the sum over micro-batches is plain gradient accumulation."""
    plain, ours = three_exits(), three_exits()
    for step in range(4):
        digit_losses(plain, step)[-1].backward()
        OSGD().backward(digit_losses(ours, step)[-1:], ours.parameters())
    for p, q in zip(plain.parameters(), ours.parameters(), strict=True):
        if p.grad is not None:
            assert q.grad is not None
            assert torch.equal(p.grad, q.grad)


def test_autocast_losses_are_combined(three_exits: Make, digit_losses: Losses) -> None:
    network = three_exits()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = digit_losses(network, 0)
    stats = OSGD().backward(losses, network.parameters())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    assert stats.norms is not None
    assert (stats.norms > 0).all()


def test_a_post_accumulate_hook_runs_under_weighted_sgd_only() -> None:
    """As documented: nothing is accumulated by autograd itself where rows are mixed."""
    for method, calls in [("sgd-mean", 1), ("osgd", 0)]:
        w = nn.Parameter(torch.ones(2))
        seen: list[Tensor] = []
        w.register_post_accumulate_grad_hook(seen.append)
        make_combiner(method).backward([w.sum(), w.prod()], [w])
        assert len(seen) == calls
