"""What goes from rank to rank: the few collectives of torch.distributed that rows need, counted.

A reduce-scatter sends ``(W-1)/W`` of what it is given and so does an all-gather; an all-reduce is
both. ``Link.sent`` adds up what this rank has sent by that reckoning, W ranks taking part.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

if dist.is_available():
    # The first optimizer step imports this, and its functions' defaults then hold the group that is
    # there, for ever (torch 2.13): gloo's threads outlive destroy_process_group, and now and then the
    # process aborts as it ends. Imported before there is a group, it holds none.
    import torch.distributed.nn

Receive = Callable[[], Tensor]

# the backends whose reduce-scatter is one; gloo's is an all-reduce, which sends twice as much
REDUCE_SCATTER = ("nccl", "xccl", "hccl")


class Link:
    """A process group as the rows use it.

    ``size`` is W, the number of ranks; ``rank`` is this one's number among them; ``sent`` counts
    the bytes sent by this rank.
    """

    def __init__(self, group: Any) -> None:
        self.group = group
        self.size = dist.get_world_size(group)
        self.rank = dist.get_rank(group)
        self.sent = 0
        self._backends = _backends(group)
        self._host: Any = None

    def take_sent(self) -> int:
        """What was sent since the last call."""
        sent, self.sent = self.sent, 0
        return sent

    def reduce_scatter(self, rows_WN: Tensor) -> Receive:
        """Begin to sum every rank's [W, N] and to keep row ``rank`` of it.

        Returns what waits for the end and gives the sum [N].
        """
        backend = self.backend(rows_WN.device)
        self._count(rows_WN, 1)
        if backend in REDUCE_SCATTER:
            piece = rows_WN.new_empty(rows_WN.shape[1])
            work = _reduce_scatter(piece, rows_WN.view(-1), group=self.group, async_op=True)

            def receive() -> Tensor:
                work.wait()
                return piece

            return receive
        parts_WN = torch.empty_like(rows_WN)
        given = [rows_WN]  # to be kept until it has gone
        sending = dist.all_to_all_single(parts_WN, rows_WN, group=self.group, async_op=True)

        def receive_parts() -> Tensor:
            sending.wait()
            given.clear()
            return parts_WN.sum(0)

        return receive_parts

    def all_gather(self, piece_N: Tensor) -> Tensor:
        """[W, N]: every rank's piece."""
        self.backend(piece_N.device)
        whole_WN = piece_N.new_empty((self.size, *piece_N.shape))
        self._count(whole_WN, 1)
        _all_gather(whole_WN.view(-1), piece_N.reshape(-1), group=self.group)
        return whole_WN

    def total(self, numbers: Tensor) -> Tensor:
        """The sum over ranks, the same bits on all of them; for few numbers."""
        self.backend(numbers.device)
        numbers = numbers.clone()
        self._count(numbers, 2)
        dist.all_reduce(numbers, group=self.group)
        return numbers

    def compare(self, numbers: Sequence[float]) -> list[list[float]]:
        """Every rank's numbers (of one count everywhere), exchanged on the host."""
        mine = torch.tensor(numbers, dtype=torch.float64)
        return [list(row) for row in self._exchange(mine).tolist()]

    def compare_bytes(self, data: bytes) -> list[bytes]:
        """Every rank's bytes (of one length everywhere), exchanged on the host."""
        mine = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return [bytes(row) for row in self._exchange(mine).tolist()]

    def _exchange(self, mine: Tensor) -> Tensor:
        whole = mine.new_empty((self.size, *mine.shape))
        self._count(whole, 1)
        _all_gather(whole.view(-1), mine, group=self.host_group())
        return whole

    def host_group(self) -> Any:
        """The same ranks over a backend for CPU tensors, so that no word waits for a device."""
        if self._host is None:
            self._host = self.group
            if "cpu" not in self._backends:
                ranks = dist.get_process_group_ranks(self.group)
                self._host = dist.new_group(ranks, backend="gloo", use_local_synchronization=True)
        return self._host

    def backend(self, device: torch.device) -> str:
        """The backend that carries tensors of a device; ValueError where there is none."""
        if device.type not in self._backends:
            found = ", ".join(f"{kind} by {name}" for kind, name in self._backends.items())
            raise ValueError(
                f"the group must carry {device.type} tensors, found one for {found}: put the"
                " network on that device, or init_process_group('cpu:gloo,cuda:nccl')"
            )
        return self._backends[device.type]

    def _count(self, tensor: Tensor, passes: int) -> None:
        size = tensor.numel() * tensor.element_size()
        self.sent += passes * size * (self.size - 1) // self.size


def _backends(group: Any) -> dict[str, str]:
    """The backend for each kind of device, as the group's own words have it: "cpu:gloo,..."."""
    words = str(dist.get_backend_config(group)).split(",")
    return {kind: name for kind, _, name in (word.partition(":") for word in words)}


def _reduce_scatter(*arguments: Any, **named: Any) -> Any:
    # torch 2.13 gave it a new name and warns about the old one
    call = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    return call(*arguments, **named)


def _all_gather(*arguments: Any, **named: Any) -> Any:
    call = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    return call(*arguments, **named)
