"""Costs and profiles of networks that are no nested ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import anynest
from anynest.profiling import Profile
from anynest.profiling.costs import count_costs, stage_costs
from anynest.profiling.input_size import InputSize
from anynest.profiling.profiler import profile_network
from anynest.profiling.times import ProfileError


class Three(nn.Module):
    """A linear layer, an LSTM, and attention that shares the first layer's weights."""

    num_stages = 3

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(8, 8)
        self.lstm = nn.LSTM(8, 6, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.unused = nn.Linear(100, 100)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [output for _, output in self.stages(x)]

    def stages(self, x: Tensor) -> Iterator[tuple[int, Tensor]]:
        x = self.first(x)
        yield 1, x
        yield 2, self.lstm(x)[0]
        x = self.first(x)
        yield 3, self.attention(x, x, x, need_weights=False)[0]


def test_counted_costs() -> None:
    """Of one sample, by hand; fused kernels hide nothing, and weights count where first read."""
    tokens = 5
    network = Three()
    first, second, third = count_costs(network, {"x": torch.randn(3, tokens, 8)})
    assert (first.stage, first.own_parameters, first.parameters) == (1, 72, 72)
    assert first.own_multiply_adds == tokens * 8 * 8
    assert second.own_parameters == 4 * 6 * (8 + 6 + 2)
    assert second.own_multiply_adds == tokens * 4 * 6 * (8 + 6)
    assert third.own_parameters == 4 * 8 * 8 + 4 * 8
    products = 4 * tokens * 8 * 8 + 2 * tokens * tokens * 8
    assert third.own_multiply_adds == tokens * 8 * 8 + products
    assert third.multiply_adds == sum(c.own_multiply_adds for c in (first, second, third))
    assert third.parameters == sum(c.own_parameters for c in (first, second, third))
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.mkldnn.enabled


def test_the_networks_own_cost() -> None:
    """Counted costs of a nested network equal its formula; a method ``cost`` is asked."""
    network = anynest.create_model("width_nested_resnet10").eval()
    images = torch.randn(2, 3, 8, 8)
    assert stage_costs(network, {"x": images}) == network.cost(8) == network.cost((8, 8))

    class Bare(nn.Module):
        num_stages = network.num_stages

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor) -> list[Tensor]:
            return self.network(x)  # type: ignore[no-any-return]

        def stages(self, x: Tensor) -> Iterator[tuple[int, Tensor]]:
            return self.network.stages(x)

    counted = stage_costs(Bare(), {"x": images})
    assert [row.multiply_adds for row in counted] == [row.multiply_adds for row in network.cost(8)]
    vit = anynest.create_model(next(n for n in anynest.list_models() if "vit" in n and "tiny" in n))
    size = vit.plan.image_size
    batch = torch.zeros(2, 3, size, size)
    assert stage_costs(vit, {"images": batch}) == vit.cost(size)


def test_a_profile_of_other_inputs(tmp_path: Path) -> None:
    example = torch.randn(2, 5, 8)
    profile = profile_network(
        Three(), example=(example,), threads=(1, 2), batch_sizes=(1, 3), rounds=1
    )
    assert (profile.model, profile.arguments) == ("Three", {})
    assert (profile.image_size, profile.plain, profile.plain_costs) == (None, (), ())
    assert profile.inputs == InputSize((("x", "float32", (5, 8)),))
    assert profile.costs == count_costs(Three(), {"x": example})
    assert {way[:1] + way[2:] for way in profile.ways} == {
        ("torch", threads, size) for threads in (1, 2) for size in (1, 3)
    }
    assert all(row.runs == 5 for row in profile.rows)
    profile.save(tmp_path / "profile.json")
    assert Profile.read(tmp_path) == profile
    (blank,) = profile.inputs.blank().values()
    assert (blank.shape, blank.dtype) == ((1, 5, 8), torch.float32)
    assert profile.is_of(InputSize.of({"x": torch.randn(9, 5, 8)}), None)
    for other in (torch.randn(2, 6, 8), torch.randn(2, 5, 8).double()):
        assert not profile.is_of(InputSize.of({"x": other}), None)


