"""Cut an exported graph into one segment per output.

``segment(*state) -> (output, *state)``: a node belongs to the first output that needs it, so nothing
runs before its stage is asked for (N4) or twice (N2). Segments carry the tensors that later ones
read. Each has the batch as dimension 0, so rows can leave (``index_select``) and join (``cat``).
Sizes are read from the carried tensors, and what depends on parameters and sizes alone is computed
where it is read.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

_aten = torch.ops.aten


class CutError(ValueError):
    """Rows cannot be told apart at the end of a stage.

    Attributes:
        stage: the stage, from 1.
        node: the tensor that would be carried.
    """

    def __init__(self, stage: int, node: fx.Node) -> None:
        super().__init__(f"stage {stage} carries {node.name} of shape {list(shape_of(node))}")
        self.stage = stage
        self.node = node


def is_tensor(node: fx.Node) -> bool:
    """Whether a node gives a tensor, rather than a size or several results."""
    return isinstance(node.meta.get("val"), Tensor)


def shape_of(node: fx.Node) -> tuple[Any, ...]:
    """The sizes of a node's tensor: integers, or symbolic expressions."""
    return tuple(map(_expression, node.meta["val"].shape))


def _expression(value: Any) -> Any:
    """A size as an integer or a symbolic expression, which are compared by ``==``."""
    is_symbolic = isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool))
    return value.node.expr if is_symbolic else value


def _is_size(node: fx.Node) -> bool:
    return isinstance(
        node.meta.get("val"), (int, float, bool, torch.SymInt, torch.SymFloat, torch.SymBool)
    )


