"""A network's nodes as matrix products into prepared memory: the fast way on a CPU.

A convolution multiplies its weights with shifted copies of its input's rows: all k x k shifts, or, where
those would not fit the cache, the k of one line, with one product for each line of the kernel, read one line
further on. Rectifying the input and copying it are one operation. Two more rows carry the bias and a number
so low that the next rectification makes zeros of the padding. A layer's nodes lie one below the other in one
matrix of rows: what earlier nodes gave is a view, for any batch, and every product writes into its own rows.

Results are kept as they are *before* rectification; whoever reads them rectifies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..nets.nested.plan import IMAGE, Layer, Node, Plan
from .buffers import Buffers
from .copies import layout
from .grid import Grid, Tile
from .matrices import CONSTANTS, Matrices, matrices
from .program import Program
from .shifts import shifts
from .sums import Read

Op = Callable[[], object]

KEPT_OPS = 1 << 14  # operations that are made once and kept; beyond, they are made anew each time


def supports(plan: Plan) -> bool:
    """Whether every read is rectified, once, and no kernel reaches beyond the padding of one pixel.

    So it is in every network that ``nets`` builds.
    """
    rectified = {layer.name: layer.relu for layer in plan.layers}
    nodes = [node for layer in plan.layers for node in layer.nodes]
    for names in {node.reads for node in nodes} | {exit_.reads for exit_ in plan.exits}:
        if names == (IMAGE,):
            continue
        if IMAGE in names or not (plan.relu_reads or all(rectified[name] for name in names)):
            return False
        if len(names) > 1 and any(rectified[name] for name in names):
            return False
    return all(
        unit.kernel in (1, 3) or (unit.stride > 1 and node.reads == (IMAGE,) and unit.kernel % 2)
        for node in nodes
        for unit in node.units
    )


class GemmProgram:
    """A program and its weights as matrices.

    Attributes:
        rectified: by layer, whether its result is to be rectified.
        heads: by exit's stage, bias above weight of its head, ``[1 + features, K]``.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.rectified = {layer.name: layer.relu for layer in program.plan.layers}
        self.heads = {
            stage: torch.cat([bias[None], weight.t()])
            for stage, (weight, bias) in program.heads.items()
        }
        self._matrices: dict[tuple[str, int, int, bool], Matrices] = {}

    def matrices(self, name: str, birth: int, number: int, whole: bool) -> Matrices:
        """A node's unit (from 1), laid out when it is first asked for: that takes the images' size."""
        key = name, birth, number, whole
        if key not in self._matrices:  # two threads may do the same work; either result will do
            _, weight, bias = self.program.convolutions[name, birth][number - 1]
            self._matrices[key] = matrices(weight, bias, whole)
        return self._matrices[key]

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
        for op in self._task(index):
            if keep:
                made.append(op)
            yield op
        if keep:
            self._ops[index] = made
            self._kept_ops += len(made)

    def _task(self, index: int) -> Iterator[Op]:
        task, read = self._program.tasks[index], self._program.reads[index]
        yield from self._sum(read)
        if task.layer is not None and task.node is not None:
            yield from self._node(task.layer, task.node, self._source(read), self._left(index))
        else:
            assert task.exit is not None
            yield from self._exit(task.exit.stage, read)

    def _left(self, index: int) -> Tensor | None:
        """The constants in front of the shared copies when a task begins; None at the first."""
        for task in reversed(self._program.tasks[:index]):
            if task.layer is None or task.node is None:
                continue
            for number in range(len(task.node.units), 0, -1):
                if task.node.units[number - 1].stride == 1:
                    grid = self._buffers.grids[task.layer.name, number]
                    key = layout(grid, task.node.units[number - 1])
                    return self._buffers.copies.constants(key)
        return None

    def _source(self, read: Read) -> Tensor:
        """The rows of what a task reads, ``[C, length]``."""
        if len(read.reads) == 1:
            return self._buffers.results[read.reads[0]][: read.channels]
        if read.kept:
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

    def _node(
        self, layer: Layer, node: Node, source: Tensor, constants: Tensor | None
    ) -> Iterator[Op]:
        """A node's convolutions. ``constants``: those that the last node has left in front."""
        buffers = self._buffers
        grid, x = buffers.grids[node.reads[0], 0], source
        for number, unit in enumerate(node.units, 1):
            out_grid = buffers.grids[layer.name, number]
            out, start = self._destination(layer, node, number)
            own = out[start : start + unit.outputs]
            key = layout(out_grid, unit)
            weights = self._compiled.matrices(layer.name, node.birth, number, key.whole)
            added = self._residual(layer, node, source) if number == len(node.units) else None
            shifted = buffers.copies.rows(key, unit.inputs)
            if unit.stride == 1 and buffers.copies.constants(key) is not constants:
                constants = buffers.copies.constants(key)
                yield partial(shifted[:CONSTANTS].copy_, constants)
            for tile in buffers.copies.cut(key).tiles(self._images):
                taken, copies = shifts(unit, x, grid, shifted, tile, key.whole)
                if number == 1 and node.reads == (IMAGE,):
                    yield partial(copies.copy_, taken)
                else:
                    yield partial(torch.clamp_min, taken, 0, out=copies)
                yield from _multiply(weights, shifted, tile, own, added)
            x, grid = out[: start + unit.outputs], out_grid
        if layer.pool:
            result = buffers.results[layer.name][node.start :][: unit.outputs]
            pixels = buffers.grids[layer.name, 0].pixels(result, self._images)
            yield partial(_pool, grid.pixels(own, self._images), pixels)

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

    def _exit(self, stage: int, read: Read) -> Iterator[Op]:
        grid, images = self._grid(read), self._images
        rectified = self._buffers.scratch("rectified", grid, read.channels)
        end = grid.end(images)
        yield partial(torch.clamp_min, self._source(read)[:, :end], 0, out=rectified[:, :end])
        means = torch.ones(images, 1 + read.channels)  # the first column is the bias's
        area = grid.height * grid.width
        if images == 1:  # padding is zero: the mean is a product with one row
            row = torch.full((1, grid.image), 1 / area)
            yield partial(torch.mm, row, grid.images(rectified, 1)[:, 0].t(), out=means[:, 1:])
        else:
            yield partial(torch.sum, grid.images(rectified, images), 2, out=means[:, 1:].t())
            yield partial(means[:, 1:].mul_, 1 / area)
        yield partial(_answer, self._compiled.heads[stage], means, self._answers)


