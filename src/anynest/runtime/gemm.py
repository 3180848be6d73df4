"""A network's nodes as matrix products into prepared memory: the fast way on a CPU.

A convolution of stride 1 multiplies its weights with the k horizontally shifted copies of its input's rows,
one product for each line of the kernel, read one line further on: an im2col with k rows a channel, not k
squared. Rectifying the input and copying it are one operation. Two more rows carry the bias and a number so low
that the next rectification makes zeros of the padding. A layer's nodes lie one below the other in one matrix of
rows, so that what earlier nodes gave is a view, for any batch, and every product writes into its own rows.

Results are kept as they are *before* rectification; whoever reads them rectifies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..nets.plan import IMAGE, Layer, Node, Plan, Unit
from .buffers import Buffers
from .grid import Grid, Tile
from .matrices import CONSTANTS, Matrices, matrices
from .program import Program
from .schedule import Task
from .sums import Read

Op = Callable[[], object]

KEPT_OPS = 1 << 14  # operations that are made once and kept; beyond, they are made anew each time


def supports(plan: Plan) -> bool:
    """Whether every read is rectified, once, and no kernel reaches beyond the padding of one pixel.

    So it is in every network that ``nets`` builds.
    """
    rectified = {layer.name: layer.relu for layer in plan.layers}
    reads = {node.reads for layer in plan.layers for node in layer.nodes} | {
        e.reads for e in plan.exits
    }
    for names in reads - {(IMAGE,)}:
        if IMAGE in names or not (plan.relu_reads or all(rectified[name] for name in names)):
            return False
        if len(names) > 1 and any(rectified[name] for name in names):
            return False
    return all(
        unit.kernel in (1, 3) or (unit.stride > 1 and node.reads == (IMAGE,) and unit.kernel % 2)
        for layer in plan.layers
        for node in layer.nodes
        for unit in node.units
    )


class GemmProgram:
    """A program and its weights as matrices."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.rectified = {layer.name: layer.relu for layer in program.plan.layers}
        self.matrices = {
            key: [matrices(unit, weight, bias) for unit, weight, bias in units]
            for key, units in program.convolutions.items()
        }
        self.heads = {
            stage: (weight.t().contiguous(), bias)
            for stage, (weight, bias) in program.heads.items()
        }

    def workspace(self, batch: int, height: int, width: int) -> GemmWorkspace:
        """Memory for one evaluation."""
        return GemmWorkspace(self, batch, height, width)


