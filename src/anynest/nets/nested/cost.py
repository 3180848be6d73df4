"""The cost of each stage, counted from the plan (paper, Figure 9).

A multiply-add is one multiplication and one addition, in convolutions and linear heads. A stage's
*own* cost is what it adds to the stages before it (N4).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .growth import positive_integer
from .plan import IMAGE, Layer, Plan


@dataclass(frozen=True)
class StageCost:
    """Parameters and multiply-adds of one stage: its own, and up to and including it."""

    stage: int
    own_parameters: int
    parameters: int
    own_multiply_adds: int
    multiply_adds: int


def _halved(size: int, stride: int) -> int:
    return -(-size // stride)


def stage_costs(plan: Plan, image_size: tuple[int, int]) -> tuple[StageCost, ...]:
    """Count parameters and multiply-adds per stage, for one image of (height, width) pixels.

    Raises:
        ValueError: a side is no positive integer.
    """
    height, width = (positive_integer("image_size", side) for side in image_size)
    resolution: dict[str, tuple[int, int]] = {IMAGE: (height, width)}
    parameters: dict[int, int] = {}
    work: dict[int, int] = {}

    def add(birth: int, own_parameters: int, own_work: int) -> None:
        parameters[birth] = parameters.get(birth, 0) + own_parameters
        work[birth] = work.get(birth, 0) + own_work

    for layer in plan.layers:
        resolution[layer.name] = _count_layer(layer, resolution, add)
    for piece in plan.norms():
        add(piece.birth, 2 * piece.channels, 0)
    for piece in plan.heads():
        add(piece.birth, piece.channels * plan.num_classes, 0)
    for first in {exit_.head[0] for exit_ in plan.exits}:
        add(first.birth, plan.num_classes, 0)  # the bias
    for exit_ in plan.exits:
        add(exit_.stage, 0, exit_.features * plan.num_classes)
    rows: list[StageCost] = []
    births = sorted(parameters)
    for exit_ in plan.exits:
        upto = [birth for birth in births if birth <= exit_.stage]
        before = [birth for birth in upto if rows and birth <= rows[-1].stage]
        total = sum(parameters[b] for b in upto), sum(work[b] for b in upto)
        own = total[0] - sum(parameters[b] for b in before), total[1] - sum(work[b] for b in before)
        rows.append(StageCost(exit_.stage, own[0], total[0], own[1], total[1]))
    return tuple(rows)


def _count_layer(
    layer: Layer, resolution: dict[str, tuple[int, int]], add: Callable[[int, int, int], None]
) -> tuple[int, int]:
    """Add a layer's nodes to the count; the resolution of its result."""
    size = resolution[layer.nodes[0].reads[0]]
    result = size
    for node in layer.nodes:
        result = size
        for unit in node.units:
            result = _halved(result[0], unit.stride), _halved(result[1], unit.stride)
            norm = 0 if node.norms else 2 * unit.outputs
            add(node.birth, unit.weights + norm, unit.weights * result[0] * result[1])
    return (_halved(result[0], 2), _halved(result[1], 2)) if layer.pool else result
