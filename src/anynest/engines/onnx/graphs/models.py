"""Pieces of a network (``emit.py``) as ONNX models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .builder import Piece

OPSET = 17
IR_VERSION = 8  # the oldest that has this opset
Shape = Sequence[int | str] | None


def model_of(piece: Piece, name: str, shapes: Mapping[str, Shape], domains: Sequence[str]) -> Any:
    """A ``ModelProto`` of one piece.

    Args:
        piece: what it computes.
        name: of the graph.
        shapes: of the values that come in and go out, where they are known; a text is an open size.
        domains: other operator sets than the standard one, version 1.
    """
    import onnx

    helper, array = onnx.helper, onnx.numpy_helper

    def described(value: str) -> Any:
        return helper.make_tensor_value_info(value, onnx.TensorProto.FLOAT, shapes.get(value))

    nodes = [
        helper.make_node(
            op.kind, op.inputs, [op.name], name=op.name, domain=op.domain, **dict(op.attributes)
        )
        for op in piece.operations
    ]
    graph = helper.make_graph(
        nodes,
        name,
        [described(value) for value in (*piece.inputs, *piece.reads, *piece.joins)],
        [described(value) for value in (piece.logits, *piece.gives)],
        [array.from_array(value, key) for key, value in piece.constants.items()],
    )
    opsets = [helper.make_opsetid("", OPSET)]
    opsets += [helper.make_opsetid(domain, 1) for domain in domains]
    return helper.make_model(
        graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="anynest"
    )