class GemmWorkspace:
    """One evaluation: its memory, and the operations that fill it, one list a task."""

    def __init__(self, compiled: GemmProgram, batch: int, height: int, width: int) -> None:
        self._compiled = compiled
        self._program = compiled.program
        with torch.inference_mode(False):  # to be written to with and without it
            self._buffers = Buffers(compiled.program, batch, height, width)
        self._images = batch
        self._ops: dict[int, list[Op]] = {}
        self._kept_ops = 0
        self._answers: list[Tensor] = []
        self.nbytes = self._buffers.nbytes

    # -- what an evaluation asks for --------------------------------------------------------------
    def load(self, x: Tensor) -> None:
        """Take a batch of images ``[B, C, H, W]``."""
        self._images = self._buffers.batch
        grid = self._buffers.grids[IMAGE, 0]
        grid.pixels(self._buffers.results[IMAGE], self._images).copy_(x.detach())

    def run(self, index: int) -> Tensor | None:
        """Do a task: an exit's logits ``[B, K]``, None for a node."""
        ops = self._ops.get(index) if self._images == self._buffers.batch else None
        if ops is not None:
            for op in ops:
                op()
        else:
            with torch.inference_mode(False):
                for op in self._bind(index):
                    op()
        return self._answers.pop() if self._answers else None

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the images."""
        self._buffers.keep(rows, self._images)
        self._images = len(rows)

    def rest(self) -> None:
        """The memory stays: the next batch of this shape finds it ready."""
        self._answers.clear()

    # -- operations -------------------------------------------------------------------------------
    def _bind(self, index: int) -> Iterator[Op]:
        """A task's operations, to be run as they come; kept if it is worth the memory."""
        keep = self._images == self._buffers.batch and self._kept_ops < KEPT_OPS
        made: list[Op] = []
        task, read = self._program.tasks[index], self._program.reads[index]
        for op in self._task(task, read):
            if keep:
                made.append(op)
            yield op
        if keep:
            self._ops[index] = made
            self._kept_ops += len(made)

    def _task(self, task: Task, read: Read) -> Iterator[Op]:
        if task.layer is not None and task.node is not None:
            yield from self._sum(read)
            yield from self._node(task.layer, task.node, self._source(read))
        else:
            assert task.exit is not None
            yield from self._sum(read)
            yield from self._exit(task.exit.stage, read)

    def _source(self, read: Read) -> Tensor:
        """The rows of what a task reads, ``[C, length]``."""
        if len(read.reads) == 1:
            return self._buffers.results[read.reads[0]][: read.channels]
        if read.kept or read.start == read.channels:
            return self._buffers.sums[read.reads][: read.channels]
        return self._buffers.scratch("sum", self._grid(read), read.channels)

    def _grid(self, read: Read) -> Grid:
        return self._buffers.grids[read.reads[0], 0]

    def _sum(self, read: Read) -> Iterator[Op]:
        """Add up the channels of a sum that are not known yet."""
        if len(read.reads) == 1 or read.start == read.channels:
            return
        end = self._grid(read).end(self._images)
        parts = [self._buffers.sums[read.base]] if read.base else []
        parts += [self._buffers.results[name] for name in read.added]
        first, second, *rest = [part[read.start : read.channels, :end] for part in parts]
        total = self._source(read)[read.start :, :end]
        yield partial(torch.add, first, second, out=total)
        for part in rest:
            yield partial(total.add_, part)

    def _node(self, layer: Layer, node: Node, source: Tensor) -> Iterator[Op]:
        buffers = self._buffers
        grid, x = buffers.grids[node.reads[0], 0], source
        for number, matrix in enumerate(self._compiled.matrices[layer.name, node.birth], 1):
            out_grid = buffers.grids[layer.name, number]
            out, start = self._destination(layer, node, number)
            own = out[start : start + matrix.unit.outputs]
            added = self._residual(layer, node, source) if number == len(node.units) else None
            for tile in buffers.cut(out_grid, matrix.unit).tiles(self._images):
                rectify = number > 1 or node.reads != (IMAGE,)
                yield from self._convolve(matrix, x, grid, own, tile, rectify, added)
            x, grid = out[: start + matrix.unit.outputs], out_grid
        if layer.pool:
            result = buffers.results[layer.name][node.start :][: matrix.unit.outputs]
            out_grid = buffers.grids[layer.name, 0]
            yield partial(
                _pool, grid.pixels(own, self._images), out_grid.pixels(result, self._images)
            )

    def _destination(self, layer: Layer, node: Node, number: int) -> tuple[Tensor, int]:
        """The rows that a unit's result belongs to, and the first of its own."""
        if number == len(node.units) and not layer.pool:
            return self._buffers.results[layer.name], node.start
        if (layer.name, number) in self._buffers.inner:
            earlier = [other for other in layer.nodes if other.birth < node.birth]
            start = sum(other.units[number - 1].outputs for other in earlier)
            return self._buffers.inner[layer.name, number], start
        grid = self._buffers.grids[layer.name, number]
        channels = node.units[number - 1].outputs
        return self._buffers.scratch(f"unit {number}", grid, channels), 0

    def _residual(self, layer: Layer, node: Node, source: Tensor) -> tuple[Tensor, bool] | None:
        """The rows that are added to a node's result, and whether they are rectified first."""
        if node.residual is None:
            return None
        own = slice(node.start, node.start + node.units[-1].outputs)
        if node.residual == "input":
            return source[own], True
        return self._buffers.results[node.residual][own], self._compiled.rectified[node.residual]

    def _convolve(
        self,
        matrix: Matrices,
        x: Tensor,
        grid: Grid,
        out: Tensor,
        tile: Tile,
        rectify: bool,
        added: tuple[Tensor, bool] | None,
    ) -> Iterator[Op]:
        """One convolution of one tile: copy shifted, then multiply into the result's rows."""
        unit = matrix.unit
        shifted = self._buffers.shifted(tile.grid, unit)
        source, copies = (_lines if unit.stride == 1 else _patches)(unit, x, grid, shifted, tile)
        yield (
            partial(torch.clamp_min, source, 0, out=copies)
            if rectify
            else partial(copies.copy_, source)
        )
        target = tile.of(out)
        offset = unit.kernel // 2 * grid.pitch if unit.stride == 1 else 0
        centre = shifted[:, offset : offset + tile.columns]
        if added is None:
            yield partial(torch.mm, matrix.centre, centre, out=target)
        else:
            rows, relu = tile.of(added[0]), added[1]
            yield (
                partial(torch.clamp_min, rows, 0, out=target)
                if relu
                else partial(target.copy_, rows)
            )
            yield partial(target.addmm_, matrix.centre, centre)
        for number, weight in matrix.others:
            line = number * grid.pitch
            yield partial(target.addmm_, weight, shifted[CONSTANTS:, line : line + tile.columns])
        gaps = tile.gaps(out)
        if gaps is not None:  # else one image's overflow would reach the next
            yield gaps.zero_

    def _exit(self, stage: int, read: Read) -> Iterator[Op]:
        grid, images = self._grid(read), self._images
        rectified = self._buffers.scratch("rectified", grid, read.channels)
        end = grid.end(images)
        yield partial(torch.clamp_min, self._source(read)[:, :end], 0, out=rectified[:, :end])
        pooled = torch.zeros(read.channels, images)
        area = grid.height * grid.width
        if images == 1:  # padding is zero: the mean is a product with one column
            ones = torch.full((grid.image, 1), 1 / area)
            yield partial(torch.mm, grid.images(rectified, 1)[:, 0], ones, out=pooled)
        else:
            yield partial(torch.sum, grid.images(rectified, images), 2, out=pooled)
            yield partial(pooled.mul_, 1 / area)
        weight, bias = self._compiled.heads[stage]
        logits = torch.empty(images, len(bias))
        yield partial(torch.addmm, bias, pooled.t(), weight, out=logits)
        yield partial(_hand_out, logits, self._answers)


