"""Remove the computation of sizes from an exported graph where it is not needed.

Exporters compute the target of a ``Reshape`` in the graph (``Shape``, ``Slice``, ``Concat``), once
the batch is open. For small batches these nodes cost as much as a layer. The nodes that nobody
reads any longer stay in the graph; the cut drops them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from .sizes import known_shapes

INFINITY = 1 << 62  # exporters write open ends of a slice as the largest and the smallest integer


def simplify_reshapes(model: Any) -> None:
    """Change a ``ModelProto`` in place."""
    graph = _Graph(model)
    graph.merge_transposes()
    graph.fix_targets()


class _Graph:
    """Answers questions about a graph's values."""

    def __init__(self, model: Any) -> None:
        import onnx

        self.graph = graph = model.graph
        self.maker = {name: node for node in graph.node for name in node.output}
        self.readers = Counter(name for node in graph.node for name in node.input)
        self.readers.update(value.name for value in graph.output)
        self.shapes = known_shapes(model)
        self.constants = {
            tensor.name: onnx.numpy_helper.to_array(tensor).ravel().tolist()
            for tensor in graph.initializer
            if tensor.data_type == onnx.TensorProto.INT64 and sum(tensor.dims) <= 16
        }

    def fix_targets(self) -> None:
        """Constant targets: 0 copies the size at the same place, one -1 is inferred."""
        import onnx

        for node in self.graph.node:
            if node.op_type != "Reshape" or node.input[1] in self.constants:
                continue
            target = _target(
                self.shapes.get(node.input[0], []), self.shapes.get(node.output[0], [])
            )
            if target is None:
                continue
            name = f"{node.output[0]}.sizes"
            tensor = onnx.helper.make_tensor(name, onnx.TensorProto.INT64, [len(target)], target)
            self.graph.initializer.append(tensor)
            node.input[1] = name
            del node.attribute[:]  # with allowzero, 0 would be a size

    def merge_transposes(self) -> None:
        """One ``Transpose`` of the last two of four dimensions instead of three nodes.

        Attention is exported so: reshape to three dimensions, transpose, reshape to four.
        """
        for node in self.graph.node:
            middle, first = self._chain(node)
            if first is None or not self._swaps(first.input[0], first.input[1], node.input[1]):
                continue
            node.op_type = "Transpose"
            node.input[:] = [first.input[0]]
            del node.attribute[:]
            node.attribute.add().CopyFrom(middle.attribute[0])
            node.attribute[0].ints[:] = [0, 1, 3, 2]

    def _chain(self, last: Any) -> tuple[Any, Any]:
        """The ``Transpose`` and the ``Reshape`` that only a ``Reshape`` reads, if they are these."""
        middle = self.maker.get(last.input[0]) if last.op_type == "Reshape" else None
        if middle is None or middle.op_type != "Transpose" or self.readers[middle.output[0]] != 1:
            return None, None
        first = self.maker.get(middle.input[0])
        if first is None or first.op_type != "Reshape" or self.readers[first.output[0]] != 1:
            return None, None
        swapped = [list(a.ints) for a in middle.attribute if a.name == "perm"] == [[0, 2, 1]]
        return (middle, first) if swapped else (None, None)

    def _swaps(self, source: str, inner: str, outer: str) -> bool:
        """Whether the targets are [-1, c, d] and [a, b, d, c] for a source [a, b, c, d]."""
        if len(self.shapes.get(source, [])) != 4:
            return False
        return self._places(inner, source) == [-1, (2, 3), (3, 4)] and self._places(
            outer, source
        ) == [(0, 2), (3, 4), (2, 3)]

    def _places(self, name: str, source: str) -> list[Any]:
        """The parts of a target: a constant, or (from, to) of the sizes of ``source``."""
        node = self.maker.get(name)
        if node is None or node.op_type != "Concat":
            return []
        return [self._place(part, source) for part in node.input]

    def _place(self, name: str, source: str) -> Any:
        if name in self.constants:
            found = self.constants[name]
            return found[0] if len(found) == 1 else None
        node = self.maker.get(name)
        if node is None or node.op_type != "Slice":
            return None
        axis_and_step = [self.constants.get(extra) for extra in node.input[3:]]
        if axis_and_step not in ([], [[0]], [[0], [1]]):
            return None
        shape = self.maker.get(node.input[0])
        ends = [self.constants.get(end) for end in node.input[1:3]]
        if shape is None or shape.op_type != "Shape" or shape.input[0] != source:
            return None
        if shape.attribute and any(a.name == "end" or a.i for a in shape.attribute):
            return None
        if any(end is None or len(end) != 1 for end in ends):
            return None
        return tuple(_index(end[0]) for end in ends if end)


def _index(value: int) -> int:
    """The place among four that a slice's end names."""
    if abs(value) > INFINITY:
        return 4 if value > 0 else 0
    return min(value, 4) if value >= 0 else max(0, value + 4)


def _target(source: Sequence[int | str], result: Sequence[int | str]) -> list[int] | None:
    """The target of a ``Reshape`` between these shapes; None if it must be computed.

    >>> _target(["batch", "n", 6], ["batch", "n", 2, 3])
    [0, 0, 2, 3]
    >>> _target(["batch", 5, 6], ["batch", "n + 1", 2, 3])
    [0, -1, 2, 3]
    >>> _target(["batch", "n", 6], ["n", "batch", 6]) is None
    True
    """
    found: list[int] = []
    for place, size in enumerate(result):
        if isinstance(size, int):
            found.append(size)
        else:
            copied = bool(size) and place < len(source) and source[place] == size
            found.append(0 if copied else -1)
    if not found or found.count(-1) > 1 or 0 in result:
        return None
    return found
