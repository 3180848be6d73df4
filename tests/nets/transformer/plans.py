"""The nested transformers of the tests: shapes of the registered ones, and random plans."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from anynest.nets.nested.growth import Stage
from anynest.nets.transformer.network import NestedTransformer
from anynest.nets.transformer.plan import TransformerPlan
from anynest.nets.transformer.stripe import Stripe

BATCH = 3


def plan_of(*growth: tuple[int, int], **fields: int) -> TransformerPlan:
    sizes = {"base_width": 8, "layers": 2, "head_size": 4, "patch_size": 4, "image_size": 8}
    return TransformerPlan(growth=tuple(Stage(*s) for s in growth), **(sizes | fields))


PLANS = {
    "plain": plan_of((2, 1)),
    "halves": plan_of((1, 1), (2, 1)),
    "powers of two": plan_of((1, 1), (2, 1), (4, 1), num_classes=7),
    "width and depth": plan_of((1, 1), (2, 2), (4, 4), layers=1),
    "deeper late": plan_of((1, 1), (2, 1), (3, 3), in_channels=1, mlp_ratio=2),
}


@st.composite
def random_plans(draw: st.DrawFn) -> TransformerPlan:
    stages: list[tuple[int, int]] = []
    width = depth = 1
    for _ in range(draw(st.integers(1, 4))):
        stages.append((width, depth))
        width += draw(st.integers(1, 2))
        depth *= draw(st.sampled_from([1, 1, 2, 3])) if depth < 4 else 1
    patch = draw(st.sampled_from([1, 2, 4]))
    return plan_of(
        *stages,
        base_width=draw(st.sampled_from([4, 8])),
        layers=draw(st.integers(1, 2)),
        head_size=draw(st.sampled_from([2, 4])),
        patch_size=patch,
        image_size=patch * draw(st.integers(1, 3)),
        mlp_ratio=draw(st.integers(1, 4)),
        num_classes=draw(st.integers(1, 5)),
        in_channels=draw(st.integers(1, 3)),
    )


def network(plan: TransformerPlan) -> NestedTransformer:
    """The network in float64, with weights large enough that every part matters."""
    torch.manual_seed(0)
    model = NestedTransformer(plan).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.3).add_(1.0 if "norm" in name else 0.0)
    return model


def images(plan: TransformerPlan, side: int | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    size = plan.image_size if side is None else side
    shape = (BATCH, plan.in_channels, size, size)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def births(model: NestedTransformer) -> dict[str, int]:
    """Per parameter the stage that adds it; from its name alone."""
    return {name: int(name.split(".")[0][-1]) for name, _ in model.named_parameters()}


def parts(model: NestedTransformer) -> list[nn.Module]:
    """The modules with parameters of their own."""
    return [
        module
        for module in model.modules()
        if isinstance(module, (nn.Linear, nn.LayerNorm, nn.Conv2d, Stripe))
    ]