def test_a_profile_of_images() -> None:
    """By size or by example; images that are no squares are kept as inputs."""
    network = anynest.create_model("width_nested_resnet10")
    options: dict[str, Any] = {"backends": ("torch",), "rounds": 1, "plain": False}
    by_size = profile_network(network, image_size=8, **options)
    by_example = profile_network(network, example=torch.randn(1, 3, 8, 8), **options)
    for profile in (by_size, by_example):
        assert (profile.image_size, profile.inputs) == (8, None)
        assert profile.costs == network.cost(8)
        size = InputSize.of({"images": torch.randn(1, 3, 8, 8)})
        assert profile.is_of(size, 3)
        assert not profile.is_of(size, 1)
        assert '"inputs"' not in profile.dumps()
    wide = profile_network(network, example=torch.randn(1, 3, 8, 12), **options)
    assert wide.image_size is None
    assert wide.costs == network.cost((8, 12))
    assert Profile.loads(wide.dumps()) == wide
    for shape, fits in (((3, 8, 12), True), ((3, 12, 8), False), ((3, 8, 8), False)):
        assert wide.is_of(InputSize.of({"images": torch.randn(1, *shape)}), 3) == fits


@pytest.mark.parametrize(
    ("options", "kind", "reason"),
    [
        ({}, ProfileError, "exactly one of image_size= and example=, found none"),
        ({"image_size": 8, "example": 1}, ProfileError, "found both"),
        ({"image_size": 8}, ProfileError, "for networks with in_channels, found Three without"),
        ({"example": [torch.ones(1), torch.ones(1)]}, ProfileError, "must be x, found 2 tensors"),
        ({"example": {"y": torch.ones(1)}}, ValueError, "must be x, found y"),
        ({"example": torch.ones(1, 2, 8), "backends": ()}, ProfileError, "backends must be of"),
        ({"example": torch.ones(1, 2, 8), "backends": ["onnxruntime"]}, ValueError, "in Three"),
    ],
)
def test_what_does_not_fit(options: dict[str, Any], kind: type[Exception], reason: str) -> None:
    with pytest.raises(kind, match=reason) as error:
        profile_network(Three(), rounds=1, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ([], "inputs must be a list of inputs"),
        ([{"name": "x"}], "inputs must have name, dtype and shape"),
        ([{"name": 1, "dtype": "int64", "shape": [2]}], "inputs must have a name and a shape"),
        ([{"name": "x", "dtype": "load", "shape": [2]}], "must be one of torch, found 'load'"),
        ([{"name": "x", "dtype": 3, "shape": [2]}], "must be one of torch, found 3"),
        ([{"name": "x", "dtype": "int64", "shape": [0]}], "a side of x must be a whole number"),
        ([{"name": "x", "dtype": "int64", "shape": [10**5] * 3}], "x must have at most"),
    ],
)
def test_a_file_that_is_wrong(inputs: Any, reason: str) -> None:
    profile = profile_network(Three(), example=torch.randn(1, 2, 8), rounds=1)
    data = json.loads(profile.dumps())
    data["inputs"] = inputs
    with pytest.raises(ProfileError, match=reason) as error:
        Profile.loads(json.dumps(data))
    assert "profile the network again" in str(error.value)
    data["inputs"], data["image_size"] = profile.inputs and profile.inputs.to_json(), 8
    with pytest.raises(ProfileError, match="image_size must be a NoneType, found '8'"):
        Profile.loads(json.dumps(data))


def test_a_network_that_lacks_stages() -> None:
    with pytest.raises(TypeError, match="found Linear without: add exits"):
        profile_network(nn.Linear(2, 2), example=torch.ones(1, 2))  # type: ignore[arg-type]
