r"""Gradients of S tasks with respect to a list of tensors, and linear maps of them.

Shape suffixes: S tasks, k tasks that touch a block, r rows of a mapped block, P entries.

Tensors (parameters) that the same tasks touch, on one device and of one dtype, form a *block*. A
task has no entries in a tensor that it does not touch, so dot products run over common entries and
nothing is padded with zeros. Large gradients are used where autograd put them; small ones of a
block are concatenated. ``TaskGradients`` represents ``mixing @ stored`` without computing it, so
that scaling and projecting cost S x S numbers. The entries are read twice: for the Gram matrix and
for the final sum, in chunks converted to float64 that fit in a CPU's second-level cache.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from math import prod

import torch
from torch import Tensor

Grads = Sequence[Tensor | None]

# Entries converted to float64 at a time: of all rows together on a CPU, where they stay in cache;
# of each row on a GPU, where few kernel launches matter more.
CHUNK_CPU = 1 << 16
CHUNK_GPU = 1 << 22
# Tensors with fewer entries are concatenated: a copy then costs less than operations of their own.
SMALL_CPU = 1 << 14
SMALL_GPU = 1 << 20


def wide_dtype(device: torch.device) -> torch.dtype:
    """float64, the dtype of all dot products and sums (float32 on MPS, which has no float64)."""
    return torch.float32 if device.type == "mps" else torch.float64


@lru_cache(maxsize=512)
def index_on(tasks: tuple[int, ...], device: torch.device) -> Tensor:
    """Task numbers as an index tensor, cached so that a step copies nothing to a GPU."""
    return torch.tensor(tasks, dtype=torch.long, device=device)


@lru_cache(maxsize=512)
def numbers_on(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Constants in ``wide_dtype``, cached like ``index_on``; must not be modified."""
    return torch.tensor(values, dtype=wide_dtype(device), device=device)


@lru_cache(maxsize=1)
def keep_freed_memory() -> None:
    """Let glibc reuse a step's freed memory in the next step, once per process.

    By default it returns freed memory to the system above a threshold, and every step then pays
    for the page faults. Freeing one large block raises the threshold to twice its size (mallopt(3),
    M_TRIM_THRESHOLD; at most 64 MiB). The block itself is never touched.
    """
    torch.empty(31 << 20, dtype=torch.uint8)


@dataclass(frozen=True)
class Layout:
    """A tensor's shape and the order of its dimensions in memory (None: contiguous)."""

    shape: tuple[int, ...]
    order: tuple[int, ...] | None
    strides: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> "Layout":
        shape, strides = tuple(tensor.shape), tuple(tensor.stride())
        if not tensor.is_contiguous():
            order = tuple(sorted(range(len(strides)), key=lambda d: -strides[d]))
            if tensor.permute(order).is_contiguous():
                return cls(shape, order, strides)
        return cls(shape, None, strides)

    @property
    def numel(self) -> int:
        return prod(self.shape)

    def flat(self, tensor: Tensor) -> Tensor:
        """[P] entries in memory order: a view if the tensor has this layout, else a copy."""
        return (tensor if self.order is None else tensor.permute(self.order)).reshape(-1)

    def unflat(self, flat: Tensor) -> Tensor:
        """A view of [P] entries with this shape and these strides."""
        if self.order is None:
            return flat.view(self.shape)
        inverse = sorted(range(len(self.order)), key=self.order.__getitem__)
        return flat.view([self.shape[d] for d in self.order]).permute(inverse)

    def empty(self, like: Tensor) -> Tensor:
        """A new tensor, not a view, of this shape and these strides; dtype and device of like."""
        if self.order is None:
            return like.new_empty(self.shape)
        return like.new_empty_strided(self.shape, self.strides)


@dataclass(frozen=True, eq=False)
class Segment:
    """Consecutive entries of a block: ``rows[a]`` [P] are those of the block's a-th task."""

    members: tuple[int, ...]
    rows: tuple[Tensor, ...]

    @property
    def size(self) -> int:
        return self.rows[0].numel()


