"""The order in which a network's nodes and outputs are computed, stage after stage, as pure data."""

from __future__ import annotations

from dataclasses import dataclass

from ..nets.nested.plan import Exit, Layer, Node, Plan


@dataclass(frozen=True)
class Task:
    """One step: a layer's node, or a stage's output.

    Attributes:
        stage: the session's stage (from 1) that needs it first.
        layer: the node's layer; None for an output.
        node: the node; None for an output.
        exit: the output; None for a node.
        last: whether the stage is finished with it.
    """

    stage: int
    layer: Layer | None = None
    node: Node | None = None
    exit: Exit | None = None
    last: bool = False


def schedule(plan: Plan, outputs: tuple[int, ...]) -> tuple[Task, ...]:
    """Every node once (N2), when the first of ``outputs`` needs it (N4), then that stage's outputs."""
    tasks: list[Task] = []
    before = 0
    for number, stage in enumerate(outputs, 1):
        for layer in plan.layers:
            for node in layer.nodes:
                if before < node.birth <= stage:
                    tasks.append(Task(number, layer, node))
        exits = [exit_ for exit_ in plan.exits if before < exit_.stage <= stage]
        tasks += [Task(number, exit=exit_, last=exit_ is exits[-1]) for exit_ in exits]
        before = stage
    return tuple(tasks)
