"""Graphs in the block layout of ONNX Runtime's own CPU kernels, for the fastest stage after stage.

ONNX Runtime computes convolutions on ``Q`` channels at once (16 with AVX-512, 8 with AVX2) in a layout of its
own, ``[B, C/Q, H, W, Q]``, and reorders where a graph begins and ends. Stages that hand on dozens of tensors
would reorder each of them twice. Here the graphs are written in that layout (domain
``com.microsoft.nchwc``, as ONNX Runtime itself writes them when it saves an optimised model), so that state
passes from stage to stage as it is. A convolution over several slices is a chain of convolutions, each
adding to the one before, which costs no more than one over their concatenation: the kernels go through
memory once a block of input channels anyhow. Slices of fewer than Q channels are packed (``packing.py``).

Such graphs fit one kind of processor: they are made when a session is opened, checked against the standard
graphs, and never written to a file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ....nets.nested.plan import IMAGE, Exit, Layer, Node
from ...folding import Array, FoldedNetwork
from ..graphs.builder import Emitter, Slice
from .space_to_depth import Layout, packed_window

DOMAIN = "com.microsoft.nchwc"


@dataclass(frozen=True)
class Mask:
    """Which lanes of a shifted value lie outside the image; ``level``: how often the image is halved."""

    channels: int
    layout: Layout
    level: int

    @property
    def name(self) -> str:
        return f"mask.{self.channels}x{self.layout.pack}.level{self.level}"


class BlockedEmitter(Emitter):
    """Operations in blocks of ``block`` channels.

    Args:
        network: what to compute.
        packs: per level (how often the image is halved) and birth, the pixels that stand side by side.
        width: pixels in a row of the images.
        block: Q, channels that the kernels compute at once.
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
        self._layouts: dict[str, Layout] = {IMAGE: Layout()}
        self._levels: dict[str, int] = {IMAGE: 0}

    # -- sizes ----------------------------------------------------------------------------------------
    def lanes(self, channels: int, layout: Layout) -> int:
        """Lanes that a slice takes, whole blocks."""
        return -(-channels * layout.pack // self.block) * self.block

    def row(self, level: int) -> int:
        """Pixels in a row where the image is halved ``level`` times."""
        width = self.width
        for _ in range(level):
            width = -(-width // 2)
        return width

    # -- operations -----------------------------------------------------------------------------------
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
        level = self._levels[inputs[0].name] + sizes.stride // 2
        layout = Layout(self.packs.get((level, node.birth), 1))
        after = [(u.kernel, u.stride) for u in node.units[unit + 1 : unit + 2]]
        if layout.pack > 1 and sizes.kernel == 3 and after == [(3, 1)]:
            layout = layout._replace(shift=1)
        first = added.name if added is not None else ""
        if layout.shift:  # no layer adds anything within
            mask = Mask(sizes.outputs, layout, level)
            self.masks[mask.name] = mask
            first = mask.name
        return self._chain(inputs, weight, bias, sizes.stride, level, layout, first, relu, name)

    def _chain(
        self,
        inputs: Sequence[Slice],
        weight: Array,
        bias: Array,
        stride: int,
        level: int,
        layout: Layout,
        added: str,
        relu: bool,
        name: str,
    ) -> str:
        """A convolution over adjoining slices, one after the other; ``weight`` covers all of them."""
        value = added
        kernel = weight.shape[2]
        groups = self._groups(inputs)
        for number, parts in enumerate(groups):
            last = number == len(groups) - 1
            own = name if last else f"{name}.part{number + 1}"
            source = self._layouts[parts[0].name]
            blocks = []
            for part in parts:
                columns = slice(part.start - inputs[0].start, part.stop - inputs[0].start)
                window = packed_window(
                    weight[:, columns], stride, source, layout, self.row(self._levels[part.name])
                )
                wide = 0 if part.name == IMAGE else self.lanes(part.stop - part.start, source)
                blocks.append(self._blocks(window.weight, wide))
            plain = source.pack == layout.pack == 1
            sides = (kernel // 2,) * 2 if plain else window.pads
            names = [part.name for part in parts]
            operands = [
                names[0] if len(names) == 1 else self.graph.join(names),
                self.graph.constant(f"{own}.weight", self._ordered(blocks)),
                self.graph.constant(f"{own}.bias", self._lane_bias(bias, layout)) if last else "",
                value,
            ]
            while not operands[-1]:
                operands.pop()
            rectified = {"activation": "Relu"} if relu and last else {}
            value = self.graph.add(
                "Conv",
                operands,
                own,
                domain=DOMAIN,
                kernel_shape=window.weight.shape[2:],
                strides=(stride, window.stride),
                pads=(kernel // 2, sides[0], kernel // 2, sides[1]),
                dilations=(1, 1),
                group=1,
                **rectified,
            )
            self._layouts[value], self._levels[value] = layout, level
        return value

    def _groups(self, inputs: Sequence[Slice]) -> list[list[Slice]]:
        """Slices that one convolution reads: earlier stages' together, what is made here alone."""
        groups: list[list[Slice]] = []
        for part in inputs:
            if groups and self.graph.is_state(part.name):  # then so are those before it
                groups[-1].append(part)
            else:
                groups.append([part])
        return groups

    def _blocks(self, weight: Array, lanes: int) -> Array:
        """A weight in whole blocks: ``[O/Q, I/Q, h, w, Q, Q]``, blocks of outputs and of inputs.

        ``lanes``: of the input; 0 for an image, which is read channel by channel: ``[O/Q, I, h, w, Q]``.
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
        """Adjoining slices' weights as one, in the order in which the kernels read them."""
        whole = np.ascontiguousarray(np.concatenate(blocks, axis=1))
        inputs = whole.shape[1] * (whole.shape[4] if whole.ndim == 6 else 1)
        return whole.reshape(whole.shape[0] * self.block, inputs, *whole.shape[2:4])

    def _lane_bias(self, bias: Array, layout: Layout) -> Array:
        lanes = np.zeros(self.lanes(len(bias), layout), dtype=np.float32)
        lanes[: layout.pack * len(bias)] = np.tile(bias, layout.pack)
        return lanes

    def add(self, values: Sequence[str], name: str) -> str:
        return self._like(
            values[0], self.graph.add("Add" if len(values) == 2 else "Sum", values, name)
        )

    def rectify(self, value: str, name: str) -> str:
        return self._like(value, self.graph.add("Relu", [value], name))

    def _like(self, source: str, value: str) -> str:
        self._layouts[value], self._levels[value] = self._layouts[source], self._levels[source]
        return value

    def regroup(self, parts: Sequence[Slice], start: int, stop: int, name: str) -> str:
        first = parts[0].start
        choice = np.eye(parts[-1].stop - first, dtype=np.float32)[start - first : stop - first]
        bias = np.zeros(stop - start, dtype=np.float32)
        layout, level = self._layouts[parts[0].name], self._levels[parts[0].name]
        weight = choice[:, :, None, None]
        return self._chain(parts, weight, bias, 1, level, layout, "", False, name)

    def pool(self, value: Slice, name: str) -> str:
        pooled = self.graph.add(
            "MaxPool",
            [value.name],
            name,
            domain=DOMAIN,
            kernel_shape=(3, 3),
            strides=(2, 2),
            pads=(1,) * 4,
        )
        self._layouts[pooled] = self._layouts[value.name]
        self._levels[pooled] = self._levels[value.name] + 1
        return pooled

    def head(self, exit_: Exit, inputs: Sequence[Slice], name: str) -> str:
        """Logits in whole blocks, ``[B, lanes, 1, 1]``: the head is a convolution of one pixel."""
        weight, bias = self.network.heads[exit_.stage]
        pooled: list[Slice] = []
        shares: list[Array] = []
        for part in inputs:
            layout = self._layouts[part.name]
            mean = self.graph.add(
                "GlobalAveragePool", [part.name], f"{part.name}.mean", domain=DOMAIN
            )
            lanes = self.lanes(part.stop - part.start, layout)
            start = pooled[-1].stop if pooled else 0
            pooled.append(Slice(mean, start, start + lanes, part.birth))
            share = np.zeros((len(bias), lanes), dtype=np.float32)
            columns = np.tile(weight[:, part.start : part.stop], layout.pack)
            share[:, : columns.shape[1]] = columns / layout.pack  # a mean of the pixels' means
            shares.append(share)
            self._layouts[mean], self._levels[mean] = Layout(), self._levels[part.name]
        kernel = np.concatenate(shares, axis=1)[:, :, None, None]
        level = self._levels[inputs[0].name]
        return self._chain(pooled, kernel, bias, 1, level, Layout(), "", False, name)
