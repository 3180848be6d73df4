"""What stages share: one head, one norm for a transition's versions, against networks that share nothing.

The *twin* of a network has the same weights in separate heads and norms. Values are then the twin's, and
the gradient of what is shared is the sum over the places where it is used.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cases import SHARED, Case
from torch import Tensor, nn

import anynest
from anynest.nets import AnytimeNetwork, Architecture, SyncBatchNorm, create_model, sync_batch_norm
from anynest.nets.nested.node import NestedNode, SharedNorm
from anynest.store import WeightsInfo, save_weights

every = pytest.mark.parametrize("case", SHARED, ids=str)
TIGHT = {"rtol": 1e-9, "atol": 1e-11}
Named = dict[str, Tensor | None]


def transition(name: str) -> str | None:
    """``group2.transition3.stage3.norm1.weight`` -> ``group2``; None for another tensor's name."""
    group, layer, *rest = name.split(".")
    return group if layer.startswith("transition") and "norm" in rest[1] else None


def columns(state: Named, prefix: str, suffix: str, dim: int) -> Tensor:
    """What is shared, whole: its pieces in the order of their births."""
    found = []
    for name, tensor in state.items():
        if name.startswith(prefix) and name.endswith(suffix) and tensor is not None:
            found.append((int(name.removeprefix(prefix).split(".")[0]), tensor))
    return torch.cat([tensor for _, tensor in sorted(found, key=lambda item: item[0])], dim)


def place(model: AnytimeNetwork, name: str) -> slice:
    """The channels of its layer of a transition's node."""
    node = model.get_submodule(".".join(name.split(".")[:3]))
    assert isinstance(node, NestedNode)
    return slice(node.node.start, node.node.start + node.node.units[-1].outputs)


def twin_of(model: AnytimeNetwork) -> AnytimeNetwork:
    """The same weights and statistics, nothing shared."""
    twin = AnytimeNetwork(replace(model.architecture, head="separate", norm="separate")).double()
    state = model.state_dict()
    for name, tensor in twin.state_dict().items():
        group, kind = transition(name), name.split(".")[-1]
        if name.startswith("head") and model.architecture.head == "shared":
            whole = (
                columns(state, "head", ".weight", 1) if kind == "weight" else state["head1.bias"]
            )
            value = whole[..., : tensor.shape[-1]]
        elif group and model.architecture.norm == "shared":
            if kind == "num_batches_tracked":
                continue
            value = columns(state, f"{group}.transitions.stage", f".norm.{kind}", 0)
            value = value[place(twin, name)]
        else:
            value = state[name]
        tensor.copy_(value)
    return twin.train(model.training)


def gradients(model: AnytimeNetwork, loss: Tensor) -> Named:
    names, parameters = zip(*model.named_parameters(), strict=True)
    grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return dict(zip(names, grads, strict=True))


def summed(twin: AnytimeNetwork, grads: Named, model: AnytimeNetwork) -> Named:
    """The gradients of a model's parameters, from those of its twin's: what is shared collects them."""
    whole: dict[str, Tensor] = {}

    def collect(key: str, where: tuple[slice, ...], size: tuple[int, ...], grad: Tensor) -> None:
        whole.setdefault(key, torch.zeros(size, dtype=torch.float64))[where] += grad

    result: Named = {}
    widest = max(exit_.features for exit_ in twin.plan.exits)
    for name, grad in grads.items():
        kind = name.split(".")[-1]
        if name.startswith("head") and model.architecture.head == "shared":
            if grad is not None and kind == "bias":
                collect("head.bias", (slice(None),), tuple(grad.shape), grad)
            elif grad is not None:
                where = (slice(None), slice(grad.shape[1]))
                collect("head.weight", where, (len(grad), widest), grad)
        elif (group := transition(name)) and model.architecture.norm == "shared":
            if grad is not None:
                collect(f"{group}.{kind}", (place(twin, name),), (1024,), grad)
        else:
            result[name] = grad
    starts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if name in result:
            continue
        kind, head = name.split(".")[-1], name.startswith("head")
        key = f"head.{kind}" if head else f"{name.split('.')[0]}.{kind}"
        size = parameter.shape[-1]
        start = starts.get(key, 0)
        starts[key] = start + size
        result[name] = whole[key][..., start : start + size] if key in whole else None
    return result


