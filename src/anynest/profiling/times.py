"""The measured times of one stage, as quantiles."""

import bisect
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

POINTS = 101  # quantiles: 0 %, 1 %, ..., 100 %
DIGITS = 9  # of a second: nanoseconds
LONGEST = 1e9  # seconds

Seconds = tuple[float, ...]
Way = tuple[str, str, int, int]  # backend, device, threads, batch size


class ProfileError(ValueError):
    """An invalid profile or argument: one line with the rule, the value found and a remedy."""


def whole_number(name: str, value: Any, *, least: int = 1) -> int:
    """``value`` as a plain int; ProfileError if it is not a whole number from ``least``.

    >>> whole_number("rounds", np.int64(3))
    3
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or number < least:
        raise ProfileError(f"{name} must be a whole number from {least}, found {value!r:.60}")
    return number


def quantiles(values: Sequence[float]) -> Seconds:
    """The 0 %, 1 %, ..., 100 % quantiles, with linear interpolation.

    >>> quantiles([3.0, 1.0, 2.0])[::50]
    (1.0, 2.0, 3.0)
    """
    found = np.quantile(np.asarray(values, np.float64), np.linspace(0, 1, POINTS))
    return tuple(round(float(value), DIGITS) for value in found)


def share_within(points: Seconds, seconds: float) -> float:
    """The share of the values, 0 to 1, that are at most ``seconds``, from their quantiles.

    >>> share_within((0.0, 1.0, 3.0), 2.0), share_within((1.0, 2.0), 0.5), share_within((1.0,), 1.0)
    (0.75, 0.0, 1.0)
    """
    seconds = float(seconds)
    right = bisect.bisect_right(points, seconds)
    if right == 0 or math.isnan(seconds):
        return 0.0
    if right == len(points):
        return 1.0
    low, high = points[right - 1], points[right]
    return (right - 1 + (seconds - low) / (high - low)) / (len(points) - 1)


@dataclass(frozen=True)
class StageLatency:
    """The time to reach a stage in one way to run the network, in seconds.

    Attributes:
        stage: from 1. In a row of a plain network: the stage whose size it has.
        backend: ``torch`` or ``onnxruntime``.
        device: such as ``cpu`` or ``cuda:0``.
        threads: within one step.
        batch_size: images at once; times are of the whole batch.
        runs: number of measurements.
        mean: of the time from the call to the stage's logits.
        quantiles: of the same time, at 0 %, 1 %, ..., 100 % of the runs.
        step_quantiles: of the time from the stage before (the call, for stage 1) in the same run.
    """

    stage: int
    backend: str
    device: str
    threads: int
    batch_size: int
    runs: int
    mean: float
    quantiles: Seconds
    step_quantiles: Seconds

    def __post_init__(self) -> None:
        for name in ("stage", "threads", "batch_size", "runs"):
            object.__setattr__(self, name, whole_number(name, getattr(self, name)))
        if not (isinstance(self.backend, str) and isinstance(self.device, str)):
            raise ProfileError(f"backend and device must be texts, found {self.way[:2]!r}")
        _check_times("mean", (self.mean,), 1)
        _check_times("quantiles", self.quantiles, POINTS)
        _check_times("step_quantiles", self.step_quantiles, POINTS)

    @classmethod
    def of(
        cls, stage: int, way: Way, reached: Sequence[float], steps: Sequence[float]
    ) -> "StageLatency":
        """From single measurements.

        Args:
            stage: from 1.
            way: backend, device, threads, batch size.
            reached: each run's seconds from the call to the stage's logits.
            steps: each run's seconds from the stage before.
        """
        mean = round(float(sum(reached)) / len(reached), DIGITS)
        return cls(stage, *way, len(reached), mean, quantiles(reached), quantiles(steps))

    @property
    def way(self) -> Way:
        """Backend, device, threads, batch size."""
        return self.backend, self.device, self.threads, self.batch_size

    @property
    def p50(self) -> float:
        """The median."""
        return self.quantiles[50]

    @property
    def p95(self) -> float:
        """The 95 % quantile."""
        return self.quantiles[95]

    @property
    def p99(self) -> float:
        """The 99 % quantile."""
        return self.quantiles[99]

    def step_within(self, seconds: float) -> float:
        """The share of the runs, 0 to 1, that needed at most ``seconds`` after the stage before."""
        return share_within(self.step_quantiles, seconds)

    def scaled(self, factor: float, batch_size: int) -> "StageLatency":
        """The same row with every time multiplied, for another batch size."""
        return replace(
            self,
            batch_size=batch_size,
            mean=self.mean * factor,
            quantiles=tuple(value * factor for value in self.quantiles),
            step_quantiles=tuple(value * factor for value in self.step_quantiles),
        )


def _check_times(name: str, values: Seconds, length: int) -> None:
    numbers = isinstance(values, tuple) and all(type(v) in (int, float) for v in values)
    if not numbers or len(values) != length:
        raise ProfileError(f"{name} must be {length} seconds, found {str(values)[:60]}")
    if not all(0 <= v <= LONGEST for v in values):
        raise ProfileError(
            f"{name} must be seconds from 0 to {LONGEST:.0e}, found {str(values)[:60]}"
        )
    if any(a > b for a, b in pairwise(values)):
        raise ProfileError(f"{name} must not fall, found {str(values)[:60]}")
