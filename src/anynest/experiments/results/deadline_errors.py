"""Figure 10: errors at deadlines from per-input latencies and answers (section 5.4).

Schemes: an anytime network answers with its last finished stage; Oracle_All is the most accurate
independent network that finishes in time for *all* inputs; Oracle_Each is, for each input, the most
accurate one that finishes in time. Without an answer in time the error is that expected of a random
guess, 1 - 1/K.

N inputs, S stages, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...predict.deadline_evaluation import SHARES as SHARES

COUNT = len(SHARES)


@dataclass(frozen=True)
class Timed:
    """One network on N inputs; an independent network has S = 1.

    Args:
        name: Its name.
        seconds: ``[N, S]`` from the call to each stage's answer.
        wrong: ``[N, S]`` whether the answer is wrong.
    """

    name: str
    seconds: npt.NDArray[np.float64]
    wrong: npt.NDArray[np.bool_]

    def __post_init__(self) -> None:
        if self.seconds.shape != self.wrong.shape or self.seconds.ndim != 2:
            raise ValueError(
                "seconds and wrong must both be [N, S], found "
                f"{self.seconds.shape} and {self.wrong.shape}"
            )

    @property
    def error(self) -> float:
        """Error rate of the last stage."""
        return float(self.wrong[:, -1].mean())

    @property
    def mean_seconds(self) -> list[float]:
        """Mean over the inputs, of each stage."""
        return [float(value) for value in self.seconds.mean(0)]


def deadlines_of(biggest: Timed) -> list[float | None]:
    """Seven, from 0.5 to 1 times the biggest network's mean latency; then None."""
    mean = biggest.mean_seconds[-1]
    return [*(share * mean for share in SHARES), None]


def anytime_error(network: Timed, deadline: float | None, classes: int) -> float:
    """Answers each input with the last stage finished in time."""
    if deadline is None:
        return network.error
    finished = (network.seconds <= deadline).sum(1)  # stages finish in order
    wrong = np.take_along_axis(network.wrong, np.maximum(finished - 1, 0)[:, None], 1)[:, 0]
    return float(np.where(finished > 0, wrong, guess(classes)).mean())


def oracle_all_error(members: Sequence[Timed], deadline: float | None, classes: int) -> float:
    """The most accurate network that finishes in time for all inputs."""
    ready = [m for m in members if deadline is None or bool((m.seconds[:, -1] <= deadline).all())]
    return min((member.error for member in ready), default=guess(classes))


def oracle_each_error(members: Sequence[Timed], deadline: float | None, classes: int) -> float:
    """For each input the network most accurate over all inputs, of those in time."""
    total = np.full(len(members[0].wrong), guess(classes))
    for member in sorted(members, key=lambda m: m.error, reverse=True):  # better ones overwrite
        ready = np.ones(len(total), bool) if deadline is None else member.seconds[:, -1] <= deadline
        total = np.where(ready, member.wrong[:, -1], total)
    return float(total.mean())


def guess(classes: int) -> float:
    """The expected error of a random guess."""
    return 1 - 1 / classes
