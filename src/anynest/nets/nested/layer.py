"""A layer: its nodes' modules, evaluated one by one or several at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch.nn.functional as F
from torch import Tensor, nn

from .fused import FusedRun
from .node import NestedNode, SharedNorm, join
from .plan import Layer

# The results of a layer's nodes in order of birth: (birth, tensor).
Slices = list[tuple[int, Tensor]]


class NestedLayer(nn.Module):
    """The nodes of one layer, by birth.

    Args:
        layer: the plan's entry.
        nodes: the nodes' modules by birth, if they are shared with another network (a subnetwork);
            new ones otherwise.
        norms: the shared norms that new nodes use, by name.
    """

    def __init__(
        self,
        layer: Layer,
        nodes: Mapping[int, nn.Module] | None = None,
        norms: Mapping[str, SharedNorm] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self.layer = layer
        self.runs = tuple(layer.runs())
        self.entries = {node.birth: node for node in layer.nodes}
        for birth, entry in self.entries.items():
            if nodes:
                node = nodes[birth]
            else:
                node = NestedNode(entry, layer.relu, [norms[piece.name] for piece in entry.norms])
            self.add_module(f"stage{birth}", node)
        self._fused: dict[tuple[int, ...], FusedRun] = {}

    def node(self, birth: int) -> nn.Module:
        """The module of a node: a :class:`NestedNode`, or a module that was put in its place."""
        node: nn.Module = getattr(self, f"stage{birth}")
        return node

    def called_nodes(self) -> list[nn.Module]:
        """The nodes that training calls as modules: all but those of a fused run."""
        fused = len(self.runs) == 1 and len(self.runs[0]) > 1
        return [] if fused else [self.node(birth) for birth in self.entries]

    def forward(
        self,
        births: Sequence[int],
        parts: Slices,
        added: Slices | None,
        inner: list[list[Tensor]],
        fuse: bool,
    ) -> Slices:
        """Evaluate nodes that read the same layers.

        Args:
            births: the nodes, in order.
            parts: the input in slices, by birth; a node reads those born no later than itself.
            added: the residual in slices, if it is another layer's result.
            inner: per inner unit, the activations of the layer's earlier nodes; extended in place.
            fuse: whether one dense kernel may evaluate several nodes.
        """
        nodes = [self.node(birth) for birth in births]
        reads = [sum(part_birth <= birth for part_birth, _ in parts) for birth in births]
        tensors = [tensor for _, tensor in parts]
        slices = [tensor for _, tensor in added] if added is not None else []
        # a later run would read this one's inner activations, which a dense kernel does not return
        run = self._fused_run(tuple(births)) if fuse and len(self.runs) == 1 else None
        norms = run.find_norms(nodes, tensors) if run is not None else None
        if run is not None and norms is not None:
            results = run(nodes, norms, tensors, reads, slices)
        else:
            results = []
            for number, (birth, count) in enumerate(zip(births, reads, strict=True)):
                entry = self.entries[birth]
                x = join(tensors[:count])
                residual: Tensor | None = None
                if entry.residual == "input":
                    residual = x[:, entry.start :]
                elif added is not None:
                    residual = slices[number]
                below = [tuple(known) for known in inner]  # checkpointing keeps the arguments
                result, activations = nodes[number](x, below, residual)
                for known, new in zip(inner, activations, strict=True):
                    known.append(new)
                results.append(result)
        if self.layer.pool:
            results = [F.max_pool2d(result, 3, 2, 1) for result in results]
        return list(zip(births, results, strict=True))

    def _fused_run(self, births: tuple[int, ...]) -> FusedRun:
        """The fused evaluation of some of the nodes; made once."""
        if births not in self._fused:
            self._fused[births] = FusedRun([self.entries[b] for b in births], self.layer.relu)
        return self._fused[births]
