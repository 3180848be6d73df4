"""Space to depth along rows: neighbouring pixels as channels, so that few channels fill a block.

A kernel that computes 16 channels at once wastes half of its lanes on a layer of 8. *Packing*
stores ``p`` neighbouring pixels of a row as ``p`` times the channels at one position. A
convolution stays a convolution, with its weights rearranged and zeros between them: pixel ``x`` is
at position ``(x + shift) // p``, in the ``(x + shift) % p``-th group of lanes, each group with all
channels.

A 3x3 kernel over packed pairs spans 3 positions, half of its weights zero. If the result is shifted
by one pixel against the input, it spans 2 positions, a quarter of them zero. The next convolution
shifts back. A shifted result has lanes outside the image; they are kept at zero, as the next
convolution's padding requires, by a large negative mask that is added before the ReLU.

Legend: o outputs, i inputs, k kernel size, p pixels per position.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ...folding import Array

MASKED = np.float32(-1e30)


class PixelPacking(NamedTuple):
    """How rows are stored: ``pack`` pixels per position, the first pixel in group ``shift``."""

    pack: int = 1
    shift: int = 0

    def positions(self, width: int) -> int:
        """Positions in a row of ``width`` pixels."""
        return -(-(width + self.shift) // self.pack)


class PackedKernel(NamedTuple):
    """A convolution between packed rows.

    Attributes:
        weight: ``[p_out * o, p_in * i, k, positions]``.
        stride: along a row.
        pads: positions of zeros to the left and right of a row.
    """

    weight: Array
    stride: int
    pads: tuple[int, int]


def halved(size: int, times: int) -> int:
    """Pixels in a row after ``times`` strides of 2."""
    for _ in range(times):
        size = -(-size // 2)
    return size


def pack_kernel(
    weight: Array, stride: int, source: PixelPacking, result: PixelPacking, width: int
) -> PackedKernel:
    """Rearrange a convolution's weight for packed rows.

    Args:
        weight: ``[o, i, k, k]``, of a convolution with padding ``k // 2``.
        stride: its stride.
        source: packing of its input.
        result: packing of its output.
        width: pixels in a row of its input.

    Raises:
        ValueError: positions of input and output do not match for this stride.
    """
    outputs, inputs, kernel, _ = weight.shape
    if stride * result.pack % source.pack:
        raise ValueError(
            f"a convolution of stride {stride} cannot lead from {source} to {result}: their "
            "positions do not match"
        )
    taps = []  # (group out, group in, position relative to the output's, column of the kernel)
    for group in range(result.pack):
        for column in range(kernel):
            pixel = stride * (group - result.shift) + column - kernel // 2 + source.shift
            taps.append((group, pixel % source.pack, pixel // source.pack, column))
    first = min(offset for _, _, offset, _ in taps)
    size = max(offset for _, _, offset, _ in taps) - first + 1
    moved = np.zeros((result.pack, outputs, source.pack, inputs, kernel, size), dtype=weight.dtype)
    for group, read, offset, column in taps:
        moved[group, :, read, :, :, offset - first] = weight[:, :, :, column]
    step = stride * result.pack // source.pack
    reached = step * (result.positions(-(-width // stride)) - 1) + first + size
    shape = (result.pack * outputs, source.pack * inputs, kernel, size)
    right = reached - source.positions(width)
    if -right >= step:  # the result would have more positions than its row
        raise ValueError(
            f"a convolution of stride {stride} from {source} to {result} reads too few positions"
        )
    return PackedKernel(moved.reshape(shape), step, (-first, max(0, right)))


def mask_row(channels: int, packing: PixelPacking, width: int) -> Array:
    """``[p * channels, positions]``: 0 in lanes of the image's pixels, ``MASKED`` elsewhere."""
    pixels = np.arange(packing.positions(width)) * packing.pack - packing.shift
    groups = np.arange(packing.pack)[:, None] + pixels
    outside = (groups < 0) | (groups >= width)
    row = np.where(outside, MASKED, np.float32(0))
    return np.repeat(row, channels, axis=0)
