"""Names, options, errors: what a user of ``create_model`` meets."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from anynest import create_model, list_models, register
from anynest.nets import (
    Architecture,
    StageCost,
    create_architecture,
    describe,
    parse_growth,
    registry,
)

NESTED = [name for name in list_models() if registry.is_nested(name)]
THE_PAPERS = (
    "width_nested_resnet42",
    "even_width_resnet42",
    "depth_nested_sparse_resnet98",
    "alternating_nested_sparse_resnet98",
    "simultaneous_nested_sparse_resnet98",
    "cascade_sparse_resnet98",
    "width_nested_resnet50",
    "depth_nested_sparse_resnet66",
)


def test_the_papers_networks_are_there() -> None:
    assert set(THE_PAPERS) <= set(list_models())
    assert list_models("cascade_*") == ["cascade_sparse_resnet26", "cascade_sparse_resnet98"]
    assert all(describe(name) for name in list_models())


@pytest.mark.parametrize("name", NESTED)
def test_every_family_honours_every_argument(name: str) -> None:
    growth = [[1, 1], [3, 1]] if "resnet10" in name or "width" in name else [[1, 1], [2, 2]]
    model = create_model(
        name, num_classes=7, in_channels=2, growth=growth, base_width=2, stem="imagenet"
    )
    assert model.num_stages == 2
    logits = model.eval()(torch.randn(2, 2, 32, 32))
    assert [tuple(row.shape) for row in logits] == [(2, 7), (2, 7)]
    stem = next(layer for layer in model.plan.layers if layer.name.endswith("stem"))
    assert stem.pool
    assert stem.nodes[0].units[0].inputs == 2
    assert stem.nodes[0].units[0].outputs == 2


@pytest.mark.parametrize("name", NESTED)
def test_arguments_survive_json_and_build_the_same_network(name: str) -> None:
    model = create_model(name, num_classes=3, base_width=2, independent=2)
    arguments = json.loads(json.dumps(model.arguments))
    again = create_model(model.name, **arguments)
    assert again.plan == model.plan
    assert again.arguments == model.arguments
    again.load_state_dict(model.state_dict())
    options = {"blocks": [1, 1], "exit": "linear"}
    other = create_model(name, **options)
    assert create_model(name, **json.loads(json.dumps(other.arguments))).plan == other.plan


def test_a_subnetwork_is_built_again_from_its_arguments() -> None:
    whole = create_model("alternating_nested_sparse_resnet14", num_classes=3).eval()
    part = whole.subnetwork(2)
    again = create_model(part.name, **json.loads(json.dumps(part.arguments))).eval()
    assert again.plan == part.plan
    assert again.arguments == part.arguments == part.subnetwork(1).arguments
    again.load_state_dict(part.state_dict())
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(again(x)[0], whole(x)[1])
    assert "subnetwork" not in whole.arguments


def test_an_unknown_model_lists_the_near_matches() -> None:
    with pytest.raises(ValueError, match=r"width_nested_resnet41.*near.*width_nested_resnet42"):
        create_model("width_nested_resnet41")


def test_an_unknown_option_names_the_near_one() -> None:
    with pytest.raises(TypeError, match=r"'exits'; did you mean 'exit'"):
        create_model("cascade_sparse_resnet26", exits="linear")


def test_integers_of_numpy_become_pythons() -> None:
    three, four = np.int64(3), np.int32(4)
    growth = [(np.int64(1), 1), (2, 1)]
    model = create_model("width_nested_resnet10", num_classes=three, base_width=four, growth=growth)
    assert json.loads(json.dumps(model.arguments)) == {
        "num_classes": 3,
        "in_channels": 3,
        "growth": [[1, 1], [2, 1]],
        "base_width": 4,
    }
    assert model.subnetwork(np.int64(2)).num_stages == 1  # type: ignore[arg-type]
    assert model.cost(np.int64(8)) == model.cost((8, 8))  # type: ignore[arg-type]
    for size in (0, -1, 8.0, 10**30):
        with pytest.raises(ValueError, match="image_size must be"):
            model.cost(size)  # type: ignore[arg-type]


def test_a_duplicate_name_raises_and_a_new_one_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_FACTORIES", dict(registry._FACTORIES))

    @register
    def my_nested_resnet8() -> Architecture:
        """Mine."""
        return Architecture(blocks=(1, 1, 1), growth=((1, 1), (2, 1)), base_width=4)

    assert "my_nested_resnet8" in list_models()
    assert create_model("my_nested_resnet8").num_stages == 2
    with pytest.raises(ValueError, match=r"'my_nested_resnet8' is registered already"):
        register(my_nested_resnet8)

    @register
    def my_wrong_one() -> Architecture:
        return {"blocks": (1,)}  # type: ignore[return-value]

    with pytest.raises(TypeError, match=r"my_wrong_one must return an Architecture, or a .* dict"):
        create_model("my_wrong_one")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"growth": []}, "non-empty list of"),
        ({"growth": "wide"}, "non-empty list of"),
        ({"growth": [[1, 1], [0, 1]]}, "stage 2 must be two positive integers"),
        ({"growth": [[1.5, 1]]}, "stage 1 must be two positive integers"),
        ({"growth": [[1, 1, 1]]}, "stage 1 must be two positive integers"),
        ({"growth": [[2, 1], [1, 1]]}, "stage 2 must grow"),
        ({"growth": [[1, 1], [1, 1]]}, "stage 2 must grow"),
        ({"growth": [[1, 2], [2, 3]]}, "each depth must divide the next"),
        ({"growth": [[1, 1], [1, 2]]}, "use a sparse_resnet model"),
        ({"base_width": 0}, "base_width must be a positive integer, found 0"),
        ({"num_classes": -1}, "num_classes must be a positive integer"),
        ({"stem": "mnist"}, "stem must be one of cifar, imagenet, found 'mnist'"),
        ({"independent": 4}, "numbered 1 to 3, found 4"),
        ({"independent": 10**30}, "numbered 1 to 3, found 1000"),
        ({"base_width": 10**30}, "base_width must be at most 2147483647, found 1000"),
        ({"base_width": 2**31 - 1}, "at most 1152921504606846976 weights.*narrow the network"),
        ({"num_classes": 10**30}, "num_classes must be at most 2147483647"),
        ({"growth": [[10**30, 1]]}, "growth: stage 1 must be at most 2147483647"),
        ({"blocks": [10**9]}, "blocks times the largest depth must be at most 10000, found 10"),
        (
            {"blocks": [10**3], "growth": [[n, 1] for n in range(1, 22)]},
            "at most 20000, found 21000",
        ),
        ({"blocks": []}, "blocks must list the blocks of each group"),
        ({"blocks": [2, 0]}, "blocks must be a positive integer, found 0"),
        ({"base_width": True}, "base_width must be a positive integer, found True"),
        ({"average": True}, "for ensembles"),
        ({"isolated": "yes"}, "isolated must be true or false"),
    ],
)
def test_bad_arguments_get_one_line_with_the_rule_and_the_value(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        create_model("width_nested_resnet10", **arguments)
    assert "\n" not in str(error.value)


def test_wrong_images_get_one_line() -> None:
    model = create_model("width_nested_resnet10")
    for shape in ((2, 1, 8, 8), (3, 8, 8)):
        with pytest.raises(ValueError, match=r"images must be \[batch, 3, height, width\]"):
            model(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"floating point, found torch.uint8"):
        model(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    for stage in (0, 4, "1"):
        with pytest.raises(ValueError, match="numbered 1 to 3"):
            model.subnetwork(stage)  # type: ignore[arg-type]
    model.kernels = "fast"
    with pytest.raises(ValueError, match="kernels must be one of auto, stripes, found"):
        model(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match=r"that add modules are \[1, 2, 3\], found 9"):
        model.stage_modules(9)


def test_an_average_ensemble_averages_and_a_plain_one_does_not() -> None:
    torch.manual_seed(0)
    mean = create_model("ensemble_resnet10", average=True).eval()
    single = create_model("ensemble_resnet10").eval()
    single.load_state_dict(mean.state_dict())
    x = torch.randn(2, 3, 8, 8)
    members = single(x)
    expected = [torch.stack(members[: s + 1]).mean(0) for s in range(3)]
    torch.testing.assert_close(mean(x), expected)


def test_growths_of_the_design_are_admitted() -> None:
    for growth in ([(1, 1), (2, 1), (4, 1)], [(1, 1), (1, 2), (1, 4)], [(4, 4)], [(1, 1), (1, 3)]):
        assert [tuple(stage) for stage in parse_growth(growth)] == growth


class Foreign(nn.Module):
    """Two stages, no base class."""

    num_stages = 2

    def __init__(self, num_classes=4, in_channels=1, width=3):
        super().__init__()
        self.num_classes, self.in_channels = num_classes, in_channels
        self.first = nn.Linear(in_channels, width)
        self.heads = nn.ModuleList(nn.Linear(width, num_classes) for _ in range(2))

    def forward(self, x):
        return [out for _, out in self.stages(x)]

    def stages(self, x):
        features = self.first(x.mean((2, 3)))
        for number, head in enumerate(self.heads, 1):
            yield number, head(features)


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_FACTORIES", dict(registry._FACTORIES))
    monkeypatch.setattr(registry, "_COSTS", dict(registry._COSTS))


@pytest.mark.usefixtures("own")
def test_a_factory_may_return_any_staged_module() -> None:
    @register
    def mine(num_classes: int = 4, in_channels: int = 1, *, width: int = 3) -> Foreign:
        """My own."""
        return Foreign(num_classes, in_channels, width)

    assert "mine" in list_models("mi*")
    assert describe("mine") == "My own."
    default = create_model("mine")
    assert (default.num_classes, default.in_channels, default.first.out_features) == (4, 1, 3)
    model = create_model("mine", num_classes=np.int64(7), width=np.int64(5))
    assert (model.num_classes, model.in_channels, model.first.out_features) == (7, 1, 5)
    origin = registry.origin_of(model)
    assert origin is not None
    assert origin.name == registry.name_of(model) == "mine"
    assert origin.module == __name__
    assert json.loads(json.dumps(origin.arguments)) == {"num_classes": 7, "width": 5}
    again = create_model(origin.name, **origin.arguments)
    again.load_state_dict(model.state_dict())
    copied = registry.origin_of(copy.deepcopy(model))
    assert copied == origin


def test_the_origin_of_a_nested_network_is_its_name_and_arguments() -> None:
    model = create_model("width_nested_resnet10", base_width=2)
    origin = registry.origin_of(model)
    assert origin == registry.ModelOrigin("width_nested_resnet10", model.arguments, "")
    assert registry.origin_of(nn.Linear(1, 1)) is None
    assert registry.name_of(nn.Linear(1, 1)) == "Linear"


@pytest.mark.usefixtures("own")
def test_a_factory_without_parameters_takes_no_options() -> None:
    @register
    def fixed() -> Foreign:
        return Foreign()

    assert create_model("fixed", num_classes=4).num_classes == 4
    with pytest.raises(TypeError, match="fixed has no option 'width'; it has none"):
        create_model("fixed", width=3)
    with pytest.raises(TypeError, match="fixed takes no num_classes=5, whose network has 4: give"):
        create_model("fixed", num_classes=5)


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("option", ["growth", "base_width", "stem", "independent", "subnetwork"])
def test_options_of_nested_networks_are_refused_by_others(option: str) -> None:
    @register
    def mine(num_classes: int = 4, width: int = 3) -> Foreign:
        return Foreign(num_classes, 1, width)

    value = {"growth": [[1, 1]], "stem": "cifar"}.get(option, 1)
    with pytest.raises(TypeError, match=f"^mine has no option '{option}'; networks with an Arch"):
        create_model("mine", **{option: value})


@pytest.mark.usefixtures("own")
def test_wrong_options_of_a_factory_get_one_line() -> None:
    @register
    def mine(depth: int, num_classes: int = 4, width: int = 3) -> Foreign:
        return Foreign(num_classes, 1, width)

    @register
    def deaf(num_classes: int = 4) -> Foreign:
        return Foreign(10)

    with pytest.raises(TypeError, match="mine has no option 'widht'; did you mean 'width'"):
        create_model("mine", depth=1, widht=3)
    with pytest.raises(TypeError, match="mine needs the option 'depth'"):
        create_model("mine")
    with pytest.raises(TypeError, match=r"option 'width' of mine must be plain data.*Linear"):
        create_model("mine", depth=1, width=nn.Linear(1, 1))
    with pytest.raises(TypeError, match="mine takes no in_channels=2, whose network has 1"):
        create_model("mine", depth=1, in_channels=2)
    with pytest.raises(TypeError, match="deaf must heed num_classes=5, found 10"):
        create_model("deaf", num_classes=5)
    assert create_model("deaf", num_classes=10).num_classes == 10


@pytest.mark.usefixtures("own")
def test_what_a_factory_returns_must_be_staged() -> None:
    @register
    def headless(num_classes: int = 10) -> nn.Module:
        return nn.Linear(1, num_classes)

    @register
    def late_architecture(base_width: int = 4) -> Architecture:
        return Architecture(blocks=(1, 1, 1), growth=((1, 1), (2, 1)), base_width=base_width)

    with pytest.raises(TypeError, match=r"^headless needs a network with num_stages"):
        create_model("headless")
    with pytest.raises(TypeError, match="found Architecture; one with parameters returns a netw"):
        create_model("late_architecture")


@pytest.mark.usefixtures("own")
def test_create_architecture_refuses_other_networks() -> None:
    built = []

    @register
    def mine(num_classes: int = 4) -> Foreign:
        built.append(num_classes)
        return Foreign(num_classes)

    with pytest.raises(TypeError, match="mine has no Architecture: its function returns a netw"):
        create_architecture("mine")
    assert not registry.is_nested("mine")
    assert registry.is_nested("width_nested_resnet10")
    assert built == []


@pytest.mark.usefixtures("own")
def test_a_network_without_such_options_keeps_its_own_classes() -> None:
    class Silent(Foreign):
        def __init__(self) -> None:
            super().__init__()
            self.num_classes = self.in_channels = None

    register(Silent)

    @register
    def fixed(width: int = 3) -> Foreign:
        return Foreign(width=width)

    data = {"num_classes": 10, "in_channels": 3}
    assert registry.create_for_data("Silent", **data).num_classes is None
    assert registry.create_for_data("fixed", num_classes=4, in_channels=1, width=2).num_classes == 4
    with pytest.raises(TypeError, match="fixed takes no num_classes=10, whose network has 4"):
        registry.create_for_data("fixed", **data)
    with pytest.raises(TypeError, match="Silent takes no num_classes=10: give its function"):
        create_model("Silent", num_classes=10)


@pytest.mark.usefixtures("own")
def test_the_datas_image_size_is_a_default() -> None:
    @register
    def sized(num_classes: int = 4, image_size: int = 32) -> Foreign:
        return Foreign(num_classes, 1, image_size)

    data = {"num_classes": 4, "in_channels": 1, "data_size": 8}
    assert registry.create_for_data("sized", **data).first.out_features == 8
    assert registry.create_for_data("sized", **data, image_size=5).first.out_features == 5
    nested = registry.create_for_data("width_nested_resnet10", **data)
    assert "image_size" not in nested.arguments
    with pytest.raises(TypeError, match="no option 'image_size'"):
        registry.create_for_data("width_nested_resnet10", **data, image_size=8)


@pytest.mark.usefixtures("own")
def test_a_factory_with_any_options_is_given_all() -> None:
    @register
    def open_one(**options: Any) -> Foreign:
        return Foreign(**options)

    model = registry.create_for_data("open_one", num_classes=6, in_channels=2, width=5)
    assert (model.num_classes, model.in_channels, model.first.out_features) == (6, 2, 5)


@pytest.mark.usefixtures("own")
def test_costs_are_registered_beside_a_factory() -> None:
    def cost(width: int = 3, num_classes: int = 4) -> list[StageCost]:
        return [StageCost(1, width, width, num_classes, num_classes)]

    @register(costs=cost)
    def mine(num_classes: int = 4, width: int = 3) -> Foreign:
        return Foreign(num_classes, 1, width)

    assert registry.registered_costs("mine", num_classes=5, in_channels=9) == (
        StageCost(1, 3, 3, 5, 5),
    )
    assert registry.registered_costs("width_nested_resnet10") is None
    assert registry.option_defaults("mine") == {"num_classes": 4, "width": 3}
