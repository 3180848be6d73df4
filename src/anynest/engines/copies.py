"""Where the shifted copies of a convolution's input are put: how much at a time, and in which memory.

All convolutions of stride 1 share one piece of memory, whatever their image's size, so that it is in the
cache when the next one comes. They write all that they read of it but for two rows in front, the constants:
ones, and the number that buries the padding. Those are put there when a convolution of another layout was
the last. Larger strides leave padding out as they copy, and have memory of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..nets.nested.plan import Unit
from .grid import Cut, Grid, aligned, cut
from .matrices import CONSTANTS, taps

BURIED = -1e30  # added to padding: the next rectification makes zeros of it
TILE_BYTES = 3 << 18  # of copies: they are written and read at once, from the cache
WHOLE_BYTES = 7 << 16  # up to so many for one image, one product a kernel beats one a line
MIN_COLUMNS = 256  # of a tile: below it, the products' fixed cost shows


@dataclass(frozen=True)
class Layout:
    """How the convolutions of one kind are computed.

    Attributes:
        grid: of their results.
        kernel: their side.
        stride: theirs.
        whole: whether a kernel is one product, or one for each of its lines.
    """

    grid: Grid
    kernel: int
    stride: int
    whole: bool

    @property
    def margin(self) -> int:
        """Columns that are copied before the first pixel and behind the last, for the other lines."""
        return 0 if self.whole else self.kernel // 2 * self.grid.pitch


def layout(grid: Grid, unit: Unit) -> Layout:
    """How a unit is computed whose result has the grid."""
    small = 4 * unit.kernel**2 * unit.inputs * grid.image <= WHOLE_BYTES
    whole = unit.stride > 1 or unit.kernel == 1 or small
    return Layout(grid, unit.kernel, unit.stride, whole)


class Copies:
    """The memory for shifted copies in one evaluation."""

    def __init__(self) -> None:
        self._inputs: dict[Layout, int] = {}
        self._cuts: dict[Layout, Cut] = {}
        self._constants: dict[Layout, Tensor] = {}
        self._memory: dict[Layout | None, Tensor] = {}

    def expect(self, grid: Grid, unit: Unit) -> None:
        """A unit will be computed. To be told of all before the first is."""
        key = layout(grid, unit)
        self._inputs[key] = max(unit.inputs, self._inputs.get(key, 0))

    def cut(self, key: Layout) -> Cut:
        """How a result is cut into tiles, so that a tile's copies stay in the cache."""
        if key not in self._cuts:
            rows = self._rows(key) - CONSTANTS
            self._cuts[key] = cut(key.grid, max(MIN_COLUMNS, TILE_BYTES // (4 * rows)))
        return self._cuts[key]

    def constants(self, key: Layout) -> Tensor:
        """The rows in front, ``[2, columns]``: the same tensor for the same layout."""
        if key not in self._constants:
            shape = self.cut(key)
            made = torch.zeros(CONSTANTS, self._columns(key))
            made[0] = 1.0
            made[1, key.margin : key.margin + shape.columns] = BURIED
            pixels = (shape.images, shape.lines, key.grid.width)
            steps = (key.grid.image, key.grid.pitch, 1)
            made.as_strided(pixels, steps, made.stride(0) + key.margin).zero_()
            self._constants[key] = made
        return self._constants[key]

    def rows(self, key: Layout, inputs: int) -> Tensor:
        """The constants' rows and those for the copies of ``inputs`` channels.

        Returns:
            ``[2 + taps i, columns]``: of the largest tile, the layout's margin on both sides.
        """
        place = key if key.stride > 1 else None
        if place not in self._memory:
            sharing = [key] if place else [other for other in self._inputs if other.stride == 1]
            size = max(self._rows(other) * self._columns(other) for other in sharing)
            self._memory[place] = torch.zeros(size)
            if place:
                self.rows(key, inputs)[:CONSTANTS] = self.constants(key)
        columns = self._columns(key)
        count = CONSTANTS + taps(key.kernel, key.whole) * inputs
        return self._memory[place].as_strided((count, columns), (columns, 1))

    def _rows(self, key: Layout) -> int:
        return CONSTANTS + taps(key.kernel, key.whole) * self._inputs[key]

    def _columns(self, key: Layout) -> int:
        return aligned(self.cut(key).columns + 2 * key.margin)
