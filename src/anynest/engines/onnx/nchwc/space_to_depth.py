"""Pixels side by side as channels: how few channels fill a wide vector register.

A processor that computes 16 channels at once wastes half of its lanes on a layer of 8. *Packing* lets ``p``
neighbouring pixels of a row stand as ``p`` times the channels at one position, which is a convolution again,
with weights moved about and zeros between them: pixel ``x`` stands in position ``(x + shift) // p``,
lane ``(x + shift) % p``, and lanes come pixel by pixel, each with all channels of the slice.

A 3x3 kernel over pairs of pixels would span 3 positions, half of its weights zero. Where the result is
shifted by one pixel against the input, it spans 2, a quarter of them zero. The next convolution shifts
back. A shifted result has lanes outside the image; they are kept at zero by a large negative mask added
before the rectifier, as the next convolution's padding demands.

Legend: o outputs, i inputs, k kernel side, p pixels a position, q lane.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ...folding import Array

MASKED = np.float32(-1e30)


class Layout(NamedTuple):
    """How a value's rows of pixels stand: ``pack`` pixels a position, the first at lane ``shift``."""

    pack: int = 1
    shift: int = 0

    def positions(self, width: int) -> int:
        """Positions in a row of ``width`` pixels."""
        return -(-(width + self.shift) // self.pack)


class Window(NamedTuple):
    """A convolution along packed rows: weight of the p_out * o outputs and p_in * i inputs, and its frame.

    ``pads``: positions to the left and right of a row that count as zero.
    """

    weight: Array
    stride: int
    pads: tuple[int, int]


def packed_window(weight: Array, stride: int, source: Layout, result: Layout, width: int) -> Window:
    """The weight ``[o, i, k, k]`` of a convolution, as it stands between two layouts.

    Args:
        weight: of a convolution with padding ``k // 2``.
        stride: its stride.
        source, result: the layouts of what it reads and of what it gives.
        width: pixels in a row of what it reads.

    Returns:
        The weight ``[p_out * o, p_in * i, k, window]``, ``stride`` along a row and the padding.

    Raises:
        ValueError: layouts whose positions do not go along with the stride.
    """
    outputs, inputs, kernel, _ = weight.shape
    if stride * result.pack % source.pack:
        raise ValueError(
            f"a convolution of stride {stride} cannot lead from {source} to {result}: positions do "
            "not go along"
        )
    taps = []  # (lane out, lane in, position relative to the output's, column of the kernel)
    for lane in range(result.pack):
        for column in range(kernel):
            pixel = stride * (lane - result.shift) + column - kernel // 2 + source.shift
            taps.append((lane, pixel % source.pack, pixel // source.pack, column))
    first = min(offset for _, _, offset, _ in taps)
    size = max(offset for _, _, offset, _ in taps) - first + 1
    moved = np.zeros((result.pack, outputs, source.pack, inputs, kernel, size), dtype=weight.dtype)
    for lane, read, offset, column in taps:
        moved[lane, :, read, :, :, offset - first] = weight[:, :, :, column]
    step = stride * result.pack // source.pack
    reached = step * (result.positions(-(-width // stride)) - 1) + first + size
    shape = (result.pack * outputs, source.pack * inputs, kernel, size)
    right = reached - source.positions(width)
    if -right >= step:  # a result would have positions that nobody asked for
        raise ValueError(
            f"a convolution of stride {stride} from {source} to {result} reads too little"
        )
    return Window(moved.reshape(shape), step, (-first, max(0, right)))


def mask_row(channels: int, layout: Layout, width: int) -> Array:
    """``[p * channels, positions]``: 0 where a lane is a pixel of the image, ``MASKED`` elsewhere."""
    pixels = np.arange(layout.positions(width)) * layout.pack - layout.shift
    lanes = np.arange(layout.pack)[:, None] + pixels
    outside = (lanes < 0) | (lanes >= width)
    row = np.where(outside, MASKED, np.float32(0))
    return np.repeat(row, channels, axis=0)
