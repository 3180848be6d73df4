r"""A diagonal metric :math:`\langle a, b \rangle_D = a^T D b`, computed where it is needed.

Dot products in the metric are ordinary ones of :math:`D^{1/2} a` and :math:`D^{1/2} b`. The root is
an elementwise function of tensors that exist already, such as an optimizer's state, and is computed
in chunks of the gradients' entries.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

Root = Callable[..., Tensor]


@dataclass(frozen=True, eq=False)
class Diagonal:
    """The diagonal D of a metric over the entries of one tensor.

    Attributes:
        tensors: of the tensor's shape.
        function: elementwise from copies of ``tensors``, which it may overwrite, to the square root
            of D.
    """

    tensors: tuple[Tensor, ...]
    function: Root

    def map(self, function: Callable[[Tensor], Tensor]) -> "Diagonal":
        """The metric of some of the entries, or of their flat order."""
        return Diagonal(tuple(function(tensor) for tensor in self.tensors), self.function)

    def root(self, where: slice, dtype: torch.dtype) -> Tensor:
        """The square root's entries ``where`` of flat tensors; must not be modified."""
        return self.function(*(tensor[where].to(dtype, copy=True) for tensor in self.tensors))

    def dense(self) -> Tensor:
        """D itself, in float64."""
        return self.function(*(t.to(torch.float64, copy=True) for t in self.tensors)).square()


Metric = Sequence[Diagonal | None]  # by tensor; None: not known


def joined(diagonals: Sequence[Diagonal]) -> Diagonal:
    """The metric over the entries of several flat tensors, one after the other."""
    parts = []
    for function, group in groupby(diagonals, key=lambda diagonal: diagonal.function):
        columns = zip(*(diagonal.tensors for diagonal in group), strict=True)
        parts.append(Diagonal(tuple(torch.cat(column) for column in columns), function))
    if len(parts) == 1:
        return parts[0]
    roots = [
        part.root(slice(None), torch.promote_types(part.tensors[0].dtype, torch.float32))
        for part in parts
    ]
    return Diagonal((torch.cat(roots),), lambda root: root)
