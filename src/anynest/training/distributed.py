"""A run of several processes, as ``torchrun`` starts them: who leads, and what ranks tell one another.

Every rank holds the same weights, running statistics and optimizer state at every step; only its
part of each batch is its own. So rank 0 alone reads and writes the run folder and speaks to the user,
and what it finds or fails at is told to all, which then go on or stop alike.

The world is found in the environment (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT), or
in a process group that the caller has set up.
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
from .rendezvous import meet

# what the leader may fail at, by name: raised again on every rank
ERRORS: dict[str, type[Exception]] = {
    kind.__name__: kind for kind in (ConfigError, RunFolderError, RunError, ValueError, OSError)
}


@dataclass
class World:
    """The processes of a run. One process is a world of its own, in which nothing is sent."""

    rank: int = 0
    size: int = 1
    local_rank: int | None = None
    group: Any = None
    link: Collectives | None = field(default=None, repr=False)

    @property
    def leads(self) -> bool:
        """Whether this process writes the files and speaks to the user."""
        return self.rank == 0

    def run_on_rank_zero(self, deed: Callable[[], bytes | None]) -> bytes | None:
        """What ``deed`` gives on rank 0, where alone it is done; its error is raised on all ranks."""
        if self.link is None:
            return deed()
        data, error = None, None
        if self.leads:
            try:
                data = deed()
            except tuple(ERRORS.values()) as found:
                error = found
        told = b"" if data is None else data
        if error is not None:
            names = [kind.__name__ for kind in type(error).__mro__]
            kind = next(name for name in names if name in ERRORS)
            told = json.dumps([kind, " ".join(str(error).split())]).encode()
        state = 2 if error is not None else data is not None
        received = self._broadcast(told, state)
        if error is not None:
            raise error
        return received

    def _broadcast(self, told: bytes, state: int) -> bytes | None:
        assert self.link is not None
        words = self.link.compare([len(told), state])
        length, state = int(words[0][0]), int(words[0][1])
        buffer = torch.empty(length, dtype=torch.uint8)
        if self.leads and length:
            buffer = torch.frombuffer(bytearray(told), dtype=torch.uint8)
        if length:
            host = self.link.host_group()
            dist.broadcast(buffer, dist.get_global_rank(host, 0), group=host)
        data = buffer.numpy().tobytes()
        if state == 2 and not self.leads:
            kind, message = json.loads(data)
            raise ERRORS[kind](message)
        return data if state else None

    def gather(self, data: bytes) -> list[bytes]:
        """Every rank's bytes, on every rank."""
        if self.link is None:
            return [data]
        lengths = [int(row[0]) for row in self.link.compare([len(data)])]
        padded = data.ljust(max(1, *lengths), b"\0")
        found = self.link.compare_bytes(padded)
        return [whole[:length] for whole, length in zip(found, lengths, strict=True)]

    def total(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """RunningMetrics over ranks of tensors of one dtype and device."""
        if self.link is None:
            return list(tensors)
        flat = self.link.all_reduce(torch.cat([tensor.reshape(-1) for tensor in tensors]))
        parts = torch.split_with_sizes(flat, [tensor.numel() for tensor in tensors])
        return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]

    def equalize(self, network: nn.Module) -> None:
        """Give every rank rank 0's weights and buffers."""
        if self.link is None:
            return
        for tensors in _by_kind([*network.parameters(), *network.buffers()]):
            flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
            dist.broadcast(flat, dist.get_global_rank(self.group, 0), group=self.group)
            _spread(flat, tensors)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their averages over ranks."""
        if self.link is None:
            return
        for kind in _by_kind(tensors):
            flat = self.link.all_reduce(torch.cat([tensor.reshape(-1) for tensor in kind]))
            _spread(flat / self.size, kind)


def _by_kind(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    return list(groups.values())


@torch.no_grad()
def _spread(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    parts = torch.split_with_sizes(flat, [tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view(tensor.shape))


@contextlib.contextmanager
def joined() -> Iterator[World]:
    """The world of this process; what it sets up is taken down afterwards.

    Errors: ConfigError for an environment that names several processes but not how to meet.
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
    store, number, count = meet()
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
    """Whether torchrun has started this process in the place of one that failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


class Poll:
    """Signals and clocks, agreed upon without waiting: what is said before one batch is heard before
    the next, on all ranks before the same one."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._said: tuple[Any, Tensor] | None = None

    def say(self, *numbers: int) -> None:
        """Tell the other ranks, which say as many numbers at the same time."""
        mine, work = torch.tensor(numbers, dtype=torch.int64), None
        if self.world.link is not None:
            host = self.world.link.host_group()
            work = dist.all_reduce(mine, dist.ReduceOp.MAX, group=host, async_op=True)
        self._said = work, mine

    def heard(self) -> list[int]:
        """The largest that any rank has said last, of each number; nothing if none has spoken."""
        if self._said is None:
            return []
        (work, numbers), self._said = self._said, None
        if work is not None:
            work.wait()
        return [int(number) for number in numbers.tolist()]