@dataclass(frozen=True, eq=False)
class Block:
    """Tensors of one device and dtype that exactly ``tasks`` touch.

    Where each rank stores a piece of every gradient, ``whole_gram`` has the dot products of the
    whole gradients and ``whole_size`` their number of entries.
    """

    tasks: tuple[int, ...]
    segments: tuple[Segment, ...]
    whole_gram: Tensor | None = None
    whole_size: int | None = None

    @property
    def members(self) -> tuple[int, ...]:
        """Positions of the block's tensors."""
        return tuple(p for segment in self.segments for p in segment.members)

    @property
    def device(self) -> torch.device:
        return self.segments[0].rows[0].device

    @property
    def dtype(self) -> torch.dtype:
        return self.segments[0].rows[0].dtype

    @property
    def size(self) -> int:
        """Entries of one gradient, those on other ranks included."""
        stored = sum(segment.size for segment in self.segments)
        return stored if self.whole_size is None else self.whole_size

    def _chunks(self, segment: Segment, room: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """``(where, [k, n] in float64)``; each chunk is overwritten by the next."""
        size, step = segment.size, room.shape[1]
        for start in range(0, size, step or 1):
            where = slice(start, min(start + step, size))
            chunk = room[:, : where.stop - start]
            torch._foreach_copy_(list(chunk.unbind()), [row[where] for row in segment.rows])
            yield where, chunk

    def _room(self) -> Tensor:
        """[k, n] room for a chunk."""
        k, longest = len(self.tasks), max(segment.size for segment in self.segments)
        step = min(longest, -(-CHUNK_CPU // k) if self.device.type == "cpu" else CHUNK_GPU)
        return torch.empty((k, step), dtype=wide_dtype(self.device), device=self.device)

    @cached_property
    def gram(self) -> Tensor:
        """[k, k] dot products of the stored gradients, accumulated in float64."""
        return self.mixed_gram(None) if self.whole_gram is None else self.whole_gram

    def mixed_gram(self, mixing_rk: Tensor | None) -> Tensor:
        """[r, r] dot products of ``mixing @ stored``; the mixing precedes the dot products."""
        wide = wide_dtype(self.device)
        if len(self.tasks) == 1 and mixing_rk is None and self.size <= CHUNK_CPU:
            norms = [torch.linalg.vector_norm(part.rows[0], dtype=wide) for part in self.segments]
            return torch.stack(norms).square().sum().reshape(1, 1)
        size = len(self.tasks) if mixing_rk is None else mixing_rk.shape[0]
        gram = torch.zeros((size, size), dtype=wide, device=self.device)
        room = self._room()
        for segment in self.segments:
            for _, chunk in self._chunks(segment, room):
                mixed = chunk if mixing_rk is None else mixing_rk @ chunk
                gram.addmm_(mixed, mixed.T)
        return gram

    def combine(self, weights_k: Tensor, layouts: Sequence[Layout | None]) -> dict[int, Tensor]:
        """``sum_a weights[a] * stored[a]`` by position, in float64, rounded once to the dtype.

        The results are new tensors, none a view of another.
        """
        room = self._room()
        found: dict[int, Tensor] = {}
        for segment in self.segments:
            first = segment.rows[0]
            known = [layout for p in segment.members if (layout := layouts[p]) is not None]
            tensors = [layout.empty(first) for layout in known]
            parts = [layout.flat(tensor) for layout, tensor in zip(known, tensors, strict=True)]
            flat = parts[0] if len(parts) == 1 else torch.empty_like(first)
            for where, chunk in self._chunks(segment, room):
                # a single row is multiplied, not added to zero: 1.0 * g keeps the bits of g
                one = len(chunk) == 1
                flat[where].copy_(chunk[0].mul_(weights_k[0]) if one else weights_k @ chunk)
            if len(parts) > 1:
                sizes = [part.numel() for part in parts]
                torch._foreach_copy_(parts, list(torch.split_with_sizes(flat, sizes)))
            found.update(zip(segment.members, tensors, strict=True))
        return found


@dataclass(frozen=True, eq=False)
class TaskGradients:
    """One gradient per task, each absent in the tensors that its task does not touch.

    Represents ``mixing @ stored`` (``stored`` where ``mixing`` is None). ``reads[i]`` lists the
    stored gradients that row i may depend on: ``(i,)`` for all means a diagonal mixing. ``across``
    sums the blocks' Gram matrices over ranks where each rank stores a piece of the gradients.
    """

    num_tasks: int
    blocks: tuple[Block, ...]
    layouts: tuple[Layout | None, ...]
    reads: tuple[tuple[int, ...], ...]
    mixing: Tensor | None = None
    across: Callable[[list[Tensor]], list[Tensor]] | None = None

    @classmethod
    def stack(
        cls,
        grads: Sequence[Grads],
        like: Sequence[Tensor] | None = None,
        tensorwise: bool = False,
    ) -> "TaskGradients":
        """Collect ``grads[i][p]``, the gradient of task i in tensor p (None: not touched).

        Args:
            grads: one sequence per task. Large gradients are not copied and must not be modified.
            like: tensors whose memory layout the results have, such as the parameters; None for
                the layout of the first gradient found.
            tensorwise: give each tensor a block of its own.

        Raises:
            ValueError: if there is no task or the tasks differ in the number of tensors.
        """
        if not grads:
            raise ValueError("gradients must be of at least one task, found none")
        keep_freed_memory()
        width = len(grads[0])
        for i, row in enumerate(grads):
            if len(row) != width:
                raise ValueError(
                    f"every task must cover the same tensors: task 0 has {width}, task {i} has"
                    f" {len(row)}; put None where a task has no gradient"
                )
        groups: dict[tuple[object, ...], tuple[tuple[int, ...], list[int]]] = {}
        layouts: list[Layout | None] = [None] * width
        for p in range(width):
            tasks = tuple(i for i, row in enumerate(grads) if row[p] is not None)
            if not tasks:
                continue
            first = grads[tasks[0]][p]
            assert first is not None
            layouts[p] = Layout.of(first if like is None else like[p])
            key = (tasks, first.device, first.dtype, p if tensorwise else None)
            groups.setdefault(key, (tasks, []))[1].append(p)
        blocks = tuple(
            Block(tasks, tuple(_segments(grads, layouts, tasks, members)))
            for tasks, members in groups.values()
        )
        return cls(len(grads), blocks, tuple(layouts), tuple((i,) for i in range(len(grads))))

    def with_blocks(self, blocks: tuple[Block, ...]) -> "TaskGradients":
        """The same gradients over some of the blocks, or over others of the same tensors."""
        return replace(self, blocks=blocks)

    @property
    def device(self) -> torch.device:
        """The device of S x S numbers: that of the first block."""
        return self.blocks[0].device if self.blocks else torch.device("cpu")

    def new(self, *shape: int) -> Tensor:
        """Zeros of the dtype and device of S x S numbers."""
        return torch.zeros(shape, dtype=wide_dtype(self.device), device=self.device)

    @property
    def sizes(self) -> tuple[int, ...]:
        """d_i of the paper: the number of entries of each task's gradient."""
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
        """``matrix @ self``; ``reads`` as in the class (None: a diagonal matrix)."""
        mixing = matrix_SS if self.mixing is None else matrix_SS @ self.mixing
        return replace(self, mixing=mixing, reads=self.reads if reads is None else reads)

    def in_terms_of_stored(self, weights_S: Tensor) -> Tensor:
        """[S] the v with ``v @ stored = weights @ self``."""
        return weights_S if self.mixing is None else weights_S @ self.mixing

    def rows_in(self, block: Block) -> tuple[int, ...]:
        """The rows that may have entries in a block."""
        touched = set(block.tasks)
        return tuple(i for i, read in enumerate(self.reads) if touched.intersection(read))

    def _mixing_for(self, block: Block) -> Tensor:
        """[r, k] the part of the mixing that maps a block's stored rows to ``rows_in(block)``."""
        assert self.mixing is not None
        device = self.mixing.device
        part = self.mixing.index_select(0, index_on(self.rows_in(block), device))
        part = part.index_select(1, index_on(block.tasks, device))
        return part.to(block.device, non_blocking=True)

    @cached_property
    def gram(self) -> Tensor:
        """[S, S] dot products over common entries, in float64; must not be modified."""
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
        """[r, r] for each block: the dot products of ``rows_in(block)`` over its entries."""
        if self.mixing is None:
            return [block.gram for block in self.blocks]
        if self.is_diagonal:  # scaling does not need to read the entries again
            scales = self.mixing.diagonal()
            grams = []
            for block in self.blocks:
                part = scales.index_select(0, index_on(block.tasks, scales.device))
                part = part.to(block.device, non_blocking=True)
                grams.append(part[:, None] * block.gram * part)
            return grams
        mixed = [block.mixed_gram(self._mixing_for(block)) for block in self.blocks]
        return mixed if self.across is None else self.across(mixed)

    def tensors(self) -> list[list[Tensor | None]]:
        """The gradients themselves, ``[i][p]`` as given to ``stack``; mixed ones rounded once."""
        out: list[list[Tensor | None]] = [[None] * len(self.layouts) for _ in range(self.num_tasks)]
        for block in self.blocks:
            if self.mixing is not None:
                for i, weights_k in zip(self.rows_in(block), self._mixing_for(block), strict=True):
                    for p, tensor in block.combine(weights_k, self.layouts).items():
                        out[i][p] = tensor
                continue
            for segment in block.segments:
                known = [(p, lay) for p in segment.members if (lay := self.layouts[p]) is not None]
                sizes = [layout.numel for _, layout in known]
                for i, row in zip(block.tasks, segment.rows, strict=True):
                    parts = torch.split_with_sizes(row, sizes)
                    for (p, layout), part in zip(known, parts, strict=True):
                        out[i][p] = layout.unflat(part)
        return out


def _segments(
    grads: Sequence[Grads],
    layouts: Sequence[Layout | None],
    tasks: tuple[int, ...],
    members: Sequence[int],
) -> Iterator[Segment]:
    """A segment for each large tensor, and one for all small ones together."""
    flat: dict[int, list[Tensor]] = {
        p: [
            layout.flat(grad)
            for i in tasks
            if (grad := grads[i][p]) is not None and (layout := layouts[p]) is not None
        ]
        for p in members
    }
    small = SMALL_CPU if flat[members[0]][0].device.type == "cpu" else SMALL_GPU
    together = [p for p in members if flat[p][0].numel() < small]
    if together:
        rows = (torch.cat([flat[p][a] for p in together]) for a in range(len(tasks)))
        yield Segment(tuple(together), tuple(rows))
    for p in members:
        if flat[p][0].numel() >= small:
            yield Segment((p,), tuple(flat[p]))
