"""Figure 9's curves of error against multiply-adds, and the distance between two curves."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..catalog.designs import DESIGNS
from ..catalog.fig9 import ALONE, LARGEST, Panel
from ..catalog.variants import title_of
from .evidence import Evidence


@dataclass(frozen=True)
class Point:
    """One network or stage: multiply-adds per image, and the error in % by seed."""

    name: str
    work: float
    errors: dict[int, float]

    @property
    def mean(self) -> float:
        return statistics.mean(self.errors.values())


def anytime_curve(evidence: Evidence, design: str, variant: str) -> list[Point]:
    """One point per stage; empty if the run is missing."""
    errors, work = evidence.errors(design, variant), evidence.work.get((design, None), [])
    if not errors:
        return []
    return [
        Point(
            f"{DESIGNS[design].words}, stage {stage}",
            cost,
            {seed: row[stage - 1] for seed, row in errors.items()},
        )
        for stage, cost in enumerate(work, start=1)
    ]


def oracle_curve(evidence: Evidence, panel: Panel) -> list[Point]:
    """One point per size; of two training strategies the better, as in the paper."""
    points = []
    for stage in range(1, evidence.stages(panel.oracle) + 1):
        tried = []
        for variant in (ALONE, LARGEST):
            errors = evidence.errors(panel.oracle, variant, stage)
            if errors:
                work = evidence.work[panel.oracle, stage][0]
                name = f"Oracle, size {stage}, {title_of(variant)}"
                tried.append(Point(name, work, {s: row[0] for s, row in errors.items()}))
        if tried:
            points.append(min(tried, key=lambda point: point.mean))
    return points


def mean_over_work(points: Sequence[tuple[float, float]], low: float, high: float) -> float:
    """The mean error over the logarithm of the multiply-adds from ``low`` to ``high``, linearly
    interpolated between the points (work, error).

    >>> mean_over_work([(1, 30.0), (4, 10.0)], 1, 4)
    20.0
    >>> mean_over_work([(1, 30.0), (4, 10.0)], 2, 4)
    15.0
    """
    xs, ys = [math.log2(work) for work, _ in points], [error for _, error in points]
    left, right = math.log2(low), math.log2(high)
    grid = [left, *(x for x in xs if left < x < right), right]
    values = np.interp(grid, xs, ys).tolist()
    area = sum(
        (b - a) * (va + vb) / 2
        for a, b, va, vb in zip(grid, grid[1:], values, values[1:], strict=False)
    )
    return float(area / (right - left))


def curve_differences(first: Sequence[Point], second: Sequence[Point]) -> dict[int, float]:
    """By seed, the mean height (percentage points) of the first curve above the second where their
    ranges overlap. Empty without overlap; seeds that a point lacks are left out."""
    if len(first) < 2 or len(second) < 2:
        return {}
    low, high = max(first[0].work, second[0].work), min(first[-1].work, second[-1].work)
    if low >= high:
        return {}
    curves = (first, second)
    seeds = set.intersection(*(set(point.errors) for curve in curves for point in curve))

    def mean(curve: Sequence[Point], seed: int) -> float:
        return mean_over_work([(p.work, p.errors[seed]) for p in curve], low, high)

    return {seed: mean(first, seed) - mean(second, seed) for seed in sorted(seeds)}
