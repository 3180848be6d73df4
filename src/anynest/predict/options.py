"""The options of one prediction, validated once, when the call is made."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from .early_stopping.policies import Policy, as_policy, to_float

ON_TIMEOUT = ("raise", "wait", "guess")

Policies = Policy | Sequence[Policy] | None


@dataclass(frozen=True)
class PredictOptions:
    """What one call of ``AnytimePredictor.predict`` asks for.

    Attributes:
        called: time of the call by ``time.monotonic``.
        seconds: deadline in seconds after the call; inf for none, 0 or less if it has passed.
        policy: early stopping; None runs to the last stage or the deadline.
        on_timeout: ``"raise"``, ``"wait"`` or ``"guess"``, where no stage meets the deadline.
        min_completion_probability: a stage that finishes in time with a smaller probability is
            not started; None starts every stage.
    """

    called: float
    seconds: float = math.inf
    policy: Policy | None = None
    on_timeout: str = "raise"
    min_completion_probability: float | None = None

    @classmethod
    def create(
        cls,
        deadline: float | None,
        policy: Policies,
        on_timeout: str = "raise",
        min_completion_probability: float | None = None,
    ) -> PredictOptions:
        """Validate the arguments of a call; the deadline counts from here.

        Raises:
            ValueError: an argument out of range, in one line.
            TypeError: a policy of another type.
        """
        called = time.monotonic()
        seconds = math.inf if deadline is None else to_float(deadline)
        if seconds is None:
            raise ValueError(f"deadline must be a number of seconds or None, found {deadline!r}")
        if on_timeout not in ON_TIMEOUT:
            raise ValueError(
                f"on_timeout must be one of {', '.join(ON_TIMEOUT)}, found {on_timeout!r}"
            )
        probability = min_completion_probability
        if probability is not None:
            probability = to_float(probability)
            if probability is None or not 0 < probability <= 1:
                raise ValueError(
                    "min_completion_probability must be above 0 and at most 1, found "
                    f"{min_completion_probability!r}"
                )
        chosen = as_policy(policy)
        if chosen is not None:
            seconds = min(seconds, chosen.limit())
        return cls(called, seconds, chosen, on_timeout, probability)

    @property
    def due(self) -> float:
        """The deadline by ``time.monotonic``."""
        return self.called + self.seconds

    @property
    def deadline(self) -> float | None:
        """Seconds after the call; None for no deadline."""
        return None if math.isinf(self.seconds) else self.seconds
