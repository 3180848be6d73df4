"""Vision transformers nested in width, and in width and depth (docs/transformers.md).

Every field of ``TransformerPlan`` is an option of ``create_model``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import asdict
from functools import wraps
from typing import TYPE_CHECKING, Any

from ..nested.cost import StageCost
from ..nested.growth import Stage
from ..registry import register
from ..transformer.cost import stage_costs
from ..transformer.plan import TransformerPlan

if TYPE_CHECKING:
    from ..transformer.network import NestedTransformer

POWERS_OF_TWO = (Stage(1, 1), Stage(2, 1), Stage(4, 1))
SIMULTANEOUS = (Stage(1, 1), Stage(2, 2), Stage(4, 4))
EVEN = (Stage(1, 1), Stage(2, 1))


def _register_plan(make: Callable[[], TransformerPlan]) -> Callable[..., NestedTransformer]:
    """Register the network of a plan, with the plan's fields as its options."""
    plan = make()

    @wraps(make)
    def factory(**options: Any) -> NestedTransformer:
        from ..transformer.network import create  # imports torch; names and costs need none

        return create(plan, **options)

    def costs(*, independent: int | None = None, **options: Any) -> tuple[StageCost, ...]:
        configured = plan.configure(options, independent)
        return stage_costs(configured, (configured.image_size, configured.image_size))

    defaults = {**asdict(plan), "independent": None, "subnetwork": None}
    keyword = inspect.Parameter.KEYWORD_ONLY
    factory.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(key, keyword, default=value) for key, value in defaults.items()]
    )
    return register(costs=costs)(factory)


@_register_plan
def width_nested_vit_tiny() -> TransformerPlan:
    """A small ViT for CIFAR, nested in width 48, 96, 192: patches of 4x4 pixels, 6 layers."""
    return TransformerPlan(
        growth=POWERS_OF_TWO, base_width=48, layers=6, head_size=48, patch_size=4, image_size=32
    )


@_register_plan
def simultaneous_nested_vit_tiny() -> TransformerPlan:
    """A small ViT for CIFAR that grows in width 32, 64, 128 and depth 2, 4, 8 at once."""
    return TransformerPlan(
        growth=SIMULTANEOUS, base_width=32, layers=2, head_size=32, patch_size=4, image_size=32
    )


@_register_plan
def width_nested_vit_s16() -> TransformerPlan:
    """ViT-S/16 for ImageNet, nested in width 96, 192, 384: 12 layers, heads of 32 channels."""
    return TransformerPlan(
        growth=POWERS_OF_TWO, base_width=96, layers=12, head_size=32, patch_size=16, image_size=224
    )


@_register_plan
def even_width_vit_s16() -> TransformerPlan:
    """ViT-S/16 for ImageNet in two stripes of 192 channels: 12 layers, heads of 64 channels."""
    return TransformerPlan(
        growth=EVEN, base_width=192, layers=12, head_size=64, patch_size=16, image_size=224
    )
