"""A network made ready to run: its tasks in order, what each reads, and its weights.

One program is shared by all evaluations.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..nets import AnytimeNetwork
from ..nets.nested.plan import IMAGE, Plan, Unit
from .fold import folded
from .schedule import Task, schedule
from .sums import Read, plan_reads


@dataclass(frozen=True)
class Program:
    """A network's tasks and copies of its weights, float32.

    Attributes:
        plan: the network's graph.
        tasks: what is computed, in order.
        reads: how each task comes by its input.
        convolutions: by (layer, birth), each unit with its folded weight ``[o, i, k, k]`` and bias ``[o]``.
        heads: by exit's stage, weight ``[K, features]`` and bias ``[K]``.
        in_channels: of the images.
        num_stages: how many outputs are the session's.
    """

    plan: Plan
    tasks: tuple[Task, ...]
    reads: tuple[Read, ...]
    convolutions: dict[tuple[str, int], list[tuple[Unit, Tensor, Tensor]]]
    heads: dict[int, tuple[Tensor, Tensor]]
    in_channels: int
    num_stages: int

    @cached_property
    def image_pad(self) -> int:
        """Zeros that the convolutions of the images need around them."""
        readers = [
            node for layer in self.plan.layers for node in layer.nodes if IMAGE in node.reads
        ]
        return max(1, *(node.units[0].kernel // 2 for node in readers))

    @cached_property
    def widest(self) -> dict[tuple[str, ...], int]:
        """By layers' names, the most channels that a task reads of their sum."""
        found: dict[tuple[str, ...], int] = {}
        for read in self.reads:
            found[read.reads] = max(read.channels, found.get(read.reads, 0))
        return found


@torch.no_grad()
def compile_program(network: AnytimeNetwork) -> Program:
    """Copy and fold a network's weights, and put its nodes in order."""
    plan = network.plan
    weights = folded(network)
    tasks = schedule(plan, network.outputs)
    convolutions = {}
    for layer in plan.layers:
        for node in layer.nodes:
            pairs = zip(node.units, weights[layer.name, node.birth], strict=True)
            convolutions[layer.name, node.birth] = [
                (unit, w.float(), b.float()) for unit, (w, b) in pairs
            ]
    heads = {}
    for exit_ in plan.exits:
        weight, bias = network.classifier(exit_.stage)
        heads[exit_.stage] = (
            weight.detach().to("cpu", torch.float32, copy=True),
            bias.detach().to("cpu", torch.float32, copy=True),
        )
    return Program(
        plan,
        tasks,
        plan_reads(tasks),
        convolutions,
        heads,
        network.in_channels,
        network.num_stages,
    )
