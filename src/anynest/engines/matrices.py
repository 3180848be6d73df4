"""A folded convolution as matrices, to be multiplied with shifted rows of pixels (see ``gemm.py``).

Legend: o outputs, i inputs, k kernel side.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Columns in front of the weights: the bias, and a weight of 1 for the row that buries the padding.
CONSTANTS = 2


@dataclass(frozen=True)
class Matrices:
    """One convolution as one matrix product, or as one a line of its kernel.

    Attributes:
        centre: ``[o, 2 + taps i]``: the constants' columns, then the whole kernel or its middle line.
        others: number and matrix ``[o, k i]`` of each other line; none for a whole kernel.
    """

    centre: Tensor
    others: tuple[tuple[int, Tensor], ...]


def matrices(weight: Tensor, bias: Tensor, whole: bool) -> Matrices:
    """Lay out a folded convolution ``[o, i, k, k]`` and its bias ``[o]``."""
    constants = torch.stack([bias, torch.ones_like(bias)], dim=1)
    lines = [line.permute(0, 2, 1).flatten(1) for line in weight.unbind(2)]  # [o, column and i]
    if whole:
        return Matrices(torch.cat([constants, *lines], 1), ())
    middle = len(lines) // 2
    centre = torch.cat([constants, lines[middle]], 1)
    others = [(n, line.contiguous()) for n, line in enumerate(lines) if n != middle]
    return Matrices(centre, tuple(others))


def taps(kernel: int, whole: bool) -> int:
    """How many shifted copies of each channel a product reads."""
    return kernel * kernel if whole else kernel