@every
@pytest.mark.parametrize("kernels", ["auto", "stripes"])
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_values_are_the_twins_and_gradients_the_sum_over_the_uses(
    case: Case, train: bool, kernels: str
) -> None:
    model, x = case.network(train=train), case.images()
    twin = twin_of(model)
    model.kernels, twin.kernels = kernels, "stripes"
    outputs, theirs = model(x), twin(x)
    for mine, wanted in zip(outputs, theirs, strict=True):
        torch.testing.assert_close(mine, wanted, **TIGHT)
    losses = [logits.square().sum() for logits in outputs]
    rows = []
    for stage, loss in enumerate(losses, 1):
        mine = gradients(model, loss)
        wanted = summed(twin, gradients(twin, theirs[stage - 1].square().sum()), model)
        assert mine.keys() == wanted.keys()
        for name, grad in mine.items():
            expected = wanted[name]
            if grad is None:  # absent, not zero
                assert expected is None or not expected.any(), name
            else:
                assert expected is not None, name
                torch.testing.assert_close(grad, expected, rtol=1e-7, atol=1e-9, msg=name)
        rows.append(mine)
    for name, grad in gradients(model, torch.stack(losses).sum()).items():
        parts = [row[name] for row in rows if row[name] is not None]
        assert (grad is None) == (not parts)
        if grad is not None:
            torch.testing.assert_close(grad, torch.stack(parts).sum(0), rtol=1e-7, atol=1e-9)


