"""From a network's plan to the operations of each stage.

``GraphBuilder`` visits the nodes stage after stage, as inference computes them (N2, N4). Subclasses
define what a convolution, a sum and a head are: standard ONNX operations (``standard.py``) or ONNX
Runtime's own block layout (``nchwc/graphs.py``). An operation that several readers share is added
once, to the first stage that needs it; later stages read its value as state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ....nets.nested.plan import IMAGE, Exit, Layer, Node, Unit
from ...folding import Array, FoldedNetwork
from ..manifest import StageNames

LAST = -1  # key of a layer's result, beside the numbers of its inner units


class Slice(NamedTuple):
    """Channels ``start`` to ``stop`` of a layer or of a sum of layers, and the value with them."""

    name: str
    start: int
    stop: int
    birth: int


@dataclass(frozen=True)
class Operation:
    """One node of an ONNX graph; its only output has its name."""

    kind: str
    inputs: tuple[str, ...]
    name: str
    domain: str
    attributes: tuple[tuple[str, Any], ...]


@dataclass
class StageGraph:
    """The operations of one stage.

    Attributes:
        operations: in topological order.
        constants: weights, by name.
        inputs: inputs of the whole network: the images, where the stage reads them, and masks.
        reads: values of earlier stages.
        gives: values that later stages read.
        logits: the stage's output.
        joins: inputs that are several values of earlier stages, concatenated along the channels by
            the executor; these values are not among ``reads``.
    """

    operations: list[Operation] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)
    reads: list[str] = field(default_factory=list)
    gives: list[str] = field(default_factory=list)
    logits: str = ""
    joins: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def names(self) -> StageNames:
        """Its inputs and outputs."""
        return StageNames(tuple(self.inputs), tuple(self.reads), tuple(self.gives), self.logits)


class OpRecorder:
    """Records operations, each once, in the graph of the stage that needs it first."""

    def __init__(self) -> None:
        self.stages: list[StageGraph] = []
        self._recorded: dict[tuple[Any, ...], str] = {}
        self._origin: dict[str, StageGraph] = {}

    def add(
        self,
        kind: str,
        inputs: Sequence[str],
        name: str,
        *,
        domain: str = "",
        **attributes: Any,
    ) -> str:
        """Record an operation.

        Returns:
            The name of its result, or that of an equal operation that is recorded already.
        """
        key = (kind, tuple(inputs), domain, tuple(sorted(attributes.items())))
        if key not in self._recorded:
            self._recorded[key] = name
            stage = self.stages[-1]
            for source in inputs:
                self._read(stage, source)
            stage.operations.append(Operation(kind, tuple(inputs), name, domain, key[3]))
            self._origin[name] = stage
        return self._recorded[key]

    def constant(self, name: str, array: Array) -> str:
        """Add a weight to the newest stage."""
        self.stages[-1].constants[name] = array
        return name

    def is_state(self, value: str) -> bool:
        """Whether an earlier stage computes the value."""
        return self._origin.get(value, self.stages[-1]) is not self.stages[-1]

    def join(self, values: Sequence[str]) -> str:
        """Values of earlier stages as one input, which the executor concatenates."""
        stage, name = self.stages[-1], "|".join(values)
        stage.joins[name] = tuple(values)
        for value in values:
            self._give(value)
        return name

    def _read(self, stage: StageGraph, source: str) -> None:
        origin = self._origin.get(source)
        if origin is stage or not source or source in stage.constants or source in stage.joins:
            return
        names = stage.inputs if origin is None else stage.reads
        if source not in names:
            names.append(source)
        if origin is not None:
            self._give(source)

    def _give(self, value: str) -> None:
        gives = self._origin[value].gives
        if value not in gives:
            gives.append(value)


class GraphBuilder(ABC):
    """Visits a network's plan; subclasses define convolutions, sums and heads."""

    def __init__(self, network: FoldedNetwork) -> None:
        self.network = network
        self.ops = OpRecorder()
        self._slices: dict[tuple[str, int], list[Slice]] = {}
        self._logits: dict[int, str] = {}
        self._sums: dict[frozenset[str], str] = {}

    def build(self) -> list[StageGraph]:
        """One graph for each output."""
        before = 0
        for number, stage in enumerate(self.network.outputs, 1):
            self.ops.stages.append(StageGraph())
            for layer in self.network.plan.layers:
                for node in layer.nodes:
                    if before < node.birth <= stage:
                        self._node(layer, node)
            for exit_ in self.network.plan.exits:
                if before < exit_.stage <= stage:
                    self._exit(exit_, number)
            self.ops.stages[-1].logits = self._output(stage, number)
            before = stage
        return self.ops.stages

    # -- defined by subclasses --------------------------------------------------------------------
    @abstractmethod
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
        """Unit number ``unit`` (from 0) of a node, plus ``added``, rectified if ``relu``."""

    @abstractmethod
    def add(self, values: Sequence[str], name: str) -> str:
        """The sum of values of one shape."""

    @abstractmethod
    def rectify(self, value: str, name: str) -> str:
        """ReLU."""

    @abstractmethod
    def regroup(self, parts: Sequence[Slice], start: int, stop: int, name: str) -> str:
        """Channels ``start`` to ``stop`` of adjacent slices, as one value."""

    @abstractmethod
    def pool(self, value: Slice, name: str) -> str:
        """3x3 max pooling with stride 2."""

    @abstractmethod
    def head(self, exit_: Exit, inputs: Sequence[Slice], name: str) -> str:
        """Global average pooling, then the linear head."""

    # -- the visit --------------------------------------------------------------------------------
    def _node(self, layer: Layer, node: Node) -> None:
        name = f"{layer.name}.stage{node.birth}"
        inputs = read = self._read(node.reads, node.birth, f"{name}.input")
        for number, unit in enumerate(node.units):
            last = number == len(node.units) - 1
            added = self._residual(layer, node, read, unit) if last else None
            own = name if last else f"{name}.inner{number + 1}"
            pooled = last and layer.pool
            value = self.convolve(
                layer,
                node,
                number,
                inputs,
                added,
                layer.relu if last else True,
                f"{own}.unpooled" if pooled else own,
            )
            known = self._slices.setdefault((layer.name, LAST if last else number), [])
            stop = node.start + unit.outputs if last else node.units[number + 1].inputs
            made = Slice(value, stop - unit.outputs, stop, node.birth)
            known.append(made._replace(name=self.pool(made, own)) if pooled else made)
            inputs = cover(known, node.birth)

    def _residual(
        self, layer: Layer, node: Node, read: Sequence[Slice], unit: Unit
    ) -> Slice | None:
        if node.residual is None:
            return None
        if node.residual != "input":
            read = cover(self._slices[node.residual, LAST], node.birth)
        name = f"{layer.name}.stage{node.birth}.residual"
        return self._part(read, node.start, node.start + unit.outputs, name)

    def _read(self, names: tuple[str, ...], birth: int, name: str) -> list[Slice]:
        """The sum of layers, with their nodes up to a birth, in the finest slices common to all."""
        if names == (IMAGE,):
            return [Slice(IMAGE, 0, self.network.in_channels, 0)]
        columns = [cover(self._slices[source, LAST], birth) for source in names]
        cuts = sorted(set.intersection(*({s.stop for s in column} for column in columns)))
        relu = self.network.plan.relu_reads
        result: list[Slice] = []
        start = 0
        for stop in cuts:
            parts = [
                self._part(column, start, stop, f"{name}.{source}.from{start}")
                for column, source in zip(columns, names, strict=True)
            ]
            own = name if start == 0 else f"{name}.from{start}"
            value = self._sum([part.name for part in parts], f"{own}.sum" if relu else own)
            if relu:
                value = self.rectify(value, own)
            result.append(Slice(value, start, stop, max(part.birth for part in parts)))
            start = stop
        return result

    def _sum(self, values: Sequence[str], name: str) -> str:
        """A sum, starting from the largest partial sum that is computed already."""
        wanted = frozenset(values)
        if len(wanted) == 1:
            return values[0]
        if wanted not in self._sums:
            known = max((key for key in self._sums if key < wanted), key=len, default=frozenset())
            rest = [value for value in values if value not in known]
            before = [self._sums[known]] if known else []
            self._sums[wanted] = self.add([*before, *rest], name)
        return self._sums[wanted]

    def _part(self, slices: Sequence[Slice], start: int, stop: int, name: str) -> Slice:
        within = [s for s in slices if s.start < stop and start < s.stop]
        if (within[0].start, within[-1].stop, len(within)) == (start, stop, 1):
            return within[0]
        birth = max(s.birth for s in within)
        return Slice(self.regroup(within, start, stop, name), start, stop, birth)

    def _exit(self, exit_: Exit, number: int) -> None:
        # an averaged output has several exits: the graph's output is then their mean
        last = exit_.stage == self.network.outputs[number - 1] and not self.network.plan.average
        name = f"logits{number}" if last else f"exit{exit_.stage}.logits"
        inputs = self._read(exit_.reads, exit_.stage, f"exit{exit_.stage}.input")
        self._logits[exit_.stage] = self.head(exit_, inputs, name)

    def _output(self, stage: int, number: int) -> str:
        if not self.network.plan.average:
            return self._logits[stage]
        upto = [name for known, name in self._logits.items() if known <= stage]
        return self.ops.add("Mean", upto, f"logits{number}")


def cover(slices: Sequence[Slice], birth: int) -> list[Slice]:
    """The newest slices born no later than ``birth`` that hold all channels."""
    found: list[Slice] = []
    for part in reversed(slices):
        if part.birth <= birth and (not found or part.start < found[0].start):
            found.insert(0, part)
    return found
