"""Gradients distributed over ranks: reduced before they are projected.

Each of W ranks has its own samples and so its own part of every task's gradient. Projections are
not linear and need the whole gradients. Therefore

1. task i's gradient is reduce-scattered while the backward pass of task i + 1 runs: rank r then
   stores piece r of every tensor's whole gradient (``partition``);
2. the pieces' S x S Gram matrices are summed in one small all-reduce;
3. the rule, which uses Gram matrices and linear maps alone, computes the piece of the update;
4. one all-gather assembles the update.

With P entries this sends (S + 1) P (W-1)/W, where an all-reduce of S gradients sends 2 S P (W-1)/W,
and stores S P / W. A one-pass step is sent like one task's gradient, 2 P (W-1)/W in all. The result
is that of one process on the joined batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from ..._collectives import Collectives
from ..checks import (
    Losses,
    Parameters,
    check_losses,
    check_names,
    check_parameters,
    check_samples,
    is_sharded,
    loss_values,
)
from ..gradients.backward import (
    KEPT,
    Accepts,
    Buffer,
    GradientBuffer,
    MicroBatch,
    gradient,
    graph_leaves,
    inspect_graphs,
)
from ..gradients.diagonal import Metric
from ..gradients.task_gradients import TaskGradients, wide_dtype
from .agreement import agree, refuse
from .dtensor import Shards
from .exchange import Exchange, ExchangeBuffer, untouched


class DistributedContext:
    """The ranks of a group; has the methods of ``LocalContext``, which all ranks must call alike.

    Keeps from step to step what is known of the parameters: their partition and exchange, or how
    ``fully_shard`` distributed them.
    """

    def __init__(self, group: Any) -> None:
        self.collectives = Collectives(group)
        self.parameters: list[Tensor] = []
        self.exchange = Exchange(self.collectives, [])
        self.shards: Shards | None = None

    def check(
        self,
        losses: Losses,
        parameters: Parameters | None,
        samples: float | None,
        on_nonfinite: str,
        accepts: Accepts,
    ) -> MicroBatch:
        """As ``LocalContext.check``; errors are raised on all ranks.

        A rank without samples may pass losses without a graph, and none at all if they have no
        names, but must pass the parameters.
        """
        try:
            names = check_names(losses)
            if parameters is None:
                leaves = graph_leaves(check_losses(losses))
            else:
                leaves = check_parameters(parameters)
            is_new = self._is_new(leaves)
            shards = self.shards
            if is_new:
                sharded = any(map(is_sharded, leaves))
                shards = Shards(leaves, self.collectives.size) if sharded else None
            check_samples(samples)
            is_empty = samples == 0 and shards is None
            if is_empty:
                found = list(losses.values() if isinstance(losses, Mapping) else losses)
            else:
                found = check_losses(losses)
            if found:
                accepts(found, leaves, names)
            graphs = [KEPT] * len(found)
            if shards is None and not is_empty:
                graphs = inspect_graphs(found, leaves)
            values = loss_values(found) if found else None
        except (TypeError, ValueError):
            refuse(self.collectives)
            raise
        agreed = agree(
            self.collectives, values, samples, _fingerprint(leaves), is_new, on_nonfinite, names
        )
        if agreed.is_new:
            self.parameters, self.shards = leaves, shards
            self.exchange = Exchange(self.collectives, leaves)
        if values is None or agreed.share == 0:
            device = leaves[0].device
            values = torch.zeros(agreed.count, dtype=wide_dtype(device), device=device)
            found = found or list(values.unbind())
            graphs = [KEPT] * agreed.count
        values = values * (agreed.share / self.collectives.size)
        take = partial(_differentiate if shards is None else shards.differentiate, agreed.share)
        return MicroBatch(found, leaves, values, agreed.tasks, graphs, take, names)

    def _is_new(self, leaves: Sequence[Tensor]) -> bool:
        known = self.parameters
        return len(known) != len(leaves) or any(
            a is not b for a, b in zip(known, leaves, strict=True)
        )

    def buffer(
        self, parameters: Sequence[Tensor], one_pass: bool, is_whole: bool, tensorwise: bool
    ) -> Buffer:
        """Gradients are sent at once, except sharded ones and those of further micro-batches."""
        if self.shards is not None:
            return GradientBuffer(self.shards.like, tensorwise, self.shards.sizes)
        if is_whole:
            return ExchangeBuffer(self.exchange, one_pass, tensorwise)
        return GradientBuffer(parameters, tensorwise)

    def collect(
        self, buffer: Buffer, values_S: Tensor, one_pass: bool, metric: Metric | None = None
    ) -> tuple[TaskGradients, Tensor]:
        """Gradients with the Gram matrices and sizes of the whole ones, of which a piece is here."""
        if isinstance(buffer, GradientBuffer) and self.shards is None:
            tasks, sums = buffer.tasks, buffer.finalize().tensors()
            buffer = ExchangeBuffer(self.exchange, one_pass, buffer.tensorwise)
            for task, grads in zip(tasks, sums, strict=True):
                buffer.add(task, grads)
        if metric is not None and self.shards is not None:
            metric = self.shards.local_metric(metric)
        gradients = buffer.finalize(metric)
        if one_pass:
            return gradients, self.total(values_S)
        if not gradients.blocks:
            raise untouched(self.parameters)
        values_S, *grams = self._sum([values_S, *gradients.block_grams])
        blocks = [
            replace(block, whole_gram=gram, whole_size=sum(map(self._numel, block.members)))
            for block, gram in zip(gradients.blocks, self._once(grams), strict=True)
        ]
        return replace(gradients, blocks=tuple(blocks), across=self._across), values_S

    def total(self, values_S: Tensor) -> Tensor:
        """[S] sums over ranks."""
        return self._sum([values_S])[0]

    def _sum(self, parts: list[Tensor]) -> list[Tensor]:
        """A few numbers summed over ranks in one all-reduce, bitwise equal on all of them."""
        device = parts[0].device
        flat = torch.cat([part.reshape(-1).to(device) for part in parts])
        sums = torch.split_with_sizes(
            self.collectives.all_reduce(flat), [part.numel() for part in parts]
        )
        pairs = zip(sums, parts, strict=True)
        return [total.view(part.shape).to(part.device) for total, part in pairs]

    def _across(self, grams: list[Tensor]) -> list[Tensor]:
        return self._once(self._sum(grams))

    def _once(self, sums: list[Tensor]) -> list[Tensor]:
        """Sums over ranks several of which may have held the same shard."""
        copies = 1 if self.shards is None else self.shards.copies
        return sums if copies == 1 else [total / copies for total in sums]

    def _numel(self, p: int) -> int:
        return self.parameters[p].numel()

    def gather(self, update: list[Tensor | None]) -> list[Tensor | None]:
        """The whole update from every rank's pieces; of sharded parameters the shards."""
        if self.shards is not None:
            return self.shards.wrap(update, self.parameters)
        return self.exchange.gather(update)

    def take_sent(self) -> int:
        """Bytes sent by this rank since the last call."""
        return self.collectives.take_sent()