@every
def test_running_statistics_move_once_a_version_in_the_order_of_the_stages(case: Case) -> None:
    model, x = case.network(train=True), case.images()
    twin = twin_of(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model(x)
    twin(x)
    after = model.state_dict()
    pieces = model.plan.norms()
    assert bool(pieces) == any(isinstance(m, SharedNorm) for m in model.modules())
    layers = [layer for layer in model.plan.layers if ".transition" in layer.name]
    for piece in pieces:
        group, _, stage = piece.name.split(".")
        siblings = [p for p in pieces if p.name.startswith(f"{group}.") and p.birth < piece.birth]
        start = sum(p.channels for p in siblings)
        uses = 0
        value = {
            kind: before[f"{piece.name}.norm.running_{kind}"].clone() for kind in ("mean", "var")
        }
        first = {kind: tensor.clone() for kind, tensor in value.items()}
        for layer in layers:  # versions in order
            for node in layer.nodes if layer.name.startswith(f"{group}.") else ():
                end = node.start + node.units[-1].outputs
                if not node.start <= start < end:
                    continue
                uses += 1
                own = slice(start - node.start, start - node.start + piece.channels)
                for kind in value:
                    name = f"{layer.name}.stage{node.birth}.norm1.running_{kind}"
                    moved = twin.state_dict()[name][own]  # 0.9 of the first plus 0.1 of the batch's
                    value[kind] = 0.9 * value[kind] + moved - 0.9 * first[kind]
        assert uses, stage
        for kind, tensor in value.items():
            found = after[f"{piece.name}.norm.running_{kind}"]
            torch.testing.assert_close(found, tensor, **TIGHT, msg=piece.name)
        assert after[f"{piece.name}.norm.num_batches_tracked"] == uses


def test_a_shared_head_is_one_parameter_a_growth() -> None:
    shapes = {
        name: {n: tuple(p.shape) for n, p in model.named_parameters() if n.startswith("head")}
        for name in ("width_nested_resnet10", "depth_nested_sparse_resnet14")
        for model in [create_model(name, head="shared", num_classes=7)]
    }
    assert shapes["width_nested_resnet10"] == {
        "head1.weight": (7, 16),
        "head1.bias": (7,),
        "head2.weight": (7, 16),
        "head3.weight": (7, 32),
    }
    assert shapes["depth_nested_sparse_resnet14"] == {"head1.weight": (7, 32), "head1.bias": (7,)}


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_stage_reads_the_leading_columns(stage: int) -> None:
    """As slimmable networks do; written out by hand."""
    torch.manual_seed(0)
    model = create_model("width_nested_resnet10", head="shared").double().eval()
    pooled: list[Tensor] = []
    layer = model.get_submodule("group3.layer1")
    for birth in (1, 2, 3):
        layer.get_submodule(f"stage{birth}").register_forward_hook(
            lambda _m, _i, out: pooled.append(out[0].mean(dim=(2, 3)))
        )
    with torch.no_grad():
        logits = dict(model.stages(torch.randn(2, 3, 8, 8, dtype=torch.float64)))[stage]
        whole = torch.cat([model.head(s).weight for s in (1, 2, 3)], dim=1)
        features = torch.cat(pooled[:stage], dim=1)
        expected = features @ whole[:, : features.shape[1]].T + model.head(1).bias
    torch.testing.assert_close(logits, expected)
    weight, bias = model.classifier(stage)
    assert torch.equal(weight, whole[:, : features.shape[1]])
    assert bias is model.head(1).bias


def test_columns_are_drawn_as_those_of_the_stages_own_head() -> None:
    torch.manual_seed(0)
    model = create_model("width_nested_resnet10", head="shared", base_width=64, num_classes=100)
    for stage, features in ((1, 256), (2, 512), (3, 1024)):
        largest = model.head(stage).weight.abs().max().item()
        assert 0.99 * features**-0.5 < largest <= features**-0.5


def test_the_same_seed_draws_the_same_layers() -> None:
    states = []
    for options in ({}, {"head": "shared", "norm": "shared"}):
        torch.manual_seed(0)
        states.append(create_model("simultaneous_nested_sparse_resnet26", **options).state_dict())
    convolutions = [name for name in states[0] if ".conv" in name]
    assert convolutions
    assert all(torch.equal(states[0][name], states[1][name]) for name in convolutions)


@pytest.mark.parametrize(
    ("growth", "saved"),
    [
        ([[1, 1], [1, 2], [1, 4]], 2 * 2 * (16 + 32)),
        # versions of 1, 2, 4 times the width, of which the last is kept
        ([[1, 1], [2, 2], [4, 4]], 2 * 3 * (16 + 32)),
    ],
)
def test_a_shared_norm_saves_all_versions_but_one(growth: list[list[int]], saved: int) -> None:
    name = "simultaneous_nested_sparse_resnet26"
    sizes = [
        create_model(name, growth=growth, base_width=8, norm=norm).cost()[-1].parameters
        for norm in ("separate", "shared")
    ]
    assert sizes[0] - sizes[1] == saved


@pytest.mark.parametrize("stage", [None, 1, 2, 3])
def test_weights_come_back_from_their_file(stage: int | None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    name = "simultaneous_nested_sparse_resnet26"
    model = create_model(name, head="shared", norm="shared")
    x = torch.randn(4, 3, 8, 8)
    model(x)  # moves the statistics
    part = (model if stage is None else model.subnetwork(stage)).eval()
    info = WeightsInfo(
        model=name,
        arguments=part.arguments,
        classes=tuple("0123456789"),
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        image_size=8,
        data="noise",
        anynest="0",
    )
    save_weights(tmp_path / "weights.safetensors", part, info)
    again = anynest.load(tmp_path / "weights.safetensors")
    assert again.plan == part.plan
    assert len(list(again.parameters())) == len(list(part.parameters()))
    with torch.no_grad():
        for mine, theirs in zip(again(x), part(x), strict=True):
            assert torch.equal(mine, theirs)


def test_hooks_stay_on_a_norm_that_is_replaced() -> None:
    body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    seen: list[str] = []
    body[1].register_forward_pre_hook(lambda *_: seen.append("before"))
    body[1].register_forward_hook(lambda *_, **__: seen.append("after"), with_kwargs=True)
    body[1].register_full_backward_hook(lambda *_: seen.append("backward"))
    sync_batch_norm(body, None)
    assert isinstance(body[1], SyncBatchNorm)
    body.eval()(torch.randn(2, 3)).sum().backward()
    assert seen == ["before", "after", "backward"]


def test_a_norm_put_in_the_place_of_a_shared_one_serves_all_its_uses() -> None:
    model = create_model("simultaneous_nested_sparse_resnet26", norm="shared")
    part = model.subnetwork(2)
    sync_batch_norm(model, None)
    for network in (model, part):
        nodes = [m for m in network.modules() if isinstance(m, NestedNode)]
        norms = [norm for s in nodes for u in range(s.depth) for norm in s.norms(u + 1)]
        assert all(isinstance(norm, SyncBatchNorm) for norm in norms)
        assert {id(p) for norm in norms for p in norm.parameters()} <= {
            id(p) for p in model.parameters()
        }


def test_a_copy_shares_within_itself_alone() -> None:
    model = create_model("simultaneous_nested_sparse_resnet26", norm="shared")
    copied = copy.deepcopy(model)
    mine, theirs = ({id(p) for p in m.parameters()} for m in (model, copied))
    assert not mine & theirs
    for node in [m for m in copied.modules() if isinstance(m, NestedNode)]:
        for unit in range(1, node.depth + 1):
            assert {id(p) for norm in node.norms(unit) for p in norm.parameters()} <= theirs


def test_the_plain_network_of_a_stage_shares_nothing() -> None:
    options = {"head": "shared", "norm": "shared"}
    name = "simultaneous_nested_sparse_resnet26"
    plain = create_model(name, independent=3, **options)
    assert plain.plan == create_model(name, independent=3).plan
    assert create_model(name, **plain.arguments).plan == plain.plan


CASCADE = {"order": "prefix", "skips": "sparse", "growth": ((1, 1), (1, 2))}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"head": "one"}, "head must be one of separate, shared, found 'one'"),
        ({"norm": None}, "norm must be one of separate, shared, found None"),
        ({"head": "shared", "isolated": True}, "head='shared' is for nested.*use head='separate'"),
        ({"norm": "shared", "isolated": True}, "norm='shared' is for nested.*use norm='separate'"),
        ({**CASCADE, "exit": "linear", "head": "shared"}, "exits at different.*use exit='conv'"),
    ],
)
def test_what_cannot_be_shared(fields: dict[str, object], message: str) -> None:
    given = {"blocks": (1, 1), "growth": ((1, 1), (2, 1)), "base_width": 2, **fields}
    with pytest.raises(ValueError, match=message) as error:
        Architecture(**given)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
