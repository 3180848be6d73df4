"""TaskGradients: the gradients of S tasks, kept as flat buffers, and linear maps of them.

Shape suffixes: S tasks, k tasks that touch a block, P entries, Pb entries of one block.

Tensors (parameters) that the same tasks touch, on one device and of one dtype, form a *block*: one
buffer ``[k, Pb]``. What a task does not touch has no entry anywhere, so a dot product runs over
common entries only and nothing is padded. ``TaskGradients`` represents ``mixing @ stored rows`` without
forming it, so scaling and projecting cost S x S numbers; the entries are read once for a Gram
matrix and once for the final sum, chunk by chunk, in float64 that never leaves the cache.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from math import prod

import torch
from torch import Tensor

Grads = Sequence[Tensor | None]

# Entries turned to float64 at a time, of all rows together on a CPU, where they stay in the
# second-level cache; of each on a GPU, where few launches matter more.
CHUNK_CPU = 1 << 16
CHUNK_GPU = 1 << 22


def wide_dtype(device: torch.device) -> torch.dtype:
    """float64, in which all dots and sums are taken (float32 on MPS, which has no float64)."""
    return torch.float32 if device.type == "mps" else torch.float64


@lru_cache(maxsize=512)
def index_on(tasks: tuple[int, ...], device: torch.device) -> Tensor:
    """Task numbers as an index tensor; kept, so that a step on a GPU copies nothing to it."""
    return torch.tensor(tasks, dtype=torch.long, device=device)


@lru_cache(maxsize=512)
def numbers_on(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Fixed numbers in ``wide_dtype``; kept like ``index_on``'s, and never to be written to."""
    return torch.tensor(values, dtype=wide_dtype(device), device=device)


@dataclass(frozen=True)
class Layout:
    """Shape of a tensor and the order in which its entries lie in memory (None: contiguous)."""

    shape: tuple[int, ...]
    order: tuple[int, ...] | None

    @classmethod
    def of(cls, tensor: Tensor) -> "Layout":
        shape = tuple(tensor.shape)
        if tensor.is_contiguous():
            return cls(shape, None)
        strides = tensor.stride()
        order = tuple(sorted(range(len(strides)), key=lambda d: -strides[d]))
        return cls(shape, order if tensor.permute(order).is_contiguous() else None)

    @property
    def numel(self) -> int:
        return prod(self.shape)

    def flat(self, tensor: Tensor) -> Tensor:
        """[P] entries in memory order: a view where the tensor lies like the layout."""
        return (tensor if self.order is None else tensor.permute(self.order)).reshape(-1)

    def unflat(self, flat: Tensor) -> Tensor:
        """A view of [P] entries with the layout's shape and strides."""
        if self.order is None:
            return flat.view(self.shape)
        inverse = sorted(range(len(self.order)), key=self.order.__getitem__)
        return flat.view([self.shape[d] for d in self.order]).permute(inverse)


