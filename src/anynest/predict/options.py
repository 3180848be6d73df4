"""One call's wishes, checked, and the predictions that answer it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real

from .policies import Policy, as_policy
from .prediction import Answer, DeadlineError, Prediction, uniform

WHEN_NOTHING = ("raise", "wait", "guess")

Policies = Policy | Sequence[Policy] | None


@dataclass(frozen=True)
class Request:
    """What ``AnytimePredictor.predict`` was asked for.

    ``called``: when, by ``time.monotonic``; ``limit``: seconds from then, inf for no deadline.
    """

    called: float
    limit: float
    policy: Policy | None
    when_nothing: str
    save_work: float | None

    @classmethod
    def of(
        cls,
        deadline: float | None,
        policy: Policies,
        when_nothing: str = "raise",
        save_work: float | None = None,
    ) -> Request:
        """The deadline counts from here. ValueError or TypeError, one line, for what makes no sense."""
        called = time.monotonic()
        if deadline is not None and not (isinstance(deadline, Real) and deadline >= 0):
            raise ValueError(f"deadline must be seconds from 0, or None, got {deadline!r}")
        if when_nothing not in WHEN_NOTHING:
            raise ValueError(
                f"when_nothing must be one of {', '.join(WHEN_NOTHING)}, got {when_nothing!r}"
            )
        if save_work is not None and not (isinstance(save_work, Real) and 0 < save_work <= 1):
            raise ValueError(f"save_work must be a probability above 0, got {save_work!r}")
        chosen = as_policy(policy)
        limit = math.inf if deadline is None else deadline
        if chosen is not None:
            limit = min(limit, chosen.limit())
        return cls(called, limit, chosen, when_nothing, save_work)

    @property
    def due(self) -> float:
        """The deadline, by ``time.monotonic``."""
        return self.called + self.limit

    def present(
        self, answer: Answer, classes: tuple[str, ...] | None, at: float | None = None
    ) -> Prediction:
        """An answer as the caller gets it; ``at``: when that is, if not when it was finished."""
        return Prediction(
            logits=answer.logits,
            probabilities=answer.probabilities,
            stage=max(answer.stages),
            stages=answer.stages,
            confidence=answer.confidence,
            elapsed=(answer.at if at is None else at) - self.called,
            deadline=None if math.isinf(self.limit) else self.limit,
            deadline_met=answer.at <= self.due,
            ended=answer.ended,
            classes=classes,
        )

    def guess(
        self,
        drawn: tuple[int, ...],
        num_classes: int,
        single: bool,
        classes: tuple[str, ...] | None,
    ) -> Prediction:
        """The classes ``drawn`` at random, for want of an answer."""
        elapsed = time.monotonic() - self.called
        guess = uniform(drawn, num_classes, single, elapsed, self.limit)
        return replace(guess, classes=classes)

    def nothing(self) -> DeadlineError:
        """What is raised for want of an answer."""
        return DeadlineError(
            f"no stage was finished within {self.limit * 1000:g} ms of the call: give a longer deadline, "
            "or say when_nothing='wait' or 'guess'"
        )
