"""The fused kernels: gradients against finite differences, precision, formats, what to leave be."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from anynest.nets import AnytimeNetwork, Architecture, create_model
from anynest.nets.nested import fused
from anynest.nets.nested.kernels import joined, node_groups
from anynest.nets.nested.node import NestedNode

TINY = {
    "residual": Architecture(blocks=(1, 1), growth=((1, 1), (2, 1), (4, 1)), base_width=1),
    "bottleneck": Architecture(
        blocks=(1,), growth=((1, 1), (2, 1)), base_width=2, block="bottleneck", stem="imagenet"
    ),
    "sparse": Architecture(
        blocks=(1, 1), growth=((1, 1), (2, 1), (2, 2), (4, 2)), base_width=2, skips="sparse"
    ),
}


@pytest.mark.parametrize("kind", TINY)
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_gradients_agree_with_finite_differences(kind: str, train: bool) -> None:
    torch.manual_seed(3)
    model = AnytimeNetwork(TINY[kind]).double().train(train)
    for name, parameter in model.named_parameters():
        if "norm" in name:  # off the rectifiers' corners, where a dead unit's 0 would sit
            torch.nn.init.uniform_(parameter, 0.1, 0.6)
    names, values = zip(*model.named_parameters(), strict=True)
    image = torch.randn(3, 3, 6, 6, dtype=torch.float64, requires_grad=True)

    def function(x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        frozen = {k: v.clone() for k, v in model.named_buffers()}
        replaced = {**dict(zip(names, parameters, strict=True)), **frozen}
        return tuple(torch.func.functional_call(model, replaced, (x,)))

    assert torch.autograd.gradcheck(function, (image, *values), eps=1e-7, atol=1e-5, fast_mode=True)


def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the fused kernel's runs."""
    seen: list[int] = []
    forward = fused._Fused.forward

    def counted(ctx: object, *args: object) -> tuple[Tensor, ...]:
        seen.append(1)
        return forward(ctx, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(fused._Fused, "forward", staticmethod(counted))
    return seen


def test_the_fused_kernel_runs_where_it_should_and_only_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = calls(monkeypatch)
    model, x = create_model("width_nested_resnet10"), torch.randn(2, 3, 8, 8)
    model(x)
    assert len(seen) == 1 + 4 + 2  # the stem, the blocks, the transitions
    seen.clear()
    with torch.no_grad():
        model(x)
    list(model.stages(x))
    model.kernels = "stripes"
    model(x)
    create_model("width_nested_resnet10", independent=3)(x)
    create_model("depth_nested_sparse_resnet14")(x)
    assert not seen


def test_frozen_statistics_of_some_stages_fall_back_to_one_kernel_a_node(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = calls(monkeypatch)
    model, x = create_model("width_nested_resnet10").train(), torch.randn(2, 3, 8, 8)
    for module in model.stage_modules(1):
        module.eval()
    before = copy.deepcopy([module.state_dict() for module in model.stage_modules(1)])
    model(x)
    assert not seen
    for module, state in zip(model.stage_modules(1), before, strict=True):
        for key, value in module.state_dict().items():
            assert torch.equal(value, state[key]), key


@pytest.mark.parametrize(("setting", "value"), [("eps", 0.5), ("momentum", 0.9)])
def test_norms_of_unlike_stages_are_each_their_own(setting: str, value: float) -> None:
    torch.manual_seed(0)
    dense, x = create_model("width_nested_resnet10").train(), torch.randn(4, 3, 8, 8)
    for module in dense.stage_modules(2):
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm2d):
                setattr(norm, setting, value)
    plain = copy.deepcopy(dense)
    plain.kernels = "stripes"
    for ours, theirs in zip(dense(x), plain(x), strict=True):
        torch.testing.assert_close(ours, theirs)
    for key, buffer in dense.state_dict().items():
        torch.testing.assert_close(buffer, plain.state_dict()[key])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_and_memory_formats(layout: torch.memory_format, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    dense = create_model("width_nested_resnet10").to(memory_format=layout)
    plain = copy.deepcopy(dense)
    plain.kernels = "stripes"
    x = torch.randn(8, 3, 16, 16).to(memory_format=layout)
    labels = torch.arange(8)
    rows = []
    for model in (dense, plain):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            losses = [F.cross_entropy(logits.float(), labels) for logits in model(x)]
        torch.stack(losses).sum().backward()
        grads = [p.grad for p in model.parameters()]
        assert all(g is not None and g.dtype == torch.float32 for g in grads)
        rows.append(torch.cat([g.flatten() for g in grads if g is not None]))
    difference = (rows[0] - rows[1]).norm() / rows[1].norm()
    assert difference < (1e-5 if dtype == torch.float32 else 0.1)
    for mine, theirs in zip(dense.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-2, atol=2e-2)


def test_frozen_parameters_get_no_gradient() -> None:
    model = create_model("width_nested_resnet10")
    for module in model.stage_modules(1):
        module.requires_grad_(False)
    sum(logits.sum() for logits in model(torch.randn(2, 3, 8, 8))).backward()  # type: ignore[union-attr]
    for stage in (1, 2, 3):
        grads = [p.grad for module in model.stage_modules(stage) for p in module.parameters()]
        assert all((grad is None) == (stage == 1) for grad in grads)


def test_a_second_backward_pass_gives_the_same_gradients() -> None:
    model = create_model("width_nested_resnet10").double()
    loss = model(torch.randn(2, 3, 8, 8, dtype=torch.float64))[1].square().sum()
    parameters = list(model.parameters())
    first = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    second = torch.autograd.grad(loss, parameters, allow_unused=True)
    for a, b in zip(first, second, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)  # type: ignore[arg-type]


def test_the_backward_pass_of_a_loss_reads_the_leading_channels_alone() -> None:
    """A later stage's activations may hold anything: the gradients of an earlier loss don't move."""
    model = create_model("width_nested_resnet10").double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    mine = [p for s in (1, 2) for m in model.stage_modules(s) for p in m.parameters()]

    def rows() -> list[Tensor]:
        return [
            grad
            for loss in model(x)[:2]
            for grad in torch.autograd.grad(loss.sum(), mine, retain_graph=True, allow_unused=True)
            if grad is not None
        ]

    before = rows()
    with torch.no_grad():
        for module in model.stage_modules(3):
            for parameter in module.parameters():
                parameter.mul_(1e3)
    assert all(torch.equal(a, b) for a, b in zip(before, rows(), strict=True))


def test_wide_float32_layers_on_a_cpu_are_cut_in_halves() -> None:
    halves = ((0, 2), (2, 3))
    assert node_groups((16, 32, 64), "cpu", torch.float32) == halves
    assert node_groups((16, 32, 48, 64), "cpu", torch.float32) == ((0, 2), (2, 4))
    for ends, device, dtype in (
        ((8, 16, 32), "cpu", torch.float32),
        ((16, 32, 64), "cpu", torch.bfloat16),
        ((16, 32, 64), "cuda", torch.float32),
    ):
        assert node_groups(ends, device, dtype) == ((0, 3),)


def test_joining_adjoining_slices_copies_nothing() -> None:
    whole = torch.randn(2, 10, 3, 3)
    parts = [whole[:, :2], whole[:, 2:5], whole[:, 5:]]
    assert joined(parts).data_ptr() == whole.data_ptr()
    torch.testing.assert_close(joined(parts), whole)
    for wrong in ([parts[0], parts[2]], [parts[1], parts[0]], [parts[0], parts[1].clone()]):
        torch.testing.assert_close(joined(wrong), torch.cat(wrong, dim=1))


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("shape", [(1, 3, 4, 4), (0, 3, 8, 8), (2, 3, 1, 1)], ids=str)
def test_small_batches_behave_as_with_plain_modules(shape: tuple[int, ...], train: bool) -> None:
    """One value per channel is an error in training; an empty batch is none."""
    torch.manual_seed(0)
    dense = create_model("width_nested_resnet10").train(train)
    plain = copy.deepcopy(dense)
    plain.kernels = "stripes"
    x = torch.randn(shape)
    for model in (dense, plain):
        if train and shape[0] == 1:
            with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
                model(x)
        else:
            torch.stack([logits.sum() for logits in model(x)]).sum().backward()
    for mine, theirs in zip(dense.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs)
        assert mine.isfinite().all()
    for mine, theirs in zip(dense.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-4)


def test_a_wrong_precision_is_refused_as_by_plain_modules() -> None:
    model, x = create_model("width_nested_resnet10").double(), torch.randn(2, 3, 8, 8)
    with pytest.raises(RuntimeError, match="should be the same"):
        model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(x.double())[0].dtype == torch.float64  # as autocast leaves convolutions


def test_other_norms_are_left_to_plain_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = calls(monkeypatch)
    model = create_model("width_nested_resnet10")
    for node in [m for m in model.modules() if isinstance(m, NestedNode)]:
        for number in range(1, node.depth + 1):
            setattr(
                node, f"norm{number}", nn.GroupNorm(1, getattr(node, f"conv{number}").out_channels)
            )
    assert len(model(torch.randn(2, 3, 8, 8))) == 3
    assert not seen


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"growth": ((1, 1), (2, 1))},
        {"growth": ((1, 1), (1, 2)), "skips": "sparse", "head": "shared", "norm": "shared"},
    ],
    ids=["width", "shared"],
)
def test_compiled_models_are_one_graph_and_agree(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = AnytimeNetwork(Architecture(blocks=(1, 1), base_width=2, **options)).double()
    compiled = torch.compile(copy.deepcopy(model), backend="aot_eager", fullgraph=True)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    for mine, theirs in zip(compiled(x), model(x), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_gradients_of_gradients_and_batched_gradients_need_plain_kernels() -> None:
    torch.manual_seed(0)
    model = create_model("width_nested_resnet10", base_width=2).double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    rows = torch.eye(2, dtype=torch.float64)

    def slope() -> Tensor:
        return torch.autograd.grad(model(x)[-1].sum(), x, create_graph=True)[0]

    def batched() -> Tensor:
        return torch.autograd.grad(model(x)[-1].sum(1), x, rows, is_grads_batched=True)[0]

    for call in (slope, batched):
        with pytest.raises(RuntimeError, match=r"set model\.kernels = 'stripes'"):
            call()
    model.kernels = "stripes"
    slope().square().sum().backward()
    assert x.grad is not None
    assert batched().shape == (2, *x.shape)


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # by torch itself
def test_function_transforms_and_the_meta_device_call_the_modules() -> None:
    torch.manual_seed(0)
    model = create_model("width_nested_resnet10", base_width=2).double().eval()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    parameters = dict(model.named_parameters())

    def loss(values: dict[str, Tensor]) -> Tensor:
        outputs = torch.func.functional_call(model, values, (x,))
        return torch.stack([logits.square().sum() for logits in outputs]).sum()

    grads = torch.func.grad(loss)(parameters)
    loss(parameters).backward()
    for name, parameter in parameters.items():
        torch.testing.assert_close(grads[name], parameter.grad)
    tangent = torch.func.jvp(lambda image: model(image)[-1], (x,), (torch.ones_like(x),))[1]
    with forward_ad.dual_level():
        (*_, logits) = model(forward_ad.make_dual(x, torch.ones_like(x)))
        torch.testing.assert_close(forward_ad.unpack_dual(logits).tangent, tangent)
    model = model.to("meta").train()
    outputs = model(x.to("meta"))
    torch.stack([logits.sum() for logits in outputs]).sum().backward()
    assert [logits.shape for logits in outputs] == 3 * [(2, 10)]
