"""Growth: the (width, depth) of every stage, as pure data (paper, section 3.3).

``[(1,1),(2,1),(4,1)]`` nests in width, ``[(1,1),(1,2),(1,4)]`` in depth, ``[(1,1),(2,1),(2,2)]`` in both
by turns, ``[(1,1),(2,2)]`` in both at once, ``[(4,4)]`` is a plain network.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple


class Stage(NamedTuple):
    """The size of one stage: multiples of the base width and of the base depth."""

    width: int
    depth: int


Growth = tuple[Stage, ...]


def parse_growth(value: Sequence[Sequence[int]]) -> Growth:
    """Check a growth and make it a tuple of :class:`Stage`.

    Args:
        value: one (width, depth) pair a stage, both positive integers; neither may shrink, one of them
            must grow at each stage, and each depth divides the next (so that interlaced layers align).

    Raises:
        ValueError: with the rule, the value found and the remedy.
    """
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence) or not value:
        raise ValueError(
            f"growth must be a non-empty list of (width, depth), such as [(1, 1), (2, 1)], found {value!r}"
        )
    stages: list[Stage] = []
    for number, pair in enumerate(value, 1):
        is_pair = isinstance(pair, Sequence) and not isinstance(pair, str) and len(pair) == 2
        if not is_pair or not all(type(n) is int and n > 0 for n in pair):
            raise ValueError(
                f"growth: stage {number} must be two positive integers (width, depth), found {pair!r}"
            )
        stages.append(Stage(*pair))
    for number, (small, large) in enumerate(pairwise(stages), 2):
        if large.width < small.width or large.depth < small.depth or large == small:
            raise ValueError(
                f"growth: stage {number} must grow over stage {number - 1}, found {tuple(small)} then "
                f"{tuple(large)}; widen or deepen it"
            )
        if large.depth % small.depth:
            raise ValueError(
                f"growth: each depth must divide the next, found {small.depth} then {large.depth} at "
                f"stage {number}; use a multiple, such as {small.depth * 2}"
            )
    return tuple(stages)
