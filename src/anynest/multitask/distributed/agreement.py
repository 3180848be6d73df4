"""What the ranks of a group settle before a step: whether all may take it, and who counts how much.

Every rank says in a few numbers what it was given. All ranks see all numbers, so that all come to
the same end: they go on alike, leave the same losses out, or raise alike.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..._collectives import Collectives
from ..checks import NonFiniteLossError

MASK_BITS, MASK_WORDS = 48, 8  # whole numbers up to 2^53 are exact in float64
MOST_LOSSES = MASK_BITS * MASK_WORDS


@dataclass(frozen=True)
class Meeting:
    """What was settled.

    tasks: the losses that count in this step, by number.
    count: the number of losses, S.
    share: what this rank's losses count, in units of the mean rank: W * samples / all samples.
    fresh: whether some rank sees these parameters for the first time.
    """

    tasks: list[int]
    count: int
    share: float
    fresh: bool


def refuse(link: Collectives) -> None:
    """Tell the other ranks, which are in ``meet``, that this one cannot take the step."""
    link.compare([1.0, *[0.0] * (4 + MASK_WORDS)])


def meet(
    link: Collectives,
    values: Tensor | None,
    samples: float | None,
    fingerprint: int,
    fresh: bool,
    on_nonfinite: str,
) -> Meeting:
    """Settle a step.

    Args:
        values: [S] this rank's losses; None where it has no samples and brings none.
        samples: how many samples they average over; None on every rank for all alike.
        fingerprint: of the parameters; must be the same everywhere.

    Raises, on every rank alike and in one line:
        ValueError: a rank refused, or the ranks differ in losses, parameters or the use of samples.
        NonFiniteLossError: a loss of some rank is not finite, under ``on_nonfinite="raise"``.
    """
    count = 0 if values is None else len(values)
    if count > MOST_LOSSES:
        refuse(link)
        raise ValueError(f"a group takes at most {MOST_LOSSES} losses, found {count}: sum some up")
    masks = [0] * MASK_WORDS
    if values is not None and samples != 0 and on_nonfinite != "ignore":
        for i, finite in enumerate(torch.isfinite(values).tolist()):
            masks[i // MASK_BITS] |= (not finite) << (i % MASK_BITS)
    said = -1.0 if samples is None else float(samples)
    ranks = link.compare([0.0, count, fingerprint, fresh, said, *masks])
    _agree(ranks)
    count = int(max(row[1] for row in ranks))
    weights = _weights([row[4] for row in ranks])
    bad = [[_has(row[5:], i) for row in ranks] for i in range(count)]
    if on_nonfinite == "raise":
        _raise_for(bad)
    tasks = [i for i in range(count) if not any(bad[i])]
    share = weights[link.rank] * (len(ranks) / sum(weights))
    return Meeting(tasks, count, share, any(row[3] for row in ranks))


def _agree(ranks: Sequence[Sequence[float]]) -> None:
    refused = [r for r, row in enumerate(ranks) if row[0]]
    if refused:
        raise ValueError(
            f"rank {refused[0]} cannot take this step: its own error says why, and no rank has"
            " taken it"
        )
    counts = {r: int(row[1]) for r, row in enumerate(ranks) if row[1]}
    if pair := _odd(counts):
        r, q = pair
        raise ValueError(
            f"all ranks must have the same losses, found {counts[r]} on rank {r} and {counts[q]} on"
            f" rank {q}: pass one for every task on every rank"
        )
    if pair := _odd({r: row[2] for r, row in enumerate(ranks)}):
        raise ValueError(
            f"all ranks must pass the same parameters in the same order, found ranks {pair[0]} and"
            f" {pair[1]} to differ in their number, shapes, dtypes or memory formats: build the same"
            " network on all ranks"
        )
    silent = [r for r, row in enumerate(ranks) if row[4] < 0]
    if silent and len(silent) < len(ranks):
        raise ValueError(
            f"all ranks must say samples= or none, found none on rank {silent[0]}: pass len(x) on"
            " every rank"
        )


def _odd(values: Mapping[int, float]) -> tuple[int, int] | None:
    """The first rank and the first that differs from it."""
    first = next(iter(values), 0)
    other = next((r for r, value in values.items() if value != values[first]), None)
    return None if other is None else (first, other)


def _weights(samples: list[float]) -> list[float]:
    """What each rank counts; a rank that did not say counts 1, as all do."""
    weights = [1.0 if n < 0 else n for n in samples]
    if not sum(weights):
        raise ValueError("samples must not be 0 on every rank: leave out a step without samples")
    return weights


def _has(words: Sequence[float], i: int) -> bool:
    return bool(int(words[i // MASK_BITS]) >> (i % MASK_BITS) & 1)


def _raise_for(bad: Sequence[Sequence[bool]]) -> None:
    for i, ranks in enumerate(bad):
        if any(ranks):
            raise NonFiniteLossError(
                f"loss {i} is not finite on rank {list(ranks).index(True)}: lower the learning rate"
                ' or clip the gradient, or leave such losses out by on_nonfinite="skip"'
            )
