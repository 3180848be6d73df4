"""Parameters and multiply-adds per stage, counted while the stages run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from ..nested.cost import StageCost


class _Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The parameters that operations read."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known = {id(parameter): parameter for parameter in parameters}
        self.found: dict[int, int] = {}  # id -> elements

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for value in tree_leaves((args, kwargs)):
            if id(value) in self._known:
                self.found[id(value)] = value.numel()
        return func(*args, **kwargs)


@contextmanager
def _without_mkldnn() -> Iterator[None]:
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)


def count_costs(
    network: nn.Module, rows: int, visit: Callable[[Callable[[], None]], None]
) -> tuple[StageCost, ...]:
    """What each stage adds, and the sums up to it.

    Multiply-adds are those of convolutions, linear layers and matrix products.

    Args:
        network: whose parameters are counted.
        rows: the size of the batch; multiply-adds are per row.
        visit: evaluates all stages; calls its argument at the end of each.
    """
    counts: list[tuple[int, int]] = []  # up to each stage
    with (
        _without_mkldnn(),  # LSTMs as matrix products
        sdpa_kernel(SDPBackend.MATH),
        _Reads(list(network.parameters())) as reads,
        FlopCounterMode(display=False) as flops,
    ):

        def reached() -> None:
            counts.append((sum(reads.found.values()), flops.get_total_flops() // 2 // rows))

        visit(reached)
    costs = []
    before = (0, 0)
    for stage, (held, work) in enumerate(counts, 1):
        costs.append(StageCost(stage, held - before[0], held, work - before[1], work))
        before = (held, work)
    return tuple(costs)
