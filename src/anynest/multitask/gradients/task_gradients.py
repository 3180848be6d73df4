r"""Gradients of S tasks with respect to a list of tensors, and linear maps of them.

Shape suffixes: S tasks, k tasks that touch a block, r rows of a mapped block, P entries.

Tensors (parameters) that the same tasks touch, on one device and of one dtype, form a *block*. A
task has no entries in a tensor that it does not touch, so dot products run over common entries and
nothing is padded with zeros. Large gradients stay where autograd put them; small ones of a block
are concatenated. The entries are read twice, in chunks that fit in a CPU's second-level cache: for
the Gram matrix and for the final sum. Either is to be had in two precisions:

- in float64, each entry converted: ``gram`` and ``Block.combine``;
- float32 gradients on a CPU in float32, several times as fast: ``fast_gram`` adds up dot products
  of at most 32,768 entries in float64, and ``Block.combine`` of a list rounds once per task.
  Such a dot product is off by 1e-7 to 2e-7 of the product of the norms: where a processor's kernel
  loses more, dot products are shorter (``longest_dot``). In the worst case, where all products of
  entries are equal, so that their rounding is, too, 7e-6 were measured.

``rules`` decides which of them a step needs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from .diagonal import Diagonal, Metric, joined

Grads = Sequence[Tensor | None]

# Entries at a time, of all rows together on a CPU, where they stay in cache (in float64 a quarter
# of them), of each row on a GPU, where few kernel launches matter more.
CHUNK_CPU = 1 << 18
CHUNK_GPU = 1 << 22
# The most float32 products of one float32 sum, and what it may lose of the product of the norms.
LONGEST_DOT, MOST_LOST = 1 << 15, 2e-7
LEAST_FAST = 1 << 14  # entries of a gradient from which float32 saves a noticeable time
# Tensors with fewer entries are concatenated: a copy then costs less than operations of their own.
SMALL_CPU = 1 << 14
SMALL_GPU = 1 << 20


def wide_dtype(device: torch.device) -> torch.dtype:
    """float64, the dtype of S x S numbers (float32 on MPS, which has no float64)."""
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


# In C++: a flat tensor of several ones' entries, and views of a flat one like several ones.
_flatten = torch._C._nn.flatten_dense_tensors
_unflatten = torch._C._nn.unflatten_dense_tensors


def _owners(tensor: Tensor) -> int:
    storage = tensor.untyped_storage()
    return int(torch._C._storage_Use_Count(storage._cdata))


_ONE_OWNER = _owners(torch.empty(1))


def owns_its_memory(tensor: Tensor) -> bool:
    """Whether no other tensor, of Python or of autograd, shares the tensor's memory.

    Two gradients may be one tensor, or a view of an activation or of a tensor that a hook kept.
    """
    nbytes = tensor.untyped_storage().nbytes()
    return nbytes == tensor.nbytes and _owners(tensor) == _ONE_OWNER


def flattened(tensor: Tensor) -> Tensor:
    """[P] the entries of a dense tensor in the order of its memory: a view."""
    return tensor.as_strided((tensor.numel(),), (1,))


def with_layout_of(grad: Tensor, like: Tensor) -> Tensor:
    """The gradient, copied unless its strides are those of a new tensor like ``like``."""
    if like.is_contiguous():
        return grad.contiguous()
    wanted = torch.empty_like(like, device="meta").stride()
    if grad.stride() == wanted:
        return grad
    return torch.empty_strided(grad.shape, wanted, dtype=grad.dtype, device=grad.device).copy_(grad)


@lru_cache
def longest_dot(threads: int) -> int:
    """As many float32 products as this processor sums in float32 within ``MOST_LOST``.

    Kernels differ in how many partial sums they have. Measured on one thread, an AMD EPYC loses
    1.3e-7 of 4,096 products of like sign and 5e-7 of 32,768.

    Args:
        threads: within one kernel, as ``torch.get_num_threads`` tells; they share a sum.
    """
    # whatever the caller's default device and dtype are
    kind: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
    generator = torch.Generator("cpu").manual_seed(0)
    rows = torch.randn(64, LONGEST_DOT, generator=generator, **kind) + 0.5
    size = LONGEST_DOT
    while size > 1 << 12:
        squares = [(torch.dot(row, row).item(), row.double().square().sum().item()) for row in rows]
        if max(abs(found / exact - 1) for found, exact in squares) <= MOST_LOST:
            break
        size //= 2
        rows = rows[:, :size]
    return size


def fast_dots(rows: Sequence[Tensor], metric: Diagonal | None = None) -> list[list[float]]:
    """[k, k], j <= i: dot products of float32 vectors, of each chunk in float32, then in float64."""
    k = len(rows)
    step = min(longest_dot(torch.get_num_threads()), CHUNK_CPU // k)
    chunks: Iterator[Sequence[Tensor]] = _split(rows, step)
    if metric is not None:
        chunks = (chunk.unbind() for _, chunk in _copies(rows, step, torch.float32, metric))
    dots = [[0.0] * k for _ in rows]
    for parts in chunks:
        for i in range(k):
            for j in range(i + 1):
                dots[i][j] += torch.dot(parts[i], parts[j]).item()
    return dots


def fast_sum(rows: Sequence[Tensor], weights: Sequence[float], first: int, out: Tensor) -> None:
    """``out = sum_a weights[a] * rows[a]`` in float32, beginning with ``first``, which may be out."""
    others = [a for a in range(len(rows)) if a != first]
    is_there = weights[first] == 1.0 and out.data_ptr() == rows[first].data_ptr()
    for total, *parts in _split([out, *rows], CHUNK_CPU // len(rows)):
        if not is_there:
            torch.mul(parts[first], weights[first], out=total)
        for a in others:
            total.add_(parts[a], alpha=weights[a])


def _split(rows: Sequence[Tensor], step: int) -> Iterator[Sequence[Tensor]]:
    """Chunks of all rows."""
    if rows[0].numel() <= step:
        return iter([rows])
    return zip(*(torch.split(row, step) for row in rows), strict=True)


def _copies(
    rows: Sequence[Tensor], step: int, dtype: torch.dtype, metric: Diagonal | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """``(where, [k, n])``: chunks of rows, times the root of D; each overwritten by the next."""
    size = rows[0].numel()
    step = min(step, size) or 1
    room = torch.empty((len(rows), step), dtype=dtype, device=rows[0].device)
    for start in range(0, size, step):
        where = slice(start, min(start + step, size))
        chunk = room[:, : where.stop - start]
        if metric is None:
            torch._foreach_copy_(list(chunk.unbind()), [row[where] for row in rows])
        else:
            root = metric.root(where, dtype)
            for out, row in zip(chunk, rows, strict=True):
                torch.mul(row[where], root, out=out)
        yield where, chunk


def _apart(views: list[Tensor], like: Sequence[Tensor | None]) -> list[Tensor]:
    """Each view as a tensor of its own, with the layout of its parameter."""
    copies = torch._foreach_mul(views, 1.0)
    return [
        copy if tensor is None or tensor.is_contiguous() else with_layout_of(copy, tensor)
        for copy, tensor in zip(copies, like, strict=True)
    ]


@dataclass(frozen=True, eq=False)
class Block:
    """Entries that exactly ``tasks`` touch: those of one large tensor, or of small ones together.

    Attributes:
        tasks: k tasks.
        members: the tensors' positions.
        rows: for each task its dense gradient, or [P] of small ones that were concatenated.
        concatenated: whether the rows are such copies.
        metric: that of dot products, over the entries in the order of ``flat``.
        whole_gram: [S, S] the dot products of the whole gradients, of which each rank has a piece.
        whole_size: their number of entries.
    """

    tasks: tuple[int, ...]
    members: tuple[int, ...]
    rows: list[Tensor]
    concatenated: bool
    metric: Diagonal | None = None
    whole_gram: Tensor | None = None
    whole_size: int | None = None

    @property
    def device(self) -> torch.device:
        return self.rows[0].device

    @property
    def dtype(self) -> torch.dtype:
        return self.rows[0].dtype

    @property
    def size(self) -> int:
        """Entries of one gradient, those on other ranks included."""
        return self.rows[0].numel() if self.whole_size is None else self.whole_size

    @cached_property
    def may_be_fast(self) -> bool:
        """Whether float32 dot products and sums are to be had."""
        return self.dtype == torch.float32 and self.device.type == "cpu"

    def flat(self) -> list[Tensor]:
        """[P] for each row: views."""
        return self.rows if self.concatenated else [flattened(row) for row in self.rows]

    def unpack(self, row: Tensor, like: Sequence[Tensor | None]) -> list[Tensor]:
        """The members' parts of a row: views, or the row itself."""
        if not self.concatenated:
            return [row]
        shapes = [tensor for p in self.members if (tensor := like[p]) is not None]
        return list(_unflatten(row, shapes))

    def _chunks(self, metric: Diagonal | None = None) -> Iterator[tuple[slice, Tensor]]:
        step = CHUNK_CPU // (4 * len(self.rows)) if self.device.type == "cpu" else CHUNK_GPU
        return _copies(self.flat(), step, wide_dtype(self.device), metric)

    @cached_property
    def gram(self) -> Tensor:
        """[k, k] dot products of the stored gradients, in float64; [S, S] of the whole ones."""
        return self.mixed_gram(None) if self.whole_gram is None else self.whole_gram

    def mixed_gram(self, mixing_rk: Tensor | None) -> Tensor:
        """[r, r] dot products of ``mixing @ stored``; the mixing precedes the dot products."""
        size = len(self.tasks) if mixing_rk is None else len(mixing_rk)
        gram = torch.zeros((size, size), dtype=wide_dtype(self.device), device=self.device)
        for _, chunk in self._chunks(self.metric):
            mixed = chunk if mixing_rk is None else mixing_rk @ chunk
            gram.addmm_(mixed, mixed.T)
        return gram

    def combine(
        self, weights_k: Tensor | list[float], like: Sequence[Tensor | None], in_place: bool = False
    ) -> list[Tensor]:
        """``sum_a weights[a] * stored[a]`` of each member, rounded to the dtype.

        The results are no views, and each has its own memory; ``in_place``: it may be that of a
        gradient which nobody else holds. The sum is in float64 for a tensor of weights, in float32
        for a list.
        """
        first = len(self.tasks) - 1
        if isinstance(weights_k, list):  # begin with a row that needs no multiplication
            first = max(range(first + 1), key=lambda a: (weights_k[a] == 1.0, a))
        row = self.rows[first]
        out = row if in_place and self.owns(row) else torch.empty_like(row)
        if isinstance(weights_k, list):
            fast_sum(self.flat(), weights_k, first, flattened(out))
        else:
            for where, chunk in self._chunks():
                # a single row is multiplied, not added to zero: 1.0 * g keeps the bits of g
                one = len(chunk) == 1
                flattened(out)[where] = chunk[0] * weights_k[0] if one else weights_k @ chunk
        parts = self.unpack(out, like)
        return _apart(parts, [like[p] for p in self.members]) if self.concatenated else parts

    def owns(self, row: Tensor) -> bool:
        """Whether nobody else holds a row's memory."""
        return self.concatenated or owns_its_memory(row)


