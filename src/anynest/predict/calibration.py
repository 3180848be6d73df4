"""Thresholds chosen on held-out data, for an accuracy or for a budget, and what is to be expected of them.

    held_out = HeldOut.collect(predictor, batches)      # images and labels that nothing was trained on
    policy, report = calibrate(Confidence(), held_out, target_accuracy=0.92)
    predictor.predict(image, deadline=0.010, policy=policy)

Legend: S stages, N images, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .policies import AnyOf, Confidence, Moment, MultiplyAdds, Policy, as_policy, with_thresholds
from .predictor import AnytimePredictor
from .thresholds import Exits, search

FOLDS = 5


@dataclass(frozen=True, eq=False)
class HeldOut:
    """What a network answers to labelled images, at every stage.

    probabilities: ``[S, N, K]``; labels: int64 ``[N]``; costs: multiply-adds up to each stage, S.
    """

    probabilities: Tensor
    labels: Tensor
    costs: tuple[int, ...]

    def __post_init__(self) -> None:
        shape = tuple(self.probabilities.shape)
        if len(shape) != 3 or self.labels.shape != shape[1:2] or 0 in shape:
            raise ValueError(
                f"held-out data must be probabilities [S, N, K] and labels [N], got {list(shape)} and "
                f"{list(self.labels.shape)}"
            )
        if len(self.costs) != shape[0] or any(
            not low < high for low, high in zip(self.costs, self.costs[1:], strict=False)
        ):
            raise ValueError(f"costs must rise, one a stage of {shape[0]}, got {self.costs}")
        if not bool(torch.isfinite(self.probabilities).all()):
            raise ValueError("probabilities must be finite, found others: mend the network")
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= shape[2]:
            wrong = low if low < 0 else high
            raise ValueError(f"labels must lie in 0..{shape[2] - 1}, found {wrong}")

    @classmethod
    def collect(
        cls, predictor: AnytimePredictor, batches: Iterable[tuple[Tensor, Tensor]]
    ) -> HeldOut:
        """Run batches of (images, labels ``[B]``) through a predictor, with its ``monotone`` rule.

        Raises:
            ValueError: no batches, or a source that does not tell its costs.
        """
        parts: list[Tensor] = []
        labels: list[Tensor] = []
        costs: Sequence[int] | None = None
        for x, y in batches:
            parts.append(torch.stack([p.probabilities for p in predictor.stream(x)]))
            labels.append(y)
            costs = costs or predictor.multiply_adds(int(x.shape[-2]), int(x.shape[-1]))
        if not parts:
            raise ValueError("held-out data must have at least one image, found none")
        if costs is None:
            raise ValueError("this source does not tell its multiply-adds: give profile=")
        return cls(torch.cat(parts, 1), torch.cat(labels), tuple(costs))

    def take(self, rows: Tensor) -> HeldOut:
        """Some of the images."""
        return replace(self, probabilities=self.probabilities[:, rows], labels=self.labels[rows])

    @property
    def correct(self) -> Tensor:
        """Whether each stage is right about each image, bool ``[S, N]``."""
        return self.probabilities.argmax(dim=2) == self.labels


@dataclass(frozen=True)
class Report:
    """What a policy does on held-out data.

    Attributes:
        images: N.
        accuracy: of the answers with which the images leave.
        accuracy_error: its standard error, from N alone.
        cost: mean multiply-adds of an image.
        leaving: the share of the images that leaves at each stage.
        stage_accuracy, stage_cost: were all of them to leave there.
        expected_accuracy, expected_cost: of thresholds on images that they were not chosen on, by
            cross-validation; None where no thresholds were chosen, or on too few images.
        reached: whether the goal is kept on these data; None where there was none.
        note: the goal, and what stands against it.
    """

    images: int
    accuracy: float
    accuracy_error: float
    cost: float
    leaving: tuple[float, ...]
    stage_accuracy: tuple[float, ...]
    stage_cost: tuple[int, ...]
    expected_accuracy: float | None = None
    expected_cost: float | None = None
    reached: bool | None = None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        shares = ", ".join(f"{100 * share:.1f} %" for share in self.leaving)
        expected = (
            ""
            if self.expected_accuracy is None
            else f", {100 * self.expected_accuracy:.2f} % expected on others"
        )
        return (
            f"{100 * self.accuracy:.2f} % right (+-{100 * self.accuracy_error:.2f}) of {self.images} "
            f"images{expected}; {self.cost:.4g} multiply-adds on average; leaving by stage: {shares}"
            + (f"; {self.note}" if self.note else "")
        )


def simulate(policy: Policy | Sequence[Policy] | None, data: HeldOut) -> Report:
    """What the policy would do to these images, from their stored answers. Deadlines never come."""
    at = _leaving(as_policy(policy), data)
    correct = data.correct
    right = float(correct.gather(0, at.unsqueeze(0)).double().mean())
    images, stages = len(data.labels), len(data.costs)
    return Report(
        images=images,
        accuracy=right,
        accuracy_error=math.sqrt(right * (1 - right) / images),
        cost=float(torch.tensor(data.costs, dtype=torch.float64)[at].mean()),
        leaving=tuple(float((at == stage).double().mean()) for stage in range(stages)),
        stage_accuracy=tuple(float(value) for value in correct.double().mean(dim=1)),
        stage_cost=data.costs,
    )


def _leaving(policy: Policy | None, data: HeldOut) -> Tensor:
    """The stage, from 0, at which each image leaves."""
    last = len(data.costs) - 1
    at = torch.full((len(data.labels),), last)
    under_way = torch.arange(len(data.labels))
    for stage in range(last if policy is not None else 0):
        assert policy is not None
        moment = Moment(
            stage + 1,
            data.probabilities[stage, under_way],
            cost=data.costs[stage],
            next_cost=data.costs[stage + 1],
        )
        done = policy.stop(moment)
        at[under_way[done]] = stage
        under_way = under_way[~done]
    return at


def calibrate(
    policy: Policy | Sequence[Policy],
    data: HeldOut,
    *,
    target_accuracy: float | None = None,
    budget: float | None = None,
) -> tuple[Policy, Report]:
    """The policy with per-stage thresholds that fit the data, and what to expect of it.

    Args:
        policy: a ``Confidence``, alone or in ``|`` with ``MultiplyAdds``; its own thresholds do not
            matter. Deadlines are the machine's affair: add them afterwards.
        data: held-out images. Thresholds that are chosen on the images that the network was trained
            on promise too much.
        target_accuracy: a share of 1; of the policies that reach it, the one of least mean cost.
        budget: mean multiply-adds of an image; of the policies within it, the most accurate.

    Returns:
        (policy, report). Where the goal cannot be reached, the policy comes as near as it can,
        ``report.reached`` is False, and ``report.note`` says so.

    Raises:
        ValueError: not exactly one goal, a goal that makes no sense, another kind of policy, a network
            of one stage.
    """
    chosen = _check(policy, target_accuracy, budget)
    if len(data.costs) == 1:
        raise ValueError(
            "a network of one stage has no thresholds to choose: predict without a policy"
        )
    found = _fit(chosen, data, target_accuracy, budget)
    report = simulate(found, data)
    accuracy, cost = _cross_validate(chosen, data, target_accuracy, budget)
    if target_accuracy is not None:
        reached = report.accuracy >= target_accuracy - 1e-12
        goal = f"target accuracy {100 * target_accuracy:.2f} %"
        best = f"the best of these thresholds has {100 * report.accuracy:.2f} %"
    else:
        assert budget is not None
        reached = report.cost <= budget * (1 + 1e-12)
        goal = f"budget {budget:.4g} multiply-adds"
        best = f"stage 1 alone takes {data.costs[0]:.4g}"
    note = goal if reached else f"{goal} CANNOT BE REACHED on these data: {best}"
    return found, replace(
        report, expected_accuracy=accuracy, expected_cost=cost, reached=reached, note=note
    )


def _check(
    policy: Policy | Sequence[Policy], target_accuracy: float | None, budget: float | None
) -> Policy:
    if (target_accuracy is None) == (budget is None):
        raise ValueError("calibrate needs one goal: target_accuracy= or budget=")
    if target_accuracy is not None and not 0 < target_accuracy <= 1:
        raise ValueError(f"target_accuracy must be a share above 0, got {target_accuracy!r}")
    if budget is not None and not 0 < budget < math.inf:
        raise ValueError(f"budget must be positive multiply-adds, got {budget!r}")
    chosen = as_policy(policy)
    parts = chosen.policies if isinstance(chosen, AnyOf) else (chosen,)
    kinds = [type(part) for part in parts]
    if kinds.count(Confidence) != 1 or not set(kinds) <= {Confidence, MultiplyAdds}:
        raise ValueError(
            "calibrate chooses the thresholds of one Confidence, alone or in | with MultiplyAdds; "
            f"got {chosen!r}"
        )
    assert chosen is not None
    return chosen


def _fit(
    policy: Policy, data: HeldOut, target_accuracy: float | None, budget: float | None
) -> Policy:
    """The policy with the thresholds that suit these images best."""
    stages = len(data.costs)
    never = with_thresholds(policy, (2.0,) * (stages - 1))
    last = int(_leaving(never, data).max()) + 1  # budgets of a part may end all of them earlier
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
    """Mean accuracy and cost on each fifth of the images, by thresholds from the other four."""
    count = len(data.labels)
    if count < 4 * FOLDS:
        return None, None
    shuffled = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    right = cost = 0.0
    for fold in range(FOLDS):
        test = shuffled[fold::FOLDS]
        train = torch.cat([shuffled[other::FOLDS] for other in range(FOLDS) if other != fold])
        report = simulate(_fit(policy, data.take(train), target_accuracy, budget), data.take(test))
        right += report.accuracy * len(test)
        cost += report.cost * len(test)
    return right / count, cost / count
