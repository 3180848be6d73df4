"""Modules that a user replaced, wrapped, hooked or parametrized take effect, or one line says why not.

The reference is the same network with one kernel per node, whose modules are all called.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint, noop_context_fn

from anynest import OSGD
from anynest.nets import AnytimeNetwork, create_model
from anynest.nets.nested import fused

Change = Callable[[AnytimeNetwork], Any]


class Doubled(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Wrapped(nn.Module):
    """A module around another one; ``tanh`` needs its own result for its backward pass."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any) -> Any:
        found = self.inner(*args)
        return found.tanh() if isinstance(found, Tensor) else (2 * found[0], found[1])


class Marked(torch.Tensor):
    """A subclass that doubles the weight in every convolution."""

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        plain = [a.as_subclass(torch.Tensor) if isinstance(a, Marked) else a for a in args]
        factor = 2 if "conv2d" in getattr(function, "__name__", "") else 1
        return (
            factor * function(*plain, **(kwargs or {}))
            if factor > 1
            else (super().__torch_function__(function, types, args, kwargs or {}))
        )


def node(model: AnytimeNetwork) -> Any:
    return model.get_submodule("group1.layer2.stage2")


def doubled_convolution(model: AnytimeNetwork) -> None:
    old = node(model).conv1
    new = Doubled(old.in_channels, old.out_channels, 3, padding=1, bias=False).to(old.weight)
    new.load_state_dict(old.state_dict())
    node(model).conv1 = new


def pruned(model: AnytimeNetwork) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            prune.random_unstructured(module, "weight", 0.5)


def replaced_forward(model: AnytimeNetwork) -> None:
    conv = node(model).conv1
    plain = conv.forward
    conv.forward = lambda x: 2 * plain(x)


def quantisation_aware(model: AnytimeNetwork) -> None:
    """As PyTorch's QAT modules do: a subclass that rounds its weight."""

    class Rounded(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            rounded = torch.fake_quantize_per_tensor_affine(self.weight, 0.05, 0, -8, 7)
            return self._conv_forward(x, rounded, self.bias)

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.__class__ = Rounded


CHANGES: dict[str, Change] = {
    "a convolution that doubles": doubled_convolution,
    "pruned convolutions": pruned,
    "a replaced forward": replaced_forward,
    "quantisation-aware convolutions": quantisation_aware,
    "a parametrized convolution": lambda m: nn.utils.parametrize.register_parametrization(
        node(m).conv1, "weight", Wrapped(nn.Identity())
    ),
    "a parametrized norm": lambda m: nn.utils.parametrize.register_parametrization(
        node(m).norm1, "weight", Wrapped(nn.Identity())
    ),
    "a tensor subclass": lambda m: setattr(
        node(m).conv1, "weight", nn.Parameter(node(m).conv1.weight.detach().as_subclass(Marked))
    ),
    "a hook of a convolution": lambda m: node(m).conv1.register_forward_hook(
        lambda _m, _i, out: 3 * out
    ),
    "a pre-hook of a norm": lambda m: node(m).norm2.register_forward_pre_hook(
        lambda _m, inputs: (2 * inputs[0] + 1,)
    ),
    "a hook of a norm that needs its result": lambda m: node(m).norm1.register_forward_hook(
        lambda _m, _i, out: out.sigmoid()
    ),
    "a backward hook": lambda m: node(m).conv2.register_full_backward_hook(
        lambda _m, grads, _o: (2 * grads[0],)
    ),
    "a hook of a node": lambda m: node(m).register_forward_hook(
        lambda _m, _i, out: (2 * out[0], out[1])
    ),
    "a hook of a layer": lambda m: m.get_submodule("group1.layer2").register_forward_hook(
        lambda _m, _i, slices: [(birth, 2 * tensor) for birth, tensor in slices]
    ),
    "a hook of a head": lambda m: m.head1.register_forward_hook(lambda _m, _i, out: 2 * out),
    "a wrapped convolution": lambda m: setattr(node(m), "conv1", Wrapped(node(m).conv1)),
    "a wrapped norm": lambda m: setattr(node(m), "norm2", Wrapped(node(m).norm2)),
    "a wrapped node": lambda m: setattr(
        m.get_submodule("group1.layer2"), "stage2", Wrapped(node(m))
    ),
    "a wrapped head": lambda m: setattr(m, "head2", Wrapped(m.head2)),
    "a bias": lambda m: setattr(
        node(m).conv1, "bias", nn.Parameter(torch.ones(4, dtype=torch.float64))
    ),
    "another padding": lambda m: setattr(node(m).conv1, "padding_mode", "circular"),
    "no norm": lambda m: setattr(node(m), "norm1", nn.Identity()),
    "another epsilon": lambda m: setattr(node(m).norm1, "eps", 0.5),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_takes_effect_in_training_and_stage_by_stage(name: str) -> None:
    """Three steps: values, gradients and statistics equal those of one kernel per node."""
    results, x = [], torch.randn(2, 3, 8, 8, dtype=torch.float64)
    for change, kernels in ((None, "auto"), (CHANGES[name], "auto"), (CHANGES[name], "stripes")):
        torch.manual_seed(0)
        model = create_model("width_nested_resnet10").double()
        torch.manual_seed(1)
        if change is not None:
            change(model)
        model.kernels = kernels
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
        for _ in range(3):
            optimizer.zero_grad()
            outputs = model(x)
            torch.stack([logits.square().mean() for logits in outputs]).sum().backward()
            optimizer.step()
        grads = [p.grad if p.grad is not None else torch.zeros(()) for p in model.parameters()]
        model.eval()
        with torch.no_grad():
            staged = [logits for _, logits in model.stages(x)]
        results.append([*outputs, *staged, *grads, *model.buffers()])
        for mine, theirs in zip(staged, model(x), strict=True):
            torch.testing.assert_close(mine, theirs)
    unchanged, mine, theirs = results
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b)
    pairs = zip(mine[:6], unchanged[:6], strict=True)
    assert any(not torch.allclose(a, b) for a, b in pairs), "the change has no effect"


def test_hooks_of_all_modules_run(monkeypatch: pytest.MonkeyPatch) -> None:
    model, called = create_model("width_nested_resnet10"), set()
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: called.add(module))
    try:
        model(torch.randn(2, 3, 8, 8))
    finally:
        handle.remove()
    assert {m for m in model.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)} <= called


