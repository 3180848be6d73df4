"""Standard ONNX graphs, one per stage, built from a plan without tracing.

Each unit is one ``Conv`` over the concatenation of the node's inputs, its batch norm folded in.
Weights are named after the network's modules (``group1.layer1.stage2.conv1.weight``), values after
the node (``group1.layer1.stage2``; ``.inner1`` for its inner activations). The files run on any
machine and any runtime.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ....nets.nested.plan import IMAGE, Exit, Layer, Node
from ...folding import FoldedNetwork, Weights
from .builder import GraphBuilder, Slice, StageGraph
from .models import Shape, model_of


def build_standard(network: FoldedNetwork) -> list[StageGraph]:
    """The operations of each stage, of the standard ONNX domain."""
    return StandardBuilder(network).build()


def standard_models(
    network: FoldedNetwork, stages: Sequence[StageGraph], image_size: tuple[int, int] | None
) -> tuple[list[Any], dict[str, Shape]]:
    """ONNX models of ``build_standard``'s graphs.

    Args:
        network: what the graphs were built from.
        stages: the graphs.
        image_size: (height, width); None leaves both symbolic. The batch always is.

    Returns:
        A ``ModelProto`` per stage, and the shapes of all their inputs and outputs.
    """
    import onnx

    size = image_size or ("height", "width")
    shapes: dict[str, Shape] = {IMAGE: ("batch", network.in_channels, *size)}
    models = []
    for number, stage in enumerate(stages, 1):
        model = model_of(stage, f"stage{number}", shapes, [])
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
        del model.graph.value_info[:]  # inner values
        for value in model.graph.output:
            shapes[value.name] = _shape(value)
        models.append(model)
    return models, shapes


def _shape(value: Any) -> Shape:
    sizes = value.type.tensor_type.shape.dim
    first, *others = (d.dim_value if d.HasField("dim_value") else d.dim_param for d in sizes)
    return ("batch", *(size or "?" for size in others)) if first == "batch" else (first, *others)


class StandardBuilder(GraphBuilder):
    """Builds operations of the standard ONNX domain."""

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
        conv = f"{layer.name}.stage{node.birth}.conv{unit + 1}"
        value = self._joined(inputs, f"{conv}.input")
        value = self.ops.add(
            "Conv",
            [value, *self._weights(conv, self.network.convolutions[layer.name, node.birth][unit])],
            f"{conv}.conv" if added is not None or relu else name,
            kernel_shape=(sizes.kernel,) * 2,
            strides=(sizes.stride,) * 2,
            pads=(sizes.kernel // 2,) * 4,
        )
        if added is not None:
            value = self.ops.add("Add", [value, added.name], f"{conv}.add" if relu else name)
        return self.ops.add("Relu", [value], name) if relu else value

    def add(self, values: Sequence[str], name: str) -> str:
        return self.ops.add("Sum", values, name)

    def rectify(self, value: str, name: str) -> str:
        return self.ops.add("Relu", [value], name)

    def regroup(self, parts: Sequence[Slice], start: int, stop: int, name: str) -> str:
        value = self._joined(parts, name)
        before = parts[0].start
        if (before, parts[-1].stop) == (start, stop):
            return value
        limits = [
            self.ops.constant(f"{name}.{what}", np.array([number], dtype=np.int64))
            for what, number in (("start", start - before), ("stop", stop - before), ("axis", 1))
        ]
        return self.ops.add("Slice", [value, *limits], f"{name}.part")

    def pool(self, value: Slice, name: str) -> str:
        return self.ops.add(
            "MaxPool", [value.name], name, kernel_shape=(3, 3), strides=(2, 2), pads=(1,) * 4
        )

    def head(self, exit_: Exit, inputs: Sequence[Slice], name: str) -> str:
        pooled = []
        for part in inputs:
            mean = self.ops.add("GlobalAveragePool", [part.name], f"{part.name}.mean")
            flat = self.ops.add("Flatten", [mean], f"{part.name}.features", axis=1)
            pooled.append(part._replace(name=flat))
        head = f"head{exit_.stage}"
        features = self._joined(pooled, f"{head}.input")
        weights = self._weights(head, self.network.heads[exit_.stage])
        return self.ops.add("Gemm", [features, *weights], name, transB=1)

    def _weights(self, name: str, pair: Weights) -> list[str]:
        return [
            self.ops.constant(f"{name}.{kind}", array)
            for kind, array in zip(("weight", "bias"), pair, strict=True)
        ]

    def _joined(self, parts: Sequence[Slice], name: str) -> str:
        if len(parts) == 1:
            return parts[0].name
        return self.ops.add("Concat", [part.name for part in parts], name, axis=1)
