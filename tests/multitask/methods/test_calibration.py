"""C calibrated: the norms match SGD's over the first steps, then C stands, and it is saved."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from anynest.multitask import OSGD, NormSGD, list_methods, make_combiner

Make = Callable[..., nn.Module]
Losses = Callable[[nn.Module, int], list[Tensor]]


def gradient(method: str, network: nn.Module, losses: list[Tensor], **options: object) -> Tensor:
    network.zero_grad()
    make_combiner(method, **options).backward(losses, network.parameters())
    return torch.cat([p.grad.reshape(-1) for p in network.parameters() if p.grad is not None])


@pytest.mark.parametrize(("method", "control"), [("normsgd", "sgd-mean"), ("osgd-norm", "sgd-sum")])
@pytest.mark.parametrize("scale", [1.0, 64.0])
def test_the_first_step_has_sgds_norm(
    method: str, control: str, scale: float, three_exits: Make, digit_losses: Losses
) -> None:
    network = three_exits()
    want = gradient(control, network, digit_losses(network, 0))
    combiner = make_combiner(method, C="calibrated")
    network.zero_grad()
    losses = [scale * loss for loss in digit_losses(network, 0)]
    combiner.backward(losses, network.parameters(), loss_scale=scale)
    found = torch.cat([p.grad.reshape(-1) for p in network.parameters() if p.grad is not None])
    torch.testing.assert_close(found.norm() / scale, want.norm(), rtol=1e-5, atol=0)
    fixed = gradient(method, network, digit_losses(network, 0), C=1.0)
    torch.testing.assert_close(found / found.norm(), fixed / fixed.norm(), rtol=1e-4, atol=1e-7)


def test_c_stands_still_after_the_calibration() -> None:
    w = nn.Parameter(torch.zeros(4))
    combiner = NormSGD(C="calibrated", calibration_steps=2)
    norms = []
    for size in (1.0, 3.0, 100.0, 1000.0):
        w.grad = None
        combiner.backward([w @ torch.full((4,), size / 2)], [w])
        assert w.grad is not None
        norms.append(w.grad.norm().item())
    assert norms == pytest.approx([1.0, 2.0, 2.0, 2.0])


@pytest.mark.parametrize("make", [NormSGD, lambda **kw: OSGD(normalize=True, **kw)])
def test_a_resumed_calibration_equals_an_uninterrupted_one(
    make: Callable[..., NormSGD | OSGD], tmp_path: object
) -> None:
    torch.manual_seed(1)
    directions = torch.randn(6, 2, 5)

    def step(combiner: NormSGD | OSGD, number: int) -> Tensor:
        w = nn.Parameter(torch.zeros(5))
        combiner.backward([w @ a for a in directions[number]], [w])
        assert w.grad is not None
        return w.grad

    whole = make(C="calibrated", calibration_steps=4)
    expected = [step(whole, i) for i in range(6)]
    first = make(C="calibrated", calibration_steps=4)
    for i in range(3):
        step(first, i)
    path = f"{tmp_path}/state.pt"
    torch.save(first.state_dict(), path)
    second = make(C="calibrated", calibration_steps=4)
    second.load_state_dict(torch.load(path, weights_only=True))
    for i in range(3, 6):
        assert torch.equal(step(second, i), expected[i])


def test_zero_and_overflowing_steps_do_not_spoil_the_calibration() -> None:
    w = nn.Parameter(torch.zeros(4))
    combiner = NormSGD(C="calibrated")
    for factor in (0.0, float("inf"), 1.0):
        loss = w @ torch.ones(4)
        loss.register_hook(lambda grad, factor=factor: grad * factor)
        w.grad = None
        combiner.backward([loss], [w])
    assert w.grad is not None
    torch.testing.assert_close(w.grad, torch.ones(4))


@pytest.mark.parametrize("method", list_methods())
def test_a_method_without_memory_has_an_empty_state(method: str) -> None:
    combiner = make_combiner(method)
    assert combiner.state_dict() == {}
    combiner.load_state_dict({})
    with pytest.raises(ValueError, match="load the state of the same method"):
        combiner.load_state_dict({"done": 1})
