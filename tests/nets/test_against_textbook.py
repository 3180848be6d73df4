"""The engine against the architectures written out by hand, and against what is known of their sizes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from anynest.nets import AnytimeNetwork, Architecture, Stage, create_model
from anynest.nets.nested.layer import NestedLayer
from anynest.nets.nested.node import NestedNode


def conv_norm(node: nn.Module, number: int, x: Tensor) -> Tensor:
    assert isinstance(node, NestedNode)
    conv, norm = (getattr(node, f"{kind}{number}") for kind in ("conv", "norm"))
    assert isinstance(norm, nn.BatchNorm2d)
    y = F.conv2d(x, conv.weight, None, conv.stride, conv.padding)
    return F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias)


def plain(**kwargs: object) -> tuple[AnytimeNetwork, Tensor]:
    torch.manual_seed(0)
    defaults: dict[str, object] = {"growth": ((1, 1),), "base_width": 4, "blocks": (2, 2, 2)}
    model = AnytimeNetwork(Architecture(**{**defaults, **kwargs}))  # type: ignore[arg-type]
    return model.double().eval(), torch.randn(2, 3, 16, 16, dtype=torch.float64)


def stage1(model: AnytimeNetwork, name: str) -> nn.Module:
    return model.get_submodule(f"{name}.stage1")


def test_the_plain_residual_network_is_he_et_als() -> None:
    model, image = plain()
    x = torch.relu(conv_norm(stage1(model, "stem"), 1, image))
    for group in (1, 2, 3):
        for layer in (1, 2):
            block = stage1(model, f"group{group}.layer{layer}")
            y = conv_norm(block, 2, torch.relu(conv_norm(block, 1, x)))
            if group > 1 and layer == 1:
                x = conv_norm(stage1(model, f"group{group}.transition1"), 1, x)
            x = torch.relu(x + y)
    expected = model.head(1)(x.mean(dim=(2, 3)))
    torch.testing.assert_close(model(image)[0], expected)


def test_the_plain_bottleneck_network_has_its_stride_in_the_middle() -> None:
    model, image = plain(block="bottleneck", stem="imagenet", blocks=(1, 1))
    x = F.max_pool2d(torch.relu(conv_norm(stage1(model, "stem"), 1, image)), 3, 2, 1)
    for group in (1, 2):
        block = stage1(model, f"group{group}.layer1")
        y = torch.relu(conv_norm(block, 1, x))
        assert y.shape[-1] == x.shape[-1]
        y = torch.relu(conv_norm(block, 2, y))
        shortcut = conv_norm(stage1(model, f"group{group}.transition1"), 1, x)
        x = torch.relu(conv_norm(block, 3, y) + shortcut)
    assert x.shape[1] == 4 * 4 * 2
    torch.testing.assert_close(model(image)[0], model.head(1)(x.mean(dim=(2, 3))))


@pytest.mark.parametrize("blocks", [1, 2, 3, 4, 8])
def test_the_plain_sparse_network_is_zhu_et_als_sum(blocks: int) -> None:
    model, image = plain(skips="sparse", blocks=(blocks, blocks))
    group_input = [conv_norm(stage1(model, "stem"), 1, image)]  # what layer 1 sums
    for group in (1, 2):
        x = torch.relu(torch.stack(group_input).sum(0))
        items = group_input if group == 1 else []
        if group == 2 and f"group{group}.transition1" in dict(model.named_modules()):
            items = [conv_norm(stage1(model, f"group{group}.transition1"), 1, x)]
        done: list[Tensor] = []  # y_1, y_2, ...

        def fetch(position: int, done: list[Tensor] = done, items: list[Tensor] = items) -> Tensor:
            back = [position - 2**k for k in range(6) if position - 2**k >= 0]
            return torch.relu(sum(done[i - 1] if i else items[0] for i in back))  # type: ignore[arg-type]

        for layer in range(1, blocks + 1):
            read = x if layer == 1 else fetch(layer)
            block = stage1(model, f"group{group}.layer{layer}")
            done.append(conv_norm(block, 2, torch.relu(conv_norm(block, 1, read))))
        final = fetch(blocks + 1)
        group_input = [final]
    torch.testing.assert_close(model(image)[0], model.head(1)(final.mean(dim=(2, 3))))


def test_interlaced_stages_keep_every_mth_layer_and_read_as_their_own_sparse_network() -> None:
    model = create_model("depth_nested_sparse_resnet98")
    layers = {layer.name: layer.nodes[0] for layer in model.plan.layers}
    births = {
        int(name.rsplit("layer")[1]): node.birth
        for name, node in layers.items()
        if name.startswith("group2.layer")
    }
    assert [index for index in births if births[index] == 1] == [1, 9]
    assert [index for index in births if births[index] == 2] == [5, 13]
    assert [index for index in births if births[index] == 3] == [3, 7, 11, 15]
    assert [index for index in births if births[index] == 4] == list(range(2, 17, 2))
    # layer 9 is stage 1's second: it reads its first and the group's input, and no later stage
    assert layers["group2.layer9"].reads == ("group2.layer1", "group2.transition1")
    # layer 13 is stage 2's fourth of 1, 5, 9, 13
    assert layers["group2.layer13"].reads == (
        "group2.layer9",
        "group2.layer5",
        "group2.transition2",
    )
    # the full network's layer 8 reads 7, 6, 4 and the group's input
    assert layers["group2.layer8"].reads == (
        "group2.layer7",
        "group2.layer6",
        "group2.layer4",
        "group2.transition4",
    )
    # each stage's output sums what an item after its last would read: 17 - 8k, 17 - 4k, ...
    assert [set(exit_.reads) for exit_ in model.plan.exits] == [
        {f"group3.layer{index}" for index in indices}
        for indices in ((9, 1), (13, 9, 1), (15, 13, 9, 1), (16, 15, 13, 9, 1))
    ]


def test_the_cascade_exits_after_an_eighth_a_quarter_a_half_and_all_blocks() -> None:
    model = create_model("cascade_sparse_resnet98")
    blocks = [
        sum(f"layer{i}" in name for layer in part.plan.layers if (name := layer.name) for i in [""])
        for part in (model.subnetwork(stage) for stage in range(1, 5))
    ]
    assert blocks == [6, 12, 24, 48]


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("depth_nested_sparse_resnet98", (0.17, 0.37, 0.76, 1.53)),  # docs/networks.md
        ("width_nested_resnet42", (0.15, 0.59, 2.34)),
        ("alternating_nested_sparse_resnet98", (0.023, 0.093, 0.19, 0.76, 1.53)),
    ],
)
def test_sizes_of_the_plain_networks(name: str, millions: tuple[float, ...]) -> None:
    for stage, expected in enumerate(millions, 1):
        (row,) = create_model(name, independent=stage).cost()
        assert row.parameters / 1e6 == pytest.approx(expected, rel=0.04)


def test_published_sizes_of_imagenet_networks() -> None:
    (row,) = create_model("width_nested_resnet50", independent=3, num_classes=1000).cost(224)
    assert row.parameters == 25_557_032  # torchvision's resnet50
    assert row.multiply_adds == pytest.approx(4.09e9, rel=0.002)
    (row,) = create_model("depth_nested_sparse_resnet66", independent=1, num_classes=1000).cost(224)
    assert row.parameters == pytest.approx(11_689_512, rel=0.001)  # torchvision's resnet18


def test_costs_of_oblong_images() -> None:
    model = create_model("width_nested_resnet14").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        list(model.stages(torch.zeros(1, 3, 40, 72)))
    assert counter.get_total_flops() == 2 * model.cost((40, 72))[-1].multiply_adds


@pytest.mark.parametrize(
    ("growth", "kept"),
    [(((1, 1), (2, 1), (4, 1)), 11 / 16), (((1, 1), (2, 1), (3, 1), (4, 1)), 10 / 16)],
)
def test_width_nesting_keeps_the_lower_triangle(
    growth: tuple[tuple[int, int], ...], kept: float
) -> None:
    model = create_model("width_nested_resnet42", growth=growth)
    layer = model.get_submodule("group2.layer3")
    assert isinstance(layer, NestedLayer)
    weights = sum(layer.node(s).conv1.weight.numel() for s in range(1, len(growth) + 1))
    assert weights == kept * (4 * 16) ** 2 * 9


def test_stem_reads_the_image_whole_at_each_width() -> None:
    model = create_model(
        "width_nested_resnet10", growth=(Stage(1, 1), Stage(3, 1)), in_channels=2, base_width=8
    )
    assert [node.units[0].inputs for node in model.plan.layers[0].nodes] == [2, 2]
    assert [node.units[0].outputs for node in model.plan.layers[0].nodes] == [8, 16]
