"""Stage graphs in the block layout of ONNX Runtime's CPU kernels (docs/nchwc.md).

ONNX Runtime computes convolutions on Q channels at once (16 with AVX-512, 8 with AVX2), in the
layout ``[B, C/Q, H, W, Q]``, and reorders tensors at the boundaries of a graph. Stages that pass on
dozens of tensors would reorder each of them twice. These graphs are written in the block layout
itself (domain ``com.microsoft.nchwc``, as ONNX Runtime saves optimised models), so state passes
from stage to stage unchanged. A convolution over several slices is a chain of convolutions, each
adding to the one before; it costs no more than one over their concatenation, because the kernels
make one pass over memory per block of input channels in either case. Slices of fewer than Q
channels are packed (``space_to_depth.py``).

The graphs fit one kind of processor: they are made when a session is opened, compared with the
standard graphs, and never written to a file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ....nets.nested.plan import IMAGE, Exit, Layer, Node
from ...folding import Array, FoldedNetwork
from ..graphs.builder import GraphBuilder, Slice, StageGraph
from .packing_choice import choose_packing
from .space_to_depth import PixelPacking, halved, mask_row, pack_kernel

DOMAIN = "com.microsoft.nchwc"


class BlockFormat(NamedTuple):
    """How a value is stored: its packing, and how often the image is halved (``level``)."""

    packing: PixelPacking = PixelPacking()
    level: int = 0


@dataclass(frozen=True)
class Mask:
    """The lanes of a shifted value that are outside the image."""

    channels: int
    format: BlockFormat

    @property
    def name(self) -> str:
        return f"mask.{self.channels}x{self.format.packing.pack}.level{self.format.level}"

    def array(self, batch: int, height: int, width: int, block: int) -> Array:
        """The mask in block layout, ``[B, lanes, H', positions]``, for images of H x W pixels."""
        high, wide = halved(height, self.format.level), halved(width, self.format.level)
        row = mask_row(self.channels, self.format.packing, wide)
        blocks = -(-len(row) // block)
        lanes = np.zeros((blocks * block, row.shape[1]), dtype=np.float32)
        lanes[: len(row)] = row
        cut = lanes.reshape(blocks, block, 1, -1).transpose(0, 2, 3, 1)
        whole = np.broadcast_to(cut, (batch, blocks, high, row.shape[1], block))
        shape = (batch, blocks * block, high, row.shape[1])
        return np.ascontiguousarray(whole).reshape(shape)


@dataclass(frozen=True)
class BlockGraphs:
    """Stage graphs in block layout, for one image width.

    Attributes:
        stages: one graph per stage.
        block: Q.
    """

    stages: Sequence[StageGraph]
    block: int
    _masks: Sequence[Mask]

    def masks(self, batch: int, height: int, width: int) -> dict[str, Array]:
        """The constant inputs for B images of H x W pixels."""
        return {mask.name: mask.array(batch, height, width, self.block) for mask in self._masks}


def build_blocks(network: FoldedNetwork, width: int, block: int) -> BlockGraphs:
    """The stage graphs for images of ``width`` pixels on kernels of ``block`` channels."""
    builder = BlockBuilder(*choose_packing(network, width, block), width, block)
    stages = builder.build()
    return BlockGraphs(stages, block, tuple(builder.masks.values()))


class BlockBuilder(GraphBuilder):
    """Builds operations on blocks of ``block`` channels.

    Args:
        network: what to compute.
        packs: by level and birth, the pixels per position.
        width: pixels in a row of the images.
        block: Q.
    """

    def __init__(
        self,
        network: FoldedNetwork,
        packs: Mapping[tuple[int, int], int],
        width: int,
        block: int,
    ) -> None:
        super().__init__(network)
        self.width, self.block = width, block
        self.packs = packs
        self.masks: dict[str, Mask] = {}
        self._formats: dict[str, BlockFormat] = {IMAGE: BlockFormat()}

    def lanes(self, channels: int, packing: PixelPacking) -> int:
        """Lanes of a slice, whole blocks."""
        return -(-channels * packing.pack // self.block) * self.block

    # -- operations -------------------------------------------------------------------------------
    def convolve(
        self,
        layer: Layer,
        node: Node,
        unit: int,
        inputs: Sequence[Slice],
        added: Slice | None,
        relu: bool,
        name: str,
    ) -> str:
        sizes = node.units[unit]
        weight, bias = self.network.convolutions[layer.name, node.birth][unit]
        level = self._formats[inputs[0].name].level + sizes.stride // 2
        packing = PixelPacking(self.packs.get((level, node.birth), 1))
        following = [(u.kernel, u.stride) for u in node.units[unit + 1 : unit + 2]]
        if packing.pack > 1 and sizes.kernel == 3 and following == [(3, 1)]:
            packing = packing._replace(shift=1)
        form = BlockFormat(packing, level)
        first = added.name if added is not None else ""
        if packing.shift:  # an inner unit: nothing else is added
            mask = Mask(sizes.outputs, form)
            self.masks[mask.name] = mask
            first = mask.name
        return self._chain(inputs, weight, bias, sizes.stride, form, first, relu, name)

    def _chain(
        self,
        inputs: Sequence[Slice],
        weight: Array,
        bias: Array,
        stride: int,
        form: BlockFormat,
        added: str,
        relu: bool,
        name: str,
    ) -> str:
        """A convolution over adjacent slices as a chain; ``weight`` covers all of them."""
        value = added
        kernel = weight.shape[2]
        groups = self._groups(inputs)
        for number, parts in enumerate(groups):
            last = number == len(groups) - 1
            own = name if last else f"{name}.part{number + 1}"
            source = self._formats[parts[0].name]
            row = halved(self.width, source.level)
            blocks = []
            for part in parts:
                columns = slice(part.start - inputs[0].start, part.stop - inputs[0].start)
                packed = pack_kernel(weight[:, columns], stride, source.packing, form.packing, row)
                channels = part.stop - part.start
                lanes = 0 if part.name == IMAGE else self.lanes(channels, source.packing)
                blocks.append(self._blocks(packed.weight, lanes))
            plain = source.packing.pack == form.packing.pack == 1
            left, right = (kernel // 2,) * 2 if plain else packed.pads
            names = [part.name for part in parts]
            operands = [
                names[0] if len(names) == 1 else self.ops.join(names),
                self.ops.constant(f"{own}.weight", self._ordered(blocks)),
                self.ops.constant(f"{own}.bias", self._lane_bias(bias, form.packing))
                if last
                else "",
                value,
            ]
            while not operands[-1]:
                operands.pop()
            rectified = {"activation": "Relu"} if relu and last else {}
            value = self.ops.add(
                "Conv",
                operands,
                own,
                domain=DOMAIN,
                kernel_shape=packed.weight.shape[2:],
                strides=(stride, packed.stride),
                pads=(kernel // 2, left, kernel // 2, right),
                dilations=(1, 1),
                group=1,
                **rectified,
            )
            self._formats[value] = form
        return value

    def _groups(self, inputs: Sequence[Slice]) -> list[list[Slice]]:
        """The slices of each convolution: state of earlier stages together, new values alone."""
        groups: list[list[Slice]] = []
        for part in inputs:
            if groups and self.ops.is_state(part.name):  # then so are those before it
                groups[-1].append(part)
            else:
                groups.append([part])
        return groups

    def _blocks(self, weight: Array, lanes: int) -> Array:
        """A weight in whole blocks of outputs and inputs, ``[O/Q, I/Q, h, w, Q, Q]``.

        ``lanes``: of the input; 0 for an image, which is read by channel: ``[O/Q, I, h, w, Q]``.
        """
        block = self.block
        outputs, inputs, high, wide = weight.shape
        all_outputs = -(-outputs // block) * block
        padded = np.zeros((all_outputs, lanes or inputs, high, wide), dtype=np.float32)
        padded[:outputs, :inputs] = weight
        if not lanes:
            return padded.reshape(-1, block, inputs, high, wide).transpose(0, 2, 3, 4, 1)
        cut = padded.reshape(-1, block, lanes // block, block, high, wide)
        return cut.transpose(0, 2, 4, 5, 3, 1)

    def _ordered(self, blocks: Sequence[Array]) -> Array:
        """Adjacent slices' weights as one, in the kernels' order."""
        whole = np.ascontiguousarray(np.concatenate(blocks, axis=1))
        inputs = whole.shape[1] * (whole.shape[4] if whole.ndim == 6 else 1)
        return whole.reshape(whole.shape[0] * self.block, inputs, *whole.shape[2:4])

    def _lane_bias(self, bias: Array, packing: PixelPacking) -> Array:
        lanes = np.zeros(self.lanes(len(bias), packing), dtype=np.float32)
        lanes[: packing.pack * len(bias)] = np.tile(bias, packing.pack)
        return lanes

    def add(self, values: Sequence[str], name: str) -> str:
        total = self.ops.add("Add" if len(values) == 2 else "Sum", values, name)
        self._formats[total] = self._formats[values[0]]
        return total

    def rectify(self, value: str, name: str) -> str:
        rectified = self.ops.add("Relu", [value], name)
        self._formats[rectified] = self._formats[value]
        return rectified

    def regroup(self, parts: Sequence[Slice], start: int, stop: int, name: str) -> str:
        first = parts[0].start
        choice = np.eye(parts[-1].stop - first, dtype=np.float32)[start - first : stop - first]
        bias = np.zeros(stop - start, dtype=np.float32)
        form = self._formats[parts[0].name]
        return self._chain(parts, choice[:, :, None, None], bias, 1, form, "", False, name)

    def pool(self, value: Slice, name: str) -> str:
        pooled = self.ops.add(
            "MaxPool",
            [value.name],
            name,
            domain=DOMAIN,
            kernel_shape=(3, 3),
            strides=(2, 2),
            pads=(1,) * 4,
        )
        form = self._formats[value.name]
        self._formats[pooled] = form._replace(level=form.level + 1)
        return pooled

    def head(self, exit_: Exit, inputs: Sequence[Slice], name: str) -> str:
        """Logits in whole blocks, ``[B, lanes, 1, 1]``: a 1x1 convolution of one pixel."""
        weight, bias = self.network.heads[exit_.stage]
        level = self._formats[inputs[0].name].level
        form = BlockFormat(level=level)
        pooled: list[Slice] = []
        shares: list[Array] = []
        for part in inputs:
            packing = self._formats[part.name].packing
            mean = self.ops.add(
                "GlobalAveragePool", [part.name], f"{part.name}.mean", domain=DOMAIN
            )
            lanes = self.lanes(part.stop - part.start, packing)
            start = pooled[-1].stop if pooled else 0
            pooled.append(Slice(mean, start, start + lanes, part.birth))
            share = np.zeros((len(bias), lanes), dtype=np.float32)
            columns = np.tile(weight[:, part.start : part.stop], packing.pack)
            share[:, : columns.shape[1]] = columns / packing.pack  # the mean over pixel groups
            shares.append(share)
            self._formats[mean] = form
        kernel = np.concatenate(shares, axis=1)[:, :, None, None]
        return self._chain(pooled, kernel, bias, 1, form, "", False, name)
