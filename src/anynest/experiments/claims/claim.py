"""Claims and their verdicts.

``judge_differences`` judges a claim about several networks from differences between runs of one
seed. The claim

- *holds* if every mean difference has the claimed sign and the pooled difference is significant
  (differences that share runs are averaged before pooling, so that pairs are independent);
- *fails* if a single comparison, or the pool, is significantly of the other sign. Comparisons and
  pool have half the level each (Bonferroni), and the comparisons share their half (Holm), so a
  claim about equal methods fails in at most 5 % of the cases;
- is *undecided* otherwise. With missing runs the pool decides nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..catalog.designs import CIFAR, DESIGNS
from ..results.evidence import Evidence
from .significance import LEVEL, Difference, above_zero, below_zero, holm, interval

Outcome = Literal["holds", "fails", "undecided"]


@dataclass(frozen=True)
class Verdict:
    """The outcome of a claim.

    Args:
        outcome: ``holds``, ``fails`` or ``undecided``.
        test: Description of the test.
        n: Number of independent pairs.
        difference: Pooled difference in percentage points.
        p: One-sided p of the pooled difference.
        p_against: p that the claim fails by, adjusted for multiple tests.
        comparisons: Differences of each comparison.
        missing: Names of groups with fewer than two pairs.
        margin: Points below which differences must lie.
        interval: 95 % interval of the pooled difference.
        why: Why nothing could be compared, where that is not for missing pairs.
    """

    outcome: Outcome
    test: str
    n: int
    difference: float | None = None
    p: float | None = None
    p_against: float | None = None
    comparisons: tuple[Difference, ...] = ()
    missing: tuple[str, ...] = ()
    margin: float = 0.0
    interval: tuple[float, float] | None = None
    why: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "outcome": self.outcome,
            "test": self.test,
            "n": self.n,
            "difference": self.difference,
            "interval": self.interval and list(self.interval),
            "p": self.p,
            "p_against": self.p_against,
            "comparisons": [
                {
                    "name": c.name,
                    "mean": c.mean if c.n else None,
                    "interval": c.interval and list(c.interval),
                    "n": c.n,
                }
                for c in self.comparisons
            ],
            "missing": list(self.missing),
            "margin": self.margin,
            "why": self.why,
        }


@dataclass(frozen=True)
class Claim:
    """A statement about errors. source: section of the paper; control: not the paper's claim."""

    name: str
    text: str
    source: str
    judge: Callable[[Evidence], Verdict]
    control: bool = False


@dataclass(frozen=True)
class Pairs:
    """Differences that share runs and therefore count as one: comparison -> seed -> points."""

    name: str
    differences: dict[str, dict[int, float]]

    def pooled(self) -> list[float]:
        """Their mean by seed; seeds missing from a comparison are left out."""
        columns = list(self.differences.values())
        seeds = sorted(set.intersection(*(set(column) for column in columns))) if columns else []
        return [sum(column[seed] for column in columns) / len(columns) for seed in seeds]

    def comparisons(self) -> list[Difference]:
        """The differences of each comparison."""
        return [
            Difference(f"{self.name}, {what}", tuple(values[seed] for seed in sorted(values)))
            for what, values in self.differences.items()
        ]


def judge_differences(groups: Sequence[Pairs], margin: float = 0.0) -> Verdict:
    """Judges whether all differences lie below ``margin`` (see the module's docstring)."""
    missing = tuple(pairs.name for pairs in groups if len(pairs.pooled()) < 2)
    comparisons = tuple(c for pairs in groups for c in pairs.comparisons())
    pool = [value for pairs in groups for value in pairs.pooled()]
    shift = f" against a margin of {margin:g} points" if margin else ""
    test = f"paired t-test over the seeds of these networks, one-sided{shift}, level {LEVEL}"
    if not pool:
        return Verdict("undecided", test, 0, None, None, None, comparisons, missing, margin)
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
    found = (mean, p, p_against, comparisons, missing, margin, interval(pool))
    return Verdict(outcome, test, len(pool), *found)


def lower(
    variant: str,
    reference: str,
    stages: Callable[[int], Sequence[int]],
    designs: Sequence[str] = CIFAR,
    tolerance: float = 0.0,
) -> Callable[[Evidence], Verdict]:
    """A judge of "``variant`` has a lower error than ``reference`` at these stages of all designs".

    Args:
        variant: The method.
        reference: The method compared with.
        stages: The stages (from 1) to compare, given the number of stages.
        designs: The network designs.
        tolerance: Share of the reference's error by which the variant may be worse.
    """

    def judge(evidence: Evidence) -> Verdict:
        groups, references = [], list[float]()
        for design in designs:
            chosen = stages(evidence.stages(design))
            pairs = evidence.paired(design, variant, reference, chosen)
            groups.append(Pairs(DESIGNS[design].words, pairs))
            for errors in evidence.errors(design, reference).values():
                references += [errors[stage - 1] for stage in chosen]
        mean = sum(references) / len(references) if references else 0.0
        return judge_differences(groups, tolerance * mean)

    return judge


def last_two(count: int) -> tuple[int, ...]:
    """The last two stages of ``count``."""
    return (count - 1, count)


def last(count: int) -> tuple[int, ...]:
    """The last stage of ``count``."""
    return (count,)


def all_but_last_two(count: int) -> tuple[int, ...]:
    """The stages before the last two of ``count``."""
    return tuple(range(1, count - 1))
