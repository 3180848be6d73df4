"""The claims and their verdicts."""

from collections import Counter

from ....training.output.reporting import counted
from ...claims.claim import Claim, Outcome, Verdict
from ...claims.claim_list import CLAIMS, judge_all
from ...claims.significance import LEVEL
from ..formatting import interval_text, probability, range_text, signed
from ..render.document import Block, Fold, RowGroup, Table, Text, Tile, Tiles, text_row
from ..section import Section

OUTCOMES: tuple[Outcome, ...] = ("holds", "fails", "undecided")
RULES = (
    "Holds: every mean difference has the claimed sign and the pooled one is significant (p). "
    "Fails: a single comparison or the pool is significantly the other way (p against it, "
    "adjusted for all that was tried). Undecided: neither; with runs missing, the pool decides "
    "nothing, nor do differences without any spread. Differences are in percentage points, taken "
    "seed by seed; n counts independent pairs."
)


def counts(verdicts: dict[str, Verdict]) -> dict[Outcome, int]:
    """The number of the paper's claims with each outcome; controls are not counted."""
    found = Counter(verdicts[claim.name].outcome for claim in CLAIMS if not claim.control)
    return {outcome: found[outcome] for outcome in OUTCOMES}


def claims(section: Section) -> list[Block]:
    """A fold per claim, those without results together, and the controls."""
    verdicts = judge_all(section.evidence)
    tiles = (Tile(str(count), outcome, outcome) for outcome, count in counts(verdicts).items())
    blocks: list[Block] = [Tiles(tuple(tiles)), Text(RULES, quiet=True)]
    idle = list[Block]()
    for claim in CLAIMS:
        verdict = verdicts[claim.name]
        if not claim.control:
            (blocks if verdict.n else idle).append(fold(claim, verdict))
    if idle:
        what = f"{len(idle)} claims" if len(idle) > 1 else "1 claim"
        title = f"{what} for which no pair of runs is there yet"
        blocks.append(Fold(title, tuple(idle), tone="undecided"))
    blocks.append(Text("Controls, which are no claims of the paper:"))
    blocks += [fold(claim, verdicts[claim.name]) for claim in CLAIMS if claim.control]
    return blocks


def reason(verdict: Verdict) -> str:
    """Why a verdict is undecided."""
    if verdict.why:
        return verdict.why
    if verdict.missing:
        return f"fewer than two pairs of runs for {', '.join(verdict.missing)}"
    if verdict.p is not None and verdict.p >= LEVEL:
        return f"the pooled difference is not significant (p {equals(probability(verdict.p))})"
    others = [c for c in verdict.comparisons if c.mean >= verdict.margin]
    found = "; ".join(f"{c.name}, {signed(c.mean, 2)}" for c in others)
    where = "above the margin" if verdict.margin else "of the other sign"
    return f"{counted(len(others), 'difference')} {where}: {found}"


def fold(claim: Claim, verdict: Verdict) -> Fold:
    """A claim: its verdict and numbers; unfolded the test, comparisons and missing runs."""
    facts = [claim.source, f"n = {verdict.n}"]
    if verdict.difference is not None:
        within = f" ({interval_text(verdict.interval)})" if verdict.interval else ""
        facts.append(f"pooled difference {signed(verdict.difference, 2)} points{within}")
    if verdict.margin:
        facts.append(f"within {verdict.margin:.1f} points")
    if verdict.n > 1:
        facts.append(f"p {equals(probability(verdict.p))}")
        facts.append(f"against it p {equals(probability(verdict.p_against))}")
    if verdict.outcome == "undecided":
        facts.append(f"undecided: {reason(verdict)}")
    blocks: list[Block] = [
        Text(f"{verdict.test[:1].upper()}{verdict.test[1:]}.", quiet=True),
    ]
    if verdict.comparisons:
        rows = tuple(
            text_row(c.name, signed(c.mean, 2) if c.n else "-", range_text(c.interval), str(c.n))
            for c in verdict.comparisons
        )
        caption = "Comparisons: mean difference in points"
        head = ("comparison", "difference", "95 % interval", "n")
        blocks.append(Table(caption, head, (RowGroup(rows),)))
    if verdict.missing:
        blocks.append(Text(f"Fewer than two pairs of runs yet for {', '.join(verdict.missing)}."))
    return Fold(
        claim.text.replace("*", ""), tuple(blocks), " \N{MIDDLE DOT} ".join(facts), verdict.outcome
    )


def equals(text: str) -> str:
    """
    >>> equals("0.031"), equals("< 0.001")
    ('= 0.031', '< 0.001')
    """
    return text if text.startswith("<") else f"= {text}"
