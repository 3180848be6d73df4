"""Evaluates any plan, all stages at once or stage after stage (docs/layout.md, N1 to N4)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .architecture import Architecture, check_stage
from .cost import StageCost, stage_costs
from .layer import NestedLayer, Slices
from .node import SharedNorm, join
from .plain import has_hooks, must_call_modules
from .plan import IMAGE, Exit, Piece, Plan
from .wiring import build_plan

KERNELS = ("auto", "stripes")
MAX_WEIGHTS = 1 << 60  # of one tensor: their bytes are counted in 64 bits


class AnytimeNetwork(nn.Module):
    """A network with S outputs, each of which contains the ones before it.

    ``model(x)`` returns the list of S logits ``[B, K]``; ``model.stages(x)`` yields
    ``(1, logits)``, ``(2, logits)``, ... on demand and computes every node once.

    Modules within a node may be replaced, parametrized or hooked, and nodes and layers wrapped:
    such nodes are called one by one. Hooks of the network itself run in ``model(x)`` alone.

    Args:
        architecture: the network to build.
        name: the registered name.
        arguments: ``create_model(name, **arguments)`` builds it again.

    Attributes:
        kernels: ``"auto"`` (one dense kernel for all nodes of a layer where gradients are wanted)
            or ``"stripes"`` (one kernel per node). Both give the same values.

    Raises:
        ValueError: a tensor of more than 2^60 weights.
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
        """Build the modules of a plan, or take those of the network that this is a part of."""
        plan.check_sizes(MAX_WEIGHTS)
        self.plan = plan
        self.outputs = tuple(exit_.stage for exit_ in plan.exits)
        self._norms: dict[str, SharedNorm] = {}
        for piece in plan.norms():
            norm = whole._norms[piece.name] if whole else SharedNorm(piece.channels)
            self._norms[piece.name] = norm
            _place(self, piece.name, norm)
        for layer in plan.layers:
            shared: dict[int, nn.Module] | None = None
            if whole is not None:
                theirs = whole.layer(layer.name)
                shared = {node.birth: theirs.node(node.birth) for node in layer.nodes}
            _place(self, layer.name, NestedLayer(layer, shared, self._norms))
        for exit_ in plan.exits:
            for piece in exit_.head:
                if whole is not None:
                    self.add_module(piece.name, whole.get_submodule(piece.name))
                elif piece.birth == exit_.stage:  # otherwise an earlier exit has made it
                    self.add_module(piece.name, _head(exit_, piece, plan.num_classes))
        # the last layer that reads each: forward frees its activations afterwards
        self._last_reader: dict[str, int] = {}
        for number, layer in enumerate(plan.layers):
            for node in layer.nodes:
                for source in (*node.reads, node.residual):
                    if source is not None:
                        self._last_reader[source] = number
        for exit_ in plan.exits:
            for source in exit_.reads:
                self._last_reader[source] = len(plan.layers)

    # -- structure --------------------------------------------------------------------------------
    @property
    def num_stages(self) -> int:
        """S, the number of outputs."""
        return len(self.outputs)

    @property
    def num_classes(self) -> int:
        """K, the number of classes."""
        return self.plan.num_classes

    @property
    def in_channels(self) -> int:
        """C of the images ``[B, C, H, W]``."""
        return self.architecture.in_channels

    def layer(self, name: str) -> NestedLayer:
        """The layer of a dotted path.

        Raises:
            TypeError: it was replaced, or a container on the path was: forward would not call it.
        """
        module: nn.Module | None = self
        *containers, last = name.split(".")
        for depth, part in enumerate(containers, 1):
            module = module._modules.get(part) if module is not None else None
            if type(module) is not nn.Module or has_hooks(module):
                raise TypeError(
                    f"{'.'.join(containers[:depth])} must stay a plain container without hooks, as "
                    f"forward calls the layers within, found {type(module).__name__}; wrap or hook "
                    f"those, such as {name}"
                )
        layer = module._modules.get(last) if module is not None else None
        if not isinstance(layer, NestedLayer):
            raise TypeError(
                f"{name} must be a NestedLayer, found {type(layer).__name__}; replace the nodes "
                f"within, such as {name}.stage1, or their modules"
            )
        return layer

    def layers(self) -> list[NestedLayer]:
        """The layers' modules in the order of the plan.

        Raises:
            TypeError: a layer, a container or a shared norm was replaced.
        """
        for name, norm in self._norms.items():
            if self.get_submodule(name) is not norm:
                raise TypeError(f"{name} must stay, as several nodes use it; replace {name}.norm")
        return [self.layer(layer.name) for layer in self.plan.layers]

    def head(self, stage: int) -> nn.Linear:
        """The linear layer that a stage adds; a shared one is the sum of those up to the stage.

        Raises:
            TypeError: another module has taken its place.
        """
        head = getattr(self, f"head{stage}")
        if not isinstance(head, nn.Linear):
            raise TypeError(
                f"head{stage} must be an nn.Linear for its weights to be read, found "
                f"{type(head).__name__}"
            )
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

        Its ``state_dict`` is the part of this one's that the output depends on, under the same
        names.

        Raises:
            ValueError: there is no such stage.
        """
        check_stage(stage, self.num_stages)
        part = copy.copy(self)
        nn.Module.__init__(part)
        part._adopt(self.plan.restrict(self.outputs[stage - 1]), self)
        part.outputs = part.outputs[-1:]
        if self.num_stages > 1:  # otherwise it is the whole network
            part.arguments = {**self.arguments, "subnetwork": stage}
        part.training = self.training
        return part

    def stage_modules(self, stage: int) -> list[nn.Module]:
        """The modules that stage ``stage`` adds: those of w_s without w_{s-1} (section 4.1)."""
        modules = [layer.node(stage) for layer in self.layers() if stage in layer.entries]
        pieces = [*self.plan.norms(), *self.plan.heads()]
        modules += [self.get_submodule(piece.name) for piece in pieces if piece.birth == stage]
        if not modules:
            raise ValueError(
                f"stages of {self.name or 'this network'} that add modules are "
                f"{self.plan.births()}, found {stage!r}"
            )
        return modules

    def called_nodes(self) -> list[nn.Module]:
        """The modules that ``forward`` calls one by one in training, each a node of one stage.

        Compiling each by itself keeps the structure of the autograd graph. Nodes of layers whose
        nodes share a kernel are not among them.
        """
        return [node for layer in self.layers() for node in layer.called_nodes()]

    def cost(self, image_size: int | tuple[int, int] | Tensor = 32) -> tuple[StageCost, ...]:
        """Parameters and multiply-adds per stage, for one image.

        Args:
            image_size: pixels a side, (height, width), or images ``[B, C, H, W]``.
        """
        if isinstance(image_size, Tensor):
            image_size = (image_size.shape[-2], image_size.shape[-1])
        size = image_size if isinstance(image_size, tuple) else (image_size, image_size)
        rows = stage_costs(self.plan, size)
        return tuple(row for row in rows if row.stage in self.outputs)

    # -- evaluation -------------------------------------------------------------------------------
    def forward(self, x: Tensor) -> list[Tensor]:
        """All S logits ``[B, K]`` of images ``[B, C, H, W]``, each layer's nodes together."""
        run = _Run(self, x)
        run.advance(self.outputs[-1], keep=False)
        return [run.logits(stage) for stage in self.outputs]

    def stages(self, x: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield (1, logits), (2, logits), ...; each is computed when asked for (N2, N4)."""
        run = _Run(self, x)
        for number, stage in enumerate(self.outputs, 1):
            run.advance(stage, keep=True)
            yield number, run.logits(stage)

    def extra_repr(self) -> str:
        growth = [tuple(stage) for stage in self.architecture.growth]
        return f"{self.name or 'unnamed'}, growth={growth}, outputs={list(self.outputs)}"


class _Run:
    """The activations of one evaluation, and the stage that it has reached."""

    def __init__(self, net: AnytimeNetwork, x: Tensor) -> None:
        if x.dim() != 4 or x.shape[1] != net.in_channels:
            raise ValueError(
                f"images must be [batch, {net.in_channels}, height, width], found "
                f"{list(x.shape)}; create the model with in_channels= for other images"
            )
        if not x.is_floating_point():
            raise ValueError(
                f"images must be floating point, found {x.dtype}; scale and normalise them"
            )
        if net.kernels not in KERNELS:
            raise ValueError(f"kernels must be one of {', '.join(KERNELS)}, found {net.kernels!r}")
        self.net = net
        self.layers = net.layers()
        self.done = 0
        self.slices: dict[str, Slices] = {IMAGE: [(0, x)]}
        self.inner: dict[str, list[list[Tensor]]] = {}
        self.shared: tuple[object, Slices] | None = None
        self.each: dict[int, Tensor] = {}
        dense = net.kernels == "auto" and torch.is_grad_enabled()
        self.fuse = dense and not must_call_modules(x)

    def advance(self, stage: int, *, keep: bool) -> None:
        """Compute all nodes born after the last call and no later than ``stage``."""
        for number, layer in enumerate(self.layers):
            for run in layer.runs:
                births = [birth for birth in run if self.done < birth <= stage]
                if births:
                    self._compute(layer, births)
            if not keep:  # no later layer reads these
                for name in [n for n in self.slices if self.net._last_reader.get(n, -1) <= number]:
                    del self.slices[name]
                    self.inner.pop(name, None)
        self.done = stage

    def _compute(self, layer: NestedLayer, births: Sequence[int]) -> None:
        entry = layer.entries[births[0]]
        name = layer.layer.name
        added = None
        if entry.residual is not None and entry.residual != "input":
            added = [(born, own) for born, own in self.slices[entry.residual] if born in births]
        inner = self.inner.setdefault(name, [[] for _ in entry.units[1:]])
        parts = self._read(entry.reads, births)
        known = self.slices.setdefault(name, [])
        known += layer(births, parts, added, inner, self.fuse)

    def _partition(self, name: str, births: Sequence[int]) -> Slices:
        """A layer's channels, divided at the births of the readers."""
        parts: Slices = []
        before = -1
        for birth in births:
            new = [tensor for born, tensor in self.slices[name] if before < born <= birth]
            if new:
                parts.append((birth, join(new)))
            before = birth
        return parts

    def _read(self, names: tuple[str, ...], births: Sequence[int]) -> Slices:
        """The sum of layers at each birth."""
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
        heads: list[nn.Module] = [getattr(self.net, piece.name) for piece in exit_.head]
        if len(heads) == 1:
            logits: Tensor = heads[0](pooled)
            return logits
        parts = torch.split(pooled, [piece.channels for piece in exit_.head], dim=1)
        return torch.stack([head(part) for head, part in zip(heads, parts, strict=True)]).sum(dim=0)


def _head(exit_: Exit, piece: Piece, classes: int) -> nn.Linear:
    """A new piece of a head; its columns are drawn like those of the stage's whole head."""
    head = nn.Linear(piece.channels, classes, bias=piece == exit_.head[0])
    if piece.channels < exit_.features:
        with torch.no_grad():
            head.weight.mul_((piece.channels / exit_.features) ** 0.5)
    return head


def _place(root: nn.Module, path: str, module: nn.Module) -> None:
    """Register a module under a dotted path; missing containers are created."""
    *containers, name = path.split(".")
    for container in containers:
        if container not in dict(root.named_children()):
            root.add_module(container, nn.Module())
        root = root.get_submodule(container)
    root.add_module(name, module)