def _differentiate(
    share: float,
    outputs: Sequence[Tensor],
    seeds: Sequence[Tensor | None],
    parameters: Sequence[Tensor],
    retain_graph: bool,
) -> tuple[Tensor | None, ...]:
    """One backward pass with each output weighted by ``share``; no gradients if that is 0.

    The weight applies at the start of the pass, not to its result: a synchronized batch norm
    combines the ranks' passes. For the same reason a rank without samples takes the pass if it can:
    that of a forward pass over an empty batch.
    """
    if share == 1:
        return gradient(outputs, seeds, parameters, retain_graph)
    pairs = [pair for pair in zip(outputs, seeds, strict=True) if pair[0].requires_grad]
    nothing = (None,) * len(parameters)
    if not pairs:
        return nothing
    scaled = [torch.full_like(out, share) if seed is None else seed * share for out, seed in pairs]
    found = gradient([out for out, _ in pairs], scaled, parameters, retain_graph)
    return found if share else nothing


def _fingerprint(leaves: Sequence[Tensor]) -> int:
    """A checksum of the parameters' shapes, dtypes, devices and memory formats."""
    words = [
        f"{tuple(leaf.shape)} {leaf.dtype} {leaf.device.type} {leaf.stride()}" for leaf in leaves
    ]
    return crc32("\n".join(words).encode())
