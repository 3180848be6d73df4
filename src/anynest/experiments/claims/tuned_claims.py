"""Claims about methods at their own learning rates (``catalog/tuned.py``). They are controls: the
paper trains all methods at one rate.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from ..catalog.designs import DESIGNS as DESIGN_NAMES
from ..catalog.tuned import (
    CHOOSING_SEED,
    DESIGN,
    best_variant,
    rate_variant,
    rates_of,
    runs,
)
from ..catalog.variants import title_of
from ..results.evidence import Evidence
from .claim import Claim, Pairs, Verdict, judge_differences, last_two

DESIGNS = ("width", "depth", "alternating")
SOURCE = "control, not in the paper"


def tuned_lower(
    method: str, reference: str, stages: Callable[[int], Sequence[int]], designs: Sequence[str]
) -> Callable[[Evidence], Verdict]:
    """A judge of "``method`` has a lower error than ``reference``, each at its best rate", without
    the seed that chose the rates.

    Args:
        method: The method.
        reference: The method compared with.
        stages: The stages (from 1) to compare, given the number of stages.
        designs: The network designs.
    """

    def judge(evidence: Evidence) -> Verdict:
        variants = {m: best_variant(m, evidence.protocol, evidence.records) for m in pair}
        ours, theirs = (variants[m] for m in pair)
        if ours is None or theirs is None:
            test = "paired t-test, each method at its best rate"
            unknown = [m for m in pair if variants[m] is None]
            return Verdict("undecided", test, 0, why=why_unknown(evidence, unknown))
        groups = []
        for design in designs:
            pairs = evidence.paired(design, ours, theirs, stages(evidence.stages(design)))
            if design == DESIGN:
                for differences in pairs.values():
                    differences.pop(CHOOSING_SEED, None)
            groups.append(Pairs(DESIGN_NAMES[design].words, pairs))
        found = judge_differences(groups)
        rates = f"{title_of(ours)} against {title_of(theirs)}"
        return replace(found, test=f"{found.test}; best rates: {rates}")

    pair = (method, reference)
    return judge


def why_unknown(evidence: Evidence, methods: Sequence[str]) -> str:
    """Why the best rates of these methods are not known."""
    protocol = evidence.protocol
    if not runs(protocol):
        return f"protocol {protocol.name} holds out too few images to choose a rate"
    parts = []
    for method in methods:
        tried, _ = rates_of(method, protocol, evidence.records)
        done = [r for r in tried if known_rate(evidence, method, r)]
        parts.append(f"{title_of(method)} ({len(done)} of {len(tried)} rates)")
    return f"the best rate is not known yet of {'; '.join(parts)}"


def known_rate(evidence: Evidence, method: str, rate: float) -> bool:
    """Whether a method has been trained at a rate with the seed that chooses."""
    return CHOOSING_SEED in evidence.errors(DESIGN, rate_variant(method, rate, evidence.protocol))


def tuned_claim(name: str, reference: str, words: str, designs: Sequence[str]) -> Claim:
    """OSGD against a reference on some designs."""
    where = "the width-nested network" if len(designs) == 1 else f"{', '.join(designs)} networks"
    tuned = "tuned" if len(designs) == 1 else f"tuned on the {DESIGN}-nested network"
    text = (
        f"With each method's learning rate {tuned}, OSGD has a lower error than {words} at the "
        f"last two stages of {where}"
    )
    judge = tuned_lower("osgd", reference, last_two, designs)
    return Claim(name, text, SOURCE, judge, control=True)


TUNED_CLAIMS = (
    tuned_claim("osgd-tuned", "sgd-mean", "SGD", DESIGNS[:1]),
    tuned_claim("osgd-tuned-against-sum", "sgd-sum", "SGD on the *sum* of the losses", DESIGNS[:1]),
    tuned_claim("osgd-tuned-designs", "sgd-mean", "SGD", DESIGNS),
    tuned_claim(
        "osgd-tuned-designs-against-sum", "sgd-sum", "SGD on the *sum* of the losses", DESIGNS
    ),
)
