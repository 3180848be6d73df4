"""When requests arrive: Poisson, gamma and square bursts, and gaps as bursty as Azure's traces.

Azure's public LLM traces of 2023 have gaps whose squared coefficient of variation (CV^2) is 173
(``code``) and 1.2 (``conv``). The traces themselves are not used: ``code`` and ``conv`` are
synthetic, hyperexponential gaps with balanced means and these values of CV^2. With 173, trains of
about 350 requests at twice the mean rate alternate with pauses of about 170 mean gaps.

A short sample of such a process has neither its rate nor its CV^2. So of up to ``DRAWS`` samples the
one is taken whose CV^2 is nearest, and its time is stretched to the rate.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise

ARRIVALS = ("poisson", "gamma", "square", "code", "conv")
BURSTS = ("gamma", "square", "code", "conv")
CV2 = {"poisson": 1.0, "gamma": 8.0, "code": 173.0, "conv": 1.2}
SHOWN = {
    "poisson": "Poisson",
    "gamma": "gamma, CV² 8",
    "square": "square bursts, 3 times the rate for a quarter of each second",
    "code": "synthetic, CV² 173 (as Azure's trace `code`)",
    "conv": "synthetic, CV² 1.2 (as Azure's trace `conv`)",
}
DRAWS, NUMBERS = 64, 1_000_000  # at most so many samples, and numbers in them
PERIOD, SHARE, PEAK = 1.0, 0.25, 3.0  # square: seconds, part of them at PEAK times the mean rate


def arrival_times(kind: str, rate: float, seconds: float, seed: int = 0) -> list[float]:
    """The times of a process within ``seconds``, ascending.

    Args:
        kind: of ``ARRIVALS``.
        rate: requests per second.
        seconds: the length of the process.
        seed: of its random numbers.

    >>> times = arrival_times("gamma", rate=1000, seconds=5)
    >>> len(times), 7 < cv2_of(times) < 9, max(times) < 5
    (5000, True, True)
    """
    source = random.Random(f"{kind} {seed}")
    if kind == "square":
        return list(_square(source, rate, seconds))
    gap = _gaps(kind, source)
    count = max(1, round(rate * seconds))
    draws = max(1, min(DRAWS, NUMBERS // count))
    samples = ([gap() for _ in range(count + 1)] for _ in range(draws))
    gaps = min(samples, key=lambda sample: abs(math.log(max(1e-9, _cv2(sample)) / CV2[kind])))
    stretch = seconds / sum(gaps)
    return [stretch * time for time in accumulate(gaps[:-1])]


def _gaps(kind: str, source: random.Random) -> Callable[[], float]:
    """Gaps of mean 1."""
    cv2 = CV2[kind]
    if kind == "poisson":
        return lambda: source.expovariate(1)
    if kind == "gamma":
        return lambda: source.gammavariate(1 / cv2, cv2)
    rare = (1 - math.sqrt((cv2 - 1) / (cv2 + 1))) / 2  # the share of long gaps
    # long and short gaps take half of the time each
    return lambda: source.expovariate(2 * (rare if source.random() < rare else 1 - rare))


def _square(source: random.Random, rate: float, seconds: float) -> Iterator[float]:
    """A Poisson process of two rates, by thinning."""
    low = (1 - SHARE * PEAK) / (1 - SHARE)
    now = source.expovariate(rate * PEAK)
    while now < seconds:
        factor = PEAK if now % PERIOD < SHARE * PERIOD else low
        if source.random() < factor / PEAK:
            yield now
        now += source.expovariate(rate * PEAK)


def cv2_of(times: Sequence[float]) -> float:
    """The squared coefficient of variation of the gaps between some times."""
    return _cv2([later - earlier for earlier, later in pairwise(times)])


def _cv2(gaps: Sequence[float]) -> float:
    mean = sum(gaps) / len(gaps)
    return sum((gap - mean) ** 2 for gap in gaps) / len(gaps) / mean**2
