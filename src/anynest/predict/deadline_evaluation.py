"""Accuracy under real deadlines: every image is predicted under each of them (section 5.4).

Where no stage meets the deadline the prediction is a random guess, as in the paper. The paper
simulates from measured latencies and takes "7 deadlines ... 0.5x-1x of the average latency under
the biggest ResNet-42 or Sparse ResNet"; here the biggest network is the nested one itself, run to
its last stage.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ..engines.inputs import Inputs
    from .prediction import Prediction

    Predict = Callable[[Any, float | None], Prediction]

SHARES = tuple(0.5 + 0.5 * i / 6 for i in range(7))  # of the largest network's mean latency


@dataclass
class DeadlineResult:
    """The predictions under one deadline.

    Attributes:
        deadline: seconds; None for none.
        stages: number of predictions by stage: guesses, stage 1, ..., stage S.
        images: number of predictions.
        correct: number of correct predictions.
        elapsed: seconds from each call to its return.
    """

    deadline: float | None
    stages: list[int]
    images: int = 0
    correct: int = 0
    elapsed: list[float] = field(default_factory=list)

    def add(self, prediction: Prediction, label: int, seconds: float) -> None:
        self.images += 1
        self.correct += int(prediction.label == label)
        self.stages[prediction.stage] += 1
        self.elapsed.append(seconds)

    @property
    def accuracy(self) -> float:
        """Share of correct predictions, 0 to 1; nan for no images."""
        return self.correct / self.images if self.images else math.nan

    @property
    def standard_error(self) -> float:
        """Binomial standard error of the accuracy."""
        return math.sqrt(self.accuracy * (1 - self.accuracy) / self.images) if self.images else 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain Python values, times in seconds."""
        p50, p99 = (float(value) for value in np.quantile(self.elapsed, (0.5, 0.99)))
        result = {
            "deadline": None if self.deadline is None else float(self.deadline),
            "images": self.images,
            "accuracy": self.accuracy,
            "standard_error": self.standard_error,
            "guessed": self.stages[0],
            "stages": self.stages[1:],
            "elapsed": {"mean": float(np.mean(self.elapsed)), "p50": p50, "p99": p99},
        }
        if self.deadline is not None:
            late = np.maximum(0.0, np.asarray(self.elapsed) - self.deadline)
            p99, most = float(np.quantile(late, 0.99)), float(late.max())
            result["overshoot"] = {"p99": p99, "max": most}
        return result


def paper_deadlines(mean: float) -> list[float | None]:
    """The paper's seven deadlines for a mean latency of the largest network, then none.

    >>> paper_deadlines(0.012)
    [0.006, 0.007, 0.008, 0.009, 0.01, 0.011, 0.012, None]
    """
    return [*(round(share * mean, 7) for share in SHARES), None]


def mean_latency(
    predict: Predict, images: Sequence[Inputs], clock: Callable[[], float] = time.perf_counter
) -> float:
    """Mean seconds of a prediction without a deadline, over images ``[1, C, H, W]``.

    The first ten run once more, unmeasured, before.
    """
    for x in images[:10]:
        predict(x, None)
    began = clock()
    for x in images:
        predict(x, None)
    return (clock() - began) / len(images)


def measure_deadlines(
    predict: Predict,
    images: Iterable[tuple[Inputs, int]],
    deadlines: Sequence[float | None],
    num_stages: int,
    *,
    report: Callable[[int], None] = lambda images: None,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[list[DeadlineResult], bool]:
    """Predict every image under every deadline, one image at a time.

    Each image starts with another deadline, so that a drift of the machine's speed favours none.

    Args:
        predict: maps an image ``[1, C, H, W]``, or other inputs of one sample, and a deadline in
            seconds, or None, to a prediction; guesses where no stage meets the deadline.
        images: pairs of image and label.
        deadlines: in seconds, or None.
        num_stages: S.
        report: called with the number of finished images; may raise, to stop.

    Returns:
        One result per deadline, and whether all images were predicted: after Ctrl-C the results
        are those of the images that had been finished.
    """
    results = [DeadlineResult(deadline, [0] * (num_stages + 1)) for deadline in deadlines]
    try:
        for number, (x, label) in enumerate(images):
            answers = []
            for turn in range(len(results)):
                index = (number + turn) % len(results)
                began = clock()
                prediction = predict(x, results[index].deadline)
                answers.append((index, prediction, clock() - began))
            for index, prediction, seconds in answers:
                results[index].add(prediction, label, seconds)
            report(number + 1)
    except KeyboardInterrupt:
        return results, False
    return results, True