@dataclass(frozen=True, eq=False)
class Block:
    """Tensors that exactly ``tasks`` touch: ``values[a]`` is the row of ``tasks[a]``, [k, Pb].

    Where ``values`` are one rank's pieces of rows that are spread over several, ``whole_gram`` has
    the dot products of the whole rows and ``whole_size`` their number of entries.
    """

    tasks: tuple[int, ...]
    members: tuple[int, ...]
    values: Tensor
    whole_gram: Tensor | None = None
    whole_size: int | None = None

    @property
    def size(self) -> int:
        """Entries of a row, those of other ranks included."""
        return self.values.shape[1] if self.whole_size is None else self.whole_size

    def chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """The block in float64, ``(where, [k, n])`` at a time; each is valid until the next."""
        device, (k, size) = self.values.device, self.values.shape
        step = min(size, -(-CHUNK_CPU // k) if device.type == "cpu" else CHUNK_GPU)
        room = self.values.new_empty((k, step), dtype=wide_dtype(device))
        for start in range(0, size, step or 1):
            where = slice(start, min(start + step, size))
            chunk = room[:, : where.stop - start]
            yield where, chunk.copy_(self.values[:, where])

    @cached_property
    def gram(self) -> Tensor:
        """[k, k] dot products of the stored rows, accumulated in float64."""
        return self.mixed_gram(None) if self.whole_gram is None else self.whole_gram

    def mixed_gram(self, mixing_rk: Tensor | None) -> Tensor:
        """[r, r] dot products of ``mixing @ values``; the mixing is done before the dots."""
        if len(self.tasks) == 1 and mixing_rk is None and self.values.shape[1] <= CHUNK_CPU:
            wide = wide_dtype(self.values.device)
            norm: Tensor = torch.linalg.vector_norm(self.values, dtype=wide)
            return norm.square().reshape(1, 1)
        size = len(self.tasks) if mixing_rk is None else mixing_rk.shape[0]
        gram = self.values.new_zeros((size, size), dtype=wide_dtype(self.values.device))
        for _, chunk in self.chunks():
            mixed = chunk if mixing_rk is None else mixing_rk @ chunk
            gram.addmm_(mixed, mixed.T)
        return gram

    def combine(self, weights_k: Tensor) -> Tensor:
        """[Pb] sum of ``weights[a] * values[a]``, in float64, rounded once to the block's dtype."""
        out = torch.empty_like(self.values[0])
        for where, chunk in self.chunks():
            # one row is multiplied, not summed with zero: 1.0 * g keeps every bit of g
            out[where].copy_(chunk[0].mul_(weights_k[0]) if len(chunk) == 1 else weights_k @ chunk)
        return out


@dataclass(frozen=True, eq=False)
class TaskGradients:
    """S rows over a list of tensors, each row absent where its task does not touch a tensor.

    Represents ``mixing @ stored`` (stored where ``mixing`` is None). ``reads[i]`` names the stored
    rows from which row i may draw: ``(i,)`` for all means a diagonal mixing. ``across`` sums the
    blocks' Gram matrices over ranks where each holds pieces of the rows. ``scopes`` numbers each
    tensor's scope where the rows are projected scope by scope: no block is of two.
    """

    num_tasks: int
    blocks: tuple[Block, ...]
    layouts: tuple[Layout | None, ...]
    reads: tuple[tuple[int, ...], ...]
    mixing: Tensor | None = None
    across: Callable[[list[Tensor]], list[Tensor]] | None = None
    scopes: tuple[int, ...] | None = None

    @classmethod
    def stack(
        cls,
        grads: Sequence[Grads],
        like: Sequence[Tensor] | None = None,
        scopes: tuple[int, ...] | None = None,
    ) -> "TaskGradients":
        """TaskGradients from ``grads[i][p]``: the gradient of task i in tensor p, or None if it has none.

        The entries are copied. ``like`` gives the memory layout of each tensor (a parameter's, so
        that the sum comes back in it); without it the first gradient found does. ``scopes`` as in
        the class.

        Raises ValueError if there is no row or the rows differ in length.
        """
        if not grads:
            raise ValueError("rows must hold at least one task's gradients, found none")
        width = len(grads[0])
        for i, row in enumerate(grads):
            if len(row) != width:
                raise ValueError(
                    f"every row must cover the same tensors: row 0 has {width}, row {i} has"
                    f" {len(row)}; put None where a task has no gradient"
                )
        groups: dict[tuple[tuple[int, ...], torch.device, torch.dtype, int], list[int]] = {}
        layouts: list[Layout | None] = [None] * width
        for p in range(width):
            tasks = tuple(i for i, row in enumerate(grads) if row[p] is not None)
            if not tasks:
                continue
            first = grads[tasks[0]][p]
            assert first is not None
            layouts[p] = Layout.of(first if like is None else like[p])
            scope = 0 if scopes is None else scopes[p]
            groups.setdefault((tasks, first.device, first.dtype, scope), []).append(p)
        blocks = tuple(
            cls._block(grads, layouts, tasks, members) for (tasks, *_), members in groups.items()
        )
        reads = tuple((i,) for i in range(len(grads)))
        return cls(len(grads), blocks, tuple(layouts), reads, scopes=scopes)

    @staticmethod
    def _block(
        grads: Sequence[Grads],
        layouts: Sequence[Layout | None],
        tasks: tuple[int, ...],
        members: list[int],
    ) -> Block:
        first = grads[tasks[0]][members[0]]
        assert first is not None
        size = sum(layout.numel for p in members if (layout := layouts[p]) is not None)
        values = first.new_empty((len(tasks), size))
        for a, i in enumerate(tasks):
            flat = [
                layout.flat(grad)
                for p in members
                if (layout := layouts[p]) is not None and (grad := grads[i][p]) is not None
            ]
            torch.cat(flat, out=values[a])
        return Block(tasks, tuple(members), values)

    def with_blocks(self, blocks: tuple[Block, ...]) -> "TaskGradients":
        """The same rows over other blocks: some of them, or others of the same members."""
        return replace(self, blocks=blocks)

    def parts(self) -> list["TaskGradients"]:
        """The rows within each scope, in the scopes' order; all of them where there are none."""
        if self.scopes is None:
            return [self]
        inside: list[list[Block]] = [[] for _ in range(max(self.scopes) + 1)]
        for block in self.blocks:
            inside[self.scopes[block.members[0]]].append(block)
        return [self.with_blocks(tuple(blocks)) for blocks in inside]

    @property
    def device(self) -> torch.device:
        """Where S x S numbers live: the first block's device."""
        return self.blocks[0].values.device if self.blocks else torch.device("cpu")

    def new(self, *shape: int) -> Tensor:
        """Zeros of the S x S numbers' dtype and device."""
        return torch.zeros(shape, dtype=wide_dtype(self.device), device=self.device)

    @property
    def sizes(self) -> tuple[int, ...]:
        """d_i of the paper: the number of entries that each row has."""
        sizes = [0] * self.num_tasks
        for block in self.blocks:
            for i in self.rows_in(block):
                sizes[i] += block.size
        return tuple(sizes)

    @property
    def is_diagonal(self) -> bool:
        return all(read == (i,) for i, read in enumerate(self.reads))

    def mixed(
        self, matrix_SS: Tensor, reads: tuple[tuple[int, ...], ...] | None = None
    ) -> "TaskGradients":
        """The rows ``matrix @ self``; ``reads`` as in the class (None: each row its own alone)."""
        mixing = matrix_SS if self.mixing is None else matrix_SS @ self.mixing
        return replace(self, mixing=mixing, reads=self.reads if reads is None else reads)

    def in_terms_of_stored(self, weights_S: Tensor) -> Tensor:
        """[S] weights v of the stored rows with ``v @ stored = weights @ self``."""
        return weights_S if self.mixing is None else weights_S @ self.mixing

    def rows_in(self, block: Block) -> tuple[int, ...]:
        """The rows that may have entries in a block."""
        touched = set(block.tasks)
        return tuple(i for i, read in enumerate(self.reads) if touched.intersection(read))

    def _mixing_for(self, block: Block) -> Tensor:
        """[r, k] the part of the mixing that takes a block's stored rows to ``rows_in(block)``."""
        assert self.mixing is not None
        device = self.mixing.device
        part = self.mixing.index_select(0, index_on(self.rows_in(block), device))
        part = part.index_select(1, index_on(block.tasks, device))
        return part.to(block.values.device, non_blocking=True)

    @cached_property
    def gram(self) -> Tensor:
        """[S, S] dot products of the rows over their common entries, in float64; not to be written to."""
        total = self.new(self.num_tasks, self.num_tasks)
        alone: dict[int, list[Tensor]] = {}
        for block, part in zip(self.blocks, self.block_grams, strict=True):
            tasks, part = self.rows_in(block), part.to(total.device, non_blocking=True)
            if len(tasks) == 1:
                alone.setdefault(tasks[0], []).append(part.reshape(()))
            elif len(tasks) == len(total):
                total += part
            else:
                index = index_on(tasks, total.device)
                total.index_put_((index[:, None], index[None, :]), part, accumulate=True)
        if alone:
            squares = torch.stack([torch.stack(parts).sum() for parts in alone.values()])
            total.diagonal().index_add_(0, index_on(tuple(alone), total.device), squares)
        return total

    @cached_property
    def block_grams(self) -> list[Tensor]:
        """For each block the dot products [r, r] over its entries of ``rows_in(block)``."""
        if self.mixing is None:
            return [block.gram for block in self.blocks]
        if self.is_diagonal:  # scaling needs no second look at the entries
            scales = self.mixing.diagonal()
            grams = []
            for block in self.blocks:
                part = scales.index_select(0, index_on(block.tasks, scales.device))
                part = part.to(block.values.device, non_blocking=True)
                grams.append(part[:, None] * block.gram * part)
            return grams
        mixed = [block.mixed_gram(self._mixing_for(block)) for block in self.blocks]
        return mixed if self.across is None else self.across(mixed)

    def tensors(self) -> list[list[Tensor | None]]:
        """The rows themselves, ``[i][p]`` as given to ``stack``; mixed ones rounded once."""
        out: list[list[Tensor | None]] = [[None] * len(self.layouts) for _ in range(self.num_tasks)]
        for block in self.blocks:
            mixing = None if self.mixing is None else self._mixing_for(block)
            for a, i in enumerate(self.rows_in(block)):
                flat = block.values[a] if mixing is None else block.combine(mixing[a])
                for p, tensor in self.split(block, flat):
                    out[i][p] = tensor
        return out

    def split(self, block: Block, flat: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Views of a block's [Pb] entries as ``(position, tensor)``, in the tensors' layouts."""
        layouts = [layout for p in block.members if (layout := self.layouts[p]) is not None]
        pieces = torch.split_with_sizes(flat, [layout.numel for layout in layouts])
        for p, layout, piece in zip(block.members, layouts, pieces, strict=True):
            yield p, layout.unflat(piece)