class Cutter:
    """Divides one graph.

    Args:
        inputs: the placeholders of the network's inputs, all with the batch as dimension 0.
        attributes: placeholder -> (name, parameter or buffer).
        outputs: the node of each stage's output.
    """

    def __init__(
        self,
        inputs: Sequence[fx.Node],
        attributes: Mapping[fx.Node, tuple[str, Tensor]],
        outputs: Sequence[fx.Node],
    ) -> None:
        self.inputs = tuple(inputs)
        self.attributes = attributes
        self.outputs = tuple(outputs)
        self.nodes: list[fx.Node] = list(outputs[0].graph.nodes)
        self.batch = shape_of(inputs[0])[0]
        self.varies = self._find_data()
        self.part = self._assign()

    def _find_data(self) -> set[fx.Node]:
        """The nodes that depend on the inputs' values; the others are recomputed."""
        found = set(self.inputs)
        for node in self.nodes:
            reads = node.all_input_nodes
            if not _is_size(node) and any(read in found for read in reads):
                found.add(node)
        return found

    def _assign(self) -> dict[fx.Node, int]:
        """Each node's part, from 0; several results belong to the part that computes them."""
        part: dict[fx.Node, int] = {}
        for number, output in enumerate(self.outputs):
            stack = [output]
            while stack:
                node = stack.pop()
                if node not in part:
                    part[node] = number
                    stack += node.all_input_nodes
        for node in self.nodes:
            if node in part and node.target is operator.getitem:
                source = node.args[0]
                assert isinstance(source, fx.Node)
                part[node] = part[source]
        return {node: number for node, number in part.items() if node not in self.inputs}

    def batch_dimension(self, node: fx.Node) -> int | None:
        """The dimension of a carried tensor that is the batch; None if there is none."""
        found = [d for d, size in enumerate(shape_of(node)) if size == self.batch]
        return found[0] if len(found) == 1 or (found and found[0] == 0) else None

    def states(self) -> list[list[fx.Node]]:
        """What each part receives.

        Raises:
            CutError: a tensor without a batch dimension would be carried.
        """
        carry: list[dict[fx.Node, None]] = [{} for _ in self.outputs]
        while True:
            states = [list(self.inputs)]
            for number in range(1, len(self.outputs)):
                wanted = {node: None for later in carry[number:] for node in later}
                before = [n for n in wanted if self.part.get(n, -1) < number]
                states.append(before)
            for sizes in (False, True):  # sizes are read from what is carried anyway, if possible
                missing = [
                    self._missing(number, set(state), sizes) for number, state in enumerate(states)
                ]
                if any(missing):
                    break
            for known, nodes in zip(carry, missing, strict=True):
                known.update(dict.fromkeys(nodes))
            if not any(missing):
                break
        for number, state in enumerate(states):
            for node in state:
                if self.batch_dimension(node) is None:
                    raise CutError(number, node)
        return states

    def _missing(self, number: int, state: set[fx.Node], sizes: bool) -> list[fx.Node]:
        """Tensors of earlier parts that a part reads and does not receive.

        Args:
            sizes: whether to count those that only sizes are read from.
        """
        missing: dict[fx.Node, None] = {}
        seen: set[fx.Node] = set()
        stack = [n for n, p in self.part.items() if p == number and n in self.varies]
        stack.append(self.outputs[number])
        while stack:
            node = stack.pop()
            if node in seen or node in self.attributes:
                continue
            seen.add(node)
            if node in self.varies and self.part.get(node, -1) != number:
                if node not in state:
                    missing[node] = None
            elif not _is_size(node) or (sizes and self._size(node, state) is None):
                stack += node.all_input_nodes
        return list(missing)

    def _size(self, node: fx.Node, state: set[fx.Node]) -> tuple[fx.Node, int] | float | None:
        """A size as a constant, or as a dimension of a tensor of the state."""
        expression = _expression(node.meta["val"])
        if isinstance(expression, (int, float, bool)):
            return expression
        if expression.is_Integer:
            return int(expression)
        for tensor in sorted(state, key=lambda n: n.name):
            for dimension, size in enumerate(shape_of(tensor)):
                if size == expression:
                    return tensor, dimension
        return None

    def _may_overwrite(self, node: fx.Node) -> bool:
        """Whether an operation was in place, and nothing else reads what it overwrites."""
        base = node.args[0] if "in place" in node.meta else None
        return (
            isinstance(base, fx.Node)
            and list(base.users) == [node]
            and self.part.get(base) == self.part.get(node)
        )

    def segments(self) -> list[fx.GraphModule]:
        """The segments.

        Raises:
            CutError: rows cannot be told apart between two of them.
        """
        states = self.states()
        after = [*states[1:], []]
        return [
            self._build(number, *pair)
            for number, pair in enumerate(zip(states, after, strict=True))
        ]

    def _build(
        self, number: int, state: Sequence[fx.Node], after: Sequence[fx.Node]
    ) -> fx.GraphModule:
        graph = fx.Graph()
        placed: dict[fx.Node, Any] = {}  # node -> its copy, or a constant
        raw: dict[fx.Node, fx.Node] = {}  # as carried: the batch is dimension 0
        root: dict[str, Tensor] = {}
        for node in state:
            raw[node] = graph.placeholder(node.name)
        for node in state:
            dimension = self.batch_dimension(node)
            placed[node] = raw[node]
            if number and dimension:
                placed[node] = graph.call_function(_aten.movedim.int, (raw[node], 0, dimension))
        received = set(state)

        def place(node: fx.Node) -> Any:
            if node not in placed:
                placed[node] = make(node)
            return placed[node]

        def make(node: fx.Node) -> Any:
            if node in self.attributes:
                name, tensor = self.attributes[node]
                root[name] = tensor
                return graph.get_attr(name)
            if _is_size(node):
                size = self._size(node, received)
                if isinstance(size, tuple):
                    return graph.call_function(_aten.sym_size.int, (placed[size[0]], size[1]))
                if size is not None:
                    return size
            for read in node.all_input_nodes:
                place(read)
            copy = graph.node_copy(node, lambda read: placed[read])
            if self._may_overwrite(node):
                copy.target = node.meta["in place"]
            return copy

        for node in self.nodes:
            if self.part.get(node) == number and node in self.varies:
                place(node)
        results = [place(self.outputs[number])]
        for node in after:
            dimension = self.batch_dimension(node)
            if node in raw:
                results.append(raw[node])
            elif dimension:
                moved = graph.call_function(_aten.movedim.int, (place(node), dimension, 0))
                results.append(moved)
            else:
                results.append(place(node))
        graph.output(tuple(results))
        _strip(graph)
        graph.lint()
        return fx.GraphModule(_holder(root), graph, class_name=f"Segment{number + 1}")


def _strip(graph: fx.Graph) -> None:
    """Remove what the export recorded: example values, stacks of modules and of source lines."""
    for node in graph.nodes:
        node.meta.clear()


def _holder(tensors: Mapping[str, Tensor]) -> nn.Module:
    """A module that holds the tensors themselves, under their dotted names."""
    root = nn.Module()
    for path, tensor in tensors.items():
        *containers, name = path.split(".")
        module = root
        for container in containers:
            if container not in module._modules:
                module.add_module(container, nn.Module())
            module = module.get_submodule(container)
        if isinstance(tensor, nn.Parameter):
            module.register_parameter(name, tensor)
        else:
            module.register_buffer(name, tensor)
    return root
