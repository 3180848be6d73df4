"""The few statistical tests that the claims are judged with; differences are in percentage points.

A seed gives two networks trained by different methods the same initial weights and the same
batches, so differences are taken seed by seed (paired). SciPy's t distribution does the rest.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

LEVEL = 0.05
SAME = 1e-6  # points, below any share of an image: what floating point leaves of equal differences


@dataclass(frozen=True)
class Difference:
    """Differences of one comparison, one a pair. name says what is compared."""

    name: str
    values: tuple[float, ...]

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float:
        return statistics.mean(self.values)


def below_zero(values: Sequence[float], margin: float = 0.0) -> float:
    """p of the one-sided t-test that the mean lies below ``margin``: small where it does.

    Fewer than two values say nothing, nor do values that are all the same: 1. Errors are whole
    numbers of images, so that few seeds agree by chance; a spread of 0 then claims a certainty
    that nobody has.

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
    return float(stats.t.cdf(t, len(values) - 1))


def above_zero(values: Sequence[float], margin: float = 0.0) -> float:
    """p of the one-sided t-test that the mean lies above ``margin``."""
    return below_zero([-value for value in values], -margin)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjustment: with k tests at once, the chance of any false one stays below the level.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted
