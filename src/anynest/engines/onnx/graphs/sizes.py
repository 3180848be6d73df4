"""What is known of the sizes in an exported graph."""

from __future__ import annotations

from typing import Any

from .cut import BOUNDARY, DOMAIN, shape_of

Shape = list[int | str]


def known_shapes(model: Any) -> dict[str, Shape]:
    """The shapes of all values; a string is an open size, "" an unknown one.

    A mark between segments passes on a tensor as it is: where the exporter knows a size on one side
    of it, such as 65, and has an expression on the other, such as ``n + 1``, the expression is that
    number everywhere.
    """
    graph = model.graph
    values = (*graph.input, *graph.value_info, *graph.output)
    shapes = {value.name: shape_of(value) for value in values}
    numbers: dict[int | str, int] = {}
    for node in graph.node:
        if node.op_type == BOUNDARY and node.domain == DOMAIN:
            before, after = shapes.get(node.input[0], []), shapes.get(node.output[0], [])
            for pair in zip(before, after, strict=False):
                found = [size for size in pair if isinstance(size, int)]
                if len(found) == 1:
                    numbers.update({size: found[0] for size in pair if size})
    return {name: [numbers.get(size, size) for size in shape] for name, shape in shapes.items()}
