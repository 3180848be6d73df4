"""Where to pack pixels because channels are few (``space_to_depth.py``): a choice by counted work.

A *place* is a level (how often the image is halved) and a birth; all values of a place have one
packing. Places whose values are read together or added must agree; a convolution of stride 2 may
lead to half as many pixels per position. Among the valid choices a local search minimises the work
up to each stage, padding included, as the geometric mean over stages.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from ....nets.nested.plan import IMAGE, Layer, Node, Plan
from ...folding import FoldedNetwork
from ..graphs.builder import LAST, Slice, cover
from .channel_alignment import align_channels
from .space_to_depth import halved

# Relative time of a multiply-add with this many pixels per position (masks, shorter rows), and in a
# convolution of a single block. Measured once with AVX-512; a wrong choice costs only time.
PACKS = {1: 1.0, 2: 1.3, 4: 1.4}
NARROW = 1.3
WORTH = 0.02  # relative gain that packing one more place must have

Place = tuple[int, int]
Packs = dict[Place, int]


def choose_packing(network: FoldedNetwork, width: int, block: int) -> tuple[FoldedNetwork, Packs]:
    """The network as it is or with aligned channels, whichever is less work, and its packs.

    Args:
        network: what to compute.
        width: pixels in a row of the images.
        block: channels that the kernels compute at once.
    """
    choices = []
    for variant in (network, align_channels(network, block)):
        packs, cost = choose_packs(variant.plan, width, block)
        choices.append((cost, variant, packs))
    _, chosen, packs = min(choices, key=lambda choice: choice[0])
    return chosen, packs


def choose_packs(plan: Plan, width: int, block: int) -> tuple[Packs, float]:
    """The pixels per position of each place (places with 1 are left out), and the cost."""
    rules = _PackingRules(plan)
    stages = sorted({birth for _, birth in rules.groups})
    roots = sorted({rules.root(place) for place in rules.groups})

    def cost(chosen: Mapping[Place, int]) -> float:
        logs = [math.log(work) for work in _work(rules, chosen, stages, block) if work]
        packed = sum(pack > 1 for pack in chosen.values())
        return sum(logs) / max(1, len(logs)) + WORTH * packed

    packs = dict.fromkeys(roots, 1)
    improved = True
    while improved:
        improved = False
        for root in roots:
            for pack in PACKS:
                moved = _raised({**packs, root: pack}, rules)
                if _allowed(moved, rules, width) and cost(moved) < cost(packs) - 1e-9:
                    packs, improved = moved, True
    chosen = {place: packs[rules.root(place)] for place in rules.groups}
    return {place: pack for place, pack in chosen.items() if pack > 1}, cost(packs)


@dataclass
class _PackingRules:
    """The constraints of a plan on the packing of its values."""

    plan: Plan
    groups: dict[Place, Place] = field(default_factory=dict)  # union-find: places that must agree
    links: set[tuple[Place, Place]] = field(default_factory=set)  # stride 2 from, to
    single: set[Place] = field(default_factory=set)  # one pixel per position
    convolutions: list[tuple[Place, int, tuple[int, ...]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.slices: dict[tuple[str, int], list[Slice]] = {}
        self.levels: dict[str, int] = {IMAGE: 0}
        for layer in self.plan.layers:
            for node in layer.nodes:
                self._node(layer, node)

    def root(self, place: Place) -> Place:
        """The representative of all places that must agree with this one."""
        while self.groups.setdefault(place, place) != place:
            place = self.groups[place]
        return place

    def _agree(self, places: Iterable[Place]) -> None:
        roots = [self.root(place) for place in places]
        for root in roots[1:]:
            self.groups[self.root(root)] = self.root(roots[0])

    def _node(self, layer: Layer, node: Node) -> None:
        level, birth = self.levels[node.reads[0]], node.birth
        sources = [name for name in node.reads if name != IMAGE]
        columns = [cover(self.slices[name, LAST], birth) for name in sources]
        read = [(level, part.birth) for column in columns for part in column]
        self._agree(read)
        inputs = columns[0] if columns else []
        for number, unit in enumerate(node.units):
            before, level = level, level + (unit.stride == 2)
            place = (level, birth)
            self.root(place)
            for source in read if number == 0 else [(before, birth)]:
                if before == level:
                    self._agree([source, place])
                else:
                    self.links.add((source, place))
            if unit.kernel == 3 and unit.stride == 1 and inputs:
                sizes = tuple(part.stop - part.start for part in inputs)
                self.convolutions.append((place, unit.outputs, sizes))
            last = number == len(node.units) - 1
            stop = node.start + unit.outputs if last else node.units[number + 1].inputs
            known = self.slices.setdefault((layer.name, LAST if last else number), [])
            known.append(Slice("", stop - unit.outputs, stop, birth))
            inputs = cover(known, birth)
            self._agree([place, *((level, part.birth) for part in inputs)])
        if node.residual not in (None, "input"):
            assert node.residual is not None
            added = cover(self.slices[node.residual, LAST], birth)
            self._agree([(level, birth), *((level, part.birth) for part in added)])
        self.levels[layer.name] = level + layer.pool
        if layer.pool:
            self.single |= {(level, birth), (level + 1, birth)}


def _raised(packs: Packs, rules: _PackingRules) -> Packs:
    """Raise the packs of lower levels to what a choice requires."""
    result = dict(packs)
    for source, place in sorted(rules.links):
        pack, root = result[rules.root(source)], rules.root(place)
        while 2 * result[root] < pack:
            result[root] *= 2
    return result


def _allowed(packs: Packs, rules: _PackingRules, width: int) -> bool:
    """Whether rows have whole positions, before and after each convolution of stride 2."""
    for place in rules.groups:
        pack = packs[rules.root(place)]
        if halved(width, place[0]) % pack or (pack > 1 and place in rules.single):
            return False
    return all(
        2 * packs[rules.root(place)] % packs[rules.root(source)] == 0
        for source, place in rules.links
    )


def _work(
    rules: _PackingRules, packs: Mapping[Place, int], stages: Sequence[int], block: int
) -> list[float]:
    """Per stage: lanes times lanes times taps times positions of all 3x3 convolutions up to it."""

    def lanes(channels: int, pack: int) -> int:
        return -(-channels * pack // block) * block

    added = dict.fromkeys(stages, 0.0)
    for place, outputs, inputs in rules.convolutions:
        pack = packs[rules.root(place)]
        own = lanes(outputs, pack)
        rate = PACKS[pack] * (NARROW if own == block else 1.0)
        taps = 9 if pack == 1 else 6
        area = 4.0 ** -place[0] / pack
        added[place[1]] += rate * own * sum(lanes(size, pack) for size in inputs) * taps * area
    return list(accumulate(added[stage] for stage in stages))
