"""What a predictor answers, and what it raises where there is no answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..store import RunError


class DeadlineError(RunError):
    """No stage was finished by the deadline, and the caller asked for nothing less than an answer."""


class NetworkError(RunError):
    """The network failed while it was evaluated; ``__cause__`` is what it raised."""


@dataclass(frozen=True, eq=False)
class Answer:
    """What is known once a stage is finished: ``[K]`` of a single image, or ``[B, K]`` of a batch in the
    caller's order.

    ``at``: when it was, by ``time.monotonic``; ``ended``: why no other follows, or None.
    """

    stages: tuple[int, ...]
    logits: Tensor
    probabilities: Tensor
    confidence: float
    at: float
    ended: str | None


@dataclass(frozen=True, eq=False)
class Prediction:
    """One answer, of one image or of a batch. K classes, B images.

    Attributes:
        logits: ``[K]`` of a single image, ``[B, K]`` of a batch; zeros for a guess.
        probabilities: of the same shape, each row sums to 1; uniform for a guess.
        stage: the newest stage in the answer, from 1; 0 for a guess.
        stages: the stage of each image, for in a batch some may leave before others.
        confidence: the probability of the most likely class, the least of a batch's.
        elapsed: seconds from the call to the answer, waiting included. In a stream: until the
            stage was finished.
        deadline: seconds from the call that were granted, or None.
        deadline_met: whether the answer comes from the network and was finished by the deadline. The
            hand-over to the caller comes after it: ``elapsed`` has that too.
        guessed: a uniform random answer, for nothing was finished in time (paper, section 5.4).
        ended: why there is no later answer: ``last stage``, ``policy``, ``deadline``,
            ``saved work`` (a stage that would not have been in time was not begun); None while a
            stream goes on.
        classes: names of the K classes, where the source knows them.
    """

    logits: Tensor
    probabilities: Tensor
    stage: int
    stages: tuple[int, ...]
    confidence: float
    elapsed: float
    deadline: float | None
    deadline_met: bool
    guessed: bool = False
    ended: str | None = None
    classes: tuple[str, ...] | None = None
    drawn: tuple[int, ...] | None = field(default=None, repr=False)

    @cached_property
    def labels(self) -> tuple[int, ...]:
        """The class of each image, a number from 0; for a guess, the ones drawn at random."""
        if self.drawn is not None:
            return self.drawn
        rows = self.probabilities.reshape(-1, self.probabilities.shape[-1])
        return tuple(int(label) for label in rows.argmax(dim=1))

    @property
    def label(self) -> int:
        """The class of a single image. ValueError for a batch of several: see ``labels``."""
        if len(self.labels) != 1:
            raise ValueError(
                f"label is that of one image, this prediction has {len(self.labels)}: use labels"
            )
        return self.labels[0]

    @property
    def names(self) -> tuple[str, ...] | None:
        """The class names of ``labels``, where the source knows them."""
        if self.classes is None:
            return None
        return tuple(self.classes[label] for label in self.labels)

    @property
    def overshoot(self) -> float:
        """Seconds past the deadline at which the answer was handed over, 0 where it was before."""
        return 0.0 if self.deadline is None else max(0.0, self.elapsed - self.deadline)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "labels": list(self.labels),
            "names": list(self.names) if self.names else None,
            "stage": self.stage,
            "stages": list(self.stages),
            "confidence": self.confidence,
            "elapsed": self.elapsed,
            "deadline": self.deadline,
            "deadline_met": self.deadline_met,
            "guessed": self.guessed,
            "ended": self.ended,
            "probabilities": self.probabilities.tolist(),
            "logits": self.logits.tolist(),
        }


def uniform(
    drawn: tuple[int, ...], num_classes: int, single: bool, elapsed: float, deadline: float
) -> Prediction:
    """The answer of one who knows nothing: the paper's random guess (section 5.4), marked as such.

    Every class is as likely as any other; ``labels`` are those that were ``drawn``, one an image.
    """
    shape = (num_classes,) if single else (len(drawn), num_classes)
    return Prediction(
        logits=torch.zeros(shape),
        probabilities=torch.full(shape, 1 / num_classes),
        stage=0,
        stages=(0,) * len(drawn),
        confidence=1 / num_classes,
        elapsed=elapsed,
        deadline=deadline,
        deadline_met=False,
        guessed=True,
        ended="deadline",
        drawn=drawn,
    )
