"""Projection onto the gradients as they came, against the formula in float64."""

import pytest
import torch
from torch import Tensor

from anynest.multitask import OSGD, make_combiner
from anynest.multitask.gradients.task_gradients import TaskGradients
from anynest.multitask.methods.raw import project_raw
from anynest.multitask.methods.rules import orthogonalize


def textbook(gradients: list[Tensor], priority: list[int]) -> list[Tensor]:
    """Line 12 with the gradients of line 6, in float64, flat and padded."""
    kept = [g.double() for g in gradients]
    for place, i in enumerate(priority):
        for j in priority[:place]:
            g_j = gradients[j].double()
            if g_j.any():
                kept[i] = kept[i] - (gradients[i].double() @ g_j) / (g_j @ g_j) * g_j
    return kept


@pytest.mark.parametrize("priority", [None, [2, 0, 3, 1]])
def test_components_and_coefficients(priority: list[int] | None) -> None:
    gradients = [torch.randn(11, dtype=torch.float64) + 0.8 for _ in range(4)]
    gradients[1].zero_()
    rows = TaskGradients.stack([[g] for g in gradients])
    components, L = project_raw(rows, priority)
    wanted = textbook(gradients, priority or [0, 1, 2, 3])
    for i, (found,) in enumerate(components.tensors()):
        torch.testing.assert_close(found, wanted[i], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(L @ torch.stack(wanted), torch.stack(gradients))


def test_two_tasks_are_projected_alike_and_three_are_not() -> None:
    shared = torch.randn(20, dtype=torch.float64)
    gradients = [[shared + 0.5 * torch.randn(20, dtype=torch.float64)] for _ in range(3)]
    for count, alike in ((2, True), (3, False)):
        rows = TaskGradients.stack(gradients[:count])
        raw, orthogonal = project_raw(rows).components, orthogonalize(rows).components
        ours, theirs = (torch.stack([t[0] for t in r.tensors()]) for r in (raw, orthogonal))
        assert torch.allclose(ours, theirs, atol=1e-10) == alike


@pytest.mark.parametrize("priority", [None, (1, 2, 0)])
def test_through_the_combiner(priority: tuple[int, ...] | None) -> None:
    parameters = [torch.nn.Parameter(torch.randn(5)), torch.nn.Parameter(torch.randn(3))]
    first, second = parameters
    losses = [first.square().sum(), (first * torch.arange(5.0)).sum() + second.sum()]
    losses.append((first.sum() + second.sum()) ** 2)
    padded = []
    for loss in losses:
        grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        pieces = [
            torch.zeros_like(p) if g is None else g for g, p in zip(grads, parameters, strict=True)
        ]
        padded.append(torch.cat(pieces))
    wanted = torch.stack(textbook(padded, list(priority or (0, 1, 2)))).sum(0)
    combiner = make_combiner("osgd", projection="raw", priority=priority)
    stats = combiner.backward(losses, parameters)
    found = torch.cat([p.grad for p in parameters if p.grad is not None])
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-4)
    weighted = sum(w * g.double() for w, g in zip(stats.loss_weights, padded, strict=True))
    torch.testing.assert_close(weighted, wanted, rtol=1e-4, atol=1e-4)
    assert stats.coefficients is not None
    torch.testing.assert_close(
        stats.coefficients.T @ stats.loss_weights, torch.ones(3, dtype=torch.float64)
    )


def test_normalized_and_refused() -> None:
    weight = torch.nn.Parameter(torch.ones(4))
    losses = [(weight * torch.tensor(row)).sum() for row in ([1.0, 0, 0, 0], [3.0, 4.0, 0, 0])]
    make_combiner("osgd-norm", projection="raw", C=0.5).backward(losses, [weight])
    # both of norm sqrt(4)/2 = 1: (1, 0) + (0.6, 0.8) less its part along the first
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, torch.tensor([1.0, 0.8, 0, 0]))
    with pytest.raises(ValueError, match=r"projection must be .*orthogonal.*found 'both'"):
        OSGD(projection="both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="refresh"):
        OSGD(projection="raw", refresh=4)
    assert "raw" in repr(OSGD(projection="raw"))
    assert "projection" not in repr(OSGD())