def test_only_the_layer_that_was_changed_is_evaluated_node_by_node(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen, call = [], fused.FusedRun.__call__
    monkeypatch.setattr(
        fused.FusedRun, "__call__", lambda run, *args: seen.append(run) or call(run, *args)
    )
    model = create_model("width_nested_resnet10")
    model(torch.randn(2, 3, 8, 8))
    before = len(seen)
    node(model).conv1 = Wrapped(node(model).conv1)
    model(torch.randn(2, 3, 8, 8))
    assert len(seen) - before == before - 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: setattr(m, "group1", nn.Sequential()), "group1 must stay a plain container"),
        (lambda m: m.group1.register_forward_hook(print), "group1 must stay.*group1.layer1"),
        (lambda m: delattr(m, "group1"), "group1 must stay a plain container"),
        (
            lambda m: setattr(m.group1, "layer1", nn.Identity()),
            "group1.layer1 must be a NestedLayer, found Identity; replace the nodes within",
        ),
    ],
)
def test_a_change_that_could_take_no_effect_is_an_error(change: Change, message: str) -> None:
    model = create_model("width_nested_resnet10")
    change(model)
    x = torch.randn(2, 3, 8, 8)
    for call in (lambda: model(x), lambda: list(model.stages(x)), lambda: model.stage_modules(1)):
        with pytest.raises(TypeError, match=message) as error:
            call()
        assert "\n" not in str(error.value)


def test_a_piece_of_a_shared_norm_must_stay() -> None:
    model = create_model("depth_nested_sparse_resnet14", norm="shared")
    assert len(model(torch.randn(2, 3, 8, 8))) == 2
    model.group2.transitions.stage1 = nn.Identity()
    with pytest.raises(
        TypeError, match=r"stage1 must stay.*replace group2.transitions.stage1.norm"
    ):
        model(torch.randn(2, 3, 8, 8))


def test_weights_of_replaced_modules_are_refused_in_one_line() -> None:
    model = create_model("width_nested_resnet10")
    model.head2 = nn.Identity()
    with pytest.raises(TypeError, match=r"head2 must be an nn.Linear .* found Identity"):
        model.classifier(2)


class Checkpointed(Wrapped):
    """A node that is evaluated again in the backward pass."""

    def __init__(self, inner: nn.Module, keep_statistics: bool) -> None:
        super().__init__(inner)
        self.keep_statistics = keep_statistics

    def forward(self, *args: Any) -> Any:
        contexts = self.contexts if self.keep_statistics else noop_context_fn
        return checkpoint(self.inner, *args, use_reentrant=False, context_fn=contexts)

    def contexts(self) -> tuple[Any, Any]:
        return contextlib.nullcontext(), self

    def __enter__(self) -> None:  # once per recomputation
        self.set_momentum(0.0)

    def __exit__(self, *_: object) -> None:
        self.set_momentum(0.1)

    def set_momentum(self, momentum: float) -> None:
        for norm in self.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.momentum = momentum


@pytest.mark.parametrize("keep", [False, True], ids=["as it is", "statistics kept"])
def test_checkpointed_nodes_have_the_same_gradients(keep: bool) -> None:
    """docs/custom_networks.md: S + 1 evaluations per step, unless recomputation leaves statistics alone."""
    torch.manual_seed(0)
    plain = create_model("width_nested_resnet10").double()
    model, x = copy.deepcopy(plain), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    layer = model.get_submodule("group1.layer2")
    norm = node(model).norm1
    layer.stage1 = Checkpointed(layer.stage1, keep)
    first = layer.stage1.inner.norm1
    layer.stage2 = Checkpointed(node(model), keep)
    for network in (plain, model):
        OSGD().backward([out.square().mean() for out in network(x)], network.parameters())
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)
    assert first.num_batches_tracked == 1 + model.num_stages
    assert norm.num_batches_tracked in (1 + 2, 1 + 3)  # losses 2 and 3 reach it
    theirs = plain.get_submodule("group1.layer2.stage1").norm1
    assert torch.allclose(first.running_mean, theirs.running_mean) == keep