def _pool(x: Tensor, out: Tensor) -> None:
    out.copy_(F.max_pool2d(x, 3, 2, 1))


def _hand_out(logits: Tensor, answers: list[Tensor]) -> None:
    answers.append(logits.clone())  # the caller's own


def _lines(unit: Unit, x: Tensor, grid: Grid, shifted: Tensor, tile: Tile) -> tuple[Tensor, Tensor]:
    """Stride 1: rows shifted by -k/2 ... k/2 columns, and their place, ``[k, i, columns]`` each."""
    middle = unit.kernel // 2
    width = tile.columns + 2 * middle * grid.pitch
    start = grid.lead + tile.start - middle * grid.pitch - middle
    source = x.as_strided(
        (unit.kernel, unit.inputs, width), (1, x.stride(0), 1), x.storage_offset() + start
    )
    row = shifted.stride(0)
    copies = shifted.as_strided(
        (unit.kernel, unit.inputs, width),
        (unit.inputs * row, row, 1),
        shifted.storage_offset() + CONSTANTS * row,
    )
    return source, copies


def _patches(
    unit: Unit, x: Tensor, grid: Grid, shifted: Tensor, tile: Tile
) -> tuple[Tensor, Tensor]:
    """Larger strides: all k x k shifts of the pixels, and their place, ``[k, k, i, images, lines, W]``."""
    k, middle, out = unit.kernel, unit.kernel // 2, tile.grid
    start = grid.lead + tile.image * grid.image
    start += (unit.stride * tile.line - middle) * grid.pitch - middle
    shape = (k, k, unit.inputs, tile.images, tile.lines, out.width)
    source = x.as_strided(
        shape,
        (grid.pitch, 1, x.stride(0), grid.image, unit.stride * grid.pitch, unit.stride),
        x.storage_offset() + start,
    )
    row = shifted.stride(0)
    copies = shifted.as_strided(
        shape,
        (k * unit.inputs * row, unit.inputs * row, row, out.image, out.pitch, 1),
        shifted.storage_offset() + CONSTANTS * row,
    )
    return source, copies
