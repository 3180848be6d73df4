"""The one engine: evaluates any plan, all stages at once or stage after stage (docs/layout.md, N1-N4)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .architecture import Architecture, check_stage
from .cost import StageCost, stage_costs
from .layer import NestedLayer, Slices
from .node import NestedNode, SharedNorm, join
from .plan import IMAGE, Exit, Piece, Plan
from .wiring import build_plan


class AnytimeNetwork(nn.Module):
    """A network with S outputs, each of which contains the ones before it.

    ``model(x)`` gives the list of S logits ``[B, K]``; ``model.stages(x)`` yields ``(1, logits)``,
    ``(2, logits)``, ... as they are asked for, and computes every node once.

    Args:
        architecture: what to build.
        name: the registered name it was made by.
        arguments: what ``create_model(name, **arguments)`` needs to build it again.

    Attributes:
        kernels: ``"auto"`` (one dense kernel for all nodes of a layer where gradients are wanted),
            ``"dense"`` or ``"stripes"`` (one kernel a node). All give the same values.
    """

    def __init__(
        self, architecture: Architecture, name: str = "", arguments: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.name = name
        self.arguments = dict(arguments or {})
        self.kernels = "auto"
        self._adopt(build_plan(architecture), None)

    def _adopt(self, plan: Plan, whole: AnytimeNetwork | None) -> None:
        """Take on a plan, with modules of one's own or with those of the network it is a part of."""
        self.plan = plan
        self.outputs = tuple(exit_.stage for exit_ in plan.exits)
        self._layers: list[NestedLayer] = []
        norms: dict[str, SharedNorm] = {}
        for piece in plan.norms():
            norm = whole.get_submodule(piece.name) if whole else SharedNorm(piece.channels)
            assert isinstance(norm, SharedNorm)
            norms[piece.name] = norm
            _place(self, piece.name, norm)
        for layer in plan.layers:
            shared: dict[int, NestedNode] | None = None
            if whole is not None:
                theirs = whole.get_submodule(layer.name)
                assert isinstance(theirs, NestedLayer)
                shared = {node.birth: theirs.node(node.birth) for node in layer.nodes}
            nested = NestedLayer(layer, shared, norms)
            self._layers.append(nested)
            _place(self, layer.name, nested)
        for exit_ in plan.exits:
            for piece in exit_.head:
                if whole is not None:
                    self.add_module(piece.name, whole.get_submodule(piece.name))
                elif piece.birth == exit_.stage:  # otherwise an earlier exit has made it
                    self.add_module(piece.name, _head(exit_, piece, plan.num_classes))
        # the last layer that reads each: in one pass over all stages, it may be dropped afterwards
        self._last_reader: dict[str, int] = {}
        for number, layer in enumerate(plan.layers):
            for node in layer.nodes:
                for source in (*node.reads, node.residual):
                    if source is not None:
                        self._last_reader[source] = number
        for exit_ in plan.exits:
            for source in exit_.reads:
                self._last_reader[source] = len(plan.layers)

    # -- structure ------------------------------------------------------------------------------------
    @property
    def num_stages(self) -> int:
        """S, the number of outputs."""
        return len(self.outputs)

    @property
    def num_classes(self) -> int:
        return self.plan.num_classes

    @property
    def in_channels(self) -> int:
        return self.architecture.in_channels

    def head(self, stage: int) -> nn.Linear:
        """The linear layer that a stage adds; a shared one is the sum of those up to the stage."""
        head = getattr(self, f"head{stage}")
        assert isinstance(head, nn.Linear)
        return head

    def classifier(self, stage: int) -> tuple[Tensor, Tensor]:
        """Weight ``[K, features]`` and bias ``[K]`` of output ``stage``, shared or its own."""
        (exit_,) = [exit_ for exit_ in self.plan.exits if exit_.stage == stage]
        heads = [self.head(piece.birth) for piece in exit_.head]
        weight = heads[0].weight if len(heads) == 1 else torch.cat([h.weight for h in heads], 1)
        bias = heads[0].bias
        return weight, weight.new_zeros(len(weight)) if bias is None else bias

    def subnetwork(self, stage: int) -> AnytimeNetwork:
        """Stage ``stage`` alone (N3): a network with one output that shares this one's parameters.

        Its ``state_dict`` is the subset of this one's that the output depends on, under the same names.

        Raises:
            ValueError: there is no such stage.
        """
        check_stage(stage, self.num_stages)
        part = copy.copy(self)
        nn.Module.__init__(part)
        part._adopt(self.plan.restrict(self.outputs[stage - 1]), self)
        part.outputs = part.outputs[-1:]
        if self.num_stages > 1:  # alone already, it is built again as it was
            part.arguments = {**self.arguments, "subnetwork": stage}
        part.training = self.training
        return part

    def stage_modules(self, stage: int) -> list[nn.Module]:
        """The modules that stage ``stage`` adds: those of w_s without w_{s-1} (section 4.1)."""
        modules: list[nn.Module] = [
            layer.node(stage) for layer in self._layers if stage in layer.nodes
        ]
        pieces = [*self.plan.norms(), *self.plan.heads()]
        modules += [self.get_submodule(piece.name) for piece in pieces if piece.birth == stage]
        if not modules:
            raise ValueError(
                f"no module is born at stage {stage!r} of {self.name or 'this network'}"
            )
        return modules

    def called_nodes(self) -> list[nn.Module]:
        """The modules that ``forward`` calls one by one in training, each a node of one stage.

        Compiled each by itself they leave the graph's structure as it is. Layers whose nodes share a
        kernel are not among them.
        """
        return [stripe for layer in self._layers for stripe in layer.called()]

    def cost(self, image_size: int | tuple[int, int] = 32) -> tuple[StageCost, ...]:
        """Parameters and multiply-adds per stage, for an image of ``image_size`` pixels a side."""
        size = (image_size, image_size) if isinstance(image_size, int) else image_size
        rows = stage_costs(self.plan, size)
        return tuple(row for row in rows if row.stage in self.outputs)

    # -- evaluation -----------------------------------------------------------------------------------
    def forward(self, x: Tensor) -> list[Tensor]:
        """All S logits ``[B, K]`` of images ``[B, C, H, W]``, each layer's nodes together."""
        run = _Run(self, x)
        run.advance(self.outputs[-1], keep=False)
        return [run.logits(stage) for stage in self.outputs]

    def stages(self, x: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield (1, logits), (2, logits), ...; what is not asked for is not computed (N2, N4)."""
        run = _Run(self, x)
        for number, stage in enumerate(self.outputs, 1):
            run.advance(stage, keep=True)
            yield number, run.logits(stage)

    def extra_repr(self) -> str:
        growth = [tuple(stage) for stage in self.architecture.growth]
        return f"{self.name or 'unnamed'}, growth={growth}, outputs={list(self.outputs)}"


class _Run:
    """The activations of one evaluation, and how far it has come."""

    def __init__(self, net: AnytimeNetwork, x: Tensor) -> None:
        if x.dim() != 4 or x.shape[1] != net.in_channels:
            raise ValueError(
                f"images must be [batch, {net.in_channels}, height, width], found {list(x.shape)}; create "
                "the model with in_channels= for other images"
            )
        if not x.is_floating_point():
            raise ValueError(
                f"images must be floating point, found {x.dtype}; scale and normalise them"
            )
        if net.kernels not in ("auto", "dense", "stripes"):
            raise ValueError(f"kernels must be auto, dense or stripes, found {net.kernels!r}")
        self.net = net
        self.done = 0
        self.slices: dict[str, Slices] = {IMAGE: [(0, x)]}
        self.inner: dict[str, list[list[Tensor]]] = {}
        self.shared: tuple[object, Slices] | None = None
        self.each: dict[int, Tensor] = {}
        self.fuse = net.kernels != "stripes"

    def advance(self, stage: int, *, keep: bool) -> None:
        """Compute all nodes born after the last call and no later than ``stage``."""
        for number, layer in enumerate(self.net._layers):
            for run in layer.runs:
                births = [birth for birth in run if self.done < birth <= stage]
                if births:
                    self._compute(layer, births)
            if not keep:  # nothing reads these any more
                for name in [n for n in self.slices if self.net._last_reader.get(n, -1) <= number]:
                    del self.slices[name]
                    self.inner.pop(name, None)
        self.done = stage

    def _compute(self, layer: NestedLayer, births: Sequence[int]) -> None:
        node = layer.nodes[births[0]]
        name = layer.layer.name
        added = None
        if node.residual not in (None, "input"):
            assert node.residual is not None
            added = [(born, own) for born, own in self.slices[node.residual] if born in births]
        inner = self.inner.setdefault(name, [[] for _ in node.units[1:]])
        parts = self._read(node.reads, births)
        known = self.slices.setdefault(name, [])
        known += layer.compute(births, parts, added, inner, fuse=self.fuse)

    def _partition(self, name: str, births: Sequence[int]) -> Slices:
        """A layer's channels, cut where the readers' births cut them."""
        parts: Slices = []
        before = -1
        for birth in births:
            new = [tensor for born, tensor in self.slices[name] if before < born <= birth]
            if new:
                parts.append((birth, join(new)))
            before = birth
        return parts

    def _read(self, names: tuple[str, ...], births: Sequence[int]) -> Slices:
        """The sum of layers, as it stands at each birth."""
        key = (names, tuple(births))
        if self.shared is not None and self.shared[0] == key:
            return self.shared[1]  # a transition and the group's first layer read the same
        columns = [self._partition(name, births) for name in names]
        parts: Slices = []
        for column in zip(*columns, strict=True):
            total = column[0][1]
            for _, tensor in column[1:]:
                total = total + tensor
            rectify = self.net.plan.relu_reads and names != (IMAGE,)
            parts.append((column[0][0], torch.relu(total) if rectify else total))
        self.shared = (key, parts)
        return parts

    def logits(self, stage: int) -> Tensor:
        """Output ``stage``, ``[B, K]``."""
        plan = self.net.plan
        wanted = [e for e in plan.exits if e.stage == stage or (plan.average and e.stage <= stage)]
        for exit_ in wanted:
            if exit_.stage not in self.each:
                self.each[exit_.stage] = self._head(exit_)
        results = [self.each[exit_.stage] for exit_ in wanted]
        return results[0] if len(results) == 1 else torch.stack(results).mean(dim=0)

    def _head(self, exit_: Exit) -> Tensor:
        ((_, features),) = self._read(exit_.reads, [exit_.stage])
        pooled = features.mean(dim=(2, 3))
        first, *others = exit_.head
        if not others:
            logits: Tensor = self.net.head(first.birth)(pooled)
            return logits
        parts = torch.split(pooled, [piece.channels for piece in exit_.head], dim=1)
        pairs = zip(exit_.head, parts, strict=True)
        return torch.stack([self.net.head(piece.birth)(part) for piece, part in pairs]).sum(dim=0)


def _head(exit_: Exit, piece: Piece, classes: int) -> nn.Linear:
    """A new piece of a head; its columns are drawn as those of the stage's whole head would be."""
    head = nn.Linear(piece.channels, classes, bias=piece == exit_.head[0])
    if piece.channels < exit_.features:
        with torch.no_grad():
            head.weight.mul_((piece.channels / exit_.features) ** 0.5)
    return head


def _place(root: nn.Module, path: str, module: nn.Module) -> None:
    """Register a module under a dotted path, making the containers on the way."""
    *containers, name = path.split(".")
    for container in containers:
        if container not in dict(root.named_children()):
            root.add_module(container, nn.Module())
        root = root.get_submodule(container)
    root.add_module(name, module)
