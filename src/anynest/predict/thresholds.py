"""Per-stage confidence thresholds by search: the least cost for an accuracy, or the most accuracy for a cost.

An image leaves at the first stage whose confidence reaches the stage's threshold, and at the last stage
whatever it is. Given all the other thresholds, the best one of a stage can be found exactly: in the order of
confidence, each cut between two images is a threshold, and running sums tell what each cut costs. So the
search goes from stage to stage until none can be bettered,

1. for mean(wrong) + price * mean(cost), at many prices (this finds the points of the convex hull),
2. from the best few of these and of the thresholds that are the same at all stages: for the goal itself.

The result is an optimum in each stage's threshold given the others, not always in all of them together; by
step 2 it is never worse than the best threshold shared by all stages among those that were tried (one for
each of many quantiles of the confidences).

Legend: S stages, N images; stages count from 0 here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

NEVER = 2.0  # a threshold that no confidence reaches
ALWAYS = 0.0
PRICES = 24
SHARED = 200
STARTS = 8
ROUNDS = 50
SLACK = 1e-12  # of rounding
TIE = 1e-9  # what an equal rank is decided by, weighs so much
OVER = 1e3  # whatever breaks the bound comes after all that keeps it

Thresholds = tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Exits:
    """What every image would be worth at every stage: all float64.

    confidence, wrong (0 or 1): ``[S, N]``; cost: ``[S]``.
    """

    confidence: Tensor
    wrong: Tensor
    cost: Tensor

    def leaving(self, thresholds: Thresholds) -> Tensor:
        """The stage at which each image leaves, int64 ``[N]``."""
        last = len(self.cost) - 1
        at = torch.full((self.confidence.shape[1],), last)
        for stage in reversed(range(last)):
            at[self.confidence[stage] >= thresholds[stage]] = stage
        return at

    def outcome(self, thresholds: Thresholds) -> Outcome:
        at = self.leaving(thresholds)
        wrong = self.wrong.gather(0, at.unsqueeze(0)).mean()
        return Outcome(float(wrong), float(self.cost[at].mean()))


@dataclass(frozen=True)
class Outcome:
    """Means over the images."""

    wrong: float
    cost: float


Rank = Callable[[Tensor, Tensor], Tensor]  # (wrong, cost) -> what is to be least, elementwise


def search(exits: Exits, max_wrong: float | None, max_cost: float | None) -> Thresholds:
    """The thresholds of the stages 1 to S-1 that keep within one bound and are least in the other.

    Where the bound cannot be kept, the ones that come nearest to it. Exactly one bound is given.
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
    """The cheapest of those that are wrong at most so often; failing these, the least wrong."""
    assert bound is not None
    return lambda wrong, cost: torch.where(
        wrong <= bound + SLACK,
        cost / largest + TIE * wrong,
        OVER * (1 + wrong - bound) + TIE * cost / largest,
    )


def _within_cost(bound: float, largest: float) -> Rank:
    """The least often wrong of those that cost at most so much; failing these, the cheapest."""
    return lambda wrong, cost: torch.where(
        cost <= bound * (1 + SLACK),
        wrong + TIE * cost / largest,
        OVER * (1 + (cost - bound) / largest) + TIE * wrong,
    )


def _shared(exits: Exits) -> list[float]:
    """Thresholds to try for all stages alike."""
    points = torch.linspace(0, 1, SHARED, dtype=torch.float64)
    some = exits.confidence[:-1].flatten()
    some = some[:: max(1, len(some) // 100_000)]  # more than quantile() takes would tell no more
    # in float32, as they will be compared
    values = torch.quantile(some, points).float().tolist() if len(some) else []
    return [ALWAYS, *dict.fromkeys(values), NEVER]


def descend(exits: Exits, thresholds: Thresholds, rank: Rank) -> Thresholds:
    """From stage to stage, the best threshold given the others, until none is bettered."""
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
    """The best threshold of one stage, the others as they are, and its rank."""
    count = exits.confidence.shape[1]
    without = exits.leaving((*thresholds[:stage], NEVER, *thresholds[stage + 1 :]))
    wrong = exits.wrong.gather(0, without.unsqueeze(0)).squeeze(0)
    cost = exits.cost[without]
    there = (without > stage).nonzero().squeeze(1)  # who comes to this stage at all
    confidence, order = exits.confidence[stage][there].sort(descending=True)
    there = there[order]
    more_wrong = (exits.wrong[stage][there] - wrong[there]).cumsum(0)
    more_cost = (exits.cost[stage] - cost[there]).cumsum(0)
    zero = torch.zeros(1, dtype=torch.float64)
    wrongs = (wrong.sum() + torch.cat([zero, more_wrong])) / count  # after 0, 1, 2, ... have left
    costs = (cost.sum() + torch.cat([zero, more_cost])) / count
    ranks = rank(wrongs, costs)
    if len(there):  # equal confidences leave together
        ranks[1:-1][confidence[1:] == confidence[:-1]] = math.inf
    leave = int(ranks.argmin())
    return _between(confidence, leave), float(ranks[leave])


def _between(confidence: Tensor, leave: int) -> float:
    """A threshold that the first ``leave`` of falling confidences reach, and no other does."""
    if leave == 0:
        return NEVER
    if leave == len(confidence):
        return ALWAYS
    low, high = float(confidence[leave]), float(confidence[leave - 1])
    middle = float(torch.tensor((low + high) / 2, dtype=torch.float32))  # as it will be compared
    return middle if low < middle <= high else high
