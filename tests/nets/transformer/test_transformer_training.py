"""Nested transformers under OSGD: what each loss reaches and costs, and that they learn."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformer.plans import PLANS, images, network

from anynest import create_model, make_combiner
from anynest.multitask import compile_for_tasks, task_gradients
from anynest.nets.transformer.plan import TransformerPlan
from anynest.training.step import compile_network

every = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)


@every
def test_task_gradients_cost_those_of_each_stage_alone(plan: TransformerPlan) -> None:
    """As many multiply-adds as the subnetworks' backward passes together, and no more."""
    model, x = network(plan), images(plan)
    labels = torch.arange(len(x)) % plan.num_classes

    def losses_of(outputs: list[Tensor]) -> list[Tensor]:
        return [F.cross_entropy(logits, labels) for logits in outputs]

    parameters = list(model.parameters())
    with sdpa_kernel(SDPBackend.MATH):
        losses = losses_of(model(x))
        with FlopCounterMode(display=False) as whole:
            task_gradients(losses, parameters)
        alone = 0
        for stage in range(1, plan.num_stages + 1):
            part = model.subnetwork(stage)
            own = list(part.parameters())
            (loss,) = losses_of(part(x))
            with FlopCounterMode(display=False) as counter:
                torch.autograd.grad(loss, own)
            alone += counter.get_total_flops()
    assert whole.get_total_flops() == alone


@pytest.mark.parametrize("method", ["osgd", "sgd-mean"])
def test_every_stage_learns(method: str) -> None:
    """Which half of the image is brighter, in twenty steps of AdamW."""
    torch.manual_seed(0)
    model = create_model(
        *("width_nested_vit_tiny",),
        **{"num_classes": 2, "in_channels": 1, "base_width": 8, "head_size": 8},
        **{"image_size": 8, "layers": 2},
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    combiner = make_combiner(method)
    x = torch.randn(128, 1, 8, 8)
    labels = torch.arange(128) % 2
    x[:, :, :, :4] += labels.view(-1, 1, 1, 1)
    history = []
    for _ in range(20):
        optimizer.zero_grad()
        losses = [F.cross_entropy(logits, labels) for logits in model(x)]
        combiner.backward(losses, model.parameters())
        optimizer.step()
        history.append([loss.item() for loss in losses])
    assert all(last < 0.5 * first for first, last in zip(history[0], history[-1], strict=True))


# torch looks at .grad of what it traces, and warns of it where that is no leaf
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_compiled_stages_leave_each_loss_its_own_part() -> None:
    plan = PLANS["halves"]
    model, x = network(plan), images(plan)
    parameters = list(model.parameters())

    def gradients() -> list[tuple[Tensor | None, ...]]:
        losses = [logits.square().sum() for logits in model(x)]
        return [
            torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            for loss in losses
        ]

    wanted = gradients()
    compile_for_tasks(model, model.called_nodes(), backend="aot_eager")
    for mine, theirs in zip(gradients(), wanted, strict=True):
        for grad, expected in zip(mine, theirs, strict=True):
            assert (grad is None) == (expected is None)
            if grad is not None:
                torch.testing.assert_close(grad, expected)
    assert compile_network(model, one_pass=False) == "compiled: each of 2 modules by itself"
