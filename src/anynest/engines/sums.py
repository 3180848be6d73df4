"""What each task reads: one layer, or a sum of layers that shares its parts with earlier sums.

A sparse layer reads the sum of several layers. Nodes of later stages often read the sum that an earlier node
has read, with more channels or one more layer in it; such a sum is kept and added to, not taken anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .schedule import Task

Reads = tuple[str, ...]


@dataclass(frozen=True)
class Read:
    """How a task comes by its input.

    Attributes:
        reads: the layers whose sum is the input.
        start: channels of it that are known already; the task computes those from ``start`` on.
        channels: how many the task reads.
        base: layers whose sum is known and is part of this one; empty if there is none.
        added: the layers to add to it.
        kept: whether the sum has memory of its own: a later task needs it, or an earlier one began it.
    """

    reads: Reads
    start: int
    channels: int
    base: Reads = ()
    added: Reads = ()
    kept: bool = False


def plan_reads(tasks: Sequence[Task]) -> tuple[Read, ...]:
    """One read a task, in the tasks' order."""
    known: dict[Reads, int] = {}
    plans: list[Read] = []
    for task in tasks:
        names, channels = _input(task)
        start = min(known.get(names, 0), channels) if len(names) > 1 else channels
        if start == channels:
            plans.append(Read(names, start, channels))
            continue
        parts = [old for old, width in known.items() if set(old) < set(names) and width >= channels]
        base = max(parts, key=len, default=())
        added = tuple(name for name in names if name not in base)
        plans.append(Read(names, start, channels, base, added))
        known[names] = channels
    # a sum is kept if one that reads it comes after
    needed: set[Reads] = set()
    for index in range(len(plans) - 1, -1, -1):
        plan = plans[index]
        if len(plan.reads) > 1:
            plans[index] = replace(plan, kept=plan.reads in needed or plan.start > 0)
            needed.add(plan.reads)
        if plan.base:
            needed.add(plan.base)
    return tuple(plans)


def _input(task: Task) -> tuple[Reads, int]:
    if task.node is not None:
        return task.node.reads, task.node.units[0].inputs
    assert task.exit is not None
    return task.exit.reads, task.exit.features
