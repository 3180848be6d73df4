"""The registered nested transformers: sizes, options, and their weights in a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import anynest
from anynest import create_model, list_models
from anynest.nets import registry
from anynest.nets.transformer.network import NestedTransformer
from anynest.store.weights import WeightsInfo, save_weights

NAMES = list_models("*vit*")
TINY = ["width_nested_vit_tiny", "simultaneous_nested_vit_tiny"]


@pytest.mark.parametrize("name", NAMES)
def test_the_costs_beside_a_factory_are_the_networks(name: str) -> None:
    options = {"layers": 1, "num_classes": 3, "in_channels": 1}
    model = create_model(name, **options)
    assert isinstance(model, NestedTransformer)
    assert registry.registered_costs(name, **options) == model.cost()
    assert sum(p.numel() for p in model.parameters()) == model.cost()[-1].parameters
    alone = create_model(name, independent=2, **options)
    assert registry.registered_costs(name, independent=2, **options) == alone.cost()
    assert alone.plan.widths == (model.plan.total_width(2),)


def test_the_sizes_of_vit_s16() -> None:
    """1.25 and 3.55, or 0.37, 0.99 and 3.29 billion multiply-adds, against 4.6 of the plain one."""
    for name, expected in (
        ("even_width_vit_s16", [1.253, 3.553]),
        ("width_nested_vit_s16", [0.365, 0.992, 3.291]),
    ):
        rows = registry.registered_costs(name)
        assert rows is not None
        assert [round(row.multiply_adds / 1e9, 3) for row in rows] == expected
        (plain,) = registry.registered_costs(name, independent=len(rows), num_classes=1000) or ()
        assert plain.parameters == 22_050_664  # timm's vit_small_patch16_224
        assert round(plain.multiply_adds / 1e9, 2) == 4.6


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize(("side", "patch"), [(32, 4), (16, 2), (16, 4), (8, 2)])
def test_tiny_members_take_small_images(name: str, side: int, patch: int) -> None:
    model = create_model(name, patch_size=patch, image_size=side, num_classes=5)
    outputs = model(torch.randn(2, 3, side, side))
    assert [tuple(logits.shape) for logits in outputs] == [(2, 5)] * 3


def test_unknown_options() -> None:
    with pytest.raises(TypeError, match="no option 'heads'"):
        create_model(TINY[0], heads=3)
    with pytest.raises(TypeError, match="no option 'stem'"):
        create_model(TINY[0], stem="cifar")


@pytest.mark.parametrize("stage", [None, 1, 2, 3])
@pytest.mark.parametrize("by_option", [False, True])
def test_weights_come_back_from_their_file(
    stage: int | None, by_option: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    name, options = TINY[1], {"num_classes": 4, "base_width": 8, "head_size": 4}
    if by_option:
        part = create_model(name, subnetwork=stage, **options).eval()
    else:
        model = create_model(name, **options).eval()
        part = model if stage is None else model.subnetwork(stage)
    origin = registry.origin_of(part)
    assert origin is not None
    assert ("subnetwork" in origin.arguments) == (stage is not None)
    info = WeightsInfo(
        model=origin.name,
        arguments=origin.arguments,
        classes=tuple("0123"),
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        image_size=32,
        data="noise",
        anynest="0",
    )
    save_weights(tmp_path / "weights.safetensors", part, info)
    again = anynest.load(tmp_path / "weights.safetensors")
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        for mine, theirs in zip(again(x), part(x), strict=True):
            assert torch.equal(mine, theirs)
