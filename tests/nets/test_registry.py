"""Names, options, errors: what a user of ``create_model`` meets."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from anynest import create_model, list_models, register
from anynest.nets import Architecture, describe, parse_growth, registry

SMALL = [n for n in list_models() if not any(size in n for size in ("42", "98", "50", "66"))]
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


@pytest.mark.parametrize("name", list_models())
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


@pytest.mark.parametrize("name", list_models())
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

    with pytest.raises(TypeError, match="my_wrong_one must return an Architecture, found dict"):
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
