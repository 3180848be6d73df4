"""N1 to N4 of the design, for every registered model and for twenty random growths, in float64."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from cases import BATCH, CASES, MODES, Case, mode_name
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from anynest.nets import AnytimeNetwork
from anynest.nets.nested import fused
from anynest.nets.nested.node import NestedNode
from anynest.nets.staged import Staged

every = pytest.mark.parametrize("case", CASES, ids=str)
every_mode = pytest.mark.parametrize(("case", "train"), MODES, ids=mode_name)
TIGHT = {"rtol": 1e-9, "atol": 1e-11}


def nodes_of(model: AnytimeNetwork) -> list[NestedNode]:
    return [module for module in model.modules() if isinstance(module, NestedNode)]


class Saved:
    """Parameters and buffers as they are now, to put back (faster than a deep copy)."""

    def __init__(self, model: AnytimeNetwork) -> None:
        self.tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
        self.values = [tensor.detach().clone() for tensor in self.tensors]

    @torch.no_grad()
    def restore(self) -> None:
        torch._foreach_copy_(self.tensors, self.values)


@torch.no_grad()
def spoil(model: AnytimeNetwork, after: int) -> None:
    """Change every parameter and buffer that is born after a stage."""
    for stage in model.plan.births():
        if stage > after:
            for module in model.stage_modules(stage):
                for tensor in [*module.parameters(), *module.buffers()]:
                    if tensor.is_floating_point():
                        tensor.mul_(1.5).add_(0.25)


@every_mode
def test_n1_later_parameters_move_no_earlier_output_by_one_bit(case: Case, train: bool) -> None:
    model, x = case.network(train=train), case.images()
    saved = Saved(model)
    before = [logits.detach() for logits in model(x)]
    for stage in range(1, model.num_stages):
        saved.restore()
        spoil(model, after=stage)
        spoiled = Saved(model)
        together = model(x)  # under autograd: the dense kernels
        spoiled.restore()
        with torch.no_grad():
            staged = [logits for _, logits in model.stages(x)]
        for s in range(stage):
            assert torch.equal(together[s], before[s]), f"output {s + 1}, all at once"
            torch.testing.assert_close(staged[s], before[s], **TIGHT)
        assert not torch.allclose(together[-1], before[-1])


@every
def test_n1_later_nodes_move_no_earlier_output_by_one_bit(case: Case) -> None:
    model, x = case.network(), case.images()
    with torch.no_grad():
        before = [logits for _, logits in model.stages(x)]
        nodes = nodes_of(model)
        for node in nodes[:: 1 + len(nodes) // 15]:  # of the largest, some
            birth = node.node.birth
            # not a number spreads wherever a number would, through dead units too
            handle = node.register_forward_hook(lambda _m, _i, out: (out[0] * torch.nan, out[1]))
            after = [logits for _, logits in model.stages(x)]
            handle.remove()
            for earlier, later in zip(before[: birth - 1], after[: birth - 1], strict=True):
                assert torch.equal(earlier, later)
            assert after[birth - 1].isnan().all(), "no output reads the node"


@every
def test_n2_every_node_is_computed_exactly_once_and_not_before_it_is_due(case: Case) -> None:
    model, x = case.network(), case.images()
    nodes = nodes_of(model)
    counts: Counter[NestedNode] = Counter()
    for node in nodes:
        node.register_forward_hook(lambda module, _i, _o: counts.update([module]))
    with torch.no_grad():
        for stage, _ in model.stages(x):
            assert counts == Counter(node for node in nodes if node.node.birth <= stage)
        counts.clear()
        model(x)
        assert counts == Counter(nodes)


@every_mode
def test_n3_a_stage_taken_out_gives_the_same_logits(case: Case, train: bool) -> None:
    model, x = case.network(train=train), case.images()
    saved = Saved(model)
    whole = model(x)
    for stage in range(1, model.num_stages + 1):
        part = model.subnetwork(stage)
        assert part.num_stages == 1
        mine, theirs = dict(part.named_parameters()), dict(model.named_parameters())
        assert all(theirs[name] is parameter for name, parameter in mine.items()), "not shared"
        keys, all_keys = set(part.state_dict()), set(model.state_dict())
        last, shared = stage == model.num_stages, model.architecture.head == "shared"
        if model.num_stages == 1 or (model.plan.average and last):
            assert keys == all_keys
        elif last and shared:  # every head is part of it
            assert keys <= all_keys
        else:
            assert keys < all_keys
        saved.restore()
        (logits,) = part(x)
        torch.testing.assert_close(logits, whole[stage - 1], **TIGHT)
        saved.restore()
        with torch.no_grad():
            ((number, staged),) = part.stages(x)
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
        with FlopCounterMode(display=False) as counter:
            model(x)
    assert counter.get_total_flops() == 2 * BATCH * rows[-1].multiply_adds
    assert sum(p.numel() for p in model.parameters()) == rows[-1].parameters


@every_mode
def test_staged_equals_all_at_once_with_its_statistics(case: Case, train: bool) -> None:
    model, x = case.network(train=train), case.images()
    assert isinstance(model, Staged)
    saved = Saved(model)
    outputs = model(x)
    moved = Saved(model)
    saved.restore()
    for (number, logits), expected in zip(model.stages(x), outputs, strict=True):
        torch.testing.assert_close(logits, expected, **TIGHT)
        assert outputs[number - 1] is expected
    for mine, theirs in zip(moved.tensors, moved.values, strict=True):
        torch.testing.assert_close(mine, theirs, **TIGHT)


GROUPINGS = {
    "one": lambda ends, *_: ((0, len(ends)),),
    "each": lambda ends, *_: tuple((j, j + 1) for j in range(len(ends))),
    "first and rest": lambda ends, *_: ((0, 1), (1, len(ends))) if len(ends) > 1 else ((0, 1),),
    "all but last": lambda ends, *_: (
        ((0, len(ends) - 1), (len(ends) - 1, len(ends))) if len(ends) > 1 else ((0, 1),)
    ),
}


@every_mode
def test_dense_kernels_equal_one_kernel_per_node(
    case: Case, train: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values, gradients of every loss (absent outside w_s), running statistics."""
    grouping = "first and rest" if train else "one"
    compare_dense_with_stripes(case.network(train=train), case.images(), grouping, monkeypatch)


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_every_grouping_of_nodes_gives_the_same_values(
    grouping: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (case,) = [case for case in CASES if case.name == "even_width_resnet10"]
    compare_dense_with_stripes(case.network(train=True), case.images(), grouping, monkeypatch)


def compare_dense_with_stripes(
    dense: AnytimeNetwork, x: Tensor, grouping: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "node_groups", GROUPINGS[grouping])
    plain = copy.deepcopy(dense)
    plain.kernels = "stripes"
    names = [name for name, _ in dense.named_parameters()]
    inputs = x.clone().requires_grad_(), x.clone().requires_grad_()
    outputs = dense(inputs[0]), plain(inputs[1])
    for stage in range(1, dense.num_stages + 1):
        rows = []
        for model, image, logits in zip((dense, plain), inputs, outputs, strict=True):
            leaves = [image, *model.parameters()]
            loss = logits[stage - 1].square().sum()
            rows.append(torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True))
        for mine, theirs in zip(*rows, strict=True):
            assert (mine is None) == (theirs is None)
            if mine is not None and theirs is not None:
                torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-9)
        touched = {n for n, grad in zip(names, rows[0][1:], strict=True) if grad is not None}
        assert touched == {name for name, _ in dense.subnetwork(stage).named_parameters()}
    for mine, theirs in zip(dense.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs, **TIGHT)


@every
def test_the_plain_network_of_a_stage_has_its_size(case: Case) -> None:
    model = case.network()
    architecture = model.architecture
    rows = model.cost(case.image_size)
    for stage, size in enumerate(architecture.growth, 1):
        plain = AnytimeNetwork(architecture.plain(stage))
        assert plain.architecture.growth == (size,)
        assert plain.num_stages == 1
        if stage == 1 and architecture.order == "interlaced":
            assert plain.cost(case.image_size)[0].parameters == rows[0].parameters
            assert plain.cost(case.image_size)[0].multiply_adds == rows[0].multiply_adds
