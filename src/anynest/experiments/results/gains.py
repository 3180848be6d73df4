"""What OSGD gains: its errors, and those of SGD on the mean and on the sum of the losses, by design.

Each design is shown from the first protocol (the paper's own first) that has two seeds of all three
methods: at each method's best rate where the protocol has tuned them, else at its one rate.
"""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..catalog.designs import DESIGNS
from ..catalog.tuned import METHODS, best_variant
from .evidence import Errors, Evidence

MEASURES = {"last": "the last stage", "mean": "the mean of the stages"}


@dataclass(frozen=True)
class Gain:
    """The errors of the three methods on one design.

    Args:
        design: The design.
        evidence: The protocol and data.
        variants: What stands for each method, such as ``osgd+lr=0.2``.
        tuned: Whether each method has its own best rate.
    """

    design: str
    evidence: Evidence
    variants: dict[str, str]
    tuned: bool

    def errors(self, method: str) -> Errors:
        """Errors in % by seed, of the seeds that all methods have."""
        found = self.evidence.errors(self.design, self.variants[method])
        return {seed: found[seed] for seed in self.seeds}

    @property
    def seeds(self) -> list[int]:
        """The seeds that all three methods have."""
        return shared_seeds(self.evidence, self.design, self.variants)

    def values(self, method: str, measure: str) -> list[float]:
        """A method's error in % of each seed: ``last`` stage, or ``mean`` of the stages."""
        rows = self.errors(method).values()
        return [row[-1] if measure == "last" else statistics.mean(row) for row in rows]

    def differences(self, method: str, reference: str, measure: str) -> list[float]:
        """Error of ``method`` less that of ``reference``, seed by seed, in points."""
        pairs = zip(self.values(method, measure), self.values(reference, measure), strict=True)
        return [a - b for a, b in pairs]


def shared_seeds(evidence: Evidence, design: str, variants: dict[str, str]) -> list[int]:
    """The seeds that all variants have."""
    return sorted(set.intersection(*(set(evidence.errors(design, v)) for v in variants.values())))


def gain_of(evidence: Evidence, design: str) -> Gain | None:
    """One design under one protocol; None without two seeds of all three methods."""
    best = {m: best_variant(m, evidence.protocol, evidence.records) for m in METHODS}
    choices = [({m: v for m, v in best.items() if v is not None}, True)]
    choices.append(({m: m for m in METHODS}, False))
    for variants, tuned in choices:
        if len(variants) == len(METHODS) and len(shared_seeds(evidence, design, variants)) > 1:
            return Gain(design, evidence, variants, tuned)
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
