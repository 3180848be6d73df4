"""Nodes that begin at whole blocks of channels: what a processor computes along for nothing.

Kernels compute blocks of Q channels. A node whose first channel lies within a block would leave that
block's other lanes idle, and have its readers read two half-filled blocks. Here such a node computes the
block's channels of earlier nodes once more, along with its own, wherever that takes no more blocks; it then
stands for them. Every stage gives the same logits at the same cost, and need not read what it computes.

Only nodes that read the same layers can be computed along: the values of their channels are then the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile

import numpy as np

from ....nets.nested.plan import Layer, Node
from ...folding import Array, FoldedNetwork

Pairs = list[tuple[Array, Array]]


def realigned(network: FoldedNetwork, block: int) -> FoldedNetwork:
    """The network with nodes that begin at multiples of ``block`` channels, where that costs nothing.

    A node of the result stands for the earlier nodes' channels from its ``start`` on.
    """
    layers, convolutions = [], {}
    for layer in network.plan.layers:
        nodes = []
        for index in range(len(layer.nodes)):
            node, pairs = _realigned(network, layer, index, block)
            nodes.append(node)
            convolutions[layer.name, node.birth] = pairs
        layers.append(replace(layer, nodes=tuple(nodes)))
    plan = replace(network.plan, layers=tuple(layers))
    return replace(network, plan=plan, convolutions=convolutions)


def _realigned(network: FoldedNetwork, layer: Layer, index: int, block: int) -> tuple[Node, Pairs]:
    """One node, and its convolutions."""
    node = layer.nodes[index]
    alike = takewhile(
        lambda n: (n.reads, n.residual) == (node.reads, node.residual), layer.nodes[index::-1]
    )
    run = list(alike)[::-1]  # the nodes that it may stand for, itself the last
    pairs: Pairs = []
    units = []
    start = node.start
    for number, unit in enumerate(node.units):
        begins = [
            sum(n.units[number].outputs for n in layer.nodes[:place]) for place in range(index + 1)
        ]
        stop = begins[-1] + unit.outputs
        first = _first(begins[-len(run) :], stop, block)
        weights = [network.convolutions[layer.name, n.birth][number] for n in run]
        pairs.append(_rows(weights, stop - first, unit.inputs))
        units.append(replace(unit, outputs=stop - first))
        start = first
    return replace(node, start=start, units=tuple(units)), pairs


def _first(begins: Sequence[int], stop: int, block: int) -> int:
    """Where to begin: the nearest whole block, if no more blocks are computed for it."""

    def blocks(first: int) -> int:
        return -(-(stop - first) // block)

    whole = [b for b in begins if b % block == 0 and blocks(b) <= blocks(begins[-1])]
    return whole[-1] if whole else begins[-1]


def _rows(weights: Pairs, outputs: int, inputs: int) -> tuple[Array, Array]:
    """The last ``outputs`` rows of several nodes' convolutions; earlier nodes read fewer channels."""
    kernel = weights[-1][0].shape[2:]
    rows = []
    for weight, _ in weights:
        wide = np.zeros((len(weight), inputs, *kernel), dtype=np.float32)
        wide[:, : weight.shape[1]] = weight
        rows.append(wide)
    bias = np.concatenate([bias for _, bias in weights])
    return np.concatenate(rows)[-outputs:], bias[-outputs:]
