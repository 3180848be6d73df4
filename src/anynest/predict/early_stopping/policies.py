"""Early stopping: pure functions of what is known after a stage.

    policy = Confidence(0.9) | MultiplyAdds(10_000_000)  # stops when either does
    policy = Confidence(0.9) & Deadline(0.005)  # stops when both do
    policy = [Confidence(0.9), MultiplyAdds(10_000_000)]  # a list means any of them

Each image of a batch is judged separately: images that are done leave, the others go on.

Legend: b images still being computed, K classes, S stages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real

import torch
from torch import Tensor


def to_float(value: object) -> float | None:
    """A real number of any type (NumPy's too) as a Python float; None for anything else and NaN."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer beyond the range of float64
        return None
    return None if math.isnan(number) else number


@dataclass(frozen=True)
class PolicyInput:
    """What is known when a stage is finished.

    Attributes:
        stage: from 1; policies are not called for the last stage.
        probabilities: ``[b, K]``.
        elapsed: seconds since the call.
        cost: multiply-adds of one image up to this stage; None where unknown.
        next_cost: multiply-adds of one image up to the next stage.
    """

    stage: int
    probabilities: Tensor
    elapsed: float = 0.0
    cost: int | None = None
    next_cost: int | None = None


class Policy:
    """Decides which images need no further stage. Combine with ``|`` (any) and ``&`` (all)."""

    def stop(self, known: PolicyInput) -> Tensor:
        """bool ``[b]``: the images that are done."""
        raise TypeError(f"{type(self).__name__} must implement stop(known)")

    def limit(self) -> float:
        """Seconds after the call at which every image is done in any case; inf for none."""
        return math.inf

    def parts(self) -> tuple[Policy, ...]:
        """The simple policies that this one combines."""
        return (self,)

    def __or__(self, other: Policy) -> Policy:
        return AnyOf((self, other))

    def __and__(self, other: Policy) -> Policy:
        return AllOf((self, other))


@dataclass(frozen=True)
class Deadline(Policy):
    """Done ``seconds`` after the call.

    Alone or in ``|`` it interrupts a running stage, as the argument ``deadline`` does. 0 or less
    has passed already.
    """

    seconds: float

    def __post_init__(self) -> None:
        seconds = to_float(self.seconds)
        if seconds is None or math.isinf(seconds):
            raise ValueError(f"a deadline must be a number of seconds, found {self.seconds!r}")
        object.__setattr__(self, "seconds", seconds)

    def stop(self, known: PolicyInput) -> Tensor:
        done = known.elapsed >= self.seconds
        return torch.full((len(known.probabilities),), done, dtype=torch.bool)

    def limit(self) -> float:
        return self.seconds


@dataclass(frozen=True)
class Confidence(Policy):
    """Done where the largest probability reaches the stage's threshold.

    Args:
        thresholds: one number for all stages, or one for each of the stages 1 to S-1. No
            confidence reaches a threshold above 1. ``calibrate`` chooses them.
    """

    thresholds: float | tuple[float, ...] = 0.9

    def __post_init__(self) -> None:
        given = self.thresholds
        several = isinstance(given, Sequence) and not isinstance(given, str)
        listed: Sequence[object] = given if isinstance(given, Sequence) and several else (given,)
        values = [to_float(value) for value in listed]
        numbers = tuple(value for value in values if value is not None and value >= 0)
        if not numbers or len(numbers) < len(values):
            raise ValueError(f"confidence thresholds must be numbers from 0, found {given!r}")
        object.__setattr__(self, "thresholds", numbers if several else numbers[0])

    def threshold(self, stage: int) -> float:
        """The threshold of ``stage``."""
        if not isinstance(self.thresholds, tuple):
            return self.thresholds
        if stage > len(self.thresholds):
            raise ValueError(
                f"stage {stage} needs a confidence threshold, found {len(self.thresholds)} of "
                "them: give one for each stage but the last"
            )
        return self.thresholds[stage - 1]

    def stop(self, known: PolicyInput) -> Tensor:
        return known.probabilities.amax(dim=1) >= self.threshold(known.stage)


@dataclass(frozen=True)
class MultiplyAdds(Policy):
    """Done where the next stage would exceed ``budget`` multiply-adds for one image, in total.

    Stage 1 is always computed.
    """

    budget: float

    def __post_init__(self) -> None:
        budget = to_float(self.budget)
        if budget is None or budget <= 0:
            raise ValueError(
                f"a budget must be a positive number of multiply-adds, found {self.budget!r}"
            )
        object.__setattr__(self, "budget", budget)

    def stop(self, known: PolicyInput) -> Tensor:
        if known.next_cost is None:
            raise ValueError(
                "a budget of multiply-adds needs the network's costs, and this source does not "
                "tell them: pass profile="
            )
        done = known.next_cost > self.budget
        return torch.full((len(known.probabilities),), done, dtype=torch.bool)


@dataclass(frozen=True)
class _Combined(Policy):
    policies: tuple[Policy, ...]

    def __post_init__(self) -> None:
        for policy in self.policies:
            if not isinstance(policy, Policy):
                raise TypeError(f"| and & combine policies, found {policy!r}")

    def parts(self) -> tuple[Policy, ...]:
        return tuple(part for policy in self.policies for part in policy.parts())

    def _stops(self, known: PolicyInput) -> Tensor:
        return torch.stack([policy.stop(known) for policy in self.policies])


@dataclass(frozen=True)
class AnyOf(_Combined):
    """Done where any of several policies is."""

    def stop(self, known: PolicyInput) -> Tensor:
        return self._stops(known).any(dim=0)

    def limit(self) -> float:
        return min(policy.limit() for policy in self.policies)


@dataclass(frozen=True)
class AllOf(_Combined):
    """Done where all of several policies are."""

    def stop(self, known: PolicyInput) -> Tensor:
        return self._stops(known).all(dim=0)

    def limit(self) -> float:
        return max(policy.limit() for policy in self.policies)


def as_policy(policy: Policy | Sequence[Policy] | None) -> Policy | None:
    """One policy from the forms that callers may pass: a policy, a list (any of it) or None.

    Raises:
        TypeError: another type.
    """
    if policy is None or isinstance(policy, Policy):
        return policy
    if not isinstance(policy, Sequence) or not all(isinstance(p, Policy) for p in policy):
        raise TypeError(f"policy must be a Policy or a list of them, found {policy!r}")
    if len(policy) < 2:
        return policy[0] if policy else None
    return AnyOf(tuple(policy))


def reads_costs(policy: Policy) -> bool:
    """Whether a policy may read the costs: those of this package that do not are known."""
    return not all(isinstance(part, Confidence | Deadline) for part in policy.parts())


def check_fit(policy: Policy | None, num_stages: int, costs_known: bool) -> None:
    """ValueError, in one line, where a policy cannot work for a network of ``num_stages``."""
    for part in policy.parts() if policy else ():
        if isinstance(part, Confidence) and isinstance(part.thresholds, tuple):
            if num_stages - 1 <= len(part.thresholds) <= num_stages:
                continue
            raise ValueError(
                f"per-stage confidence thresholds must be one for each of the stages 1 to "
                f"{num_stages - 1}, found {len(part.thresholds)}"
            )
        if isinstance(part, MultiplyAdds) and not costs_known:
            part.stop(PolicyInput(1, torch.empty(0, 0)))


def with_thresholds(policy: Policy, thresholds: tuple[float, ...]) -> Policy:
    """The same policy with other thresholds in its ``Confidence`` parts."""
    if isinstance(policy, Confidence):
        return Confidence(thresholds)
    if isinstance(policy, AnyOf | AllOf):
        return replace(
            policy, policies=tuple(with_thresholds(part, thresholds) for part in policy.policies)
        )
    return policy
