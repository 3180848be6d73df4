"""Thresholds calibrated on held-out data, for an accuracy or for a budget.

    held_out = HeldOut.collect(predictor, batches)  # images and labels not used in training
    policy, report = calibrate(Confidence(), held_out, target_accuracy=0.92)
    predictor.predict(image, deadline=0.010, policy=policy)

Legend: S stages, N images, K classes.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...engines.inputs import Inputs
from ..predictor import AnytimePredictor
from .policies import (
    AnyOf,
    Confidence,
    MultiplyAdds,
    Policy,
    PolicyInput,
    as_policy,
    to_float,
    with_thresholds,
)
from .thresholds import Exits, search

FOLDS = 5


@dataclass(frozen=True, eq=False)
class HeldOut:
    """The predictions of every stage for labelled images.

    Attributes:
        probabilities: ``[S, N, K]``.
        labels: int64 ``[N]``.
        costs: multiply-adds of one image up to each stage, length S.
    """

    probabilities: Tensor
    labels: Tensor
    costs: tuple[int, ...]

    def __post_init__(self) -> None:
        shape = tuple(self.probabilities.shape)
        if len(shape) != 3 or self.labels.shape != shape[1:2] or 0 in shape:
            raise ValueError(
                f"held-out data must be probabilities [S, N, K] and labels [N], found "
                f"{list(shape)} and {list(self.labels.shape)}"
            )
        object.__setattr__(self, "costs", tuple(operator.index(cost) for cost in self.costs))
        if len(self.costs) != shape[0] or any(
            not low < high for low, high in zip(self.costs, self.costs[1:], strict=False)
        ):
            raise ValueError(
                f"costs must increase, one for each of {shape[0]} stages, found {self.costs}"
            )
        if not bool(torch.isfinite(self.probabilities).all()):
            raise ValueError(
                "probabilities must be finite, found NaN or infinity: check the network"
            )
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= shape[2]:
            wrong = low if low < 0 else high
            raise ValueError(f"labels must lie in 0..{shape[2] - 1}, found {wrong}")

    @classmethod
    def collect(
        cls, predictor: AnytimePredictor, batches: Iterable[tuple[Inputs, Tensor]]
    ) -> HeldOut:
        """Predict batches of (inputs, labels ``[B]``), with the predictor's ``monotone`` rule.

        Raises:
            ValueError: no batches, or a source without costs.
        """
        parts: list[Tensor] = []
        labels: list[Tensor] = []
        costs: Sequence[int] | None = None
        for x, y in batches:
            parts.append(torch.stack([p.probabilities for p in predictor.stream(x)]))
            labels.append(y)
            costs = costs or predictor.multiply_adds_of(x)
        if not parts:
            raise ValueError("held-out data must have at least one image, found none")
        if costs is None:
            raise ValueError("this source does not tell its multiply-adds: pass profile=")
        return cls(torch.cat(parts, 1), torch.cat(labels), tuple(costs))

    def subset(self, indices: Tensor) -> HeldOut:
        """Some of the images."""
        return replace(
            self, probabilities=self.probabilities[:, indices], labels=self.labels[indices]
        )

    @property
    def correct(self) -> Tensor:
        """Whether each stage classifies each image correctly, bool ``[S, N]``."""
        return self.probabilities.argmax(dim=2) == self.labels


@dataclass(frozen=True)
class CalibrationReport:
    """A policy's accuracy and cost on held-out data.

    Attributes:
        images: N.
        accuracy: of the predictions at the stages where the images exit.
        accuracy_error: its binomial standard error.
        cost: mean multiply-adds of an image.
        exit_rates: share of the images that exits at each stage.
        stage_accuracy, stage_cost: if all images exited there.
        expected_accuracy, expected_cost: on images not used to choose the thresholds, by
            cross-validation; None where no thresholds were chosen, or for too few images.
        reached: whether the goal is reached on these data; None without a goal.
        note: the goal, and the best value if it is not reached.
    """

    images: int
    accuracy: float
    accuracy_error: float
    cost: float
    exit_rates: tuple[float, ...]
    stage_accuracy: tuple[float, ...]
    stage_cost: tuple[int, ...]
    expected_accuracy: float | None = None
    expected_cost: float | None = None
    reached: bool | None = None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        shares = ", ".join(f"{100 * share:.1f} %" for share in self.exit_rates)
        expected = ""
        if self.expected_accuracy is not None:
            expected = f", {100 * self.expected_accuracy:.2f} % expected on other images"
        note = f"; {self.note}" if self.note else ""
        return (
            f"accuracy {100 * self.accuracy:.2f} % (+-{100 * self.accuracy_error:.2f}) on "
            f"{self.images} images{expected}; {self.cost:.4g} multiply-adds on average; exits by "
            f"stage: {shares}{note}"
        )


def simulate(policy: Policy | Sequence[Policy] | None, data: HeldOut) -> CalibrationReport:
    """Apply a policy to the stored predictions. Deadlines are never reached."""
    at = _exit_stages(as_policy(policy), data)
    correct = data.correct
    right = float(correct.gather(0, at.unsqueeze(0)).double().mean())
    images, stages = len(data.labels), len(data.costs)
    return CalibrationReport(
        images=images,
        accuracy=right,
        accuracy_error=math.sqrt(right * (1 - right) / images),
        cost=float(torch.tensor(data.costs, dtype=torch.float64)[at].mean()),
        exit_rates=tuple(float((at == stage).double().mean()) for stage in range(stages)),
        stage_accuracy=tuple(float(value) for value in correct.double().mean(dim=1)),
        stage_cost=data.costs,
    )


def _exit_stages(policy: Policy | None, data: HeldOut) -> Tensor:
    """The stage, from 0, at which each image exits, int64 ``[N]``."""
    last = len(data.costs) - 1
    at = torch.full((len(data.labels),), last)
    active = torch.arange(len(data.labels))
    for stage in range(last if policy is not None else 0):
        assert policy is not None
        known = PolicyInput(
            stage + 1,
            data.probabilities[stage, active],
            cost=data.costs[stage],
            next_cost=data.costs[stage + 1],
        )
        done = policy.stop(known)
        at[active[done]] = stage
        active = active[~done]
    return at


def calibrate(
    policy: Policy | Sequence[Policy],
    data: HeldOut,
    *,
    target_accuracy: float | None = None,
    budget: float | None = None,
) -> tuple[Policy, CalibrationReport]:
    """Choose per-stage confidence thresholds on held-out data.

    Args:
        policy: a ``Confidence``, alone or in ``|`` with ``MultiplyAdds``; its own thresholds are
            ignored. Add deadlines afterwards: they depend on the machine.
        data: held-out images. Thresholds chosen on training images are too optimistic.
        target_accuracy: from 0 to 1; the policy of least mean cost that reaches it.
        budget: mean multiply-adds of an image; the most accurate policy within it.

    Returns:
        The policy, and a report. Where the goal cannot be reached the policy comes as close as
        possible, ``report.reached`` is False, and ``report.note`` says so.

    Raises:
        ValueError: not exactly one goal, a goal out of range, another kind of policy, or a network
            of one stage.
    """
    target_accuracy, budget = _check_goal(target_accuracy, budget)
    chosen = _check_policy(policy)
    if len(data.costs) == 1:
        raise ValueError("calibrate needs at least two stages, found one: predict without a policy")
    found = _fit(chosen, data, target_accuracy, budget)
    report = simulate(found, data)
    accuracy, cost = _cross_validate(chosen, data, target_accuracy, budget)
    if target_accuracy is not None:
        reached = report.accuracy >= target_accuracy - 1e-12
        goal = f"target accuracy {100 * target_accuracy:.2f} %"
        best = f"the best found is {100 * report.accuracy:.2f} %"
    else:
        assert budget is not None
        reached = report.cost <= budget * (1 + 1e-12)
        goal = f"budget {budget:.4g} multiply-adds"
        best = f"stage 1 alone costs {data.costs[0]:.4g}"
    note = goal if reached else f"{goal} cannot be reached on these data: {best}"
    return found, replace(
        report, expected_accuracy=accuracy, expected_cost=cost, reached=reached, note=note
    )


def _check_goal(
    target_accuracy: float | None, budget: float | None
) -> tuple[float | None, float | None]:
    """Exactly one of the two, as a Python float."""
    if (target_accuracy is None) == (budget is None):
        raise ValueError("calibrate needs exactly one goal: target_accuracy= or budget=")
    if target_accuracy is not None:
        target = to_float(target_accuracy)
        if target is None or not 0 < target <= 1:
            raise ValueError(
                f"target_accuracy must be above 0 and at most 1, found {target_accuracy!r}"
            )
        return target, None
    limit = to_float(budget)
    if limit is None or not 0 < limit < math.inf:
        raise ValueError(f"budget must be a positive number of multiply-adds, found {budget!r}")
    return None, limit


def _check_policy(policy: Policy | Sequence[Policy]) -> Policy:
    chosen = as_policy(policy)
    parts = chosen.policies if isinstance(chosen, AnyOf) else (chosen,)
    kinds = [type(part) for part in parts]
    if kinds.count(Confidence) != 1 or not set(kinds) <= {Confidence, MultiplyAdds}:
        raise ValueError(
            "calibrate chooses the thresholds of one Confidence, alone or in | with MultiplyAdds; "
            f"found {chosen!r}"
        )
    assert chosen is not None
    return chosen


def _fit(
    policy: Policy, data: HeldOut, target_accuracy: float | None, budget: float | None
) -> Policy:
    """The policy with the best thresholds for these images."""
    stages = len(data.costs)
    never = with_thresholds(policy, (2.0,) * (stages - 1))
    last = int(_exit_stages(never, data).max()) + 1  # a part with a budget may stop all earlier
    exits = Exits(
        data.probabilities[:last].amax(dim=2).double(),
        (~data.correct[:last]).double(),
        torch.tensor(data.costs[:last], dtype=torch.float64),
    )
    wrong = None if target_accuracy is None else 1 - target_accuracy
    found = search(exits, wrong, budget)
    return with_thresholds(policy, (*found, *(0.0,) * (stages - last)))


def _cross_validate(
    policy: Policy, data: HeldOut, target_accuracy: float | None, budget: float | None
) -> tuple[float | None, float | None]:
    """Mean accuracy and cost on each fold, with thresholds from the other four."""
    count = len(data.labels)
    if count < 4 * FOLDS:
        return None, None
    shuffled = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    right = cost = 0.0
    for fold in range(FOLDS):
        test = shuffled[fold::FOLDS]
        train = torch.cat([shuffled[other::FOLDS] for other in range(FOLDS) if other != fold])
        report = simulate(
            _fit(policy, data.subset(train), target_accuracy, budget), data.subset(test)
        )
        right += report.accuracy * len(test)
        cost += report.cost * len(test)
    return right / count, cost / count
