"""Multi-process coordination under torchrun.

Every rank holds the same weights, running statistics and optimizer state at every step; only its
part of each batch is its own. Rank 0 alone reads and writes the run folder and reports to the user;
its results and its errors are broadcast, so that all ranks continue or stop alike.

The processes are found in the environment (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT),
or in a process group that the caller has initialized.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .._collectives import Collectives
from .errors import ConfigError, RunError, RunFolderError
from .rendezvous import join_store

# errors of rank 0 that are raised again on every rank, by name
ERRORS: dict[str, type[Exception]] = {
    kind.__name__: kind for kind in (ConfigError, RunFolderError, RunError, ValueError, OSError)
}


@dataclass
class World:
    """The processes of a run. Without arguments: one process, which communicates with none."""

    rank: int = 0
    size: int = 1
    local_rank: int | None = None
    group: Any = None
    link: Collectives | None = field(default=None, repr=False)

    @property
    def leads(self) -> bool:
        """Whether this process is rank 0."""
        return self.rank == 0

    def part(self) -> dict[str, int]:
        """This rank's part of every batch, as arguments of ``make_loader``."""
        return {"rank": self.rank, "world": self.size}

    def run_on_rank_zero(self, work: Callable[[], bytes | None]) -> bytes | None:
        """Call ``work`` on rank 0 alone; its result is returned, or its error raised, on all."""
        if self.link is None:
            return work()
        data, error = None, None
        if self.leads:
            try:
                data = work()
            except tuple(ERRORS.values()) as found:
                error = found
        sent = b"" if data is None else data
        if error is not None:
            kind = next(k.__name__ for k in type(error).__mro__ if k.__name__ in ERRORS)
            sent = json.dumps([kind, " ".join(str(error).split())]).encode()
        received, state = self._broadcast(sent, 2 if error is not None else data is not None)
        if error is not None:
            raise error
        if state == 2:
            kind, message = json.loads(received)
            raise ERRORS[kind](message)
        return received if state else None

    def _broadcast(self, data: bytes, state: int) -> tuple[bytes, int]:
        assert self.link is not None
        length, state = (int(n) for n in self.link.compare([len(data), state])[0])
        buffer = torch.empty(length, dtype=torch.uint8)
        if self.leads and length:
            buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        if length:
            host = self.link.host_group()
            dist.broadcast(buffer, dist.get_global_rank(host, 0), group=host)
        return buffer.numpy().tobytes(), state

    def gather(self, data: bytes) -> list[bytes]:
        """Every rank's bytes, on every rank."""
        if self.link is None:
            return [data]
        lengths = [int(row[0]) for row in self.link.compare([len(data)])]
        padded = data.ljust(max(1, *lengths), b"\0")
        found = self.link.compare_bytes(padded)
        return [whole[:length] for whole, length in zip(found, lengths, strict=True)]

    def total(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Sums over ranks of tensors of one dtype and device."""
        if self.link is None:
            return list(tensors)
        flat = self.link.all_reduce(torch.cat([tensor.reshape(-1) for tensor in tensors]))
        parts = torch.split_with_sizes(flat, [tensor.numel() for tensor in tensors])
        return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]

    def equalize(self, network: nn.Module) -> None:
        """Broadcast rank 0's weights and buffers."""
        if self.link is None:
            return
        for tensors in _by_kind([*network.parameters(), *network.buffers()]):
            flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
            dist.broadcast(flat, dist.get_global_rank(self.group, 0), group=self.group)
            _copy_back(flat, tensors)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their averages over ranks."""
        if self.link is None:
            return
        for kind in _by_kind(tensors):
            flat = self.link.all_reduce(torch.cat([tensor.reshape(-1) for tensor in kind]))
            _copy_back(flat / self.size, kind)


def _by_kind(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    return list(groups.values())


@torch.no_grad()
def _copy_back(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    parts = torch.split_with_sizes(flat, [tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view(tensor.shape))


@contextlib.contextmanager
def joined() -> Iterator[World]:
    """The world of this process; a process group that it initializes is destroyed afterwards.

    Raises:
        ConfigError: the environment names several processes but no master.
    """
    if dist.is_available() and dist.is_initialized():
        yield _world()
        return
    size, rank = os.environ.get("WORLD_SIZE", "1"), os.environ.get("RANK")
    if rank is None or size == "1" or not dist.is_available():
        yield World()
        return
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise ConfigError(
                f"WORLD_SIZE is {size}, but {name} is not set: start the processes by torchrun, or"
                " unset RANK and WORLD_SIZE for one process"
            )
    nccl = torch.cuda.is_available() and dist.is_nccl_available()
    if nccl:
        torch.cuda.set_device(_local_rank() % torch.cuda.device_count())
    backend = "cpu:gloo,cuda:nccl" if nccl else "gloo"
    store, number, count = join_store()
    dist.init_process_group(backend, store=store, rank=number, world_size=count)
    try:
        yield _world()
    finally:
        dist.destroy_process_group()


def _world() -> World:
    group, size = dist.group.WORLD, dist.get_world_size()
    if size == 1:
        return World()
    return World(dist.get_rank(), size, _local_rank(), group, Collectives(group))


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0")))


def is_lost(error: RuntimeError) -> bool:
    """Whether a collective failed because another process is gone."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def restarted() -> bool:
    """Whether torchrun has started this process to replace one that failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


class Poll:
    """Numbers that ranks agree on between batches, without waiting: signals and clocks.

    With several ranks, numbers given before one batch are received before the next, on all ranks
    before the same one.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self._sent: tuple[Any, Tensor] | None = None

    def exchange(self, *numbers: int) -> list[int]:
        """The largest of each number over ranks: with one rank, of this call; else of the last."""
        if self.world.link is None:
            return list(numbers)
        received = self.finish() or [0] * len(numbers)
        mine, host = torch.tensor(numbers, dtype=torch.int64), self.world.link.host_group()
        self._sent = dist.all_reduce(mine, dist.ReduceOp.MAX, group=host, async_op=True), mine
        return received

    def finish(self) -> list[int]:
        """Wait for the last exchange; its numbers, none if there was no exchange."""
        if self._sent is None:
            return []
        (work, numbers), self._sent = self._sent, None
        work.wait()
        return [int(number) for number in numbers.tolist()]
