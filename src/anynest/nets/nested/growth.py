"""Growth: the (width, depth) of every stage, as pure data (paper, section 3.3).

``[(1,1),(2,1),(4,1)]`` nests in width, ``[(1,1),(1,2),(1,4)]`` in depth, ``[(1,1),(2,1),(2,2)]`` in
both alternately, ``[(1,1),(2,2)]`` in both at once; ``[(4,4)]`` is a plain network.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

MAX_NUMBER = (1 << 31) - 1  # of channels, classes, blocks and multiples of them


class Stage(NamedTuple):
    """The size of one stage: multiples of the base width and of the base depth."""

    width: int
    depth: int


Growth = tuple[Stage, ...]


def as_integer(value: Any) -> int | None:
    """An integer of any type (also NumPy's) as ``int``; None for booleans and everything else."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def positive_integer(name: str, value: Any) -> int:
    """Check a number of channels, blocks or classes.

    Raises:
        ValueError: it is no integer, below 1, or above 2^31 - 1.
    """
    number = as_integer(value)
    if number is None or number < 1:
        raise ValueError(f"{name} must be a positive integer, found {value!r}")
    if number > MAX_NUMBER:
        raise ValueError(f"{name} must be at most {MAX_NUMBER}, found {number}")
    return number


def parse_growth(value: Sequence[Sequence[int]]) -> Growth:
    """Check a growth and make it a tuple of :class:`Stage`.

    Args:
        value: one (width, depth) pair per stage, both positive integers. Neither may shrink, one of
            them must grow at each stage, and each depth divides the next (so that interlaced
            layers align).

    Raises:
        ValueError: one of these rules is broken.
    """
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence) or not value:
        raise ValueError(
            "growth must be a non-empty list of (width, depth), such as [(1, 1), (2, 1)], found "
            f"{value!r}"
        )
    stages: list[Stage] = []
    for number, pair in enumerate(value, 1):
        is_pair = isinstance(pair, Sequence) and not isinstance(pair, str) and len(pair) == 2
        if not is_pair or not all((as_integer(n) or 0) > 0 for n in pair):
            raise ValueError(
                f"growth: stage {number} must be two positive integers (width, depth), found "
                f"{pair!r}"
            )
        stages.append(Stage(*(positive_integer(f"growth: stage {number}", n) for n in pair)))
    for number, (small, large) in enumerate(pairwise(stages), 2):
        if large.width < small.width or large.depth < small.depth or large == small:
            raise ValueError(
                f"growth: stage {number} must grow over stage {number - 1}, found {tuple(small)} "
                f"then {tuple(large)}; widen or deepen it"
            )
        if large.depth % small.depth:
            raise ValueError(
                f"growth: each depth must divide the next, found {small.depth} then {large.depth} "
                f"at stage {number}; use a multiple, such as {small.depth * 2}"
            )
    return tuple(stages)
