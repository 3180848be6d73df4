"""N1 to N4 for nested transformers: registered shapes and random plans, in float64."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformer.plans import BATCH, PLANS, births, images, network, parts, random_plans

from anynest.nets.staged import Staged
from anynest.nets.transformer.plan import TransformerPlan

TIGHT = {"rtol": 1e-9, "atol": 1e-11}
every = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)


def check_n1(plan: TransformerPlan) -> None:
    """Later parameters move no earlier output by one bit, and each parameter moves its own."""
    model, x = network(plan), images(plan)
    before = [logits.detach() for logits in model(x)]
    born = births(model)
    for stage in range(plan.num_stages, 0, -1):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if born[name] == stage:
                    parameter.mul_(1.5).add_(0.25)
        after = model(x)
        for s in range(stage - 1):
            assert torch.equal(after[s], before[s])
        assert not torch.allclose(after[stage - 1], before[stage - 1])


def check_gradients(plan: TransformerPlan) -> None:
    """Loss s reaches all parameters of its subnetwork, and no other."""
    model, x = network(plan), images(plan)
    names, leaves = zip(*model.named_parameters(), strict=True)
    for stage, logits in enumerate(model(x), 1):
        loss = logits.square().sum()
        grads = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)
        reached = {name for name, grad in zip(names, grads, strict=True) if grad is not None}
        assert reached == set(model.subnetwork(stage).state_dict())
        bias = "qkv.bias"  # the keys' biases have gradient 0: they shift all scores of a query
        for name, grad in zip(names, grads, strict=True):
            if grad is not None and not name.endswith(bias):
                assert grad.any(), name


def check_n2_n4(plan: TransformerPlan) -> None:
    """Everything once, not before it is due, at the cost that the plan says."""
    model, x = network(plan), images(plan)
    counts: Counter[nn.Module] = Counter()
    for part in parts(model):
        part.register_forward_hook(lambda module, _i, _o: counts.update([module]))
    rows = model.cost(x)
    stages = model.stages(x)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        for row in rows:
            with FlopCounterMode(display=False) as counter:
                next(stages)
            due = [m for s in range(1, row.stage + 1) for m in model.stage_modules(s)]
            assert counts == Counter(
                part for module in due for part in module.modules() if part in set(parts(model))
            )
            assert counter.get_total_flops() == 2 * BATCH * row.own_multiply_adds
            own = model.stage_modules(row.stage)
            assert row.own_parameters == sum(p.numel() for m in own for p in m.parameters())
    assert rows[-1].parameters == sum(p.numel() for p in model.parameters())
    assert [row.multiply_adds for row in rows] == [
        sum(row.own_multiply_adds for row in rows[: s + 1]) for s in range(len(rows))
    ]


def check_n3(plan: TransformerPlan) -> None:
    """A stage taken out gives the same logits from a part of the same parameters."""
    model, x = network(plan), images(plan)
    whole = model(x)
    theirs = dict(model.named_parameters())
    for stage in range(1, plan.num_stages + 1):
        part = model.subnetwork(stage)
        assert part.num_stages == 1
        mine = dict(part.named_parameters())
        assert all(theirs[name] is parameter for name, parameter in mine.items())
        (logits,) = part(x)
        assert torch.equal(logits, whole[stage - 1])
        ((number, staged),) = part.stages(x)
        assert number == 1
        assert torch.equal(staged, logits)
        ((segment,),) = [part.segments()]
        assert torch.equal(segment(x)[0], logits)
        (row,) = part.cost(x)
        assert row.stage == stage
        assert row.parameters == row.own_parameters == sum(p.numel() for p in part.parameters())
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            with FlopCounterMode(display=False) as counter:
                part(x)
            assert counter.get_total_flops() == 2 * BATCH * row.multiply_adds
        modules = part.stage_modules(1)
        assert {id(p) for m in modules for p in m.parameters()} == {id(p) for p in mine.values()}


def check_segments(plan: TransformerPlan) -> None:
    """Segments equal stages, carry what they were given untouched, and let rows leave and join."""
    model, x = network(plan), images(plan)
    segments = model.segments()
    assert len(segments) == model.num_stages
    expected = [logits for _, logits in model.stages(x)]
    with torch.no_grad():
        state: tuple[torch.Tensor, ...] = (x,)
        halves: list[tuple[torch.Tensor, ...]] = [(x[:1],), (x[1:],)]
        for number, segment in enumerate(segments):
            given = state
            logits, *rest = segment(*state)
            state = tuple(rest)
            assert torch.equal(logits, expected[number])
            if number + 1 == len(segments):
                assert state == ()
                break
            assert all(a is b for a, b in zip(given, state, strict=False))
            assert all(len(tensor) == BATCH for tensor in state)
            rows = [segment(*half) for half in halves]
            halves = [tuple(row[1:]) for row in rows]
            joined = [torch.cat(column) for column in zip(*rows, strict=True)]
            torch.testing.assert_close(joined, [logits, *state], **TIGHT)
            keep = torch.tensor([2, 0])
            kept = segments[number + 1](*(tensor.index_select(0, keep) for tensor in state))[0]
            torch.testing.assert_close(kept, expected[number + 1][keep], **TIGHT)


CHECKS = [check_n1, check_gradients, check_n2_n4, check_n3, check_segments]
checks = pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)


@every
@checks
def test_properties(plan: TransformerPlan, check: object) -> None:
    assert callable(check)
    assert isinstance(network(plan), Staged)
    check(plan)


@given(plan=random_plans())
@settings(max_examples=15, deadline=None, derandomize=True)
def test_properties_of_random_plans(plan: TransformerPlan) -> None:
    for check in CHECKS:
        check(plan)


@every
def test_the_cost_is_the_formula(plan: TransformerPlan) -> None:
    """A layer of stage s: (4 + 2 r) N d D + 2 N^2 d, which is 12 N d D + 2 N^2 d at ratio 4."""
    grid = plan.image_size // plan.patch_size
    n, ratio = grid**2 + 1, plan.mlp_ratio
    for row in network(plan).cost():
        width, depth = plan.growth[row.stage - 1]
        total = width * plan.base_width
        own = total - (plan.growth[row.stage - 2].width * plan.base_width if row.stage > 1 else 0)
        layers = plan.layers * depth
        embed = (n - 1) * plan.patch_size**2 * plan.in_channels * own
        per_layer = (4 + 2 * ratio) * n * own * total + 2 * n * n * own
        assert row.own_multiply_adds == embed + layers * per_layer + total * plan.num_classes


@every
def test_the_plain_network_of_a_stage_has_its_size(plan: TransformerPlan) -> None:
    for stage, size in enumerate(plan.growth, 1):
        plain = plan.plain(stage)
        assert plain.growth == (size,)
        assert plain.widths == (plan.total_width(stage),)
        assert len(plain.layers_of(1)) == len(plan.layers_of(stage))
        model = network(plain)
        ours = {n: tuple(p.shape) for n, p in network(plan).subnetwork(1).named_parameters()}
        if stage == 1:
            assert ours == {n: tuple(p.shape) for n, p in model.named_parameters()}


@every
@pytest.mark.parametrize("side", [4, 12])
def test_images_of_other_sizes(plan: TransformerPlan, side: int) -> None:
    model, x = network(plan), images(plan, side)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        outputs = model(x)
    assert counter.get_total_flops() == 2 * BATCH * model.cost(side)[-1].multiply_adds
    state: tuple[torch.Tensor, ...] = (x,)
    for segment, logits in zip(model.segments(), outputs, strict=True):
        found, *rest = segment(*state)
        state = tuple(rest)
        torch.testing.assert_close(found, logits, **TIGHT)


def test_a_backward_pass_costs_its_own_stages_alone() -> None:
    """Twice the multiply-adds of the forward pass, without those of the embedding's input."""
    plan = PLANS["width and depth"]
    model, x = network(plan), images(plan)
    outputs = model(x)
    leaves = list(model.parameters())
    rows = model.cost(x)
    for stage in range(1, plan.num_stages + 1):
        with sdpa_kernel(SDPBackend.MATH):
            outputs = model(x)
            with FlopCounterMode(display=False) as counter:
                torch.autograd.grad(
                    outputs[stage - 1].sum(), leaves, retain_graph=True, allow_unused=True
                )
        alone = model.subnetwork(stage).cost(x)[0].multiply_adds
        patches = (plan.image_size // plan.patch_size) ** 2
        embed = patches * plan.patch_size**2 * plan.in_channels * plan.total_width(stage)
        assert counter.get_total_flops() == 2 * BATCH * (2 * alone - embed)
        assert alone <= rows[stage - 1].multiply_adds
