"""The paper's claims, each with a verdict that is computed from the results.

How a verdict about several networks comes about (``judge_differences``): the differences are taken
seed by seed. The claim *holds* where every mean difference has the claimed sign and, pooled over
all runs (differences that share runs are averaged first, so that pairs are independent), the
difference is significant. It *fails* where a single comparison, or the pool, is significantly the
other way. These are two tests, so each has half the level (Bonferroni), and the comparisons share
theirs (Holm): where nothing differs a claim fails in at most 5 % of the cases, not in 10 %.
Otherwise it is *undecided*. Where runs are missing the pool decides nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..catalog.designs import CIFAR
from .evidence import Evidence
from .significance import LEVEL, Difference, above_zero, below_zero, holm

Outcome = Literal["holds", "fails", "undecided"]


@dataclass(frozen=True)
class Verdict:
    """outcome, the test in words, n independent pairs, the pooled difference in percentage points
    with its one-sided p, the p that the claim fails by (adjusted for all that was tried), every
    comparison's mean difference, and what is missing."""

    outcome: Outcome
    test: str
    n: int
    difference: float | None = None
    p: float | None = None
    p_against: float | None = None
    comparisons: tuple[Difference, ...] = ()
    missing: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "outcome": self.outcome,
            "test": self.test,
            "n": self.n,
            "difference": self.difference,
            "p": self.p,
            "p_against": self.p_against,
            "comparisons": [
                {"name": c.name, "mean": c.mean if c.n else None, "n": c.n}
                for c in self.comparisons
            ],
            "missing": list(self.missing),
        }


@dataclass(frozen=True)
class Claim:
    """text: what the paper (or the control) says; source: where."""

    name: str
    text: str
    source: str
    judge: Callable[[Evidence], Verdict]


@dataclass(frozen=True)
class Pairs:
    """Differences that share runs, so that they count as one: what is compared -> seed -> points."""

    name: str
    differences: dict[str, dict[int, float]]

    def pooled(self) -> list[float]:
        """Their mean, one a seed; seeds that one of them lacks are left out."""
        columns = list(self.differences.values())
        seeds = sorted(set.intersection(*(set(column) for column in columns))) if columns else []
        return [sum(column[seed] for column in columns) / len(columns) for seed in seeds]

    def comparisons(self) -> list[Difference]:
        """One a comparison."""
        return [
            Difference(f"{self.name}, {what}", tuple(values[seed] for seed in sorted(values)))
            for what, values in self.differences.items()
        ]


def judge_differences(groups: Sequence[Pairs], margin: float = 0.0) -> Verdict:
    """Whether all differences lie below ``margin``, as the head of this file says."""
    missing = tuple(pairs.name for pairs in groups if len(pairs.pooled()) < 2)
    comparisons = tuple(c for pairs in groups for c in pairs.comparisons())
    pool = [value for pairs in groups for value in pairs.pooled()]
    shift = f" against a margin of {margin:g} points" if margin else ""
    test = f"paired t-test over networks and seeds, one-sided{shift}, level {LEVEL}"
    if not pool:
        return Verdict("undecided", test, 0, None, None, None, comparisons, missing)
    mean, p = sum(pool) / len(pool), below_zero(pool, margin)
    single = holm([above_zero(c.values, margin) for c in comparisons if c.n > 1])
    whole = [] if missing else [above_zero(pool, margin)]
    p_against = min([1.0, *(2 * value for value in (*single, *whole))])
    if p_against < LEVEL:
        outcome: Outcome = "fails"
    elif p < LEVEL and not missing and all(c.mean < margin for c in comparisons):
        outcome = "holds"
    else:
        outcome = "undecided"
    return Verdict(outcome, test, len(pool), mean, p, p_against, comparisons, missing)


def lower(
    variant: str,
    reference: str,
    stages: Callable[[int], Sequence[int]],
    designs: Sequence[str] = CIFAR,
    tolerance: float = 0.0,
) -> Callable[[Evidence], Verdict]:
    """A judge of "``variant`` has a lower error than ``reference`` at these stages of every
    design". tolerance: may be worse by this share of the reference's error."""

    def judge(evidence: Evidence) -> Verdict:
        groups, references = [], list[float]()
        for design in designs:
            chosen = stages(evidence.stages(design))
            groups.append(Pairs(design, evidence.paired(design, variant, reference, chosen)))
            for errors in evidence.errors(design, reference).values():
                references += [errors[stage - 1] for stage in chosen]
        mean = sum(references) / len(references) if references else 0.0
        return judge_differences(groups, tolerance * mean)

    return judge


def last_two(count: int) -> tuple[int, ...]:
    """The numbers of a network's last two stages."""
    return (count - 1, count)


def last(count: int) -> tuple[int, ...]:
    """The number of its last stage."""
    return (count,)


def all_but_last_two(count: int) -> tuple[int, ...]:
    """The early ones."""
    return tuple(range(1, count - 1))
