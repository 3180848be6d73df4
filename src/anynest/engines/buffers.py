"""The memory of one evaluation: allocated once, used again by the next batch of the same shape.

Results and inner activations that a later node may read have rows of their own; what is read at once and
never again is *scratch*, shared by all layers of a size, and so stays in the cache.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..nets.nested.plan import IMAGE, Layer
from .copies import Copies
from .grid import Grid
from .program import Program


class Buffers:
    """Rows of every layer, and scratch, for batches of one shape.

    Attributes:
        batch: B, the most images that fit.
        grids: by (layer, unit's number from 1), the layout of a unit's result; 0 stands for the layer's.
        results: by layer, its result ``[C, length]``, before rectification.
        inner: by (layer, unit's number), what the unit of the layer's earlier nodes gave.
        sums: by layers' names, sums that are read again.
        copies: memory for the shifted copies that products read.
    """

    def __init__(self, program: Program, batch: int, height: int, width: int) -> None:
        self.batch = batch
        image = Grid(batch, height, width, program.image_pad)
        self.grids: dict[tuple[str, int], Grid] = {(IMAGE, 0): image}
        self.results = {IMAGE: _zeros(program.in_channels, image)}
        self.inner: dict[tuple[str, int], Tensor] = {}
        self._scratch: dict[tuple[str, Grid], Tensor] = {}
        self.copies = Copies()
        for layer in program.plan.layers:
            self._lay_out(layer)
        self.sums = {
            read.reads: _zeros(program.widest[read.reads], self.grids[read.reads[0], 0])
            for read in program.reads
            if read.kept
        }

    def _lay_out(self, layer: Layer) -> None:
        grid = self.grids[layer.nodes[0].reads[0], 0]
        units = len(layer.nodes[0].units)
        for number, unit in enumerate(layer.nodes[0].units, 1):
            size = -(-grid.height // unit.stride), -(-grid.width // unit.stride)
            grid = self.grids[layer.name, number] = Grid(self.batch, *size)
            for node in layer.nodes:
                self.copies.expect(grid, node.units[number - 1])
            if number < units and len(layer.nodes) > 1:
                channels = sum(node.units[number - 1].outputs for node in layer.nodes)
                self.inner[layer.name, number] = _zeros(channels, grid)
        if layer.pool:
            grid = Grid(self.batch, -(-grid.height // 2), -(-grid.width // 2))
        self.grids[layer.name, 0] = grid
        channels = sum(node.units[-1].outputs for node in layer.nodes)
        self.results[layer.name] = _zeros(channels, grid)

    def persistent(self) -> list[tuple[Grid, Tensor]]:
        """All rows that outlive a step, with their layout."""
        found = [(self.grids[name, 0], rows) for name, rows in self.results.items()]
        found += [(self.grids[key], rows) for key, rows in self.inner.items()]
        return found + [(self.grids[names[0], 0], rows) for names, rows in self.sums.items()]

    @property
    def nbytes(self) -> int:
        """Of the persistent rows."""
        return sum(rows.nbytes for _, rows in self.persistent())

    def scratch(self, purpose: str, grid: Grid, channels: int) -> Tensor:
        """Rows ``[channels, length]`` for one purpose within a step."""
        known = self._scratch.get((purpose, grid))
        if known is None or known.shape[0] < channels:
            known = self._scratch[purpose, grid] = _zeros(channels, grid)
        return known[:channels]

    def keep(self, rows: Tensor, images: int) -> None:
        """Move some of the first ``images`` to the front, in the order of ``rows``."""
        for grid, buffer in self.persistent():
            kept = grid.images(buffer, images).index_select(1, rows)
            grid.images(buffer, len(rows)).copy_(kept)


def _zeros(channels: int, grid: Grid) -> Tensor:
    return torch.zeros(channels, grid.length)
