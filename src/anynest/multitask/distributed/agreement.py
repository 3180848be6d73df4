"""What the ranks of a group agree on before a step: whether all can take it, and with what weight.

Every rank sends a few numbers about its arguments and sees those of all ranks, so that all reach
the same decision: to take the step, to skip the same losses, or to raise the same error.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from zlib import crc32

import torch
from torch import Tensor

from ..._collectives import Collectives
from ..checks import Names, NonFiniteLossError

MASK_BITS, MASK_WORDS = 48, 8  # integers up to 2^53 are exact in float64
MAX_LOSSES = MASK_BITS * MASK_WORDS


@dataclass(frozen=True)
class StepAgreement:
    """The decision.

    Attributes:
        tasks: the losses that count in this step, by number.
        count: the number of losses, S.
        share: the weight of this rank's losses, W * samples / all ranks' samples.
        is_new: whether some rank uses these parameters for the first time.
    """

    tasks: list[int]
    count: int
    share: float
    is_new: bool


def refuse(collectives: Collectives) -> None:
    """Tell the other ranks, which wait in ``agree``, that this one cannot take the step."""
    collectives.compare([1.0, *[0.0] * (5 + MASK_WORDS)])


def agree(
    collectives: Collectives,
    values: Tensor | None,
    samples: float | None,
    fingerprint: int,
    is_new: bool,
    on_nonfinite: str,
    names: Names = None,
) -> StepAgreement:
    """Agree on a step.

    Args:
        collectives: those of the group.
        values: [S] this rank's losses; None if it has no samples and passes no losses.
        samples: the number of samples that they average over; None on every rank for equal ones.
        fingerprint: of the parameters; must be equal on all ranks.
        is_new: whether this rank uses these parameters for the first time.
        on_nonfinite: as in ``Combiner``.
        names: of the losses; must be equal on all ranks.

    Raises:
        ValueError: on every rank, if a rank refused, or if the ranks differ in the number of
            losses, their names, the parameters or the use of ``samples``.
        NonFiniteLossError: on every rank, for a non-finite loss under ``on_nonfinite="raise"``.
    """
    count = 0 if values is None else len(values)
    if count > MAX_LOSSES:
        refuse(collectives)
        raise ValueError(f"a group takes at most {MAX_LOSSES} losses, found {count}: add some up")
    masks = [0] * MASK_WORDS
    if values is not None and samples != 0 and on_nonfinite != "ignore":
        for i, finite in enumerate(torch.isfinite(values).tolist()):
            masks[i // MASK_BITS] |= (not finite) << (i % MASK_BITS)
    counted = -1.0 if samples is None else float(samples)
    named = 0 if names is None else 1 + crc32(repr(names).encode())
    ranks = collectives.compare([0.0, count, fingerprint, is_new, counted, named, *masks])
    _require_alike(ranks)
    count = int(max(row[1] for row in ranks))
    weights = [1.0 if row[4] < 0 else row[4] for row in ranks]
    if not sum(weights):
        raise ValueError("samples must not be 0 on every rank: leave out a step without samples")
    bad = [[_is_set(row[6:], i) for row in ranks] for i in range(count)]
    if on_nonfinite == "raise":
        _raise_for(bad, names)
    tasks = [i for i in range(count) if not any(bad[i])]
    share = weights[collectives.rank] * (len(ranks) / sum(weights))
    return StepAgreement(tasks, count, share, any(row[3] for row in ranks))


def _require_alike(ranks: Sequence[Sequence[float]]) -> None:
    refused = [r for r, row in enumerate(ranks) if row[0]]
    if refused:
        raise ValueError(
            f"rank {refused[0]} cannot take this step: its own error says why, and no rank has"
            " taken it"
        )
    counts = {r: int(row[1]) for r, row in enumerate(ranks) if row[1]}
    if pair := _different(counts):
        r, q = pair
        raise ValueError(
            f"all ranks must have the same losses, found {counts[r]} on rank {r} and {counts[q]} on"
            f" rank {q}: pass one for every task on every rank"
        )
    if pair := _different({r: row[5] for r, row in enumerate(ranks)}):
        raise ValueError(
            f"all ranks must give the losses the same names in the same order, found ranks {pair[0]}"
            f" and {pair[1]} to differ: pass the same dict on all of them, with zeros on a rank"
            " without samples"
        )
    if pair := _different({r: row[2] for r, row in enumerate(ranks)}):
        raise ValueError(
            f"all ranks must pass the same parameters in the same order, found ranks {pair[0]} and"
            f" {pair[1]} to differ in their number, shapes, dtypes or memory formats: build the"
            " same network on all ranks, and pass its parameters if the graphs differ"
        )
    without = [r for r, row in enumerate(ranks) if row[4] < 0]
    if without and len(without) < len(ranks):
        raise ValueError(
            f"all ranks must pass samples= or none, found none on rank {without[0]}: pass len(x) on"
            " every rank"
        )


def _different(values: Mapping[int, float]) -> tuple[int, int] | None:
    """The first rank and the first that differs from it."""
    first = next(iter(values), 0)
    other = next((r for r, value in values.items() if value != values[first]), None)
    return None if other is None else (first, other)


def _is_set(words: Sequence[float], i: int) -> bool:
    return bool(int(words[i // MASK_BITS]) >> (i % MASK_BITS) & 1)


def _raise_for(bad: Sequence[Sequence[bool]], names: Names) -> None:
    for i, ranks in enumerate(bad):
        if any(ranks):
            raise NonFiniteLossError(
                f"loss {names[i] if names else i} is not finite on rank {list(ranks).index(True)}:"
                " lower the learning rate or clip the gradient, or leave such losses out by"
                ' on_nonfinite="skip"'
            )
