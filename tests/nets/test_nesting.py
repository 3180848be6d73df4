"""N1 to N4 of the design, for every registered model and for twenty random growths, in float64."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from cases import BATCH, CASES, Case
from torch.utils.flop_counter import FlopCounterMode

from anynest.nets import AnytimeNetwork
from anynest.nets.nested import fused
from anynest.nets.nested.node import NestedNode

every = pytest.mark.parametrize("case", CASES, ids=str)
TIGHT = {"rtol": 1e-9, "atol": 1e-11}


def births(model: AnytimeNetwork) -> list[int]:
    return sorted({node.birth for layer in model.plan.layers for node in layer.nodes})


def stripes(model: AnytimeNetwork) -> list[NestedNode]:
    return [module for module in model.modules() if isinstance(module, NestedNode)]


@torch.no_grad()
def spoil(model: AnytimeNetwork, after: int) -> None:
    """Change every parameter and buffer that is born after a stage."""
    for stage in births(model):
        if stage > after:
            for module in model.stage_modules(stage):
                for tensor in [*module.parameters(), *module.buffers()]:
                    if tensor.is_floating_point():
                        tensor.mul_(1.5).add_(0.25)


@every
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_n1_later_parameters_move_no_earlier_output_by_one_bit(case: Case, train: bool) -> None:
    model, x = case.network(train=train), case.images()
    before = [logits.detach() for logits in copy.deepcopy(model)(x)]
    for stage in range(1, model.num_stages):
        spoiled = copy.deepcopy(model)
        spoil(spoiled, after=stage)
        together = copy.deepcopy(spoiled)(x)  # under autograd: the fused kernels
        with torch.no_grad():
            staged = [logits for _, logits in spoiled.stages(x)]
        for s in range(stage):
            assert torch.equal(together[s], before[s]), f"output {s + 1}, all at once"
            torch.testing.assert_close(staged[s], before[s], **TIGHT)
        assert not torch.allclose(together[-1], before[-1])


@every
def test_n1_later_nodes_move_no_earlier_output_by_one_bit(case: Case) -> None:
    model, x = case.network(), case.images()
    with torch.no_grad():
        before = [logits for _, logits in model.stages(x)]
        nodes = stripes(model)
        for stripe in nodes[:: 1 + len(nodes) // 30]:  # of the largest, every other or third
            birth = stripe.node.birth
            # not a number goes wherever a number would, through dead units too
            handle = stripe.register_forward_hook(lambda _m, _i, out: (out[0] * torch.nan, out[1]))
            after = [logits for _, logits in model.stages(x)]
            handle.remove()
            for earlier, later in zip(before[: birth - 1], after[: birth - 1], strict=True):
                assert torch.equal(earlier, later)
            assert after[birth - 1].isnan().all(), "the node is of no use"


@every
def test_n2_every_node_is_computed_exactly_once_and_not_before_it_is_due(case: Case) -> None:
    model, x = case.network(), case.images()
    counts: Counter[NestedNode] = Counter()
    for stripe in stripes(model):
        stripe.register_forward_hook(lambda module, _i, _o: counts.update([module]))
    with torch.no_grad():
        for stage, _ in model.stages(x):
            due = {stripe for stripe in stripes(model) if stripe.node.birth <= stage}
            assert counts == Counter(due)
        counts.clear()
        model(x)
        assert counts == Counter(stripes(model))


@every
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_n3_a_stage_taken_out_gives_the_same_logits(case: Case, train: bool) -> None:
    model, x = case.network(train=train), case.images()
    whole = copy.deepcopy(model)(x)
    for stage in range(1, model.num_stages + 1):
        part = model.subnetwork(stage)
        assert part.num_stages == 1
        mine, theirs = dict(part.named_parameters()), dict(model.named_parameters())
        assert all(theirs[name] is parameter for name, parameter in mine.items()), "not shared"
        keys, all_keys = set(part.state_dict()), set(model.state_dict())
        last, shared = stage == model.num_stages, model.architecture.head == "shared"
        if model.num_stages == 1 or (model.plan.average and last):
            assert keys == all_keys
        elif last and shared:  # no head is an earlier stage's alone
            assert keys <= all_keys
        else:
            assert keys < all_keys
        (logits,) = copy.deepcopy(part)(x)
        torch.testing.assert_close(logits, whole[stage - 1], **TIGHT)
        ((number, staged),) = copy.deepcopy(part).stages(x)
        assert number == 1
        torch.testing.assert_close(staged, whole[stage - 1], **TIGHT)


@every
def test_n4_a_stage_costs_only_the_nodes_born_at_it(case: Case) -> None:
    model, x = case.network(), case.images()
    rows = model.cost(case.image_size)
    stages = model.stages(x)
    with torch.no_grad():
        for row in rows:
            with FlopCounterMode(display=False) as counter:
                next(stages)
            assert counter.get_total_flops() == 2 * BATCH * row.own_multiply_adds
            own = sum(
                p.numel() for module in model.stage_modules(row.stage) for p in module.parameters()
            )
            assert own == row.own_parameters
        model.kernels = "stripes"
        with FlopCounterMode(display=False) as counter:
            model(x)
    assert counter.get_total_flops() == 2 * BATCH * rows[-1].multiply_adds
    assert sum(p.numel() for p in model.parameters()) == rows[-1].parameters


@every
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_staged_equals_all_at_once_with_its_statistics(case: Case, train: bool) -> None:
    together, x = case.network(train=train), case.images()
    staged = copy.deepcopy(together)
    outputs = together(x)
    for (number, logits), expected in zip(staged.stages(x), outputs, strict=True):
        torch.testing.assert_close(logits, expected, **TIGHT)
        assert outputs[number - 1] is expected
    for (key, mine), theirs in zip(
        staged.state_dict().items(), together.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(mine, theirs, **TIGHT, msg=key)


@every
@pytest.mark.parametrize("kernels", ["dense", "stripes"])
def test_gradients_of_a_loss_are_absent_outside_its_network(case: Case, kernels: str) -> None:
    model, x = case.network(train=True), case.images()
    model.kernels = kernels
    names, parameters = zip(*model.named_parameters(), strict=True)
    losses = [logits.square().sum() for logits in model(x)]
    for stage, loss in enumerate(losses, 1):
        grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        touched = {name for name, grad in zip(names, grads, strict=True) if grad is not None}
        assert touched == {name for name, _ in model.subnetwork(stage).named_parameters()}


GROUPINGS = {
    "one": lambda ends, *_: ((0, len(ends)),),
    "each": lambda ends, *_: tuple((j, j + 1) for j in range(len(ends))),
    "first and rest": lambda ends, *_: ((0, 1), (1, len(ends))) if len(ends) > 1 else ((0, 1),),
    "all but last": lambda ends, *_: (
        ((0, len(ends) - 1), (len(ends) - 1, len(ends))) if len(ends) > 1 else ((0, 1),)
    ),
}


@every
@pytest.mark.parametrize(
    ("train", "grouping"), [(True, "one"), (True, "first and rest"), (False, "one")]
)
def test_fused_kernels_equal_one_kernel_a_node(
    case: Case, train: bool, grouping: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare_fused_with_plain(case, train, grouping, monkeypatch)


@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize(
    "case", [case for case in CASES if case.name in ("even_width_resnet10",)], ids=str
)
def test_however_the_nodes_are_grouped_the_values_are_the_same(
    case: Case, grouping: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare_fused_with_plain(case, True, grouping, monkeypatch)


def compare_fused_with_plain(
    case: Case, train: bool, grouping: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "node_groups", GROUPINGS[grouping])
    dense, x = case.network(train=train), case.images()
    plain = copy.deepcopy(dense)
    dense.kernels, plain.kernels = "dense", "stripes"
    inputs = x.clone().requires_grad_(), x.clone().requires_grad_()
    outputs = dense(inputs[0]), plain(inputs[1])
    for stage in range(dense.num_stages):
        rows = []
        for model, image, logits in zip((dense, plain), inputs, outputs, strict=True):
            leaves = [image, *model.parameters()]
            loss = logits[stage].square().sum()
            rows.append(torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True))
        for mine, theirs in zip(*rows, strict=True):
            assert (mine is None) == (theirs is None)
            if mine is not None and theirs is not None:
                torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-9)
    for mine, theirs in zip(dense.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs, **TIGHT)


@every
def test_the_plain_network_of_a_stage_has_its_size_and_nothing_cut(case: Case) -> None:
    model = case.network()
    architecture = model.architecture
    rows = model.cost(case.image_size)
    for stage, size in enumerate(architecture.growth, 1):
        plain = AnytimeNetwork(architecture.plain(stage))
        assert plain.architecture.growth == (size,)
        assert plain.num_stages == 1
        if stage == 1 and architecture.order == "interlaced":
            # stage 1 has nothing to be cut from: it is the plain network of its size
            assert plain.cost(case.image_size)[0].parameters == rows[0].parameters
            assert plain.cost(case.image_size)[0].multiply_adds == rows[0].multiply_adds
