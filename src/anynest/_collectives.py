"""Collectives of torch.distributed, counted in bytes: the ground floor of everything distributed.

With W ranks, a reduce-scatter or an all-gather of n bytes sends ``n (W - 1) / W`` bytes per rank;
an all-reduce is one of each.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

if dist.is_available():
    # Optimizers import this module at their first step, and its default arguments then capture the
    # current process group forever (torch 2.13): gloo's threads outlive destroy_process_group and
    # may abort the process at exit. Imported before a group exists, it captures none.
    import torch.distributed.nn

Receive = Callable[[], Tensor]

# Backends with a real reduce-scatter. gloo's is an all-reduce, which sends twice as much.
REDUCE_SCATTER = ("nccl", "xccl", "hccl")


class Collectives:
    """The collectives of one process group.

    Attributes:
        size: W, the number of ranks.
        rank: this process's rank within the group.
        sent: bytes sent by this rank so far.
    """

    def __init__(self, group: Any) -> None:
        self.group = group
        self.size = dist.get_world_size(group)
        self.rank = dist.get_rank(group)
        self.sent = 0
        self._backends = _backends(group)
        self._host: Any = None

    def take_sent(self) -> int:
        """Bytes sent since the last call."""
        sent, self.sent = self.sent, 0
        return sent

    def reduce_scatter(self, rows_WN: Tensor) -> Receive:
        """Start to sum every rank's [W, N]; this rank receives row ``rank`` of the sum.

        Returns:
            A function that waits for completion and returns the sum [N].
        """
        backend = self.backend(rows_WN.device)
        self._count(rows_WN, 1)
        if backend in REDUCE_SCATTER:
            piece = rows_WN.new_empty(rows_WN.shape[1])
            # torch 2.13 renamed this function and warns about the old name
            start = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
            work = start(piece, rows_WN.view(-1), group=self.group, async_op=True)

            def receive() -> Tensor:
                work.wait()
                return piece

            return receive
        parts_WN = torch.empty_like(rows_WN)
        inputs = [rows_WN]  # referenced until the transfer is complete
        sending = dist.all_to_all_single(parts_WN, rows_WN, group=self.group, async_op=True)

        def receive_parts() -> Tensor:
            sending.wait()
            inputs.clear()
            return parts_WN.sum(0)

        return receive_parts

    def all_gather(self, piece_N: Tensor) -> Tensor:
        """[W, N] every rank's piece."""
        self.backend(piece_N.device)
        whole_WN = piece_N.new_empty((self.size, *piece_N.shape))
        self._count(whole_WN, 1)
        all_gather_into(whole_WN, piece_N.reshape(-1), self.group)
        return whole_WN

    def all_reduce(self, numbers: Tensor) -> Tensor:
        """The sum over ranks, bitwise equal on all of them; the argument is not modified."""
        self.backend(numbers.device)
        numbers = numbers.clone()
        self._count(numbers, 2)
        dist.all_reduce(numbers, group=self.group)
        return numbers

    def compare(self, numbers: Sequence[float]) -> list[list[float]]:
        """Every rank's numbers (equally many on each), exchanged between hosts."""
        mine = torch.tensor(numbers, dtype=torch.float64)
        return [list(row) for row in self._exchange(mine).tolist()]

    def compare_bytes(self, data: bytes) -> list[bytes]:
        """Every rank's bytes (equally many on each), exchanged between hosts."""
        mine = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return [bytes(row) for row in self._exchange(mine).tolist()]

    def _exchange(self, mine: Tensor) -> Tensor:
        whole = mine.new_empty((self.size, *mine.shape))
        self._count(whole, 1)
        all_gather_into(whole, mine, self.host_group())
        return whole

    def host_group(self) -> Any:
        """The same ranks over a backend for CPU tensors, so that messages never wait for a GPU."""
        if self._host is None:
            self._host = self.group
            if "cpu" not in self._backends:
                ranks = dist.get_process_group_ranks(self.group)
                self._host = dist.new_group(ranks, backend="gloo", use_local_synchronization=True)
        return self._host

    def backend(self, device: torch.device) -> str:
        """The backend for tensors of a device; ValueError if the group has none."""
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


def all_gather_into(whole_WN: Tensor, piece_N: Tensor, group: Any) -> None:
    """Write every rank's piece to its row of ``whole``."""
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    gather(whole_WN.view(-1), piece_N, group=group)


def _backends(group: Any) -> dict[str, str]:
    """Backend by device type, parsed from the group's configuration "cpu:gloo,cuda:nccl"."""
    entries = str(dist.get_backend_config(group)).split(",")
    return {kind: name for kind, _, name in (entry.partition(":") for entry in entries)}
