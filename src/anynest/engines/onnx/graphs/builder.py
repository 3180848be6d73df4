"""From a plan to the operations of each stage: the one walk that every kind of graph is made by.

The walk goes stage after stage through the nodes born there, as inference does (N2, N4), and calls for
convolutions, sums and heads; what these are made of is the emitter's own affair: standard ONNX operations
(``onnx_graph.py``), or the ones of a processor's block layout (``blocked.py``). An operation that two
readers share is made once, at the stage that first needs it; later stages read it as state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ....nets.nested.plan import IMAGE, Exit, Layer, Node, Unit
from ...folding import Array, FoldedNetwork
from ..manifest import StageNames

LAST = -1  # "unit" of a layer's result, among its inner activations


class Slice(NamedTuple):
    """Channels ``start`` to ``stop`` of a layer (or of a sum of layers), and the value that holds them."""

    name: str
    start: int
    stop: int
    birth: int


@dataclass(frozen=True)
class Operation:
    """One node of an ONNX graph to be; its output bears its name."""

    kind: str
    inputs: tuple[str, ...]
    name: str
    domain: str
    attributes: tuple[tuple[str, Any], ...]


@dataclass
class Piece:
    """What one stage computes.

    Attributes:
        operations: in an order in which each comes after all that it reads.
        constants: weights, by name.
        inputs: what comes with the images: the images, where the stage reads them, and masks.
        reads: values of earlier stages.
        gives: values that later stages read.
        logits: the value that is the stage's answer.
        joins: values that are several earlier ones one after the other along the channels; these are
            not among ``reads``.
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
        """Its values that others know."""
        return StageNames(tuple(self.inputs), tuple(self.reads), tuple(self.gives), self.logits)


class Recorder:
    """Operations as they are called for, each made once and kept under the stage that needed it first."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self._made: dict[tuple[Any, ...], str] = {}
        self._maker: dict[str, Piece] = {}

    def add(
        self,
        kind: str,
        inputs: Sequence[str],
        name: str,
        *,
        domain: str = "",
        **attributes: Any,
    ) -> str:
        """The name of the operation's result; that of an equal one, if there is one."""
        key = (kind, tuple(inputs), domain, tuple(sorted(attributes.items())))
        if key not in self._made:
            self._made[key] = name
            piece = self.pieces[-1]
            for source in inputs:
                self._read(piece, source)
            piece.operations.append(Operation(kind, tuple(inputs), name, domain, key[3]))
            self._maker[name] = piece
        return self._made[key]

    def constant(self, name: str, array: Array) -> str:
        """A weight of the stage that is being made."""
        self.pieces[-1].constants[name] = array
        return name

    def is_state(self, value: str) -> bool:
        """Whether an earlier stage made it."""
        return self._maker.get(value, self.pieces[-1]) is not self.pieces[-1]

    def join(self, values: Sequence[str]) -> str:
        """Earlier stages' values as one; whoever runs the graphs sees to it that they adjoin."""
        piece, name = self.pieces[-1], "|".join(values)
        piece.joins[name] = tuple(values)
        for value in values:
            self._give(value)
        return name

    def _read(self, piece: Piece, source: str) -> None:
        maker = self._maker.get(source)
        if maker is piece or not source or source in piece.constants or source in piece.joins:
            return
        names = piece.inputs if maker is None else piece.reads
        if source not in names:
            names.append(source)
        if maker is not None:
            self._give(source)

    def _give(self, value: str) -> None:
        gives = self._maker[value].gives
        if value not in gives:
            gives.append(value)


class Emitter(ABC):
    """Walks a network's plan; a subclass says what a convolution, a sum and a head are."""

    def __init__(self, network: FoldedNetwork) -> None:
        self.network = network
        self.graph = Recorder()
        self._slices: dict[tuple[str, int], list[Slice]] = {}
        self._logits: dict[int, str] = {}
        self._sums: dict[frozenset[str], str] = {}

    def emit(self) -> list[Piece]:
        """One piece for each output."""
        before = 0
        for number, stage in enumerate(self.network.outputs, 1):
            self.graph.pieces.append(Piece())
            for layer in self.network.plan.layers:
                for node in layer.nodes:
                    if before < node.birth <= stage:
                        self._node(layer, node)
            for exit_ in self.network.plan.exits:
                if before < exit_.stage <= stage:
                    self._exit(exit_, number)
            self.graph.pieces[-1].logits = self._answer(stage, number)
            before = stage
        return self.graph.pieces

    # -- what a subclass says -----------------------------------------------------------------------
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
        """Unit number ``unit`` (from 0) of a node, plus ``added``, rectified where ``relu``."""

    @abstractmethod
    def add(self, values: Sequence[str], name: str) -> str:
        """The sum of equally large values."""

    @abstractmethod
    def rectify(self, value: str, name: str) -> str:
        """What is above zero."""

    @abstractmethod
    def regroup(self, parts: Sequence[Slice], start: int, stop: int, name: str) -> str:
        """Channels ``start`` to ``stop`` of adjoining slices, as one value."""

    @abstractmethod
    def pool(self, value: Slice, name: str) -> str:
        """3x3 max pooling with stride 2."""

    @abstractmethod
    def head(self, exit_: Exit, inputs: Sequence[Slice], name: str) -> str:
        """Global average pooling, then the linear head."""

    # -- the walk -------------------------------------------------------------------------------------
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
        """The sum of layers as it stands at a birth, in the finest slices that they have in common."""
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
        """A sum; the largest part of it that was added up before is not added up again."""
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
        # of several exits up to an output, as an average has them, the last one is the output's own
        last = exit_.stage == self.network.outputs[number - 1] and not self.network.plan.average
        name = f"logits{number}" if last else f"exit{exit_.stage}.logits"
        inputs = self._read(exit_.reads, exit_.stage, f"exit{exit_.stage}.input")
        self._logits[exit_.stage] = self.head(exit_, inputs, name)

    def _answer(self, stage: int, number: int) -> str:
        if not self.network.plan.average:
            return self._logits[stage]
        upto = [name for known, name in self._logits.items() if known <= stage]
        return self.graph.add("Mean", upto, f"logits{number}")


def cover(slices: Sequence[Slice], birth: int) -> list[Slice]:
    """The newest slices, of those born by then, that hold all channels."""
    found: list[Slice] = []
    for part in reversed(slices):
        if part.birth <= birth and (not found or part.start < found[0].start):
            found.insert(0, part)
    return found
