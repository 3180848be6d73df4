"""Nodes that start at a multiple of the block size, wherever that costs nothing.

Kernels compute blocks of Q channels. A node whose first channel is inside a block leaves that
block's other lanes idle, and its readers read two half-filled blocks. Such a node computes the
block's channels of earlier nodes again in the idle lanes, if it takes no more blocks, and replaces
them for its readers. Every stage has the same logits at the same cost.

Only nodes that read the same layers can be recomputed: their channels then have the same values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile

import numpy as np

from ....nets.nested.plan import Layer, Node
from ...folding import FoldedNetwork, Weights


def align_channels(network: FoldedNetwork, block: int) -> FoldedNetwork:
    """The network with nodes that start at multiples of ``block`` channels where they can.

    A node of the result has the channels of earlier nodes from its ``start`` on.
    """
    layers, convolutions = [], {}
    for layer in network.plan.layers:
        nodes = []
        for index in range(len(layer.nodes)):
            node, weights = _align(network, layer, index, block)
            nodes.append(node)
            convolutions[layer.name, node.birth] = weights
        layers.append(replace(layer, nodes=tuple(nodes)))
    plan = replace(network.plan, layers=tuple(layers))
    return replace(network, plan=plan, convolutions=convolutions)


def _align(
    network: FoldedNetwork, layer: Layer, index: int, block: int
) -> tuple[Node, list[Weights]]:
    """One node, and its convolutions."""
    node = layer.nodes[index]
    alike = takewhile(
        lambda n: (n.reads, n.residual) == (node.reads, node.residual), layer.nodes[index::-1]
    )
    run = list(alike)[::-1]  # the nodes that can be recomputed, and ``node`` itself
    pairs: list[Weights] = []
    units = []
    start = node.start
    for number, unit in enumerate(node.units):
        starts = [
            sum(n.units[number].outputs for n in layer.nodes[:before])
            for before in range(index + 1)
        ]
        stop = starts[-1] + unit.outputs
        start = _first(starts[-len(run) :], stop, block)
        weights = [network.convolutions[layer.name, n.birth][number] for n in run]
        pairs.append(_rows(weights, stop - start, unit.inputs))
        units.append(replace(unit, outputs=stop - start))
    return replace(node, start=start, units=tuple(units)), pairs


def _first(starts: Sequence[int], stop: int, block: int) -> int:
    """The nearest whole block to start at, if it takes no more blocks."""

    def blocks(first: int) -> int:
        return -(-(stop - first) // block)

    whole = [s for s in starts if s % block == 0 and blocks(s) <= blocks(starts[-1])]
    return whole[-1] if whole else starts[-1]


def _rows(weights: Sequence[Weights], outputs: int, inputs: int) -> Weights:
    """The last ``outputs`` rows of several convolutions; earlier nodes read fewer inputs."""
    kernel = weights[-1][0].shape[2:]
    rows = []
    for weight, _ in weights:
        wide = np.zeros((len(weight), inputs, *kernel), dtype=np.float32)
        wide[:, : weight.shape[1]] = weight
        rows.append(wide)
    bias = np.concatenate([bias for _, bias in weights])
    return np.concatenate(rows)[-outputs:], bias[-outputs:]
