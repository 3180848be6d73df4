"""TaskGradients of pieces in the making: what every rank has found, sent as soon as it is there.

Which tensors a task touches on some rank is known before only from the steps before. What was touched
then is sent at once; at the end the ranks compare what they had, and what was missing is sent late.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from zlib import crc32

from torch import Tensor

from ..._collectives import Receive
from ..gradients.buffer import Filling
from ..gradients.task_gradients import Grads, TaskGradients

SINGLE = -1  # the plan of a step of one pass, beside those of the tasks


class SharedFilling:
    """TaskGradients of pieces in the making, in the place of ``Filling``: what is added is sent at once.

    One task's gradient is on its way while the next one's is computed, and no more than one.
    """

    def __init__(
        self,
        ranks: Any,  # context.Ranks, which imports this module
        tasks: Sequence[int],
        single: bool,
        scopes: tuple[int, ...] | None = None,
    ) -> None:
        self.ranks, self.single, self.scopes = ranks, single, scopes
        self._inner = Filling(ranks.pieces.like, tasks, ranks.patterns.get(single), scopes)
        self._touched: dict[int, bytes] = {}
        self._beyond: dict[int, dict[int, Tensor]] = {}
        self._flying: tuple[int, list[tuple[list[int], Receive]]] | None = None

    def add(self, task: int, grads: Grads) -> None:
        """Send one task's gradients, None where it touches nothing."""
        self._land()
        touched = bytes(grad is not None for grad in grads)
        plan = self.ranks.plan(self._key(task), touched)
        self._touched[task] = touched
        self._beyond[task] = {
            p: grad for p, grad in enumerate(grads) if grad is not None and not plan[p]
        }
        members = [p for p, wanted in enumerate(plan) if wanted]
        self._flying = task, self.ranks.send(members, grads)

    @property
    def tasks(self) -> tuple[int, ...]:
        """The tasks that have a row, in order."""
        return tuple(sorted(self._touched))

    def _key(self, task: int) -> int:
        return SINGLE if self.single else task

    def _land(self) -> None:
        if self._flying is not None:
            task, sent = self._flying
            self._flying = None
            self._inner.add(task, self.ranks.receive(sent))

    def settle(self) -> TaskGradients:
        """The rows of pieces, each with what the joined batch touches and nothing else.

        Raises ValueError, on every rank, where no rank's losses touch a parameter.
        """
        ranks, tasks = self.ranks, self.tasks
        planned = b"".join(ranks.plans[self._key(task)] for task in tasks)
        touched = b"".join(self._touched[task] for task in tasks)
        found = {mark for (mark,) in ranks.link.compare([_mark(touched)])}
        as_planned = found - {_mark(b"")} == {_mark(planned)}
        if not as_planned:
            touched = union(ranks.link.compare_bytes(touched))
        self._land()
        if not any(touched) and not as_planned:
            raise untouched(ranks.leaves)
        rows = self._inner.settle()
        if as_planned:
            ranks.patterns[self.single] = self._inner.pattern()
            return rows
        return self._corrected(rows, tasks, touched)

    def _corrected(
        self, rows: TaskGradients, tasks: Sequence[int], touched: bytes
    ) -> TaskGradients:
        """The rows where the plan was wrong: without what none touched, with what it left out."""
        ranks = self.ranks
        width = len(ranks.leaves)
        stacked = rows.tensors()
        for i, task in enumerate(tasks):
            true = touched[i * width : (i + 1) * width]
            plan = ranks.plans[self._key(task)]
            grads = [self._beyond[task].get(p) for p in range(width)]
            missed = [p for p in range(width) if true[p] and not plan[p]]
            late = ranks.receive(ranks.send(missed, grads))
            stacked[i] = [
                None if not true[p] else stacked[i][p] if plan[p] else late[p] for p in range(width)
            ]
            ranks.plans[self._key(task)] = union([plan, true])
        return TaskGradients.stack(stacked, like=ranks.pieces.like, scopes=self.scopes)


def untouched(leaves: Sequence[Tensor]) -> ValueError:
    """The error of all ranks where none has a gradient."""
    return ValueError(
        f"no loss of any rank touches any of the {len(leaves)} parameters: pass the parameters of"
        " the network that made the losses"
    )


def _mark(touched: bytes) -> int:
    """A number that tells patterns apart; that of nothing at all is 0."""
    return crc32(touched) | 1 << 32 if any(touched) else 0


def union(patterns: Iterable[bytes]) -> bytes:
    return bytes(any(column) for column in zip(*patterns, strict=True))
