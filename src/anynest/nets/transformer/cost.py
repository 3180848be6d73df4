"""The cost of each stage of a nested transformer, counted from its plan.

With N tokens, d = the channels that stage s adds, D = those of stages 1 to s, r = ``mlp_ratio``:
one layer has N d D (4 + 2 r) multiply-adds in linear layers and 2 N^2 d in its attention.
"""

from __future__ import annotations

from ..nested.cost import StageCost
from ..nested.growth import positive_integer
from .plan import TransformerPlan


def grid_of(plan: TransformerPlan, image_size: tuple[int, int]) -> tuple[int, int]:
    """Patches in height and width.

    Raises:
        ValueError: a side that is no multiple of the patch.
    """
    height, width = (positive_integer("image_size", side) for side in image_size)
    if height % plan.patch_size or width % plan.patch_size:
        raise ValueError(
            f"images must have sides that are multiples of the patch, {plan.patch_size} pixels, "
            f"found {height}x{width}; resize them or create the model with another patch_size"
        )
    return height // plan.patch_size, width // plan.patch_size


def stage_costs(plan: TransformerPlan, image_size: tuple[int, int]) -> tuple[StageCost, ...]:
    """Parameters and multiply-adds per stage, for one image of (height, width) pixels.

    Raises:
        ValueError: a side that is no multiple of the patch.
    """
    height, width = grid_of(plan, image_size)
    patches, positions = height * width, (plan.image_size // plan.patch_size) ** 2 + 1
    tokens, ratio = patches + 1, plan.mlp_ratio
    rows: list[StageCost] = []
    parameters = work = 0
    for stage, own in enumerate(plan.widths, 1):
        total, count = plan.total_width(stage), len(plan.layers_of(stage))
        embed = plan.in_channels * plan.patch_size**2 * own
        linear = own * total * (4 + 2 * ratio)
        vectors = own * (4 + 3 + 1 + ratio + 1)  # two norms, four biases
        head = total * plan.num_classes
        added = (
            (embed + own)
            + own * (1 + positions)
            + count * (linear + vectors)
            + (2 * own + head + plan.num_classes)
        )
        added_work = patches * embed + count * (tokens * linear + 2 * tokens**2 * own) + head
        parameters, work = parameters + added, work + added_work
        rows.append(StageCost(stage, added, parameters, added_work, work))
    return tuple(rows)
