"""Statistical tests of paired differences, in percentage points.

Runs of one seed start from the same weights and see the same batches, so they are paired.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

LEVEL = 0.05
SAME = 1e-6  # points: spread of equal differences in floating point, far below one image


@dataclass(frozen=True)
class Difference:
    """The differences of one comparison, one per pair."""

    name: str
    values: tuple[float, ...]

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float:
        return statistics.mean(self.values)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the mean."""
        return interval(self.values)


def below_zero(values: Sequence[float], margin: float = 0.0) -> float:
    """p of the one-sided t-test that the mean lies below ``margin``.

    1 for fewer than two values and for equal values: errors are whole numbers of images, so a few
    seeds agree by chance, and a spread of 0 would imply certainty.

    >>> round(below_zero([-1.0, -2.0, -3.0]), 4)
    0.0371
    >>> below_zero([-1.0, -1.0]), below_zero([-0.1 - 0.2, -0.3]), below_zero([-5.0])
    (1.0, 1.0, 1.0)
    """
    if len(values) < 2:
        return 1.0
    mean, spread = statistics.mean(values) - margin, statistics.stdev(values)
    if spread < SAME:
        return 1.0
    t = mean / spread * math.sqrt(len(values))
    from scipy.special import stdtr  # slow to import, and needed by verdicts alone

    return float(stdtr(len(values) - 1, t))


def above_zero(values: Sequence[float], margin: float = 0.0) -> float:
    """p of the one-sided t-test that the mean lies above ``margin``."""
    return below_zero([-value for value in values], -margin)


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The two-sided 95 % interval of the mean, after Student; None where ``below_zero`` is 1 for
    want of values or of spread.

    >>> low, high = interval([-1.0, -2.0, -3.0])
    >>> round(low, 2), round(high, 2)
    (-4.48, 0.48)
    >>> interval([-1.0, -1.0]), interval([-5.0])
    (None, None)
    """
    if len(values) < 2 or (spread := statistics.stdev(values)) < SAME:
        return None
    from scipy.special import stdtrit

    half = float(stdtrit(len(values) - 1, 1 - LEVEL / 2)) * spread / math.sqrt(len(values))
    mean = statistics.mean(values)
    return mean - half, mean + half


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, which bound the chance of any false rejection among all tests.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted
