"""TaskGradients in the making: each task's gradients are copied in, or added, and let go at once.

Which tasks touch which tensors is known only after the last pass. What it was in the step before
is expected again: then every gradient goes straight to its place in the blocks, and at no moment do
the rows exist twice. Where the expectation fails, what is there already is stacked anew, which
costs a copy and changes no value.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .task_gradients import Block, Grads, Layout, TaskGradients


@dataclass(frozen=True)
class Pattern:
    """TaskGradients without their entries: who touches what, and how it lies in memory."""

    tasks: tuple[int, ...]
    rows: TaskGradients  # of empty blocks
    sizes: tuple[int, ...]  # entries of a row in each block

    @classmethod
    def of(cls, rows: TaskGradients, tasks: Sequence[int]) -> "Pattern":
        hollow = tuple(
            Block(block.tasks, block.members, block.values.new_empty((len(block.tasks), 0)))
            for block in rows.blocks
        )
        sizes = tuple(block.values.shape[1] for block in rows.blocks)
        return cls(tuple(tasks), rows.with_blocks(hollow), sizes)

    def fits(
        self, like: Sequence[Tensor], tasks: Sequence[int], scopes: tuple[int, ...] | None
    ) -> bool:
        """Whether rows of ``tasks`` over tensors like these may look so again."""
        old = self.rows.layouts
        return (
            self.tasks == tuple(tasks)
            and self.rows.scopes == scopes
            and len(old) == len(like)
            and all(a is None or a == Layout.of(b) for a, b in zip(old, like, strict=True))
        )

    def empty(self) -> TaskGradients:
        """TaskGradients of this pattern with room for the entries."""
        blocks = tuple(
            Block(block.tasks, block.members, block.values.new_empty((len(block.tasks), size)))
            for block, size in zip(self.rows.blocks, self.sizes, strict=True)
        )
        return self.rows.with_blocks(blocks)


class Filling:
    """TaskGradients to which gradients are added task by task, micro-batch by micro-batch.

    ``like`` are the tensors that the gradients belong to, ``tasks`` the tasks of the first
    micro-batch, ``expected`` what the rows will probably look like, ``scopes`` those of ``TaskGradients``.
    """

    def __init__(
        self,
        like: Sequence[Tensor],
        tasks: Iterable[int] = (),
        expected: Pattern | None = None,
        scopes: tuple[int, ...] | None = None,
    ) -> None:
        self.like, self.scopes = like, scopes
        self._places: tuple[int, ...] = tuple(tasks)
        self._pattern: Pattern | None = None
        self._rows: TaskGradients | None = None
        if expected is not None and expected.fits(like, self._places, scopes):
            self._pattern, self._rows = expected, expected.empty()
        self._filled: set[int] = set()
        self._loose: dict[int, list[Tensor | None]] = {}

    @property
    def tasks(self) -> tuple[int, ...]:
        """The tasks that have a row, in order."""
        return tuple(sorted({*self._filled, *self._loose}))

    def add(self, task: int, grads: Grads) -> None:
        """Take one task's gradients: its row so far, plus these. None where it touches nothing."""
        if self._rows is not None:
            if self._write(self._rows, task, grads):
                self._filled.add(task)
                return
            self._loosen(self._rows)
        before = self._loose.get(task)
        if before is None:
            self._loose[task] = list(grads)
        else:
            pairs = zip(before, grads, strict=True)
            self._loose[task] = [
                b if a is None else a if b is None else a + b.to(a.dtype) for a, b in pairs
            ]

    def _write(self, rows: TaskGradients, task: int, grads: Grads) -> bool:
        """Whether the gradients have the expected pattern, and are in their place now."""
        if task not in self._places:
            return False
        row = self._places.index(task)
        adding = task in self._filled
        mine = [block for block in rows.blocks if row in block.tasks]
        expected = 0
        for block in mine:
            for p in block.members:
                grad = grads[p]
                if grad is None:
                    if adding:
                        continue
                    return False
                if grad.dtype != block.values.dtype or grad.device != block.values.device:
                    return False
                expected += 1
        if expected != sum(grad is not None for grad in grads):
            return False
        for block in mine:
            values = block.values[block.tasks.index(row)]
            if adding:
                _add(rows, block, values, grads)
            else:
                _copy(rows, block, values, grads)
        return True

    def _loosen(self, rows: TaskGradients) -> None:
        """Give up the blocks: their rows become views."""
        tensors = rows.tensors()
        self._loose = {task: tensors[self._places.index(task)] for task in sorted(self._filled)}
        self._rows, self._pattern, self._filled = None, None, set()

    def settle(self) -> TaskGradients:
        """The rows so far, in ``tasks``' order; more may be added to them, but not once their dot
        products have been asked for."""
        if self._rows is not None and self._filled != set(self._places):
            self._loosen(self._rows)
        if self._rows is None:
            self._places = tuple(sorted(self._loose))
            self._rows = TaskGradients.stack(
                [self._loose[i] for i in self._places], like=self.like, scopes=self.scopes
            )
            self._filled, self._loose = set(self._places), {}
        return self._rows

    def pattern(self) -> Pattern:
        """What the settled rows look like."""
        rows = self.settle()
        if self._pattern is None:
            self._pattern = Pattern.of(rows, self._places)
        return self._pattern


def _copy(rows: TaskGradients, block: Block, values: Tensor, grads: Grads) -> None:
    flat = [
        layout.flat(grad)
        for p in block.members
        if (layout := rows.layouts[p]) is not None and (grad := grads[p]) is not None
    ]
    torch.cat(flat, out=values)


def _add(rows: TaskGradients, block: Block, values: Tensor, grads: Grads) -> None:
    pairs = [
        (there, grad) for p, there in rows.split(block, values) if (grad := grads[p]) is not None
    ]
    if pairs:
        torch._foreach_add_([there for there, _ in pairs], [grad for _, grad in pairs])
