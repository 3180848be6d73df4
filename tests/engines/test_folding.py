"""Batch norms folded into convolutions."""

from __future__ import annotations

import pytest
import torch
from cases import CASES
from torch import nn

from anynest.engines.folding import FoldedNetwork, fold_unit
from anynest.engines.open import open_session
from anynest.engines.session import stages
from anynest.nets import create_model


def test_a_folded_convolution_is_the_convolution_and_its_norm() -> None:
    case = next(case for case in CASES if case.name == "width_nested_resnet14")
    network = case.network()
    stem = network.get_submodule("stem.stage1")
    stem.norm1.affine = False
    stem.norm1.weight = stem.norm1.bias = None
    stem.conv1.bias = nn.Parameter(torch.randn(4, dtype=torch.float64))
    folded = FoldedNetwork.of(network.train())  # the mode has no effect
    network.eval()
    convolutions = sum(isinstance(module, nn.Conv2d) for module in network.modules())
    assert sum(map(len, folded.convolutions.values())) == convolutions
    for layer in network.plan.layers:
        for node in layer.nodes:
            name = f"{layer.name}.stage{node.birth}"
            module = network.get_submodule(name)
            pairs = folded.convolutions[layer.name, node.birth]
            for number, (weight, bias) in enumerate(pairs, 1):
                conv, norm = (getattr(module, f"{kind}{number}") for kind in ("conv", "norm"))
                x = torch.randn(2, conv.in_channels, 5, 5, dtype=torch.float64)
                exact, shift = fold_unit(network, name, node, number)
                mine = nn.functional.conv2d(x, exact, shift, conv.stride, conv.padding)
                torch.testing.assert_close(mine, norm(conv(x)), rtol=1e-12, atol=1e-12)
                assert torch.equal(torch.from_numpy(weight), exact.float())
                assert torch.equal(torch.from_numpy(bias), shift.float())


@pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
def test_each_norm_has_its_own_epsilon(backend: str) -> None:
    network = create_model("width_nested_resnet10").eval()
    x = torch.randn(2, 3, 8, 8)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        before = network(x)
        for norm in norms[::2]:
            norm.eps = 0.1
        wanted = network(x)
    assert all(float((a - b).abs().max()) > 1e-3 for a, b in zip(before, wanted, strict=True))
    session = open_session(network, backend=backend)
    for (_, logits), theirs in zip(stages(session.begin(x)), wanted, strict=True):
        torch.testing.assert_close(logits, theirs, rtol=1e-4, atol=1e-5)
    session.close()


def test_a_norm_may_be_the_identity() -> None:
    network = create_model("width_nested_resnet10")
    node = network.get_submodule("group1.layer1.stage2")
    node.norm2 = nn.Identity()
    weight, _ = FoldedNetwork.of(network).convolutions["group1.layer1", 2][1]
    assert torch.equal(torch.from_numpy(weight), node.conv2.weight.detach())
