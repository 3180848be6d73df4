"""One micro-batch as a combiner takes it, checked."""

from dataclasses import dataclass

from torch import Tensor

from .backward import Differentiate


@dataclass(frozen=True, eq=False)
class Given:
    """What goes into a step.

    losses: all S of them.
    leaves: the parameters to differentiate for.
    values [S]: the losses' values; with a group this rank's part of the joined batch's, so that
        they add up over ranks.
    tasks: the losses that count, by number.
    differentiate: how one backward pass is taken.
    """

    losses: list[Tensor]
    leaves: list[Tensor]
    values: Tensor
    tasks: list[int]
    differentiate: Differentiate
