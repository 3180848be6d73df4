"""The ablations' methods: other readings of line 12, against the formula in float64."""

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anynest.experiments.catalog.experiment import Run
from anynest.experiments.catalog.protocols import PROTOCOLS
from anynest.multitask import OSGD, TaskGradients, make_combiner, orthogonalize
from anynest.multitask.methods import reference

KINDS = ("RawOSGD", "TensorOSGD")
ORDERS = pytest.mark.parametrize("priority", [None, [2, 0, 1]])


def kind(name: str) -> Callable[..., Any]:
    """Imported late: the import registers methods, which other tests collect."""
    module = importlib.import_module("anynest.experiments.catalog.projections")
    found: Callable[..., Any] = getattr(module, name)
    return found


def project_raw(*arguments: Any) -> Any:
    return kind("project_raw")(*arguments)


def raw_by_the_book(gradients: list[Tensor], priority: list[int]) -> list[Tensor]:
    """Line 12 with the gradients of line 6, in float64, flat and padded."""
    kept = [g.double() for g in gradients]
    for place, i in enumerate(priority):
        for j in priority[:place]:
            g_j = gradients[j].double()
            if g_j.any():
                kept[i] = kept[i] - (gradients[i].double() @ g_j) / (g_j @ g_j) * g_j
    return kept


def problem() -> tuple[list[nn.Parameter], list[Tensor]]:
    """Three losses over three tensors; the last touches one that no other does."""
    torch.manual_seed(0)
    first, second, third = (nn.Parameter(torch.randn(n)) for n in (5, 3, 2))
    losses = [
        first.square().sum() + second.cos().sum(),
        (first * torch.arange(5.0)).sum() + second.sum(),
        (first.sum() + second.prod() + third.square().sum()) ** 2,
    ]
    return [first, second, third], losses


def padded_rows(losses: list[Tensor], parameters: list[nn.Parameter]) -> list[list[Tensor]]:
    """[i][p] in float64, zeros where a task has no gradient."""
    found = []
    for loss in losses:
        grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        pairs = zip(grads, parameters, strict=True)
        found.append([(torch.zeros_like(p) if g is None else g).double() for g, p in pairs])
    return found


@pytest.mark.parametrize("priority", [None, [2, 0, 3, 1]])
def test_raw_components_and_coefficients(priority: list[int] | None) -> None:
    gradients = [torch.randn(11, dtype=torch.float64) + 0.8 for _ in range(4)]
    gradients[1].zero_()
    components, L = project_raw(TaskGradients.stack([[g] for g in gradients]), priority)
    wanted = raw_by_the_book(gradients, priority or [0, 1, 2, 3])
    for i, (found,) in enumerate(components.tensors()):
        torch.testing.assert_close(found, wanted[i], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(L @ torch.stack(wanted), torch.stack(gradients))


def test_two_tasks_are_projected_alike_and_three_are_not() -> None:
    shared = torch.randn(20, dtype=torch.float64)
    grads = [[shared + 0.5 * torch.randn(20, dtype=torch.float64)] for _ in range(3)]
    for count, alike in ((2, True), (3, False)):
        gradients = TaskGradients.stack(grads[:count])
        raw, orthogonal = project_raw(gradients)[0], orthogonalize(gradients)[0]
        ours, theirs = (torch.stack([t[0] for t in r.tensors()]) for r in (raw, orthogonal))
        assert torch.allclose(ours, theirs, atol=1e-10) == alike


@ORDERS
@pytest.mark.parametrize("normalize", [False, True])
def test_raw_through_the_combiner(priority: list[int] | None, normalize: bool) -> None:
    parameters, losses = problem()
    rows = [torch.cat(row) for row in padded_rows(losses, parameters)]
    if normalize:
        rows = [reference.normalized(row, d, 0.5) for row, d in zip(rows, (8, 8, 10), strict=True)]
    wanted = torch.stack(raw_by_the_book(rows, priority or [0, 1, 2])).sum(0)
    combiner = kind("RawOSGD")(priority, normalize)
    stats = combiner.backward(losses, parameters)
    found = torch.cat([p.grad for p in parameters if p.grad is not None])
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-4)
    if not normalize:
        weighted = sum(w * g for w, g in zip(stats.loss_weights, rows, strict=True))
        torch.testing.assert_close(weighted, wanted, rtol=1e-4, atol=1e-4)
        assert stats.coefficients is not None
        ones = torch.ones(3, dtype=torch.float64)
        torch.testing.assert_close(stats.coefficients.T @ stats.loss_weights, ones)


