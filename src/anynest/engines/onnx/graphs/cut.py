"""Cut the ONNX graph of all segments, one after the other, into one graph per stage.

The graph has marks: a node ``anynest::Boundary`` (attribute ``stage``) stands wherever a tensor of
the state crosses from a segment to the next. Optimisers do not look through it, so values of
different segments stay apart; the cut removes it. A tensor that several segments pass on is one
value with one name, which each stage reads where it needs it (``StageNames``).

Sizes are computed where they are read, from the tensors that a stage has.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..manifest import StageNames

DOMAIN, BOUNDARY = "anynest", "Boundary"
RESERVED = ("stages", "stage", "logits")  # of a single file (single_file.py)
SIZES = {"Shape", "Size"}


class CutError(ValueError):
    """A graph that cannot be divided.

    Attributes:
        stage: the stage that cannot be computed.
    """

    def __init__(self, stage: int, reason: str) -> None:
        super().__init__(reason)
        self.stage = stage


@dataclass
class _Stage:
    """The parts of one stage's graph."""

    number: int
    nodes: dict[int, Any] = field(default_factory=dict)  # place in the graph -> node
    weights: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, None] = field(default_factory=dict)
    reads: dict[str, None] = field(default_factory=dict)
    sizes: dict[str, list[Any]] = field(default_factory=dict)  # replaced Shape -> its nodes


