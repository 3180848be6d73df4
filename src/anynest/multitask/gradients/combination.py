"""What goes through a combiner: a rule's result, a step of one pass, a step under way."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..distributed.exchange import SharedFilling
from ..stats import Stats
from .buffer import Filling


@dataclass(frozen=True, eq=False)
class Combination:
    """What a rule makes of s rows: one tensor (or None) per parameter, and how it was found.

    ``weights`` [s], ``coefficients`` and ``gram`` [s, s] are as in ``Stats``, over these rows; so are
    ``refreshed`` and ``drift``.
    """

    update: list[Tensor | None]
    loss_weights: Tensor
    coefficients: Tensor | None = None
    gram: Tensor | None = None
    refreshed: bool = True
    drift: Tensor | None = None


@dataclass(frozen=True, eq=False)
class OnePass:
    """A step that is one ordinary backward pass: of ``outputs``, each times its seed (None: 1).

    ``weights`` [s] are the factors of the losses that this amounts to.
    """

    outputs: list[Tensor]
    seeds: list[Tensor | None]
    weights: Tensor


@dataclass(eq=False)
class Pending:
    """A step under way: what ``accumulate`` has kept for ``combine``."""

    leaves: list[Tensor]
    filling: Filling | SharedFilling
    loss_scale: float | Tensor
    values: Tensor  # [S] summed over the micro-batches
    weights: Tensor  # [S] of the passes where ``single``, averaged over the micro-batches
    single: bool = False
    tasks: set[int] = field(default_factory=set)
    micro_batches: int = 0


def stats_of(
    values_S: Tensor, tasks: Sequence[int], result: Combination, sent_bytes: int = 0
) -> Stats:
    """Spread what was found for the kept tasks over all of them."""
    count = len(values_S)
    whole = len(tasks) == count

    def spread(part: Tensor | None) -> Tensor | None:
        if part is None or whole:
            return part
        index = torch.tensor(tasks, device=part.device)
        out = part.new_full((*part.shape[:-2], count, count), torch.nan)
        out[..., index[:, None], index] = part
        return out

    weights = result.loss_weights
    if not whole:
        weights = weights.new_zeros(*weights.shape[:-1], count)
        weights[..., torch.tensor(tasks, device=weights.device)] = result.loss_weights
    return Stats(
        values_S,
        weights,
        spread(result.coefficients),
        spread(result.gram),
        skipped=tuple(i for i in range(count) if i not in tasks),
        sent_bytes=sent_bytes,
        refreshed=result.refreshed,
        drift=result.drift,
    )
