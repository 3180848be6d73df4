"""What a step is expected to cost and to gain, corrected by what is measured.

Legend: S stages, B the largest batch.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from math import exp

ADAPTATION = 0.1  # weight of a new measurement in the moving average of a correction ...
RELAXATION = 0.025  # ... that is below it: so the average lies above the mean where times vary
BOUND = 8.0  # of a single measurement's ratio to the profile, and its inverse
LEAST_GAIN = 0.001  # of a stage, so that idle time is still used for it
CONFIDENCE_BINS = (0.2, 0.4, 0.6, 0.8)  # boundaries of the bins of a gain table


class StepTimes:
    """Estimated seconds of one stage for a batch: a profile times a running correction.

    Args:
        seconds: ``[S][k]`` profiled times, such as their 95th percentiles, of each stage at each of
            ``batches``; stage 1 first.
        batches: ascending batch sizes, the first 1 and the last B. Between two of them times are
            interpolated.

    Raises:
        ValueError: times that are not positive and finite, or batches that do not rise from 1.

    >>> times = StepTimes([[0.001, 0.002], [0.003, 0.005]], batches=[1, 3])
    >>> times(1, 1), times(1, 2), times(2, 3)
    (0.001, 0.0015, 0.005)
    """

    def __init__(self, seconds: Sequence[Sequence[float]], batches: Sequence[int]) -> None:
        rising = all(a < b for a, b in pairwise(batches))
        if not batches or batches[0] != 1 or not rising:
            raise ValueError(f"batches must rise from 1, found {list(batches)}")
        if not seconds or any(len(row) != len(batches) for row in seconds):
            raise ValueError(f"every stage must have {len(batches)} times, one for each batch size")
        if not all(0 < value < float("inf") for row in seconds for value in row):
            raise ValueError("step times must be positive and finite; profile again")
        self.num_stages, self.max_batch = len(seconds), batches[-1]
        self._profiled = [
            [_interpolate(batches, row, size) for size in range(1, self.max_batch + 1)]
            for row in seconds
        ]
        self.correction = [1.0] * self.num_stages

    def __call__(self, stage: int, rows: int) -> float:
        """Estimated seconds of stage ``stage`` (from 1) for a batch of ``rows``, 1 to B."""
        return self._profiled[stage - 1][rows - 1] * self.correction[stage - 1]

    def profiled(self, stage: int, rows: int) -> float:
        """The same without the correction."""
        return self._profiled[stage - 1][rows - 1]

    def observe(self, stage: int, rows: int, seconds: float) -> None:
        """Include a measured step in the stage's correction."""
        ratio = seconds / self._profiled[stage - 1][rows - 1]
        ratio = min(max(ratio, 1 / BOUND), BOUND)  # the machine may have stood still
        above = ratio - self.correction[stage - 1]
        self.correction[stage - 1] += (ADAPTATION if above > 0 else RELAXATION) * above

    def relax(self, stage: int) -> None:
        """Move the stage's correction towards the profile, if it is above."""
        self.correction[stage - 1] -= ADAPTATION * max(0.0, self.correction[stage - 1] - 1)


class Gains:
    """Expected rise of the probability of a right answer by one more stage.

    Args:
        first: probability of a right answer after stage 1.
        later: ``[S - 1][bins]``: the rise by stages 2 to S for a row whose newest answer has a
            confidence in each bin of ``CONFIDENCE_BINS``, as measured on held-out data.

    >>> gains = Gains.uniform(3)
    >>> gains(1, None) > gains(2, 0.5) == gains(3, 0.9) > 0
    True
    """

    def __init__(self, first: float, later: Sequence[Sequence[float]]) -> None:
        self.first, self.later = first, later

    @classmethod
    def uniform(cls, num_stages: int) -> Gains:
        """Where nothing is known: an answer is worth more than any refinement of it."""
        share = 0.5 / max(1, num_stages - 1)
        return cls(0.5, [[share] * (len(CONFIDENCE_BINS) + 1)] * (num_stages - 1))

    @classmethod
    def of_errors(cls, errors: Sequence[float]) -> Gains:
        """From each stage's error rate, as if confidences were calibrated.

        Of the rows that stage s - 1 gets wrong, stage s corrects the share

            r_s  =  max(0, e_{s-1} - e_s) / e_{s-1},

        and a row of confidence c is wrong with probability 1 - c, so its gain is r_s (1 - c), with
        the middle of its bin as c.

        Args:
            errors: ``[S]``, from 0 to 1, on held-out data.

        >>> gains = Gains.of_errors([0.4, 0.3, 0.3])
        >>> round(gains(2, 0.9), 3), round(gains(2, 0.1), 3), gains(3, 0.5) < gains(2, 0.99)
        (0.025, 0.225, True)
        """
        edges = (0.0, *CONFIDENCE_BINS, 1.0)
        middles = [(low + high) / 2 for low, high in pairwise(edges)]
        rates = [
            max(before - after, LEAST_GAIN) / max(before, LEAST_GAIN)
            for before, after in pairwise(errors)
        ]
        return cls(max(1 - errors[0], LEAST_GAIN), [[r * (1 - c) for c in middles] for r in rates])

    def __call__(self, stage: int, confidence: float | None) -> float:
        """The gain by computing ``stage`` (from 1) for a row of this confidence."""
        if stage == 1 or confidence is None:
            return self.first if stage == 1 else max(self.later[stage - 2])
        return self.later[stage - 2][bisect.bisect_right(CONFIDENCE_BINS, confidence)]


class RunningQuantile:
    """A quantile of the newest measurements.

    Args:
        quantile: from 0 to 1.
        least: of the value; also the value before there are measurements.
        most: of the value.
        window: number of measurements.

    >>> lag = RunningQuantile(0.5, least=0.001, most=1.0)
    >>> for seconds in (0.002, 0.004, 0.003) * 20:
    ...     lag.add(seconds)
    >>> lag.value
    0.003
    """

    EVERY = 16  # measurements between two sorts

    def __init__(self, quantile: float, least: float, most: float, window: int = 256) -> None:
        self.quantile, self.least, self.most = quantile, least, most
        self.value = least
        self._newest: deque[float] = deque(maxlen=window)
        self._added = 0

    def add(self, measured: float) -> None:
        """Include a measurement."""
        self._newest.append(measured)
        self._added += 1
        if self._added % self.EVERY == 0:
            ranked = sorted(self._newest)
            found = ranked[int(self.quantile * (len(ranked) - 1))]
            self.value = min(max(found, self.least), self.most)


class Utilisation:
    """The share of recent time that some work took: a moving average over ``window`` seconds.

    >>> used = Utilisation(window=0.2)
    >>> for tick in range(100):
    ...     used.add(0.005, now=0.01 * tick)
    >>> round(used(now=1.0), 1)
    0.5
    """

    def __init__(self, window: float) -> None:
        self.window, self._share, self._at = window, 0.0, 0.0

    def __call__(self, now: float) -> float:
        """The share at a time, which does not go back."""
        return self._share * exp(-max(0.0, now - self._at) / self.window)

    def add(self, seconds: float, now: float) -> None:
        """Count work that starts now."""
        self._share, self._at = self(now) + seconds / self.window, now


def _interpolate(batches: Sequence[int], row: Sequence[float], size: int) -> float:
    place = bisect.bisect_left(batches, size)
    if batches[place] == size:
        return row[place]
    low, high = batches[place - 1], batches[place]
    share = (size - low) / (high - low)
    return row[place - 1] + share * (row[place] - row[place - 1])
