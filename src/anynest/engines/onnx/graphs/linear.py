"""Write linear layers of transformers as ``Gemm``, which adds the bias in the product's own pass.

Exporters write ``MatMul`` and ``Add`` for tensors of three dimensions. ONNX Runtime joins the two
only where every size is known, thus not where the batch is open.
"""

from __future__ import annotations

from typing import Any

from .sizes import known_shapes


def merge_linear(model: Any) -> None:
    """Change a ``ModelProto`` in place: layers whose input has at most one open size."""
    import onnx

    graph = model.graph
    shapes = known_shapes(model)
    weights = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    readers: dict[str, list[Any]] = {value.name: [value] for value in graph.output}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    merged: dict[str, list[Any]] = {}  # a node's output -> what replaces the node
    for node in graph.node:
        if node.op_type != "MatMul" or len(weights.get(node.input[1], [])) != 2:
            continue
        add = _bias(node, readers, weights)
        sizes = shapes.get(node.input[0], [])
        open_sizes = sum(not isinstance(size, int) for size in sizes)
        if add is None or len(sizes) < 3 or open_sizes > 1 or 0 in sizes:
            continue
        inside, outside = weights[node.input[1]]
        target = [size if isinstance(size, int) else -1 for size in sizes[:-1]]
        result = add.output[0]
        (bias,) = [name for name in add.input if name != node.output[0]]
        for name, value in (("rows", [-1, inside]), ("sizes", [*target, outside])):
            tensor = onnx.numpy_helper.from_array(_int64(value), f"{result}.{name}")
            graph.initializer.append(tensor)
        make = onnx.helper.make_node
        merged[node.output[0]] = []
        merged[result] = [
            make("Reshape", [node.input[0], f"{result}.rows"], [f"{result}.in"]),
            make("Gemm", [f"{result}.in", node.input[1], bias], [f"{result}.out"]),
            make("Reshape", [f"{result}.out", f"{result}.sizes"], [result]),
        ]
    nodes = [part for node in graph.node for part in merged.get(node.output[0], [node])]
    del graph.node[:]
    graph.node.extend(nodes)


def _bias(node: Any, readers: dict[str, list[Any]], weights: dict[str, list[int]]) -> Any:
    """The ``Add`` of a bias that alone reads a product, else None."""
    found = readers.get(node.output[0], [])
    if len(found) != 1 or getattr(found[0], "op_type", "") != "Add":
        return None
    others = [name for name in found[0].input if name != node.output[0]]
    is_bias = len(others) == 1 and weights.get(others[0]) == weights[node.input[1]][1:]
    return found[0] if is_bias else None


def _int64(values: list[int]) -> Any:
    import numpy as np

    return np.array(values, dtype=np.int64)
