"""When to stop although there is time: pure functions of what is known after a stage.

    policy = Confidence(0.9) | MultiplyAdds(10_000_000)   # stops when either says so
    policy = Confidence(0.9) & Deadline(0.005)            # stops when both do
    policy = [Confidence(0.9), MultiplyAdds(10_000_000)]  # a list is any of them

Each image of a batch is judged on its own: those that are done leave, the rest run on.

Legend: b images still under way, K classes, S stages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moment:
    """What is known when a stage is finished.

    Attributes:
        stage: which, from 1; the last stage is never asked about.
        probabilities: ``[b, K]``.
        elapsed: seconds since the call.
        cost: multiply-adds of one image up to and including this stage; None where not known.
        next_cost: the same up to and including the next stage.
    """

    stage: int
    probabilities: Tensor
    elapsed: float = 0.0
    cost: int | None = None
    next_cost: int | None = None


class Policy:
    """Says which images need no further stage; combined by ``|`` (any) and ``&`` (all)."""

    def stop(self, moment: Moment) -> Tensor:
        """``[b]`` bool: which images are done."""
        raise TypeError(f"{type(self).__name__} must say what stop(moment) is")

    def limit(self) -> float:
        """Seconds from the call after which every image is done whatever the answers; inf: none."""
        return math.inf

    def parts(self) -> tuple[Policy, ...]:
        """The simple policies that this one is made of."""
        return (self,)

    def __or__(self, other: Policy) -> Policy:
        return AnyOf((self, other))

    def __and__(self, other: Policy) -> Policy:
        return AllOf((self, other))


@dataclass(frozen=True)
class Deadline(Policy):
    """Done ``seconds`` after the call. Alone or in ``|`` it ends a prediction as its deadline does:
    with the newest stage finished by then, whatever is under way."""

    seconds: float

    def __post_init__(self) -> None:
        if not (isinstance(self.seconds, Real) and 0 < self.seconds < math.inf):
            raise ValueError(f"a deadline must be positive seconds, got {self.seconds!r}")

    def stop(self, moment: Moment) -> Tensor:
        done = moment.elapsed >= self.seconds
        return torch.full((len(moment.probabilities),), done, dtype=torch.bool)

    def limit(self) -> float:
        return self.seconds


@dataclass(frozen=True)
class Confidence(Policy):
    """Done where the most likely class has at least the stage's threshold of probability.

    ``thresholds``: one number for every stage, or one for each of the stages 1 to S-1. A threshold
    above 1 is never reached. ``calibrate`` chooses them.
    """

    thresholds: float | tuple[float, ...] = 0.9

    def __post_init__(self) -> None:
        if isinstance(self.thresholds, Sequence) and not isinstance(self.thresholds, str):
            object.__setattr__(self, "thresholds", tuple(self.thresholds))
        values = self._all()
        if not values or not all(isinstance(v, Real) and v >= 0 for v in values):
            raise ValueError(
                f"confidence thresholds must be numbers from 0, got {self.thresholds!r}"
            )

    def _all(self) -> tuple[float, ...]:
        return self.thresholds if isinstance(self.thresholds, tuple) else (self.thresholds,)

    def threshold(self, stage: int) -> float:
        """The one that holds at ``stage``."""
        if not isinstance(self.thresholds, tuple):
            return self.thresholds
        if stage > len(self.thresholds):
            raise ValueError(
                f"there are confidence thresholds for {len(self.thresholds)} stages, and stage {stage} "
                "needs one; give one for each stage but the last"
            )
        return self.thresholds[stage - 1]

    def stop(self, moment: Moment) -> Tensor:
        return moment.probabilities.amax(dim=1) >= self.threshold(moment.stage)


@dataclass(frozen=True)
class MultiplyAdds(Policy):
    """Done where the next stage would take an image past ``budget`` multiply-adds in all.

    Stage 1 is always computed.
    """

    budget: float

    def __post_init__(self) -> None:
        if not (isinstance(self.budget, Real) and self.budget > 0):
            raise ValueError(f"a budget must be positive multiply-adds, got {self.budget!r}")

    def stop(self, moment: Moment) -> Tensor:
        if moment.next_cost is None:
            raise ValueError(
                "a budget of multiply-adds needs the network's costs, and this source does not tell "
                "them: give profile="
            )
        done = moment.next_cost > self.budget
        return torch.full((len(moment.probabilities),), done, dtype=torch.bool)


@dataclass(frozen=True)
class AnyOf(Policy):
    """Done where any of several says so."""

    policies: tuple[Policy, ...]

    def __post_init__(self) -> None:
        _require_policies(self.policies)

    def stop(self, moment: Moment) -> Tensor:
        return torch.stack([policy.stop(moment) for policy in self.policies]).any(dim=0)

    def limit(self) -> float:
        return min(policy.limit() for policy in self.policies)

    def parts(self) -> tuple[Policy, ...]:
        return tuple(part for policy in self.policies for part in policy.parts())


@dataclass(frozen=True)
class AllOf(Policy):
    """Done where all of several say so."""

    policies: tuple[Policy, ...]

    def __post_init__(self) -> None:
        _require_policies(self.policies)

    def stop(self, moment: Moment) -> Tensor:
        return torch.stack([policy.stop(moment) for policy in self.policies]).all(dim=0)

    def limit(self) -> float:
        return max(policy.limit() for policy in self.policies)

    def parts(self) -> tuple[Policy, ...]:
        return tuple(part for policy in self.policies for part in policy.parts())


def _require_policies(policies: Sequence[Policy]) -> None:
    for policy in policies:
        if not isinstance(policy, Policy):
            raise TypeError(f"| and & join policies, got {policy!r}")


def as_policy(policy: Policy | Sequence[Policy] | None) -> Policy | None:
    """One policy of what a caller may give: itself, or any of a list; None for none.

    Raises:
        TypeError: something else.
    """
    if policy is None or isinstance(policy, Policy):
        return policy
    if not isinstance(policy, Sequence) or not all(isinstance(p, Policy) for p in policy):
        raise TypeError(f"policy must be a Policy or a list of them, got {policy!r}")
    if len(policy) < 2:
        return policy[0] if policy else None
    return AnyOf(tuple(policy))


def check_fit(policy: Policy | None, num_stages: int, costs_known: bool) -> None:
    """ValueError, one line, where a policy cannot work for a network of so many stages."""
    for part in policy.parts() if policy else ():
        if isinstance(part, Confidence) and isinstance(part.thresholds, tuple):
            if num_stages - 1 <= len(part.thresholds) <= num_stages:
                continue
            raise ValueError(
                f"per-stage confidence thresholds must be one for each of the stages 1 to "
                f"{num_stages - 1}, got {len(part.thresholds)}"
            )
        if isinstance(part, MultiplyAdds) and not costs_known:
            part.stop(Moment(1, torch.empty(0, 0)))


def with_thresholds(policy: Policy, thresholds: tuple[float, ...]) -> Policy:
    """The same policy with other thresholds in its ``Confidence`` parts."""
    if isinstance(policy, Confidence):
        return Confidence(thresholds)
    if isinstance(policy, AnyOf | AllOf):
        return replace(
            policy, policies=tuple(with_thresholds(part, thresholds) for part in policy.policies)
        )
    return policy
