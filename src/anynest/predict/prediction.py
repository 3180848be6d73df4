"""The value that a predictor returns, and the errors that it raises."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..store import RunError


class DeadlineError(RunError):
    """No stage was finished by the deadline, and ``on_timeout`` is ``"raise"``."""


class NetworkError(RunError):
    """The network failed during evaluation; ``__cause__`` is the original error."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """The prediction for one image or a batch. K classes, B samples.

    ``logits``, ``probabilities``, ``confidence``, ``labels`` and ``label`` raise ValueError where
    the network's outputs are no logits of classes.

    Attributes:
        output: the network's, on the CPU: ``[K]`` for a single image, ``[B, ...]`` for a batch;
            zeros for a guess. float16 and bfloat16 are converted to float32.
        class_probabilities: ``probabilities``, or None.
        stage: the newest stage in the result, from 1; 0 for a guess.
        stages: the stage of each sample; in a batch, samples may stop at different stages.
        elapsed: seconds from the call to the return, including time in the queue. In a stream:
            to the end of the stage.
        deadline: seconds after the call; None for none.
        deadline_met: whether the network finished this result by the deadline. The hand-over to
            the caller comes later and is included in ``elapsed``.
        guessed: a uniformly random class, because no stage met the deadline (paper, section 5.4).
        stop_reason: why there is no later result: ``last stage``, ``policy``, ``deadline`` or
            ``completion probability`` (the next stage would probably have been late); None while
            a stream goes on.
        classes: names of the K classes, where the source knows them.
    """

    output: Tensor
    class_probabilities: Tensor | None
    stage: int
    stages: tuple[int, ...]
    elapsed: float
    deadline: float | None
    deadline_met: bool
    guessed: bool = False
    stop_reason: str | None = None
    classes: tuple[str, ...] | None = None
    drawn: tuple[int, ...] | None = field(default=None, repr=False)

    @property
    def logits(self) -> Tensor:
        """``[K]`` for a single image, ``[B, K]`` for a batch; zeros for a guess."""
        self._require_classes("logits")
        return self.output

    @property
    def probabilities(self) -> Tensor:
        """Of the same shape as the logits, each row sums to 1; uniform for a guess."""
        return self._require_classes("probabilities")

    @cached_property
    def confidence(self) -> float:
        """The largest probability; for a batch, the smallest of these."""
        return float(self._require_classes("confidence").amax(dim=-1).amin())

    def _require_classes(self, name: str) -> Tensor:
        if self.class_probabilities is None:
            raise ValueError(
                f"{name} needs floating-point logits [batch, classes], found an output "
                f"{list(self.output.shape)} {self.output.dtype}: use output"
            )
        return self.class_probabilities

    @cached_property
    def labels(self) -> tuple[int, ...]:
        """The class index of each sample, from 0; for a guess, the ones drawn at random."""
        if self.drawn is not None:
            return self.drawn
        probabilities = self._require_classes("labels")
        rows = probabilities.reshape(-1, probabilities.shape[-1])
        return tuple(int(label) for label in rows.argmax(dim=1))

    @property
    def label(self) -> int:
        """The class index of a single image. ValueError for a larger batch: see ``labels``."""
        if len(self.labels) != 1:
            raise ValueError(
                f"label is for one image, found a batch of {len(self.labels)}: use labels"
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
        """Seconds from the deadline to the return; 0 where it returned earlier."""
        return 0.0 if self.deadline is None else max(0.0, self.elapsed - self.deadline)

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, ready for JSON; ``output`` in place of classes where there are none."""
        if self.class_probabilities is None:
            answer: dict[str, Any] = {"output": self.output.tolist()}
        else:
            answer = {
                "labels": list(self.labels),
                "names": list(self.names) if self.names else None,
                "confidence": self.confidence,
                "probabilities": self.probabilities.tolist(),
                "logits": self.logits.tolist(),
            }
        return {
            **answer,
            "stage": self.stage,
            "stages": list(self.stages),
            "elapsed": self.elapsed,
            "deadline": self.deadline,
            "deadline_met": self.deadline_met,
            "guessed": self.guessed,
            "stop_reason": self.stop_reason,
        }


def random_guess(
    drawn: tuple[int, ...],
    num_classes: int,
    single: bool,
    elapsed: float,
    deadline: float | None,
    classes: tuple[str, ...] | None = None,
) -> Prediction:
    """The paper's random guess (section 5.4): uniform probabilities, the classes ``drawn``."""
    shape = (num_classes,) if single else (len(drawn), num_classes)
    return Prediction(
        output=torch.zeros(shape),
        class_probabilities=torch.full(shape, 1 / num_classes),
        stage=0,
        stages=(0,) * len(drawn),
        elapsed=elapsed,
        deadline=deadline,
        deadline_met=False,
        guessed=True,
        stop_reason="deadline",
        classes=classes,
        drawn=drawn,
    )