class GraphCutter:
    """Divides one model.

    Args:
        model: a ``ModelProto`` with one output per stage, of which parts are changed.
        names: of its inputs.
    """

    def __init__(self, model: Any, names: Sequence[str]) -> None:
        self.model = model
        graph = model.graph
        self.outputs = [value.name for value in graph.output]
        _rename(graph, names, len(self.outputs))
        self.outputs = [value.name for value in graph.output]
        self.types = {v.name: v for v in (*graph.value_info, *graph.input, *graph.output)}
        self.inputs = [value.name for value in graph.input]
        self.weights = {tensor.name: tensor for tensor in graph.initializer}
        self.nodes = list(graph.node)
        self.maker = {name: n for n, node in enumerate(self.nodes) for name in node.output}
        self.root: dict[str, str] = {}  # a boundary's result -> the value itself
        self.origin: dict[str, int] = {}  # state -> the stage that gives it
        self.label: dict[str, int] = dict.fromkeys(self.inputs, 1)  # value -> its stage
        for node in self.nodes:
            self._enter(node)

    def _enter(self, node: Any) -> None:
        if node.op_type == BOUNDARY and node.domain == DOMAIN:
            (stage,) = [a.i for a in node.attribute if a.name == "stage"]
            root = self.root[node.output[0]] = self._root(node.input[0])
            if root in self.maker:
                self.origin.setdefault(root, stage)
            self.label[node.output[0]] = stage + 1
        elif node.op_type not in SIZES:
            found = [self.label[name] for name in node_reads(node) if name in self.label]
            if found:
                self.label.update(dict.fromkeys(node.output, max(found)))

    def _root(self, name: str) -> str:
        return self.root.get(name, name)

    def cut(self) -> tuple[list[Any], list[StageNames]]:
        """One ``ModelProto`` per stage, and the names of their inputs and outputs.

        Raises:
            CutError: a stage needs what earlier ones do not give.
        """
        wanted: list[dict[str, None]] = [{} for _ in self.outputs]
        stages: list[_Stage] = []
        for number in range(len(self.outputs), 0, -1):
            stage = self._slice(number, list(wanted[number - 1]))
            for name in stage.reads:
                wanted[self.origin[name] - 1][name] = None
            stages.insert(0, stage)
        used = {name for names in wanted for name in names} | set(self.inputs)
        built = [
            self._build(stage, list(gives), used)
            for stage, gives in zip(stages, wanted, strict=True)
        ]
        return [model for model, _ in built], [names for _, names in built]

    # -- the nodes of a stage -----------------------------------------------------------------------
    def _slice(self, number: int, gives: Sequence[str]) -> _Stage:
        """What a stage computes for its output and the state that it gives."""
        stage = _Stage(number)
        stack = [self._root(self.outputs[number - 1]), *gives]
        while stack:
            name = self._root(stack.pop())
            if name in self.inputs:
                stage.inputs[name] = None
            elif name in self.weights:
                stage.weights[name] = self.weights[name]
            elif self.origin.get(name, number) < number:
                stage.reads[name] = None
            elif name and name in self.maker and self.maker[name] not in stage.nodes:
                node = self.nodes[self.maker[name]]
                stage.nodes[self.maker[name]] = node
                if node.op_type in SIZES and not self._has(node.input[0], number):
                    stage.sizes[name] = self._sizes(node, stage)
                    continue
                if self.label.get(name, number) < number:
                    raise CutError(number, f"it needs {name}, which earlier segments do not give")
                stack += node_reads(node)
        return stage

    def _has(self, name: str, number: int) -> bool:
        """Whether a stage reads or computes a value."""
        name = self._root(name)
        if name in self.inputs or name in self.weights:
            return True
        given = self.origin.get(name)
        if given is not None and given < number:
            return True
        return self.label.get(name, number) == number

    def _sizes(self, node: Any, stage: _Stage) -> list[Any]:
        """Nodes that compute a ``Shape`` of an earlier segment's tensor from tensors at hand."""
        import onnx

        helper = onnx.helper
        where = {a.name: a.i for a in node.attribute}
        sizes = self._shape(node.input[0])
        wanted = sizes[where.get("start", 0) : where.get("end", len(sizes))]
        if node.op_type != "Shape" or not wanted:
            raise CutError(stage.number, f"it needs the size of {node.input[0]}")
        result, parts = [], []
        for place, size in enumerate(wanted):
            part = f"{node.output[0]}.{place}"
            if isinstance(size, int):
                value = helper.make_tensor("value", onnx.TensorProto.INT64, [1], [size])
                made = helper.make_node("Constant", [], [part], value=value)
            else:
                source, dimension = self._source(size, stage)
                made = helper.make_node(
                    "Shape", [source], [part], start=dimension, end=dimension + 1
                )
            result.append(made)
            parts.append(part)
        result.append(helper.make_node("Concat", parts, [node.output[0]], axis=0))
        return result

    def _source(self, size: str, stage: _Stage) -> tuple[str, int]:
        """A tensor that the stage has, and its dimension of this size."""
        given = [name for name, origin in self.origin.items() if origin < stage.number]
        for name in (*self.inputs, *given):
            shape = self._shape(name)
            if size and size in shape:
                (stage.inputs if name in self.inputs else stage.reads)[name] = None
                return name, shape.index(size)
        raise CutError(
            stage.number, f"it needs the size {size or '?'}, which no tensor at hand has"
        )

    def _shape(self, name: str) -> list[int | str]:
        return shape_of(self.types[name]) if name in self.types else []

    # -- its model ----------------------------------------------------------------------------------
    def _build(self, stage: _Stage, gives: Sequence[str], used: set[str]) -> tuple[Any, StageNames]:
        """The model of a stage.

        Args:
            stage: its parts.
            gives: the state that later stages read.
            used: names that earlier stages' graphs and the state have; extended.
        """
        import onnx

        helper = onnx.helper
        nodes: list[Any] = []
        for place in sorted(stage.nodes):
            node = stage.nodes[place]
            nodes += stage.sizes.get(node.output[0], [node])
        nodes = [_copy(node) for node in nodes]
        logits, root = f"logits{stage.number}", self._root(self.outputs[stage.number - 1])
        renamed = dict(self.root)
        own = {name for node in nodes for name in node.output if name}
        if root in own and root not in gives:
            renamed[root] = logits
        else:
            nodes.append(helper.make_node("Identity", [root], [logits], name=logits))
        for name in (*own, *stage.weights):  # names are unique in a single file, too
            if name not in gives and name not in renamed:
                if name in used:
                    renamed[name] = f"stage{stage.number}.{name}"
                used.add(renamed.get(name, name))
        for node in nodes:
            _substitute(node, renamed)
        weights = []
        for name, tensor in stage.weights.items():
            copied = onnx.TensorProto()
            copied.CopyFrom(tensor)
            copied.name = renamed.get(name, name)
            copied.ClearField("metadata_props")
            copied.ClearField("doc_string")
            weights.append(copied)
        inputs = [self._described(name) for name in (*stage.inputs, *stage.reads)]
        outputs = [self._described(root, logits), *(self._described(name) for name in gives)]
        graph = helper.make_graph(nodes, f"stage{stage.number}", inputs, outputs, weights)
        model = helper.make_model(
            graph,
            opset_imports=[o for o in self.model.opset_import if o.domain != DOMAIN],
            ir_version=self.model.ir_version,
            producer_name="anynest",
        )
        return model, StageNames(tuple(stage.inputs), tuple(stage.reads), tuple(gives), logits)

    def _described(self, name: str, new: str = "") -> Any:
        import onnx

        value = onnx.ValueInfoProto()
        value.name = new or name
        value.type.CopyFrom(self.types[name].type)
        return value


