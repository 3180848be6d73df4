"""The protocol of every anytime network, nested or not.

It is structural: a module that has these members satisfies it, without a base class. Stages are
numbered from 1, and a later stage contains the earlier ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor


@runtime_checkable
class Staged(Protocol):
    """A network with S outputs, which can be evaluated at once or stage after stage.

    Both evaluations give the same outputs. Parameters that a stage adds change no earlier output
    (N1), and ``stages`` computes nothing twice (N2) and nothing before its stage is asked for (N4).

    Example:
        >>> from anynest import create_model
        >>> isinstance(create_model("width_nested_resnet10"), Staged)
        True
    """

    @property
    def num_stages(self) -> int:
        """S, the number of outputs."""
        ...

    def forward(self, x: Tensor, /) -> list[Tensor]:
        """All S outputs in one pass, such as logits ``[B, K]``; training calls this."""
        ...

    def stages(self, x: Tensor, /) -> Iterator[tuple[int, Tensor]]:
        """Yield ``(1, output)``, ``(2, output)``, ...; each is computed when it is asked for."""
        ...
