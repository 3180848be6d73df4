"""A folded convolution as matrices, to be multiplied with shifted rows of pixels (see ``gemm.py``).

Legend: o outputs, i inputs, k kernel side.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..nets.plan import Unit

# Columns in front of the weights: the bias, and a weight of 1 for the row that buries the padding.
CONSTANTS = 2


def taps(unit: Unit) -> int:
    """How many shifted copies of each channel a product reads: one line of the kernel, or all of it."""
    return unit.kernel if unit.stride == 1 else unit.kernel * unit.kernel


@dataclass(frozen=True)
class Matrices:
    """One convolution as matrix products.

    Attributes:
        unit: its sizes.
        centre: ``[o, 2 + taps i]``: the constants' columns, then the kernel's middle line (stride 1) or all
            of its lines.
        others: number and matrix ``[o, k i]`` of each other line of the kernel (stride 1 alone).
    """

    unit: Unit
    centre: Tensor
    others: tuple[tuple[int, Tensor], ...]


def matrices(unit: Unit, weight: Tensor, bias: Tensor) -> Matrices:
    """Lay out a folded convolution ``[o, i, k, k]`` and its bias ``[o]``, in float32."""
    constants = torch.stack([bias, torch.ones_like(bias)], dim=1)
    lines = [line.permute(0, 2, 1).flatten(1) for line in weight.unbind(2)]  # [o, column and i]
    if unit.stride > 1:
        return Matrices(unit, torch.cat([constants, *lines], 1).float().contiguous(), ())
    middle = unit.kernel // 2
    centre = torch.cat([constants, lines[middle]], 1).float().contiguous()
    others = [(n, line.float().contiguous()) for n, line in enumerate(lines) if n != middle]
    return Matrices(unit, centre, tuple(others))