def shape_of(value: Any) -> list[int | str]:
    """The sizes of a ``ValueInfoProto``; a string is symbolic, "" unknown."""
    return [
        d.dim_value if d.HasField("dim_value") else d.dim_param
        for d in value.type.tensor_type.shape.dim
    ]


def rename_sizes(model: Any, renamed: Mapping[str, str]) -> None:
    """Rename symbolic sizes, also within expressions such as ``2*s7``; "6" becomes the number 6."""
    graph = model.graph
    for value in (*graph.value_info, *graph.input, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param.isdigit():
                dim.dim_value = int(dim.dim_param)
            elif dim.dim_param:
                dim.dim_param = re.sub(
                    r"\w+", lambda found: renamed.get(found[0], found[0]), dim.dim_param
                )


def node_reads(node: Any) -> list[str]:
    """A node's inputs, and what its subgraphs read of the graph around them."""
    found = [name for name in node.input if name]
    for graph in _subgraphs(node):
        own = {v.name for v in (*graph.input, *graph.initializer)}
        own |= {name for inner in graph.node for name in inner.output}
        found += [n for inner in graph.node for n in node_reads(inner) if n not in own]
        found += [v.name for v in graph.output if v.name not in own]
    return found


def _subgraphs(node: Any) -> Iterator[Any]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _copy(node: Any) -> Any:
    """A node without what the exporter tells of the source code."""
    copied = type(node)()
    copied.CopyFrom(node)
    _strip(copied)
    return copied


def _strip(node: Any) -> None:
    node.ClearField("metadata_props")
    node.ClearField("doc_string")
    for graph in _subgraphs(node):
        graph.ClearField("metadata_props")
        graph.ClearField("doc_string")
        for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
            value.ClearField("metadata_props")
            value.ClearField("doc_string")
        for inner in graph.node:
            _strip(inner)


def _substitute(node: Any, renamed: Mapping[str, str]) -> None:
    """Rename values in a node and in its subgraphs."""
    for names in (node.input, node.output):
        for place, name in enumerate(names):
            names[place] = renamed.get(name, name)
    for graph in _subgraphs(node):
        for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
            value.name = renamed.get(value.name, value.name)
        for inner in graph.node:
            _substitute(inner, renamed)


def _rename(graph: Any, names: Sequence[str], stages: int) -> None:
    """Give the inputs their names, and other values none of the names with a meaning."""
    reserved = {*names, *RESERVED, *(f"logits{n}" for n in range(1, stages + 1))}
    taken = {value.name for value in graph.input}
    every = {t.name for t in graph.initializer} | {n for node in graph.node for n in node.output}
    renamed = {name: f"inner.{name}" for name in every & reserved if name not in taken}
    renamed |= {value.name: name for value, name in zip(graph.input, names, strict=True)}
    for node in graph.node:
        _substitute(node, renamed)
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = renamed.get(value.name, value.name)
