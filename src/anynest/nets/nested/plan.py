"""The graph of a network as pure data: layers, their nodes, and what each node reads.

A *node* is a layer's slice of channels, with a *birth stage*: the stage that adds it. The wiring
rule: **a node born at stage b is wired as in the plain network of stage b's size**. It then reads
only nodes born no later than b (N1), nothing is computed twice (N2), and stage 1 is exactly the
plain network of its size. Where a deeper stage adds terms to a *sum* of layers (a group's output),
each reader takes the sum as of its own birth, and a transition of such a sum is a layer of its own,
one per version.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

IMAGE = "image"


@dataclass(frozen=True)
class Unit:
    """A convolution and its batch norm.

    Attributes:
        inputs: all channels that it reads.
        outputs: the node's own channels.
    """

    inputs: int
    outputs: int
    kernel: int
    stride: int

    @property
    def weights(self) -> int:
        return self.inputs * self.outputs * self.kernel**2


class Piece(NamedTuple):
    """The channels that one stage adds to a head or to a shared norm, with their own parameters.

    Attributes:
        name: dotted path of the module.
        birth: the stage that adds it.
        channels: their number.
    """

    name: str
    birth: int
    channels: int


@dataclass(frozen=True)
class Node:
    """One slice of a layer.

    Attributes:
        birth: the stage that adds it, from 1.
        start: its first channel within the layer's output.
        reads: layers whose sum is the input, with all their nodes born no later than ``birth``.
        residual: the term added to the result: ``"input"``, a layer's name, or None.
        units: the convolutions, in order; unit 2 reads unit 1 of this node and of the layer's
            earlier nodes.
        norms: the shared norm of a node of one unit, in adjacent pieces; empty if it shares none.
    """

    birth: int
    start: int
    reads: tuple[str, ...]
    residual: str | None
    units: tuple[Unit, ...]
    norms: tuple[Piece, ...] = ()


@dataclass(frozen=True)
class Layer:
    """A layer of the full network: one or more nodes, in order of birth.

    Attributes:
        name: dotted path of the layer's module.
        nodes: with increasing birth and adjacent channels.
        relu: whether the layer's result is rectified (otherwise its readers rectify the sum).
        pool: whether 3x3 max pooling with stride 2 follows (ImageNet's stem).
    """

    name: str
    nodes: tuple[Node, ...]
    relu: bool = False
    pool: bool = False

    def runs(self) -> Iterator[tuple[int, ...]]:
        """Births of consecutive nodes that read the same layers and so can share one kernel."""
        run: list[Node] = []
        for node in self.nodes:
            if run and (node.reads, node.residual) != (run[-1].reads, run[-1].residual):
                yield tuple(n.birth for n in run)
                run = []
            run.append(node)
        yield tuple(n.birth for n in run)


@dataclass(frozen=True)
class Exit:
    """An output: global average pooling of a sum of layers, then a linear head.

    Attributes:
        stage: the output's stage.
        reads: the layers that it sums.
        head: the columns for the features, in adjacent pieces; the first one has the bias.
    """

    stage: int
    reads: tuple[str, ...]
    head: tuple[Piece, ...]

    @property
    def features(self) -> int:
        return sum(piece.channels for piece in self.head)


@dataclass(frozen=True)
class Plan:
    """The graph of a network; each layer comes after the layers that it reads."""

    layers: tuple[Layer, ...]
    exits: tuple[Exit, ...]
    num_classes: int
    relu_reads: bool  # whether reads are rectified (sparse skips); residual layers already are
    average: bool = False

    def births(self) -> list[int]:
        """The stages that add nodes."""
        return sorted({node.birth for layer in self.layers for node in layer.nodes})

    def norms(self) -> tuple[Piece, ...]:
        """The pieces of shared norms, each once."""
        nodes = [node for layer in self.layers for node in layer.nodes]
        return tuple(dict.fromkeys(piece for node in nodes for piece in node.norms))

    def heads(self) -> tuple[Piece, ...]:
        """The pieces of heads, each once."""
        return tuple(dict.fromkeys(piece for exit_ in self.exits for piece in exit_.head))

    def check_sizes(self, most: int) -> None:
        """Raise ValueError for a weight tensor of more than ``most`` elements."""
        units = [unit for layer in self.layers for node in layer.nodes for unit in node.units]
        sizes = [unit.weights for unit in units]
        sizes += [piece.channels * self.num_classes for piece in self.heads()]
        if max(sizes) > most:
            raise ValueError(
                f"a tensor must have at most {most} weights, found {max(sizes)}; narrow the network"
            )

    def restrict(self, stage: int) -> Plan:
        """The plan of the nodes that output ``stage`` depends on."""
        (exit_,) = [e for e in self.exits if e.stage == stage]
        by_name = {layer.name: layer for layer in self.layers}
        needed: set[tuple[str, int]] = set()
        stack = [(name, stage) for name in exit_.reads]
        if self.average:
            stack += [(name, e.stage) for e in self.exits if e.stage < stage for name in e.reads]
        while stack:
            name, upto = stack.pop()
            for node in by_name[name].nodes:
                if node.birth <= upto and (name, node.birth) not in needed:
                    needed.add((name, node.birth))
                    sources = [*node.reads, *([node.residual] if node.residual in by_name else [])]
                    stack += [(source, node.birth) for source in sources if source != IMAGE]
        layers = []
        for layer in self.layers:
            nodes = tuple(node for node in layer.nodes if (layer.name, node.birth) in needed)
            if nodes:
                layers.append(replace(layer, nodes=nodes))
        exits = [e for e in self.exits if e.stage == stage or (self.average and e.stage < stage)]
        return replace(self, layers=tuple(layers), exits=tuple(exits))
