"""A layer: its nodes' modules, and the choice of how to evaluate several of them at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch.nn.functional as F
from torch import Tensor, nn

from .fused import FusedRun
from .node import NestedNode, SharedNorm, join
from .plan import Layer

# What a layer has computed: its nodes' results in order of birth, with the births.
Slices = list[tuple[int, Tensor]]


class NestedLayer(nn.Module):
    """The nodes of one layer, by birth.

    Args:
        layer: the plan's entry.
        stripes: the nodes' modules by birth, where they are shared with another network (a subnetwork);
            new ones otherwise.
        norms: by name, the shared norms that new nodes use.
    """

    def __init__(
        self,
        layer: Layer,
        stripes: Mapping[int, NestedNode] | None = None,
        norms: Mapping[str, SharedNorm] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self.layer = layer
        self.runs = tuple(layer.runs())
        self.nodes = {node.birth: node for node in layer.nodes}
        for birth, node in self.nodes.items():
            if stripes:
                stripe = stripes[birth]
            else:
                stripe = NestedNode(node, layer.relu, [norms[piece.name] for piece in node.norms])
            self.add_module(f"stage{birth}", stripe)
        self._fused: dict[tuple[int, ...], FusedRun] = {}

    def node(self, birth: int) -> NestedNode:
        stripe = getattr(self, f"stage{birth}")
        assert isinstance(stripe, NestedNode)
        return stripe

    def called(self) -> list[NestedNode]:
        """The nodes whose modules ``compute`` calls in training: all but those of a fused run."""
        fused = len(self.runs) == 1 and len(self.runs[0]) > 1
        return [] if fused else [self.node(birth) for birth in self.nodes]

    def compute(
        self,
        births: Sequence[int],
        parts: Slices,
        added: Slices | None,
        inner: list[list[Tensor]],
        *,
        fuse: bool,
    ) -> Slices:
        """Evaluate nodes that read the same layers.

        Args:
            births: which nodes, rising.
            parts: the input in slices, by birth; a node reads those born no later than itself.
            added: the residual in slices, where it is another layer's result.
            inner: per inner unit, the activations of the layer's earlier nodes; this call appends its own.
            fuse: whether one dense kernel for all nodes may be used.
        """
        reads = [sum(part_birth <= birth for part_birth, _ in parts) for birth in births]
        tensors = [tensor for _, tensor in parts]
        slices = [tensor for _, tensor in added] if added is not None else []
        residual = self.nodes[births[0]].residual
        kind = residual if residual in (None, "input") else "layer"
        # a later run would read this one's inner activations, which the dense kernel keeps to itself
        run = self._fused_run(tuple(births), kind) if fuse and len(self.runs) == 1 else None
        norms = run.batch_norms() if run is not None else None
        if run is not None and norms is not None:
            results = run(norms, tensors, reads, slices)
        else:
            results = []
            for number, (birth, count) in enumerate(zip(births, reads, strict=True)):
                stripe = self.node(birth)
                x = join(tensors[:count])
                own: Tensor | None = None
                if kind == "input":
                    own = x[:, stripe.node.start :]
                elif kind == "layer":
                    own = slices[number]
                result, activations = stripe(x, inner, own)
                for known, new in zip(inner, activations, strict=True):
                    known.append(new)
                results.append(result)
        if self.layer.pool:
            results = [F.max_pool2d(result, 3, 2, 1) for result in results]
        return list(zip(births, results, strict=True))

    def _fused_run(self, births: tuple[int, ...], residual: str | None) -> FusedRun:
        """The fused evaluation of some of the nodes; made once."""
        if births not in self._fused:
            self._fused[births] = FusedRun([self.node(birth) for birth in births], residual)
        return self._fused[births]
