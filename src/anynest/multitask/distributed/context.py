"""TaskGradients over ranks: reduced before they are projected, since projecting is not linear.

Each of W ranks has its own samples, and so its own part of every task's gradient. The projection
needs the whole gradients, and the averages of projected parts are something else. So

1. task i's gradient is reduce-scattered as soon as its backward pass has ended, while that of task
   i + 1 runs: rank r then holds piece r of every tensor's whole gradient (``pieces``);
2. the pieces' S x S Gram matrices are summed, in one small all-reduce;
3. the rule, which sees rows and their Gram matrices alone, finds the piece's update;
4. one all-gather puts the updates together.

With P entries that is (S + 1) P (W-1)/W on the wire where reducing S gradients whole takes 2 S P
(W-1)/W, and rows take S P / W of memory. A step of one ordinary pass goes the same way as one row:
2 P (W-1)/W, as an all-reduce. The result is that of one process on the joined batch.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from ..._collectives import Collectives, Receive
from ..checks import check_losses, check_parameters, check_samples, loss_values
from ..gradients.backward import gradient
from ..gradients.buffer import Filling, Pattern
from ..gradients.graph import check_touched
from ..gradients.micro_batch import Given
from ..gradients.task_gradients import Grads, TaskGradients, wide_dtype
from .agreement import meet, refuse
from .dtensor import Shards, is_sharded
from .exchange import SharedFilling, union, untouched
from .partition import Pieces
from .wrappers import check_wrappers


class Ranks:
    """What a combiner keeps of its group, from step to step."""

    def __init__(self, group: Any) -> None:
        self.link = Collectives(group)
        self.leaves: list[Tensor] = []
        self.fingerprint = 0
        self.pieces = Pieces([], self.link.size)
        # which tensors a task is expected to touch on some rank: known alike to all ranks
        self.plans: dict[int, bytes] = {}
        self.patterns: dict[bool, Pattern] = {}
        self.shards: Shards | None = None  # of parameters that lie spread over the ranks

    def take(
        self,
        losses: Sequence[Tensor],
        parameters: Iterable[Tensor] | Tensor,
        samples: float | None,
        on_nonfinite: str,
        suits: Callable[[list[Tensor], list[Tensor]], None],
    ) -> Given:
        """Check one micro-batch, here and among the ranks; errors are raised on all of them."""
        try:
            leaves = check_parameters(parameters)
            fresh = self._is_fresh(leaves)
            shards = self.shards
            if fresh:
                check_wrappers(leaves)
                self.fingerprint = fingerprint(leaves)
                shards = Shards(leaves, self.link.size) if any(map(is_sharded, leaves)) else None
            check_samples(samples)
            empty = samples == 0 and shards is None
            found = list(losses) if empty else check_losses(losses)
            if found:
                suits(found, leaves)
            if shards is None and not empty:
                check_touched(found, leaves)
            values = loss_values(found) if found else None
        except (TypeError, ValueError):
            refuse(self.link)
            raise
        meeting = meet(self.link, values, samples, self.fingerprint, fresh, on_nonfinite)
        if meeting.fresh:
            self.leaves = leaves
            self.pieces = Pieces(leaves, self.link.size)
            self.plans, self.patterns, self.shards = {}, {}, shards
        if values is None or meeting.share == 0:
            device = leaves[0].device
            values = torch.zeros(meeting.count, dtype=wide_dtype(device), device=device)
            found = found or list(values.unbind())
        values = values * (meeting.share / self.link.size)
        one_pass = partial(differentiate if shards is None else shards.differentiate, meeting.share)
        return Given(found, leaves, values, meeting.tasks, one_pass)

    def _is_fresh(self, leaves: Sequence[Tensor]) -> bool:
        known = self.leaves
        return len(known) != len(leaves) or any(
            a is not b for a, b in zip(known, leaves, strict=True)
        )

    def plan(self, key: int, touched: bytes) -> bytes:
        """Which tensors to send for a task; the first time the ranks say what each has."""
        if key not in self.plans:
            self.plans[key] = union(self.link.compare_bytes(touched))
        return self.plans[key]

    def send(self, members: Sequence[int], grads: Grads) -> list[tuple[list[int], Receive]]:
        """Begin to average over ranks: one buffer for each device and dtype."""
        sent = []
        for bucket in self.pieces.buckets(members):
            rows_WN = self.pieces.pack(bucket, grads)
            if rows_WN.dtype == torch.float16:  # whose sum may overflow
                rows_WN.div_(self.link.size)
            sent.append((bucket, self.link.reduce_scatter(rows_WN)))
        return sent

    def receive(self, sent: list[tuple[list[int], Receive]]) -> list[Tensor | None]:
        """This rank's pieces of what was sent."""
        out: list[Tensor | None] = [None] * len(self.leaves)
        for bucket, wait in sent:
            piece_N = wait()
            if piece_N.dtype != torch.float16:
                piece_N.div_(self.link.size)
            for p, piece in self.pieces.split(bucket, piece_N):
                out[p] = piece
        return out

    def total(self, parts: list[Tensor]) -> list[Tensor]:
        """Few numbers, summed over ranks in one all-reduce: the same bits everywhere."""
        device = parts[0].device
        flat = self.link.all_reduce(torch.cat([part.reshape(-1).to(device) for part in parts]))
        sums = torch.split_with_sizes(flat, [part.numel() for part in parts])
        pairs = zip(sums, parts, strict=True)
        return [total.view(part.shape).to(part.device) for total, part in pairs]

    def whole(self, rows: TaskGradients, values_S: Tensor) -> tuple[TaskGradients, Tensor]:
        """TaskGradients that know the whole rows' Gram matrices and sizes; the joined batch's losses."""
        if not rows.blocks:
            raise untouched(self.leaves)
        values_S, *grams = self.total([values_S, *rows.block_grams])
        grams = self._once(grams)
        blocks = [
            replace(block, whole_gram=gram, whole_size=sum(map(self._numel, block.members)))
            for block, gram in zip(rows.blocks, grams, strict=True)
        ]
        return replace(rows, blocks=tuple(blocks), across=self._across), values_S

    def _across(self, grams: list[Tensor]) -> list[Tensor]:
        return self._once(self.total(grams))

    def _once(self, sums: list[Tensor]) -> list[Tensor]:
        """Dot products over ranks of which several may have held the same shard."""
        copies = 1 if self.shards is None else self.shards.copies
        return sums if copies == 1 else [total / copies for total in sums]

    def _numel(self, p: int) -> int:
        return self.leaves[p].numel()

    def like(self, leaves: Sequence[Tensor]) -> Sequence[Tensor]:
        """What a rank's own rows look like: its shards of sharded parameters."""
        return leaves if self.shards is None else self.shards.like

    def share(self, filling: Filling | SharedFilling, single: bool) -> Filling | SharedFilling:
        """The rows as pieces: those that were kept whole over micro-batches are sent now."""
        if isinstance(filling, SharedFilling) or self.shards is not None:
            return filling
        rows, tasks = filling.settle().tensors(), filling.tasks
        shared = SharedFilling(self, tasks, single, filling.scopes)
        for task, grads in zip(tasks, rows, strict=True):
            shared.add(task, grads)
        return shared

    def gather(self, update: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The whole update from every rank's pieces; of sharded parameters the shards."""
        if self.shards is not None:
            return self.shards.wrap(update, self.leaves)
        whole: list[Tensor | None] = [None] * len(update)
        members = [p for p, piece in enumerate(update) if piece is not None]
        for bucket in self.pieces.buckets(members):
            piece_N = torch.cat([piece for p in bucket if (piece := update[p]) is not None])
            for p, tensor in self.pieces.unpack(bucket, self.link.all_gather(piece_N)):
                whole[p] = tensor
        return whole


def differentiate(
    share: float,
    outputs: Sequence[Tensor],
    seeds: Sequence[Tensor | None],
    parameters: Sequence[Tensor],
    retain_graph: bool,
) -> tuple[Tensor | None, ...]:
    """One backward pass, each output counting ``share`` times; nothing where that is 0.

    The share goes in at the start of the pass, not upon its end: a synchronised batch norm mixes the
    ranks' passes within it. For the same reason a rank without samples takes the pass if it can,
    that of a forward pass over an empty batch.
    """
    nothing = (None,) * len(parameters)
    if share == 1:
        return gradient(outputs, seeds, parameters, retain_graph)
    pairs = [pair for pair in zip(outputs, seeds, strict=True) if pair[0].requires_grad]
    if not pairs:
        return nothing
    scaled = [torch.full_like(out, share) if seed is None else seed * share for out, seed in pairs]
    found = gradient([out for out, _ in pairs], scaled, parameters, retain_graph)
    return found if share else nothing


def fingerprint(leaves: Sequence[Tensor]) -> int:
    """A number that tells lists of parameters apart by shape, dtype, device and memory format."""
    words = [
        f"{tuple(leaf.shape)} {leaf.dtype} {leaf.device.type} {leaf.stride()}" for leaf in leaves
    ]
    return crc32("\n".join(words).encode())
