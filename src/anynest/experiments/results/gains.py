"""What OSGD gains: its errors, and those of SGD on the mean and on the sum of the losses, by design.

Each design is shown from the first protocol (the paper's own first) that has two seeds of all three
methods: at each method's best rate where the protocol has tuned them, else at its one rate. Rates
are tuned on one design and carried to others.
"""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from ..catalog.designs import DESIGNS
from ..catalog.tuned import CHOOSING_SEED, DESIGN, METHODS, best_variant
from .evidence import Errors, Evidence

Rates = Literal["own", "carried", "one"]
MEASURES = {"last": "the last stage", "mean": "the mean of the stages"}


@dataclass(frozen=True)
class Gain:
    """The errors of the three methods on one design.

    Args:
        design: The design.
        evidence: The protocol and data.
        variants: What stands for each method, such as ``osgd+lr=0.2``.
        rates: Each method's own best on this design, its best on another design, or one for all.
    """

    design: str
    evidence: Evidence
    variants: dict[str, str]
    rates: Rates

    def errors(self, method: str) -> Errors:
        """Errors in % by seed, of the seeds that all methods have."""
        found = self.evidence.errors(self.design, self.variants[method])
        return {seed: found[seed] for seed in self.seeds}

    @property
    def seeds(self) -> list[int]:
        """The seeds that all three methods have, without the one that chose the rates."""
        return compared_seeds(self.evidence, self.design, self.variants, self.rates)

    def values(self, method: str, measure: str) -> list[float]:
        """A method's error in % of each seed: ``last`` stage, or ``mean`` of the stages."""
        rows = self.errors(method).values()
        return [row[-1] if measure == "last" else statistics.mean(row) for row in rows]

    def differences(self, method: str, reference: str, measure: str) -> list[float]:
        """Error of ``method`` less that of ``reference``, seed by seed, in points."""
        pairs = zip(self.values(method, measure), self.values(reference, measure), strict=True)
        return [a - b for a, b in pairs]


def compared_seeds(
    evidence: Evidence, design: str, variants: dict[str, str], rates: Rates
) -> list[int]:
    """The seeds that all variants have, without the one that chose the rates."""
    shared = set.intersection(*(set(evidence.errors(design, v)) for v in variants.values()))
    return sorted(shared - ({CHOOSING_SEED} if rates == "own" else set()))


def gain_of(evidence: Evidence, design: str) -> Gain | None:
    """One design under one protocol; None without two seeds of all three methods."""
    best = {m: best_variant(m, evidence.protocol, evidence.records) for m in METHODS}
    tuned: Rates = "own" if design == DESIGN else "carried"
    choices = [({m: v for m, v in best.items() if v is not None}, tuned)]
    choices.append(({m: m for m in METHODS}, "one"))
    for variants, rates in choices:
        known = len(variants) == len(METHODS)
        if known and len(compared_seeds(evidence, design, variants, rates)) > 1:
            return Gain(design, evidence, variants, rates)
    return None


def gains_of(evidences: Sequence[Evidence]) -> list[Gain]:
    """Every design that has results; the protocols in the order given."""
    found = []
    for design in DESIGNS:
        gains = (gain_of(evidence, design) for evidence in evidences)
        first = next((gain for gain in gains if gain is not None), None)
        if first is not None:
            found.append(first)
    return found


def pooled(gains: Iterable[Gain], method: str, reference: str, measure: str) -> list[float]:
    """The differences of all designs and seeds."""
    return [d for gain in gains for d in gain.differences(method, reference, measure)]
