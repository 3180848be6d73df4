"""Per-stage confidence thresholds: least cost for an accuracy, or best accuracy for a cost.

An image exits at the first stage whose confidence reaches the stage's threshold, else at the last
stage. Given all other thresholds, the best one of a stage can be found exactly: in order of
confidence, each cut between two images is a threshold, and cumulative sums give the value of each
cut. The search is coordinate descent over the stages,

1. for mean(wrong) + price * mean(cost), at many prices (this finds points of the convex hull),
2. from the best of these, and of the thresholds shared by all stages: for the goal itself.

The result is optimal in each stage's threshold given the others, not always in all of them
together. By step 2 it is never worse than the best shared threshold among those tried (one for
each of many quantiles of the confidences).

Legend: S stages, N images; stages count from 0 here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

NEVER = 2.0  # no confidence reaches this threshold
ALWAYS = 0.0
PRICES = 24  # of step 1
SHARED = 200  # thresholds shared by all stages that are tried
STARTS = 8  # of step 2
ROUNDS = 50  # of coordinate descent, at most
SLACK = 1e-12  # for rounding
TIE = 1e-9  # weight of the tie-breaker
OVER = 1e3  # penalty for exceeding the bound

Thresholds = tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Exits:
    """Confidence, error and cost of every image at every stage, float64.

    Attributes:
        confidence: ``[S, N]``.
        wrong: ``[S, N]``, 0 or 1.
        cost: ``[S]``.
    """

    confidence: Tensor
    wrong: Tensor
    cost: Tensor

    def exit_stages(self, thresholds: Thresholds) -> Tensor:
        """The stage at which each image exits, int64 ``[N]``."""
        last = len(self.cost) - 1
        at = torch.full((self.confidence.shape[1],), last)
        for stage in reversed(range(last)):
            at[self.confidence[stage] >= thresholds[stage]] = stage
        return at

    def outcome(self, thresholds: Thresholds) -> Outcome:
        """Mean error and cost with these thresholds."""
        at = self.exit_stages(thresholds)
        wrong = self.wrong.gather(0, at.unsqueeze(0)).mean()
        return Outcome(float(wrong), float(self.cost[at].mean()))


@dataclass(frozen=True)
class Outcome:
    """Means over the images."""

    wrong: float
    cost: float


Rank = Callable[[Tensor, Tensor], Tensor]  # (wrong, cost) -> the value to minimise, elementwise


def search(exits: Exits, max_wrong: float | None, max_cost: float | None) -> Thresholds:
    """The thresholds of all stages but the last that minimise one mean within a bound on the other.

    Exactly one bound is given. Where it cannot be kept, the thresholds that come closest.
    """
    largest = float(exits.cost[-1])
    rank = (
        _within_wrong(max_wrong, largest) if max_cost is None else _within_cost(max_cost, largest)
    )
    stages = len(exits.cost) - 1
    candidates = [(value,) * stages for value in _shared(exits)]
    start = (NEVER,) * stages
    for price in torch.logspace(-4, 2, PRICES, dtype=torch.float64).tolist():
        start = descend(exits, start, _priced(price / largest))
        candidates.append(start)
    outcomes = [exits.outcome(candidate) for candidate in candidates]
    ranks = rank(
        torch.tensor([o.wrong for o in outcomes], dtype=torch.float64),
        torch.tensor([o.cost for o in outcomes], dtype=torch.float64),
    )
    starts = dict.fromkeys(candidates[i] for i in ranks.argsort(stable=True)[:STARTS].tolist())
    ends = [descend(exits, start, rank) for start in starts]
    return min(ends, key=lambda end: _rank_of(exits, end, rank))


def _priced(price: float) -> Rank:
    return lambda wrong, cost: wrong + price * cost


def _within_wrong(bound: float | None, largest: float) -> Rank:
    """The least cost within the bound on errors; where that is impossible, the least error."""
    assert bound is not None
    return lambda wrong, cost: torch.where(
        wrong <= bound + SLACK,
        cost / largest + TIE * wrong,
        OVER * (1 + wrong - bound) + TIE * cost / largest,
    )


def _within_cost(bound: float, largest: float) -> Rank:
    """The least error within the bound on cost; where that is impossible, the least cost."""
    return lambda wrong, cost: torch.where(
        cost <= bound * (1 + SLACK),
        wrong + TIE * cost / largest,
        OVER * (1 + (cost - bound) / largest) + TIE * wrong,
    )


def _shared(exits: Exits) -> list[float]:
    """Thresholds to try for all stages together."""
    points = torch.linspace(0, 1, SHARED, dtype=torch.float64)
    some = exits.confidence[:-1].flatten()
    some = some[:: max(1, len(some) // 100_000)]  # quantile() has a limit
    # float32, as in the comparison
    values = torch.quantile(some, points).float().tolist() if len(some) else []
    return [ALWAYS, *dict.fromkeys(values), NEVER]


def descend(exits: Exits, thresholds: Thresholds, rank: Rank) -> Thresholds:
    """Coordinate descent over the stages, until no threshold improves."""
    best = _rank_of(exits, thresholds, rank)
    for _ in range(ROUNDS):
        before = best
        for stage in reversed(range(len(thresholds))):
            value, found = _best_cut(exits, thresholds, stage, rank)
            if found < best - 1e-15:
                best = found
                thresholds = (*thresholds[:stage], value, *thresholds[stage + 1 :])
        if best >= before:
            break
    return thresholds


def _rank_of(exits: Exits, thresholds: Thresholds, rank: Rank) -> float:
    outcome = exits.outcome(thresholds)
    values = torch.tensor([[outcome.wrong], [outcome.cost]], dtype=torch.float64)
    return float(rank(values[0], values[1]))


def _best_cut(exits: Exits, thresholds: Thresholds, stage: int, rank: Rank) -> tuple[float, float]:
    """The best threshold of one stage, given the others, and its rank."""
    count = exits.confidence.shape[1]
    without = exits.exit_stages((*thresholds[:stage], NEVER, *thresholds[stage + 1 :]))
    wrong = exits.wrong.gather(0, without.unsqueeze(0)).squeeze(0)
    cost = exits.cost[without]
    there = (without > stage).nonzero().squeeze(1)  # the images that reach this stage
    confidence, order = exits.confidence[stage][there].sort(descending=True)
    there = there[order]
    more_wrong = (exits.wrong[stage][there] - wrong[there]).cumsum(0)
    more_cost = (exits.cost[stage] - cost[there]).cumsum(0)
    zero = torch.zeros(1, dtype=torch.float64)
    wrongs = (wrong.sum() + torch.cat([zero, more_wrong])) / count  # after 0, 1, 2, ... exits
    costs = (cost.sum() + torch.cat([zero, more_cost])) / count
    ranks = rank(wrongs, costs)
    if len(there):  # equal confidences exit together
        ranks[1:-1][confidence[1:] == confidence[:-1]] = math.inf
    exits_here = int(ranks.argmin())
    return _between(confidence, exits_here), float(ranks[exits_here])


def _between(confidence: Tensor, count: int) -> float:
    """A threshold that exactly the first ``count`` of the descending confidences reach."""
    if count == 0:
        return NEVER
    if count == len(confidence):
        return ALWAYS
    low, high = float(confidence[count]), float(confidence[count - 1])
    middle = float(torch.tensor((low + high) / 2, dtype=torch.float32))  # as in the comparison
    return middle if low < middle <= high else high
