"""From an architecture to its plan: the layers of each stage and the inputs of their nodes.

Within a group (one resolution) the layers of the full network are numbered 1..L. Stage s keeps
every m-th of them (1, 1+m, 1+2m, ...; m = full depth / depth of s; section 3.3.1), or the first
ones (a cascade). In the stage's own numbering p = 1, 2, 3, ..., item 0 is the group's input, and
the group's output is the input of an item after the last. A sparse layer p reads p-1, p-2, p-4,
p-8, ...; a residual one p-1.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import accumulate, pairwise

from .architecture import Architecture
from .growth import Stage
from .plan import IMAGE, Exit, Layer, Node, Piece, Plan, Unit

# The order of layers is (group, kind, number): the stem, then per group transitions, layers, exits.
Place = tuple[int, int, int]


def build_plan(architecture: Architecture) -> Plan:
    """The plan of an architecture; an ensemble's is the union of its members' plans."""
    sizes = list(enumerate(architecture.growth, 1))
    if not architecture.isolated:
        return _Builder(architecture).build(sizes)
    members = [
        _Builder(architecture.plain(stage), f"member{stage}.").build([(stage, size)])
        for stage, size in sizes
    ]
    return replace(
        members[0],
        layers=tuple(layer for member in members for layer in member.layers),
        exits=tuple(exit_ for member in members for exit_ in member.exits),
        average=architecture.average,
    )


class _Builder:
    """Adds, stage after stage, the nodes that the network of that stage's size still lacks.

    Args:
        architecture: the network.
        prefix: of the layers' names.
    """

    def __init__(self, architecture: Architecture, prefix: str = "") -> None:
        self.arch = architecture
        self.prefix = prefix
        self.layers: dict[str, tuple[Place, Layer]] = {}
        # per group: the layers that each transition reads, by its name, in order of creation
        self.transitions: list[dict[str, tuple[str, ...]]] = [{} for _ in architecture.blocks]
        # shared so far: the transitions' norm, per group, and the head
        self.norms: list[list[Piece]] = [[] for _ in architecture.blocks]
        self.head: list[Piece] = []

    def build(self, sizes: Iterable[tuple[int, Stage]]) -> Plan:
        """The plan of the stages of these numbers and sizes."""
        exits = [self._stage(stage, size) for stage, size in sizes]
        ordered = sorted(self.layers.values(), key=lambda item: item[0])
        return Plan(
            layers=tuple(layer for _, layer in ordered),
            exits=tuple(exits),
            num_classes=self.arch.num_classes,
            relu_reads=self.arch.skips == "sparse",
        )

    # -- sizes ------------------------------------------------------------------------------------
    def _channels(self, group: int) -> int:
        """Output channels of a group's layers at width 1; group -1 is the stem."""
        if group < 0:
            return self.arch.base_width
        return self.arch.base_width * self.arch.expansion << group

    def _stride(self, group: int) -> int:
        return 1 if group == 0 else 2

    def _changes_shape(self, group: int) -> bool:
        return self._stride(group) != 1 or self._channels(group) != self._channels(group - 1)

    # -- layers and their inputs ------------------------------------------------------------------
    def _indices(self, group: int, size: Stage) -> tuple[int, ...]:
        """The full network's numbers of the layers that a stage has in a group."""
        full = self.arch.blocks[group] * self.arch.max_depth
        if self.arch.order == "interlaced":
            return tuple(range(1, full + 1, self.arch.max_depth // size.depth))
        before = sum(self.arch.blocks[:group]) * self.arch.max_depth
        total = sum(self.arch.blocks) * size.depth
        return tuple(range(1, min(full, max(0, total - before)) + 1))

    def _fetch(self, group: int, position: int, stage: int, size: Stage) -> tuple[str, ...]:
        """The layers that the stage's item ``position`` of a group reads, nearest first."""
        if self.arch.skips == "residual":
            back = [position - 1]
        else:
            back = [position - 2**k for k in range(position.bit_length()) if 2**k <= position]
        indices = self._indices(group, size)
        names: list[str] = []
        for item in back:
            if item:
                names.append(self._layer_name(group, indices[item - 1]))
            elif position == 1:
                names += self._group_input(group, stage, size)
            else:
                names += self._item_zero(group, stage, size)
        return tuple(names)

    def _group_input(self, group: int, stage: int, size: Stage) -> tuple[str, ...]:
        if group == 0:
            return (f"{self.prefix}stem",)
        return self._fetch(group - 1, len(self._indices(group - 1, size)) + 1, stage, size)

    def _item_zero(self, group: int, stage: int, size: Stage) -> tuple[str, ...]:
        """The group's input, converted to the group's shape if that differs."""
        reads = self._group_input(group, stage, size)
        if not self._changes_shape(group):
            return reads
        versions = self.transitions[group]
        name = next(reversed(versions), "")
        if versions.get(name) != reads:  # the input sums other layers now: a new transition
            name = f"{self.prefix}group{group + 1}.transition{len(versions) + 1}"
            versions[name] = reads
        place = (group, 0, len(versions))
        unit = Unit(self._channels(group - 1), self._channels(group), 1, self._stride(group))
        shared: tuple[Piece, ...] = ()
        if self.arch.norm == "shared":
            piece = f"group{group + 1}.transitions.stage{stage}"
            shared = _extend(self.norms[group], piece, stage, unit.outputs * size.width)
        self._grow(name, place, stage, size, reads, None, (unit,), relu=False, norms=shared)
        return (name,)

    def _layer_name(self, group: int, index: int) -> str:
        return f"{self.prefix}group{group + 1}.layer{index}"

    # -- building ---------------------------------------------------------------------------------
    def _grow(
        self,
        name: str,
        place: Place,
        stage: int,
        size: Stage,
        reads: tuple[str, ...],
        residual: str | None,
        units: tuple[Unit, ...],
        *,
        relu: bool,
        pool: bool = False,
        norms: tuple[Piece, ...] = (),
    ) -> None:
        """Extend a layer to the channels of ``size`` by one node, unless it has them.

        Args:
            units: in channels at width 1; the node reads all channels of the stage.
            norms: a shared norm of all the layer's channels; the node uses the pieces of its own.
        """
        nodes = self.layers[name][1].nodes if name in self.layers else ()
        start = nodes[-1].start + nodes[-1].units[-1].outputs if nodes else 0
        total = units[-1].outputs * size.width
        if start == total:
            return
        new = [
            Unit(
                unit.inputs * (1 if reads == (IMAGE,) else size.width),
                unit.outputs * size.width - unit.outputs * start // units[-1].outputs,
                unit.kernel,
                unit.stride,
            )
            for unit in units
        ]
        ends = accumulate(piece.channels for piece in norms)
        own = tuple(piece for piece, end in zip(norms, ends, strict=True) if end > start)
        node = Node(stage, start, reads, residual, tuple(new), own)
        self.layers[name] = (place, Layer(name, (*nodes, node), relu, pool))

    def _stage(self, stage: int, size: Stage) -> Exit:
        """Add the nodes of the network of this stage's size that the earlier stages lack."""
        arch = self.arch
        residual = arch.skips == "residual"
        kernel, stride = (3, 1) if arch.stem == "cifar" else (7, 2)
        stem = Unit(arch.in_channels, arch.base_width, kernel, stride)
        pool = arch.stem == "imagenet"
        self._grow(
            f"{self.prefix}stem",
            (-1, 0, 0),
            stage,
            size,
            (IMAGE,),
            None,
            (stem,),
            relu=residual,
            pool=pool,
        )
        last = 0
        for group in range(len(arch.blocks)):
            for position, index in enumerate(self._indices(group, size), 1):
                last = group
                first = position == 1
                reads = self._fetch(group, position, stage, size)
                added: str | None = None
                if residual:
                    changes = first and self._changes_shape(group)
                    added = self._item_zero(group, stage, size)[0] if changes else "input"
                name = self._layer_name(group, index)
                units = self._units(group, first)
                self._grow(name, (group, 1, index), stage, size, reads, added, units, relu=residual)
        return self._exit(stage, size, last)

    def _units(self, group: int, first: bool) -> tuple[Unit, ...]:
        outside = self._channels(group)
        inside = outside // self.arch.expansion
        inputs, stride = (self._channels(group - 1), self._stride(group)) if first else (outside, 1)
        if self.arch.block == "basic":
            return (Unit(inputs, inside, 3, stride), Unit(inside, outside, 3, 1))
        return (
            Unit(inputs, inside, 1, 1),
            Unit(inside, inside, 3, stride),
            Unit(inside, outside, 1, 1),
        )

    def _exit(self, stage: int, size: Stage, group: int) -> Exit:
        reads = self._fetch(group, len(self._indices(group, size)) + 1, stage, size)
        final = len(self.arch.blocks) - 1
        if group < final and self.arch.exit == "conv":
            channels = [self._channels(g) for g in range(group, final + 1)]
            units = tuple(Unit(a, b, 3, 2) for a, b in pairwise(channels))
            name = f"{self.prefix}exit{stage}"
            self._grow(name, (group, 2, stage), stage, size, reads, None, units, relu=True)
            reads, group = (name,), final
        features = self._channels(group) * size.width
        pieces = self.head if self.arch.head == "shared" else []
        return Exit(stage, reads, _extend(pieces, f"head{stage}", stage, features))


def _extend(pieces: list[Piece], name: str, stage: int, channels: int) -> tuple[Piece, ...]:
    """Extend pieces to a number of channels by one that ``stage`` adds, unless they have them."""
    missing = channels - sum(piece.channels for piece in pieces)
    if missing:
        pieces.append(Piece(name, stage, missing))
    return tuple(pieces)
