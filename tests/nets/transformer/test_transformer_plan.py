"""The plan of a nested transformer as data, and what it refuses."""

from __future__ import annotations

import re

import pytest
import torch
from transformer.plans import PLANS, images, network, plan_of

from anynest.nets.transformer.network import create
from anynest.nets.transformer.plan import TransformerPlan


def test_layers_are_interlaced() -> None:
    plan = plan_of((1, 1), (2, 2), (4, 4), layers=2)
    assert plan.widths == (8, 8, 16)
    assert [list(plan.layers_of(s)) for s in (1, 2, 3)] == [[0, 4], [0, 2, 4, 6], [*range(8)]]
    # each layer of stage 3 reads the last layer, not after it, of either earlier stage
    assert [plan.reads(3, layer) for layer in plan.layers_of(3)] == [
        *((0, 0), (0, 0), (0, 1), (0, 1)),
        *((1, 2), (1, 2), (1, 3), (1, 3)),
    ]
    assert [plan.reads(2, layer) for layer in plan.layers_of(2)] == [(0,), (0,), (1,), (1,)]
    assert plan.reads(1, 4) == ()


def test_layers_of_the_same_depth_read_their_own_number() -> None:
    plan = plan_of((1, 1), (2, 1), (4, 1), layers=3)
    assert [plan.reads(3, layer) for layer in plan.layers_of(3)] == [(0, 0), (1, 1), (2, 2)]


@pytest.mark.parametrize(
    ("growth", "fields", "message"),
    [
        (((1, 1), (1, 2)), {}, "must be wider than the one before.*found [(1, 1), (1, 2)]; widen"),
        (((1, 1), (2, 3), (3, 4)), {}, "each depth must divide the next"),
        (((1, 1), (2, 1)), {"head_size": 3}, "found 8 channels and head_size=3; change"),
        (((1, 1),), {"patch_size": 3}, "patch_size must divide image_size, found patch_size=3"),
        (((1, 1),), {"layers": 0}, "layers must be a positive integer, found 0"),
        (((1, 1),), {"layers": 10_001}, "must be at most 10000, found 10001"),
        (((1, 1),), {"mlp_ratio": 1.5}, "mlp_ratio must be a positive integer, found 1.5"),
    ],
)
def test_refused_plans(
    growth: tuple[tuple[int, int], ...], fields: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message).replace(r"\.\*", ".*")) as error:
        plan_of(*growth, **fields)
    assert "\n" not in str(error.value)


def test_options_of_create() -> None:
    plan = PLANS["powers of two"]
    model = create(plan, num_classes=4, in_channels=1, growth=[[1, 1], [3, 2]], head_size=None)
    assert (model.num_classes, model.in_channels, model.num_stages) == (4, 1, 2)
    assert model.plan.widths == (8, 16)
    plain = create(plan, independent=2)
    assert plain.plan == plan.plain(2)
    assert create(plan, subnetwork=2).outputs == (2,)
    with pytest.raises(TypeError, match="no option 'patchsize'; did you mean 'patch_size'"):
        create(plan, patchsize=2)
    for wrong in (0, 4):
        with pytest.raises(ValueError, match="numbered 1 to 3"):
            create(plan, independent=wrong)
        with pytest.raises(ValueError, match="numbered 1 to 3"):
            create(plan, subnetwork=wrong)


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((2, 1, 8, 8), torch.float64, "images must be [batch, 3, height, width], found [2, 1"),
        ((3, 8, 8), torch.float64, "found [3, 8, 8]"),
        ((2, 3, 8, 8), torch.uint8, "images must be floating point, found torch.uint8"),
        ((2, 3, 8, 10), torch.float64, "multiples of the patch, 4 pixels, found 8x10; resize"),
    ],
)
def test_refused_images(shape: tuple[int, ...], dtype: torch.dtype, message: str) -> None:
    model = network(PLANS["halves"])
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        model(torch.zeros(shape, dtype=dtype))
    assert "\n" not in str(error.value)


def test_initial_weights() -> None:
    torch.manual_seed(0)
    model = create(plan_of((1, 1), (2, 1), base_width=64, head_size=32))
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            assert not parameter.any(), name
        elif ".norm" in name:
            assert (parameter == 1).all()
        elif "embed" not in name:
            is_linear = parameter.dim() == 2
            deviation = parameter.shape[1] ** -0.5 if is_linear else 0.02
            assert 0.85 * deviation < parameter.std() < 1.15 * deviation, name


def test_evaluations_are_deterministic() -> None:
    plan: TransformerPlan = PLANS["halves"]
    model = network(plan)
    first, second = (model(images(plan)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