@dataclass(frozen=True, eq=False)
class TaskGradients:
    """One gradient per task, each absent in the tensors that its task does not touch.

    Represents ``mixing @ stored`` (``stored`` where ``mixing`` is None). ``reads[i]`` lists the
    stored gradients that row i may depend on: ``(i,)`` for all means a diagonal mixing. ``across``
    sums the blocks' Gram matrices over ranks where each rank stores a piece of the gradients.
    """

    num_tasks: int
    blocks: tuple[Block, ...]
    like: tuple[Tensor | None, ...]
    reads: tuple[tuple[int, ...], ...]
    mixing: Tensor | None = None
    across: Callable[[list[Tensor]], list[Tensor]] | None = None

    @classmethod
    def stack(
        cls,
        grads: Sequence[Grads],
        like: Sequence[Tensor] | None = None,
        tensorwise: bool = False,
        metric: Metric | None = None,
        sizes: Sequence[int] | None = None,
    ) -> "TaskGradients":
        """Collect ``grads[i][p]``, the gradient of task i in tensor p (None: not touched).

        Args:
            grads: one sequence per task. Large gradients are not copied and must not be modified.
            like: tensors whose memory layout the results have, such as the parameters; None for
                the layout of the first gradient found.
            tensorwise: give each tensor a block of its own.
            metric: that of dot products, by tensor; ignored if it lacks a tensor that is touched.
            sizes: of each tensor, what decides whether it is a block of its own; None: its entries.
                Ranks whose shards differ in size must have equal blocks.

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
        groups: dict[tuple[object, ...], list[int]] = {}
        columns: dict[int, list[Tensor]] = {}
        likes: list[Tensor | None] = [None] * width
        touching: dict[int, tuple[int, ...]] = {}
        large: dict[int, bool] = {}
        for p in range(width):
            tasks = tuple([i for i, row in enumerate(grads) if row[p] is not None])
            if tasks:
                touching[p] = tasks
                columns[p] = [grad for row in grads if (grad := row[p]) is not None]
                first = columns[p][0]
                likes[p] = first if like is None else like[p]
                size = first.numel() if sizes is None else sizes[p]
                large[p] = _is_large(size, first.device)
                own = p if tensorwise or large[p] else None
                groups.setdefault((tasks, first.device, first.dtype, own), []).append(p)
        if metric is not None and any(metric[p] is None for p in columns):
            metric = None
        blocks = tuple(
            _block(touching[members[0]], members, columns, likes, metric, large[members[0]])
            for members in groups.values()
        )
        return cls(len(grads), blocks, tuple(likes), tuple((i,) for i in range(len(grads))))

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

    def mixed(
        self, matrix_SS: Tensor, reads: tuple[tuple[int, ...], ...] | None = None
    ) -> "TaskGradients":
        """``matrix @ self``; ``reads`` as in the class (None: a diagonal matrix)."""
        mixing = matrix_SS if self.mixing is None else matrix_SS @ self.mixing
        return replace(self, mixing=mixing, reads=self.reads if reads is None else reads)

    def reads_up_to(self, order: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """``reads`` of rows that each depend on their own and all earlier ones in an order."""
        reads: list[tuple[int, ...]] = [()] * self.num_tasks
        seen: set[int] = set()
        for i in order:
            seen.update(self.reads[i])
            reads[i] = tuple(sorted(seen))
        return tuple(reads)

    def in_terms_of_stored(self, weights_S: Tensor) -> Tensor:
        """[S] the v with ``v @ stored = weights @ self``."""
        return weights_S if self.mixing is None else weights_S @ self.mixing

    def rows_in(self, block: Block) -> tuple[int, ...]:
        """The rows that may have entries in a block."""
        touched = set(block.tasks)
        return tuple([i for i, read in enumerate(self.reads) if touched.intersection(read)])

    @cached_property
    def stored_grams(self) -> list[Tensor]:
        """[S, S] for each block: the dot products of ``stored`` over its entries, in float64."""
        return [self._spread(block.gram, block.tasks) for block in self.blocks]

    @cached_property
    def block_grams(self) -> list[Tensor]:
        """[S, S] for each block: the dot products over its entries, in float64."""
        if self.mixing is None:
            return self.stored_grams
        if all(read == (i,) for i, read in enumerate(self.reads)):
            scales = self.mixing.diagonal()  # no need to read the entries again
            return [scales[:, None] * gram * scales for gram in self.stored_grams]
        grams = [
            self._spread(block.mixed_gram(self._mixing_for(block)), self.rows_in(block))
            for block in self.blocks
        ]
        return grams if self.across is None else self.across(grams)

    def _spread(self, gram: Tensor, rows: tuple[int, ...]) -> Tensor:
        """[S, S] a Gram matrix of some rows; 0 for the others."""
        gram = gram.to(self.device, non_blocking=True)
        if len(gram) == self.num_tasks:
            return gram
        index, whole = index_on(rows, self.device), self.new(self.num_tasks, self.num_tasks)
        return whole.index_put_((index[:, None], index), gram)

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
        return sum(self.block_grams, start=self.new(self.num_tasks, self.num_tasks))

    @cached_property
    def may_be_fast(self) -> bool:
        """Whether float32 saves time: see ``Block.may_be_fast``."""
        return sum(block.size for block in self.blocks if block.may_be_fast) >= LEAST_FAST

    @cached_property
    def fast_gram(self) -> Tensor | None:
        """``gram`` with float32 dot products; None for mapped gradients and where none are fast."""
        if self.mixing is not None or self.across is not None or not self.may_be_fast:
            return None
        total = [[0.0] * self.num_tasks for _ in range(self.num_tasks)]
        for block in self.blocks:
            fast = block.may_be_fast
            part = fast_dots(block.flat(), block.metric) if fast else block.gram.tolist()
            for a, i in enumerate(block.tasks):
                for b, j in enumerate(block.tasks[: a + 1]):
                    total[i][j] += part[a][b]
                    total[j][i] = total[i][j]
        return torch.tensor(total, dtype=torch.float64)

    @property
    def known_gram(self) -> Tensor:
        """The better one of those that were computed."""
        fast = None if "gram" in self.__dict__ else self.fast_gram
        return self.gram if fast is None else fast

    def combine(
        self,
        weights_S: Tensor,
        importances: Sequence[float] | None = None,
        *,
        in_place: bool = False,
        fast: bool = False,
    ) -> list[Tensor | None]:
        """``weights @ self``, by position; see ``rules.weighted_sum`` and ``Block.combine``.

        Args:
            weights_S: [S], or [T, S] for each of T blocks.
            importances: as in ``rules.weighted_sum``.
            in_place: overwrite gradients that nobody else holds.
            fast: compute in float32 where that is to be had.
        """
        stored = self.in_terms_of_stored(weights_S.to(self.device, wide_dtype(self.device)))
        update: list[Tensor | None] = [None] * len(self.like)
        for number, block in enumerate(self.blocks):
            part = stored if stored.dim() == 1 else stored[number]
            if len(block.tasks) < self.num_tasks:
                part = part.index_select(0, index_on(block.tasks, part.device))
            if importances is not None:
                part = part / sum(importances[i] for i in block.tasks)
            part = part.to(block.device, non_blocking=True)
            chosen = part.tolist() if fast and block.may_be_fast else part
            tensors = block.combine(chosen, self.like, in_place)
            for p, tensor in zip(block.members, tensors, strict=True):
                update[p] = tensor
        return update

    def tensors(self) -> list[list[Tensor | None]]:
        """The gradients themselves, ``[i][p]`` as given to ``stack``; mixed ones rounded once."""
        out: list[list[Tensor | None]] = [[None] * len(self.like) for _ in range(self.num_tasks)]
        for block in self.blocks:
            if self.mixing is None:
                rows = [block.unpack(row, self.like) for row in block.rows]
            else:
                rows = [block.combine(weights, self.like) for weights in self._mixing_for(block)]
            for i, parts in zip(self.rows_in(block), rows, strict=True):
                for p, part in zip(block.members, parts, strict=True):
                    out[i][p] = part
        return out


def _is_large(size: int, device: torch.device) -> bool:
    return size >= (SMALL_CPU if device.type == "cpu" else SMALL_GPU)


def _block(
    tasks: tuple[int, ...],
    members: Sequence[int],
    columns: Mapping[int, list[Tensor]],
    like: Sequence[Tensor | None],
    metric: Metric | None,
    is_large: bool,
) -> Block:
    """One large tensor where it is, or small ones concatenated."""
    p = members[0]
    tensor = like[p]
    assert tensor is not None
    diagonals = [] if metric is None else [d for p in members if (d := metric[p]) is not None]
    if is_large:
        # detached, so that a view of memory of its own is no view any more
        rows = [with_layout_of(grad, tensor).detach() for grad in columns[p]]
        root = diagonals and diagonals[0].map(lambda t: flattened(with_layout_of(t, tensor)))
        return Block(tasks, (p,), rows, False, root or None)
    by_task = zip(*[columns[p] for p in members], strict=True)
    flat = _flatten([grad for row in by_task for grad in row])
    rows = list(flat.view(len(tasks), -1).unbind())
    together = joined([d.map(torch.flatten) for d in diagonals]) if diagonals else None
    return Block(tasks, tuple(members), rows, True, together)
