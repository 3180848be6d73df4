"""The claims with their verdicts, each with what it rests on."""

from collections import Counter

from ...claims.claim import Claim, Outcome, Verdict
from ...claims.claim_list import CLAIMS, judge_all
from ..formatting import probability, signed
from ..render.document import Block, Cell, Fold, Group, Table, Text, Tile, Tiles
from ..section import Section

OUTCOMES: tuple[Outcome, ...] = ("holds", "fails", "undecided")
RULES = (
    "Holds: every mean difference has the claimed sign and the pooled one is significant (p). Fails: "
    "a single comparison or the pool is significantly the other way (p against it, adjusted for "
    "all that was tried). Undecided: neither; with runs missing, the pool decides nothing, nor do "
    "differences without any spread. Differences are in percentage points, taken seed by seed; n "
    "counts independent pairs."
)


def counts(verdicts: dict[str, Verdict]) -> dict[Outcome, int]:
    """How many there are of each outcome."""
    found = Counter(verdict.outcome for verdict in verdicts.values())
    return {outcome: found[outcome] for outcome in OUTCOMES}


def tiles(verdicts: dict[str, Verdict]) -> tuple[Tile, ...]:
    """The three numbers."""
    return tuple(
        Tile(str(number), outcome, outcome) for outcome, number in counts(verdicts).items()
    )


def claims(section: Section) -> list[Block]:
    """Each claim as something to unfold; last those that nothing has run for."""
    verdicts = judge_all(section.evidence)
    folds = [(verdicts[claim.name], fold(claim, verdicts[claim.name], section)) for claim in CLAIMS]
    blocks: list[Block] = [Tiles(tiles(verdicts)), Text(RULES, quiet=True)]
    blocks += [folded for verdict, folded in folds if verdict.n]
    idle = tuple(folded for verdict, folded in folds if not verdict.n)
    if idle:
        what = f"{len(idle)} claims" if len(idle) > 1 else "1 claim"
        blocks.append(
            Fold(f"{what} for which no pair of runs is there yet", idle, tone="undecided")
        )
    return blocks


def fold(claim: Claim, verdict: Verdict, section: Section) -> Fold:
    """One claim: closed, the verdict and its numbers; open, the test, comparisons, what is
    missing."""
    facts = [claim.source, f"n = {verdict.n}"]
    if verdict.difference is not None:
        facts.append(f"pooled difference {signed(verdict.difference, 2)} points")
    if verdict.n > 1:
        facts.append(f"p {equals(probability(verdict.p))}")
        facts.append(f"against it p {equals(probability(verdict.p_against))}")
    blocks: list[Block] = [
        Text(f"{claim.name}: {verdict.test}; {section.label}.", quiet=True),
    ]
    if verdict.comparisons:
        rows = tuple(
            (Cell(c.name), Cell(signed(c.mean, 2) if c.n else "-"), Cell(str(c.n)))
            for c in verdict.comparisons
        )
        caption = f"{claim.name}, comparisons: mean difference in points; {section.label}"
        blocks.append(Table(caption, ("comparison", "difference", "n"), (Group(rows),)))
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
