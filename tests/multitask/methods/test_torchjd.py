"""from_torchjd: TorchJD's weights in our step, equal to TorchJD's own backward and aggregator."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anynest.multitask import OSGD, from_torchjd

pytest.importorskip("torchjd")
from torchjd import aggregation
from torchjd.autojac import backward, jac_to_grad

NEEDS = {"UPGrad": "quadprog", "DualProj": "quadprog", "CAGrad": "cvxpy", "NashMTL": "cvxpy"}
METHODS: dict[str, Callable[[], Any]] = {
    "UPGrad": lambda: aggregation.UPGrad(),
    "DualProj": lambda: aggregation.DualProj(),
    "CAGrad": lambda: aggregation.CAGrad(c=0.5),
    "PCGrad": lambda: aggregation.PCGrad(),
    "MGDA": lambda: aggregation.MGDA(),
    "IMTLG": lambda: aggregation.IMTLG(),
    "AlignedMTL": lambda: aggregation.AlignedMTL(),
    "Mean": lambda: aggregation.Mean(),
    "Sum": lambda: aggregation.Sum(),
    "Random": lambda: aggregation.Random(),
    "Constant": lambda: aggregation.Constant(torch.tensor([1.0, 2.0, 3.0]).double()),
}


def network() -> tuple[nn.Module, Callable[[], list[Tensor]]]:
    """Three losses in conflict; in float64, so that only the method can differ."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x, y = torch.randn(8, 5).double(), torch.randn(8, 3).double()

    def losses() -> list[Tensor]:
        out = net(x)
        return [
            (out - y).square().mean(),
            3 * (out + 2 * y).square().mean(),
            out.cos().sum() + out[:, 0].sum(),
        ]

    return net, losses


@pytest.mark.parametrize("name", METHODS)
def test_the_step_is_torchjds_own(name: str) -> None:
    if name in NEEDS and not find_spec(NEEDS[name]):
        pytest.skip(f"{name} needs {NEEDS[name]}")
    net, losses = network()
    parameters = list(net.parameters())
    torch.manual_seed(3)  # PCGrad and Random draw
    backward(losses(), inputs=parameters)
    jac_to_grad(parameters, METHODS[name]())
    want = [p.grad for p in parameters]
    net.zero_grad()
    torch.manual_seed(3)
    stats = from_torchjd(METHODS[name]()).backward(losses(), parameters)
    for p, grad in zip(parameters, want, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=1e-7, atol=1e-10)
    # and it is the gradient of the weighted loss
    net.zero_grad()
    torch.stack(losses()).double().dot(stats.loss_weights).backward()
    for p, grad in zip(parameters, want, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=1e-7, atol=1e-10)


def test_a_weighting_is_its_aggregator() -> None:
    _, losses = network()
    a = from_torchjd(aggregation.MGDA()).measure(losses())
    b = from_torchjd(aggregation.MGDAWeighting()).measure(losses())
    assert torch.equal(a.loss_weights, b.loss_weights)
    assert not torch.allclose(a.loss_weights, OSGD().measure(losses()).loss_weights)


def test_skipped_losses_are_not_in_the_gram_matrix() -> None:
    _, losses = network()
    first, second, _ = losses()
    combiner = from_torchjd(aggregation.MGDA(), on_nonfinite="skip")
    want = combiner.measure([first, second]).loss_weights
    stats = combiner.measure({"a": first, "bad": first * torch.nan, "b": second})
    assert stats.loss_weights[[0, 2]].tolist() == want.tolist()
    assert stats["bad"].loss_weight.item() == 0


def test_one_loss_is_its_gradient() -> None:
    net, losses = network()
    from_torchjd(aggregation.PCGrad()).backward(losses()[:1])
    got = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    net.zero_grad()
    losses()[0].backward()
    for p, grad in zip(net.parameters(), got, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=1e-12, atol=0)


def test_micro_batches_are_one_batch() -> None:
    _, losses = network()
    combiner = from_torchjd(aggregation.IMTLG())
    want = combiner.measure(losses()).loss_weights
    for _ in range(2):
        combiner.accumulate([loss / 2 for loss in losses()])
    torch.testing.assert_close(combiner.combine().loss_weights, want)


@pytest.mark.parametrize(
    "method",
    [
        aggregation.ConFIG(),
        aggregation.GradDrop(),
        aggregation.TrimmedMean(1),
        aggregation.MoDoWeighting(),
        aggregation.PCGrad,
        nn.Linear(2, 2),
        None,
    ],
    ids=lambda method: type(method).__name__,
)
def test_what_needs_more_than_the_gram_matrix_is_refused(method: Any) -> None:
    said = (
        "method must be a TorchJD aggregator or weighting that needs the Gram matrix alone, found"
    )
    with pytest.raises(TypeError, match=said) as caught:
        from_torchjd(method)
    assert "\n" not in str(caught.value)


def test_it_shows_its_settings() -> None:
    shown = repr(from_torchjd(aggregation.MGDA(), on_nonfinite="skip"))
    assert shown.startswith("from_torchjd(MGDA(")
    assert shown.endswith(", on_nonfinite='skip')")
