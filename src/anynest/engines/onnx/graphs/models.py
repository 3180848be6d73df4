"""Stage graphs as ONNX models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .builder import StageGraph

OPSET = 17
IR_VERSION = 8  # the oldest that has this opset
Shape = Sequence[int | str] | None


def model_of(
    stage: StageGraph, name: str, shapes: Mapping[str, Shape], domains: Sequence[str]
) -> Any:
    """The ``ModelProto`` of a stage.

    Args:
        stage: its operations.
        name: of the graph.
        shapes: of inputs and outputs, where they are known; a string is a symbolic dimension.
        domains: operator sets beside the standard one, version 1.
    """
    import onnx

    helper, array = onnx.helper, onnx.numpy_helper

    def described(value: str) -> Any:
        return helper.make_tensor_value_info(value, onnx.TensorProto.FLOAT, shapes.get(value))

    nodes = [
        helper.make_node(
            op.kind, op.inputs, [op.name], name=op.name, domain=op.domain, **dict(op.attributes)
        )
        for op in stage.operations
    ]
    graph = helper.make_graph(
        nodes,
        name,
        [described(value) for value in (*stage.inputs, *stage.reads, *stage.joins)],
        [described(value) for value in (stage.logits, *stage.gives)],
        [array.from_array(value, key) for key, value in stage.constants.items()],
    )
    opsets = [helper.make_opsetid("", OPSET)]
    opsets += [helper.make_opsetid(domain, 1) for domain in domains]
    return helper.make_model(
        graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="anynest"
    )
