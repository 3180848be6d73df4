"""Averages the tasks' gradients over ranks: each rank receives its piece of every tensor.

Which tensors a task touches on some rank is known in advance only from earlier steps. What was
touched then is sent at once; after the last pass the ranks compare what they touched, and send what
was missing.
"""

from collections.abc import Iterable, Sequence
from zlib import crc32

import torch
from torch import Tensor

from ..._collectives import Collectives, Receive
from ..gradients.diagonal import Metric
from ..gradients.task_gradients import Grads, TaskGradients
from .partition import Partition

Sent = list[tuple[list[int], Receive]]

ONE_PASS = -1  # the key of the plan of a one-pass step, beside the tasks' numbers


class Exchange:
    """The partition of ``parameters``, and what each task is expected to touch on some rank."""

    def __init__(self, collectives: Collectives, parameters: Sequence[Tensor]) -> None:
        self.collectives, self.parameters = collectives, parameters
        self.partition = Partition(parameters, collectives.size)
        self.plans: dict[int, bytes] = {}  # equal on all ranks

    def plan(self, key: int, touched: bytes) -> bytes:
        """Which tensors to send for a task; the first time, the union over ranks of touched."""
        if key not in self.plans:
            self.plans[key] = union(self.collectives.compare_bytes(touched))
        return self.plans[key]

    def send(self, members: Sequence[int], grads: Grads) -> Sent:
        """Start to average over ranks: one buffer per device and dtype."""
        sent = []
        for bucket in self.partition.buckets(members):
            rows_WN = self.partition.pack(bucket, grads)
            if rows_WN.dtype == torch.float16:  # the sum could overflow
                rows_WN.div_(self.collectives.size)
            sent.append((bucket, self.collectives.reduce_scatter(rows_WN)))
        return sent

    def receive(self, sent: Sent) -> list[Tensor | None]:
        """This rank's pieces of what was sent."""
        out: list[Tensor | None] = [None] * len(self.parameters)
        for bucket, wait in sent:
            piece_N = wait()
            if piece_N.dtype != torch.float16:
                piece_N.div_(self.collectives.size)
            for p, piece in self.partition.split(bucket, piece_N):
                out[p] = piece
        return out

    def gather(self, update: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The whole tensors from every rank's pieces."""
        whole: list[Tensor | None] = [None] * len(update)
        members = [p for p, piece in enumerate(update) if piece is not None]
        for bucket in self.partition.buckets(members):
            piece_N = torch.cat([piece for p in bucket if (piece := update[p]) is not None])
            gathered_WN = self.collectives.all_gather(piece_N)
            for p, tensor in self.partition.unpack(bucket, gathered_WN):
                whole[p] = tensor
        return whole


class ExchangeBuffer:
    """A ``GradientBuffer`` for pieces: each gradient is sent as soon as it is added.

    One task's gradient is in transit during the next task's backward pass, and never more than one.
    """

    def __init__(self, exchange: Exchange, one_pass: bool, tensorwise: bool) -> None:
        self.exchange, self.one_pass, self.tensorwise = exchange, one_pass, tensorwise
        self._pieces: dict[int, list[Tensor | None]] = {}
        self._touched: dict[int, bytes] = {}
        self._unplanned: dict[int, dict[int, Tensor]] = {}
        self._in_transit: tuple[int, Sent] | None = None

    def add(self, task: int, grads: Grads) -> None:
        """Send one task's gradients (None: not touched)."""
        self._receive()
        touched = bytes(grad is not None for grad in grads)
        plan = self.exchange.plan(self._key(task), touched)
        self._touched[task] = touched
        self._unplanned[task] = {
            p: grad for p, grad in enumerate(grads) if grad is not None and not plan[p]
        }
        members = [p for p, wanted in enumerate(plan) if wanted]
        self._in_transit = task, self.exchange.send(members, grads)

    def _key(self, task: int) -> int:
        return ONE_PASS if self.one_pass else task

    def _receive(self) -> None:
        if self._in_transit is not None:
            task, sent = self._in_transit
            self._in_transit = None
            self._pieces[task] = self.exchange.receive(sent)

    def finalize(self, metric: Metric | None = None) -> TaskGradients:
        """The pieces of each task's gradient in the tensors that some rank touches.

        Raises:
            ValueError: on every rank, if no rank's losses touch a parameter.
        """
        exchange, tasks = self.exchange, sorted(self._touched)
        planned = b"".join(exchange.plans[self._key(task)] for task in tasks)
        touched = b"".join(self._touched[task] for task in tasks)
        found = {mark for (mark,) in exchange.collectives.compare([_mark(touched)])}
        is_as_planned = found - {_mark(b"")} == {_mark(planned)}
        if not is_as_planned:
            touched = union(exchange.collectives.compare_bytes(touched))
        self._receive()
        if not is_as_planned:
            if not any(touched):
                raise untouched(exchange.parameters)
            self._correct(tasks, touched)
        pieces = [self._pieces[task] for task in tasks]
        if metric is not None:
            metric = exchange.partition.piece(metric, exchange.collectives.rank)
        return TaskGradients.stack(pieces, exchange.partition.like, self.tensorwise, metric)

    def _correct(self, tasks: Sequence[int], touched: bytes) -> None:
        """Drop what no rank touched although planned, and send what was touched but not planned."""
        exchange, width = self.exchange, len(self.exchange.parameters)
        for i, task in enumerate(tasks):
            true = touched[i * width : (i + 1) * width]
            plan = exchange.plans[self._key(task)]
            grads = [self._unplanned[task].get(p) for p in range(width)]
            missed = [p for p in range(width) if true[p] and not plan[p]]
            late = exchange.receive(exchange.send(missed, grads))
            self._pieces[task] = [
                None if not true[p] else piece if plan[p] else late[p]
                for p, piece in enumerate(self._pieces[task])
            ]
            exchange.plans[self._key(task)] = union([plan, true])


def untouched(parameters: Sequence[Tensor]) -> ValueError:
    """The error on all ranks if no rank has a gradient."""
    return ValueError(
        f"no loss of any rank touches any of the {len(parameters)} parameters: pass the parameters"
        " of the network that made the losses"
    )


def _mark(touched: bytes) -> int:
    """A checksum of a pattern; 0 for a pattern that touches nothing."""
    return crc32(touched) | 1 << 32 if any(touched) else 0


def union(patterns: Iterable[bytes]) -> bytes:
    """Bytewise or."""
    return bytes(any(column) for column in zip(*patterns, strict=True))