@ORDERS
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_each_tensor_is_algorithm_2_by_itself(priority: list[int] | None, reduction: Any) -> None:
    parameters, losses = problem()
    rows = padded_rows(losses, parameters)
    stats = kind("TensorOSGD")(priority, reduction).backward(losses, parameters)
    for p, parameter in enumerate(parameters):
        g, _ = reference.osgd([rows[i][p].flatten() for i in priority or [0, 1, 2]])
        share = 3 if reduction == "mean" else 1
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad.double(), g / share, rtol=1e-5, atol=1e-6)
        made = sum(w * row[p] for w, row in zip(stats.loss_weights[p], rows, strict=True))
        torch.testing.assert_close(parameter.grad.double(), made, rtol=1e-5, atol=1e-5)
    assert stats.loss_weights.shape == (3, 3)
    assert stats.coefficients is not None
    assert stats.coefficients.shape == (3, 3, 3)
    assert stats.cosines is not None
    assert stats.cosines.shape == (3, 3)
    stats.to_dict()


def test_one_tensor_is_the_paper_bit_for_bit() -> None:
    a, b = torch.randn(2, 5)
    found = []
    for combiner in (OSGD(), kind("TensorOSGD")()):
        w = nn.Parameter(torch.zeros(5))
        stats = combiner.backward([w @ a, w @ b], [w])
        assert w.grad is not None
        found.append((w.grad, stats.loss_weights.reshape(-1)))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_a_skipped_loss_and_micro_batches_per_tensor() -> None:
    a, b = torch.randn(2, 4)
    w, v = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4))
    losses = [(w + v) @ a, (w + v).sum() * float("nan"), w @ b]
    combiner = kind("TensorOSGD")(on_nonfinite="skip")
    stats = combiner.backward(losses, [w, v], retain_graph=True)
    assert stats.loss_weights[:, 1].tolist() == [0.0, 0.0]
    assert stats.coefficients is not None
    assert torch.isnan(stats.coefficients).sum() == 2 * 5
    assert v.grad is not None
    torch.testing.assert_close(v.grad, a)
    once, w.grad, v.grad = w.grad, None, None
    for _ in range(2):
        combiner.accumulate(
            [loss / 2 for loss in ((w + v) @ a, w.sum() * float("inf"), w @ b)], [w, v]
        )
    combiner.combine()
    torch.testing.assert_close(w.grad, once)


@pytest.mark.parametrize(
    ("variant", "name", "setting"),
    [
        ("osgd+raw", "RawOSGD", {"projection": "raw"}),
        ("osgd+tensor", "TensorOSGD", {"scope": "tensor"}),
    ],
)
def test_a_cell_trains_by_its_method(variant: str, name: str, setting: dict[str, str]) -> None:
    """The key is of the settings that committed results have; the config names the method."""
    cell = Run("width", variant).cell(PROTOCOLS["micro"], 0)
    config = cell.config("digits", {"device": "cpu"})
    assert type(config.method.build()) is kind(name)
    assert type(make_combiner(config.method.name)) is kind(name)
    assert cell.settings["method"] == {"name": "osgd", **setting}


@pytest.mark.parametrize("name", KINDS)
def test_nothing_is_read_from_tensors_without_entries(name: str) -> None:
    w, v = (nn.Parameter(torch.empty(4, device="meta")) for _ in range(2))
    combiner = kind(name)(on_nonfinite="ignore")
    combiner.backward([(w * v).sum(), w.sin().sum(), v.sum()], [w, v])
    assert w.grad is not None
    assert w.grad.is_meta


def test_their_options_show() -> None:
    tensorwise = kind("TensorOSGD")
    assert repr(tensorwise([1, 0], "mean")).startswith(
        "TensorOSGD(priority=(1, 0), reduction='mean', "
    )
    assert "refresh=4" in repr(kind("RawOSGD")(refresh=4))
    with pytest.raises(TypeError, match="refresh"):
        tensorwise(refresh=4)