def _multiply(
    weights: Matrices, shifted: Tensor, tile: Tile, out: Tensor, added: tuple[Tensor, bool] | None
) -> Iterator[Op]:
    """A tile's products, and what is added to them."""
    target = tile.of(out)
    pitch, middle = tile.grid.pitch, len(weights.others) // 2
    centre = shifted[:, middle * pitch :][:, : tile.columns]
    if added is None:
        yield partial(torch.mm, weights.centre, centre, out=target)
    else:
        rows = tile.of(added[0])
        yield (
            partial(torch.clamp_min, rows, 0, out=target)
            if added[1]
            else partial(target.copy_, rows)
        )
        yield partial(target.addmm_, weights.centre, centre)
    for number, line in weights.others:
        moved = shifted[CONSTANTS:, number * pitch :][:, : tile.columns]
        yield partial(target.addmm_, line, moved)
    gaps = tile.gaps(out)
    if gaps is not None:  # else one image's overflow would reach the next
        yield gaps.zero_


def _pool(x: Tensor, out: Tensor) -> None:
    out.copy_(F.max_pool2d(x, 3, 2, 1))


def _answer(head: Tensor, means: Tensor, answers: list[Tensor]) -> None:
    if torch.is_autocast_enabled("cpu"):  # the caller's; operations with out= do not see it
        with torch.autocast("cpu", enabled=False):
            answers.append(torch.mm(means, head))
    else:
        answers.append(torch.mm(means, head))
