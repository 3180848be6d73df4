"""Standard ONNX graphs, one a stage, built from a plan: no tracing and no exporter.

Every node's convolution stands as one ``Conv`` over the concatenation of what it reads, its batch norm
folded in; weights are named as the network's modules are (``group1.layer1.stage2.conv1.weight``), values by
the node (``group1.layer1.stage2``, with ``.inner1`` for what lies within it). Files run on any machine and
any runtime.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ....nets.nested.plan import IMAGE, Exit, Layer, Node
from ...folding import FoldedNetwork
from .builder import Emitter, Piece, Slice
from .models import Shape, model_of


def stage_pieces(network: FoldedNetwork) -> list[Piece]:
    """What each stage computes, in standard operations."""
    return StandardEmitter(network).emit()


def stage_models(
    network: FoldedNetwork, pieces: Sequence[Piece], image_size: tuple[int, int] | None
) -> tuple[list[Any], dict[str, Shape]]:
    """One ``ModelProto`` a stage, and the shapes of all their inputs and outputs.

    The batch is open. ``image_size``: (height, width); None leaves them open too.
    """
    import onnx

    size = image_size or ("height", "width")
    shapes: dict[str, Shape] = {IMAGE: ("batch", network.in_channels, *size)}
    models = []
    for number, piece in enumerate(pieces, 1):
        model = model_of(piece, f"stage{number}", shapes, [])
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
        del model.graph.value_info[:]  # of what lies within: nobody asks for it
        for value in model.graph.output:
            shapes[value.name] = _shape(value)
        models.append(model)
    return models, shapes


def _shape(value: Any) -> Shape:
    sizes = value.type.tensor_type.shape.dim
    first, *others = (d.dim_value if d.HasField("dim_value") else d.dim_param for d in sizes)
    return ("batch", *(size or "?" for size in others)) if first == "batch" else (first, *others)


class StandardEmitter(Emitter):
    """Operations of the standard ONNX domain."""

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
        conv = f"{layer.name}.stage{node.birth}.conv{unit + 1}"
        steps = [("Conv", "")] + [("Add", "")] * (added is not None) + [("Relu", "")] * relu
        value = self._joined(inputs, f"{conv}.input")
        for number, (kind, _) in enumerate(steps, 1):
            own = name if number == len(steps) else f"{conv}.{kind.lower()}"
            if kind == "Conv":
                weights = [
                    self.graph.constant(f"{conv}.weight", weight),
                    self.graph.constant(f"{conv}.bias", bias),
                ]
                value = self.graph.add(
                    kind,
                    [value, *weights],
                    own,
                    kernel_shape=(sizes.kernel,) * 2,
                    strides=(sizes.stride,) * 2,
                    pads=(sizes.kernel // 2,) * 4,
                )
            elif kind == "Add":
                assert added is not None
                value = self.graph.add(kind, [value, added.name], own)
            else:
                value = self.graph.add(kind, [value], own)
        return value

    def add(self, values: Sequence[str], name: str) -> str:
        return self.graph.add("Sum", values, name)

    def rectify(self, value: str, name: str) -> str:
        return self.graph.add("Relu", [value], name)

    def regroup(self, parts: Sequence[Slice], start: int, stop: int, name: str) -> str:
        value = self._joined(parts, name)
        before = parts[0].start
        if (before, parts[-1].stop) == (start, stop):
            return value
        limits = [
            self.graph.constant(f"{name}.{what}", np.array([number], dtype=np.int64))
            for what, number in (("start", start - before), ("stop", stop - before), ("axis", 1))
        ]
        return self.graph.add("Slice", [value, *limits], f"{name}.part")

    def pool(self, value: Slice, name: str) -> str:
        return self.graph.add(
            "MaxPool", [value.name], name, kernel_shape=(3, 3), strides=(2, 2), pads=(1,) * 4
        )

    def head(self, exit_: Exit, inputs: Sequence[Slice], name: str) -> str:
        weight, bias = self.network.heads[exit_.stage]
        pooled = []
        for part in inputs:
            mean = self.graph.add("GlobalAveragePool", [part.name], f"{part.name}.mean")
            pooled.append(
                part._replace(
                    name=self.graph.add("Flatten", [mean], f"{part.name}.features", axis=1)
                )
            )
        features = self._joined(pooled, f"head{exit_.stage}.input")
        weights = [
            self.graph.constant(f"head{exit_.stage}.weight", weight),
            self.graph.constant(f"head{exit_.stage}.bias", bias),
        ]
        return self.graph.add("Gemm", [features, *weights], name, transB=1)

    def _joined(self, parts: Sequence[Slice], name: str) -> str:
        if len(parts) == 1:
            return parts[0].name
        return self.graph.add("Concat", [part.name for part in parts], name, axis=1)
