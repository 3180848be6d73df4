"""Parameters and multiply-adds of every stage of any network: its own ``cost``, or counted.

A multiply-add is one multiplication and one addition, in convolutions and matrix products: half of
what ``torch.utils.flop_counter`` counts. A parameter belongs to the first stage that reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..engines.model_source import Network
from ..engines.module_engine import ModuleSession
from ..engines.open import open_session
from ..engines.segment_engine import SegmentSession
from ..engines.session import stages
from ..nets import StageCost
from ..nets.exits.costs import count_costs as count


def stage_costs(network: Network, inputs: Mapping[str, Tensor]) -> tuple[StageCost, ...]:
    """The cost of every stage for one sample, numbered from 1.

    Args:
        network: with a method ``cost(*example)`` or without.
        inputs: all inputs by name, in order; dimension 0 is the batch.
    """
    cost: Any = getattr(network, "cost", None)
    if cost is None or isinstance(cost, nn.Module):
        return count_costs(network, inputs)
    rows = tuple(cost(*inputs.values()))
    return tuple(
        StageCost(
            number, row.own_parameters, row.parameters, row.own_multiply_adds, row.multiply_adds
        )
        for number, row in enumerate(rows, 1)
    )


def count_costs(network: Network, inputs: Mapping[str, Tensor]) -> tuple[StageCost, ...]:
    """The same, counted while the stages run on the first sample."""
    session = open_session(network, backend="torch", threads=None)
    assert isinstance(session, ModuleSession | SegmentSession)  # nested networks know their costs
    first = {name: value[:1] for name, value in inputs.items()}
    evaluation = session.begin(first if len(first) > 1 else next(iter(first.values())))

    def visit(reached: Callable[[], None]) -> None:
        for _ in stages(evaluation):
            reached()

    fast = torch.backends.mha.get_fastpath_enabled()  # a kernel that hides its products
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        return count(session.module, 1, visit)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        evaluation.close()
        session.close()
